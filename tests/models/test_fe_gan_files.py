"""FE-GAN on plain files: edits of the command line, stages of training, files of weights."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from support.training import SMALL, labels_of

from torchext.models import papers
from torchext.models.__main__ import main
from torchext.models.blocks import iterated
from torchext.models.fe_gan import PAPER
from torchext.models.fe_gan.editing import read_colours, read_lines, working_size

skimage = pytest.importorskip("skimage.data")
CONFIG = papers.configure(PAPER.config, SMALL["fe_gan"])
WIDE, HIGH = 72, 96  # of the photo: the networks' form, half as large again


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A photo, its parsing, a mask, what is drawn, and a checkpoint."""
    crop = Image.fromarray(skimage.astronaut()).crop((60, 0, 380, 426)).resize((WIDE, HIGH))
    crop.save(tmp_path / "photo.png")
    crop.convert("L").point(lambda value: 5 * value // 256).save(tmp_path / "parsing.png")
    mask, lines = (Image.new("L", (WIDE, HIGH)) for _ in range(2))
    ImageDraw.Draw(mask).rectangle((20, 30, 50, 70), 255)
    ImageDraw.Draw(lines).line(((22, 32), (48, 68)), 255, 1)
    mask.save(tmp_path / "mask.png")
    lines.save(tmp_path / "sketch.png")
    layer = Image.new("RGBA", (WIDE, HIGH))
    ImageDraw.Draw(layer).line(((25, 60), (45, 40)), "red", 4)
    layer.save(tmp_path / "colours.png")
    strokes = Image.new("L", (WIDE, HIGH))
    ImageDraw.Draw(strokes).rectangle((25, 35, 35, 45), 255)
    strokes.save(tmp_path / "strokes.png")
    torch.manual_seed(0)
    networks = {name: iterated(network) for name, network in PAPER.networks(CONFIG).items()}
    for module in networks["parsing"].modules():  # so that the parsing depends on what is drawn
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.kaiming_normal_(module.weight)
    papers.save(tmp_path / "all.safetensors", PAPER, CONFIG, networks)
    for name in ("parsing", "generator"):
        papers.save(tmp_path / f"{name}.safetensors", PAPER, CONFIG, {name: networks[name]})
    return tmp_path


def run(folder: Path, *options: str, checkpoint: str = "all.safetensors", **files: str) -> int:
    """Edit; options that name a file of the folder mean it."""
    given = [str(folder / text) if (folder / text).is_file() else text for text in options]
    read = [str(folder / files.get(name, f"{name}.png")) for name in ("photo", "mask", "parsing")]
    command = ["fe_gan", "edit", *read, *given, "-o", str(folder / "out.png")]
    return main([*command, "--checkpoint", str(folder / checkpoint)])


def output(folder: Path, *options: str, **files: str) -> np.ndarray:
    assert run(folder, *options, **files) == 0
    return np.asarray(Image.open(folder / "out.png")).astype(int)


EDITS = {
    "none": (),
    "sketch": ("--sketch", "sketch.png"),
    "colours": ("--colours", "colours.png"),
    "opaque": ("--colours", "photo.png"),
    "strokes": ("--colours", "photo.png", "--strokes", "strokes.png"),
    "seed": ("--seed", "1"),
    "both": ("--sketch", "sketch.png", "--colours", "colours.png"),
}


def test_every_edit_of_the_command_line(folder):
    photo = np.asarray(Image.open(folder / "photo.png"))
    outside = np.asarray(Image.open(folder / "mask.png")) == 0
    results = {name: output(folder, *options) for name, options in EDITS.items()}
    assert np.array_equal(results["none"], output(folder))  # repeatable
    names = list(results)
    for i, name in enumerate(names):
        assert np.array_equal(results[name][outside], photo[outside]), name
        for other in names[:i]:
            assert not np.array_equal(results[name], results[other]), (name, other)


def test_what_the_hole_holds_is_not_read(folder):
    inside = np.asarray(Image.open(folder / "mask.png")) > 0
    before = output(folder, *EDITS["both"])
    for name, value in (("photo", 200), ("parsing", 1)):
        values = np.array(Image.open(folder / f"{name}.png"))
        values[inside] = value
        Image.fromarray(values).save(folder / f"{name}.png")
    assert np.array_equal(before, output(folder, *EDITS["both"]))


def test_the_parsing_is_written_where_it_is_asked_for(folder, capsys):
    output(folder)
    assert not (folder / "out-parsing.png").exists()
    output(folder, "--write-parsing")
    assert "out-parsing.png" in capsys.readouterr().out
    made = Image.open(folder / "out-parsing.png")
    assert made.size == (WIDE, HIGH)
    assert len(np.unique(made)) > 1
    assert np.asarray(made).max() < 5
    # What is written can be the parsing of the next edit, but not over what that reads.
    assert run(folder, "--write-parsing", parsing="out-parsing.png") == 1
    assert "is the parsing itself" in capsys.readouterr().err
    output(folder, parsing="out-parsing.png")


def test_a_parsing_in_colours(folder):
    from torchext.models.fe_gan import coloured

    numbers = torch.from_numpy(np.array(Image.open(folder / "parsing.png"))).long()
    values = (coloured(numbers[None, None])[0] * 255).round().byte().movedim(0, -1).numpy()
    Image.fromarray(values).save(folder / "colour-map.png")
    (folder / "palette.txt").write_text("".join(f"{i} {9 * i} 0 {i}\n" for i in range(5)))
    other = np.stack((9 * numbers.numpy(), 0 * numbers.numpy(), numbers.numpy()), axis=2)
    Image.fromarray(other.astype(np.uint8)).save(folder / "other.png")
    wanted = output(folder)
    assert np.array_equal(wanted, output(folder, parsing="colour-map.png"))
    assert np.array_equal(wanted, output(folder, "--palette", "palette.txt", parsing="other.png"))


def test_lines_on_transparency_and_on_black_lie_alike(folder):
    layer = Image.new("RGBA", (WIDE, HIGH))
    ImageDraw.Draw(layer).line(((22, 32), (48, 68)), "blue", 1)
    layer.save(folder / "layer.png")
    one = output(folder, "--sketch", "sketch.png")
    assert np.array_equal(one, output(folder, "--sketch", "layer.png"))


def test_thin_lines_stay_when_photos_are_made_smaller(tmp_path):
    values = np.zeros((90, 60), np.uint8)
    values[45] = 255
    Image.fromarray(values).save(tmp_path / "lines.png")
    lines = read_lines(tmp_path / "lines.png", (60, 90), (32, 16))
    assert lines.shape == (1, 1, 32, 16)
    assert lines.amax(dim=2).min() == 1  # in every column
    assert lines.mean() < 0.1
    larger = read_lines(tmp_path / "lines.png", (60, 90), (180, 120))
    assert larger.sum(dim=2).unique().tolist() == [2.0]


def test_colours_count_where_they_are_opaque(tmp_path):
    layer = Image.new("RGBA", (4, 4))
    layer.putpixel((1, 2), (255, 0, 51, 255))
    layer.putpixel((3, 3), (255, 255, 255, 90))
    layer.save(tmp_path / "layer.png")
    colours, strokes = read_colours(tmp_path / "layer.png", (4, 4), (4, 4))
    assert strokes[0, 0].nonzero().tolist() == [[2, 1]]
    assert colours[0, :, 2, 1].tolist() == pytest.approx([1, 0, 0.2])
    layer.convert("RGB").save(tmp_path / "opaque.png")
    assert read_colours(tmp_path / "opaque.png", (4, 4), (8, 8))[1].min() == 1


def test_photos_are_edited_at_the_papers_height():
    network = PAPER.config().network
    assert working_size((320, 512), network) == (512, 320)
    assert working_size((1000, 1600), network) == (512, 320)
    assert working_size((640, 480), network) == (512, 688)
    assert working_size((10, 2000), network) == (512, 32)


def test_an_erased_photo_of_another_form_is_its_own_mask(folder):
    picture = Image.fromarray(skimage.coffee()).resize((130, 90)).convert("RGBA")
    alpha = Image.new("L", picture.size, 255)
    ImageDraw.Draw(alpha).ellipse((30, 20, 90, 70), 0)
    picture.putalpha(alpha)
    picture.save(folder / "erased.png")
    picture.convert("L").point(lambda value: 5 * value // 256).save(folder / "map.png")
    made = output(folder, photo="erased.png", mask="erased.png", parsing="map.png")
    assert made.shape == (90, 130, 4)
    known = np.asarray(alpha) > 0
    assert np.array_equal(made[known], np.asarray(picture)[known])
    assert made[~known, 3].min() == 255
    assert made[~known, :3].std() > 0


@pytest.mark.parametrize(
    "options, files, message",
    [
        (("--sketch", "small.png"), {}, "small.png: expected the photo's size, 72 x 96 pixels, go"),
        (("--colours", "small.png"), {}, "small.png: expected the photo's size"),
        ((), {"parsing": "small.png"}, "small.png: expected the photo's size, 72 x 96 pixels, got"),
        ((), {"mask": "small.png"}, "small.png: expected the photo's size"),
        ((), {"parsing": "many.png"}, "many.png: expected labels from 0 to 4, got 7"),
        ((), {"parsing": "photo.png"}, "photo.png: expected colours of the palette"),
        ((), {"parsing": "absent.png"}, "cannot read .*absent.png"),
        ((), {"mask": "black.png"}, "black.png: expected a hole and something known beside it"),
        (("--strokes", "strokes.png"), {}, "--strokes: expected --colours with it"),
        (("--sketch", "text.png"), {}, "text.png: not a picture that Pillow knows"),
        (("--threshold", "300"), {}, "--threshold: expected 0 to 254, got 300"),
        ((), {"checkpoint": "parsing.safetensors"}, "without generator there are"),
        ((), {"checkpoint": "generator.safetensors"}, "without parsing there are"),
        (("--palette", "absent.txt"), {}, "absent.txt"),
    ],
)
def test_bad_input_is_named(options, files, message, folder, capsys):
    small = Image.new("L", (9, 9), 3)
    small.putpixel((4, 4), 0)
    small.save(folder / "small.png")
    Image.new("L", (WIDE, HIGH)).save(folder / "black.png")
    Image.new("L", (WIDE, HIGH), 7).save(folder / "many.png")
    (folder / "text.png").write_text("no picture")
    assert run(folder, *options, **files) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (folder / "out.png").exists()


# --- training -------------------------------------------------------------------------------------


def test_the_stages_follow_each_other(photos, pretrained, tmp_path, capsys):
    shared = ["fe_gan", "train", str(photos), "--parsings", str(labels_of(photos))]
    shared += ["--device", "cpu", "--workers", "0", "--batch", "2", "--iterations", "1"]
    for name, value in SMALL["fe_gan"].items():
        shared += ["--set", f"{name}={value}"]
    vgg = f"--pretrained=vgg19={pretrained['vgg19']}"
    assert main([*shared, "-o", str(tmp_path / "early"), vgg]) == 1
    assert "expected a file with parsing" in capsys.readouterr().err
    first, second = tmp_path / "parsing", tmp_path / "inpainting"
    assert main([*shared, "-o", str(first), "--stage", "parsing"]) == 0
    (trained,) = first.glob("*.safetensors")
    command = [*shared, "-o", str(second), vgg, "--checkpoint", str(trained)]
    assert main(command) == 0
    (whole,) = second.glob("*.safetensors")
    before, _ = papers.load(trained, PAPER)
    after, _ = papers.load(whole, PAPER)
    assert before.keys() == {"parsing", "parsing_discriminator"}
    assert after.keys() == {"parsing", "generator", "discriminator"}
    state = before["parsing"].state_dict()
    assert all(v.equal(state[k]) for k, v in after["parsing"].state_dict().items())


@pytest.mark.parametrize(
    "options, message",
    [
        (("--parsings", "absent"), "absent: expected a folder of images, found none"),
        (("--masks", "absent"), "absent: expected a folder of images, found none"),
        (("--sketches", "absent"), "absent: expected a folder of images, found none"),
        (("--share", "0.9", "0.95"), "--share: expected 0 <= LOW <= HIGH <= 0.8"),
        (("--set", "classes=3"), r"expected labels from 0 to 2, got \d"),
        (("--set", "size=60,48"), r"size: expected .* multiples of 16, got \(60, 48\)"),
    ],
)
def test_bad_input_of_training_is_named(options, message, photos, tmp_path, capsys):
    command = ["fe_gan", "train", str(photos), "--parsings", str(labels_of(photos))]
    command += ["-o", str(tmp_path), "--stage", "parsing", "--device", "cpu", "--workers", "0"]
    for name, value in SMALL["fe_gan"].items():
        command += ["--set", f"{name}={value}"]
    assert main([*command, "--iterations", "1", *options]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_training_reads_folders_of_masks_and_strokes(photos, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    values = np.zeros((40, 40), np.uint8)
    values[10:30, 10:30] = 255
    Image.fromarray(values).save(masks / "a.png")
    command = ["fe_gan", "train", str(photos), "--parsings", str(labels_of(photos))]
    command += ["-o", str(tmp_path / "run"), "--stage", "parsing", "--device", "cpu"]
    command += ["--workers", "0", "--batch", "2", "--iterations", "1", "--masks", str(masks)]
    command += ["--strokes", str(masks)]
    for name, value in SMALL["fe_gan"].items():
        command += ["--set", f"{name}={value}"]
    assert main(command) == 0


# --- files of weights -----------------------------------------------------------------------------


def states() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    return {name: network.state_dict() for name, network in PAPER.networks(CONFIG).items()}


def assert_loaded(networks: dict, wanted: dict) -> None:
    assert networks.keys() == wanted.keys()
    for name, state in wanted.items():
        loaded = networks[name].state_dict()
        assert loaded.keys() == state.keys()
        assert all(value.equal(loaded[key]) for key, value in state.items())


def test_the_keys_are_the_published_ones():
    with torch.device("meta"):
        networks = PAPER.networks(PAPER.config())
    found = {name: network.state_dict() for name, network in networks.items()}
    counts = {name: len(state) for name, state in found.items()}
    assert counts == {
        "parsing": 164,
        "parsing_discriminator": 20,
        "generator": 94,
        "discriminator": 18,
    }
    shapes = {
        "parsing": {
            "model.1.0.weight": (64, 26, 7, 7),
            "model.9.1.running_var": (1024,),
            "model.19.conv_block.4.0.weight": (1024, 1024, 3, 3),
            "model.20.0.weight": (1024, 512, 3, 3),
            "model.29.bias": (20,),
        },
        "parsing_discriminator": {
            "discriminator_0.model0.0.bias": (64,),
            "discriminator_1.model2.0.0.weight_orig": (256, 128, 4, 4),
            "discriminator_1.model3.0.weight": (1, 256, 4, 4),
        },
        "generator": {
            "down3.conv.weight": (256, 128, 4, 4),
            "parsing_encoder.7.bias": (256,),
            "middle.7.conv_block.5.weight": (512, 512, 3, 3),
            "tmp_block.conv_block.1.weight": (256, 512, 3, 3),
            "up_1.conv.weight_v": (2304,),
            "up_3.shared.0.weight": (128, 5, 3, 3),
            "up2.last_up.1.weight": (3, 256, 7, 7),
            "up4.up.0.weight": (64, 3, 7, 7),
        },
        "discriminator": {
            "conv1.0.weight_orig": (64, 32, 4, 4),
            "features.0.weight_u": (64,),
            "conv5.0.weight_orig": (1, 512, 4, 4),
        },
    }
    for name, expected in shapes.items():
        for key, shape in expected.items():
            assert found[name][key].shape == shape, key


def test_files_load_alone_side_by_side_and_from_a_folder(tmp_path):
    wanted = states()
    for name, state in wanted.items():
        torch.save(state, tmp_path / f"{name}.pth")
        loaded, _ = papers.load(tmp_path / f"{name}.pth", PAPER, CONFIG)
        assert_loaded(loaded, {name: state})
    torch.save(wanted, tmp_path / "all.pth")
    assert_loaded(papers.load(tmp_path / "all.pth", PAPER, CONFIG)[0], wanted)
    both = {"parsing": "G", "parsing_discriminator": "D", "generator": "G", "discriminator": "D"}
    for name, letter in both.items():
        stage = tmp_path / ("parsing" if "parsing" in name else "inpainting")
        stage.mkdir(exist_ok=True)
        torch.save(wanted[name], stage / f"20_net_{letter}.pth")
    assert_loaded(papers.load(tmp_path, PAPER, CONFIG)[0], wanted)


def test_the_first_layer_of_the_discriminator_is_stored_twice(tmp_path):
    wanted = states()["discriminator"]
    alone = {key: value for key, value in wanted.items() if not key.startswith("features")}
    torch.save(alone, tmp_path / "file.pth")
    loaded, _ = papers.load(tmp_path / "file.pth", PAPER, CONFIG)
    assert_loaded(loaded, {"discriminator": wanted})
    other = {**wanted, "features.0.weight_u": wanted["conv1.0.weight_u"] + 1}
    torch.save(other, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"features\.0\.weight_u differs from conv1\.0\.weight_u"):
        papers.load(tmp_path / "file.pth", PAPER, CONFIG)


@pytest.mark.parametrize(
    "network, message",
    [
        ("parsing", "--set width=4 --set classes=5 --set parsing_blocks=1"),
        ("parsing_discriminator", "--set width=4 --set classes=5"),
        ("generator", "--set width=4 --set classes=5 --set inpainting_blocks=1"),
        ("discriminator", "--set width=4 --set classes=5"),
    ],
)
def test_other_options_are_told(network, message, tmp_path):
    torch.save(states()[network], tmp_path / "file.pth")
    with pytest.raises(ValueError, match=f"{message}$"):
        papers.load(tmp_path / "file.pth", PAPER)


def test_other_depths_are_told(tmp_path):
    settings = {**SMALL["fe_gan"], "downsamplings": 2, "parsing_blocks": 3, "discriminators": 1}
    config = papers.configure(PAPER.config, {**settings, "discriminator_layers": 4})
    told = {}
    for name in ("parsing", "parsing_discriminator"):
        told |= PAPER.options(PAPER.networks(config, [name])[name].state_dict())
    wanted = {"width": 4, "classes": 5, "downsamplings": 2, "parsing_blocks": 3}
    assert told == {**wanted, "discriminators": 1, "discriminator_layers": 4}


def test_a_missing_entry_is_named(tmp_path):
    state = dict(states()["generator"])
    del state["up_2.beta.bias"]
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"lacks up_2\.beta\.bias"):
        papers.load(tmp_path / "file.pth", PAPER, CONFIG)


def test_the_files_are_known_as_this_papers():
    with torch.device("meta"):
        networks = PAPER.networks(PAPER.config())
    for name, network in networks.items():
        assert papers.looks_like(network.state_dict()) == "fe_gan", name
