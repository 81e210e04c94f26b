"""MichiGAN on plain files: edits of the command line, stages of training, published files."""

import json
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
from torchext.models.michigan import PAPER, HairGenerator
from torchext.orientation import convert_photo

skimage = pytest.importorskip("skimage.data")
CONFIG = papers.configure(PAPER.config, SMALL["michigan"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos of 80 x 80 pixels with hair masks, an edited mask, and a checkpoint."""
    for i, name in enumerate(("photo", "other")):
        crop = Image.fromarray(skimage.astronaut()).crop((60 + 140 * i, 0, 220 + 140 * i, 160))
        crop.resize((80, 80)).save(tmp_path / f"{name}.png")
    values = np.zeros((80, 80), np.uint8)
    values[10:60, 20:60] = 255
    values[30:, 32:48] = 0
    for name, mask in (("hair", values), ("other-hair", values[:, ::-1]), ("ones", values // 255)):
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    edited = values.copy()
    edited[10:70, 60:70] = 255
    Image.fromarray(edited).save(tmp_path / "shape.png")
    edited[:30] = 0
    Image.fromarray(edited).save(tmp_path / "less.png")
    (tmp_path / "strokes.json").write_text(
        json.dumps([{"points": [[22, 20], [58, 20]], "thickness": 4}])
    )
    strokes = Image.new("RGBA", (80, 80))
    ImageDraw.Draw(strokes).line(((22, 20), (58, 20)), "red", 4)
    strokes.save(tmp_path / "strokes.png")
    torch.manual_seed(0)
    networks = {name: iterated(network) for name, network in PAPER.networks(CONFIG).items()}
    papers.save(tmp_path / "all.safetensors", PAPER, CONFIG, networks)
    papers.save(tmp_path / "alone.safetensors", PAPER, CONFIG, {"generator": networks["generator"]})
    return tmp_path


def run(folder: Path, *options: str, checkpoint: str = "all.safetensors") -> int:
    """Edit; options that name a file of the folder mean it."""
    given = [str(folder / text) if (folder / text).is_file() else text for text in options]
    if "hair.png" not in options and "ones.png" not in options:
        given = [str(folder / "hair.png"), *given]
    command = ["michigan", "edit", str(folder / "photo.png"), *given, "-o", str(folder / "out.png")]
    return main([*command, "--checkpoint", str(folder / checkpoint)])


def output(folder: Path, *options: str, **named: str) -> np.ndarray:
    assert run(folder, *options, **named) == 0
    return np.asarray(Image.open(folder / "out.png"))


EDITS = {
    "shape": ("--shape", "shape.png"),
    "structure": ("--structure", "other.png", "--structure-hair", "other-hair.png"),
    "strokes": ("--strokes", "strokes.json"),
    "appearance": ("--appearance", "other.png", "--appearance-hair", "other-hair.png"),
    "background": ("--background", "other.png"),
    "seed": ("--seed", "1"),
}
EDITS["all"] = sum(EDITS.values(), ())


def test_every_edit_of_the_command_line(folder):
    results = {"none": output(folder)}
    results |= {name: output(folder, *options) for name, options in EDITS.items()}
    names = list(results)
    for i, name in enumerate(names):
        assert results[name].shape == (64, 64, 3)  # the network's size
        for other in names[:i]:
            assert not np.array_equal(results[name], results[other]), (name, other)


def test_masks_of_any_values_do(folder):
    assert np.array_equal(output(folder, "ones.png"), output(folder, "hair.png"))


def test_strokes_from_pictures_and_texts_lie_alike(folder):
    one = output(folder, *EDITS["strokes"], "--paste").astype(int)
    two = output(folder, "--strokes", "strokes.png", "--paste").astype(int)
    assert np.abs(one - two).mean() < 2
    assert not np.array_equal(one, output(folder, "--paste"))


def test_a_map_of_angles_gives_what_the_photo_gives(folder):
    # At the network's size, so that neither is resized.
    for name in ("photo", "hair"):
        resized = Image.open(folder / f"{name}.png").resize((64, 64), Image.Resampling.NEAREST)
        resized.save(folder / f"{name}.png")
    convert_photo(folder / "photo.png", folder / "map.png", folder / "hair.png")
    assert np.array_equal(output(folder, "--orientation", "map.png"), output(folder))


def test_paste_keeps_the_photo_away_from_the_hair(folder):
    before = np.asarray(Image.open(folder / "photo.png"))
    after = output(folder, *EDITS["shape"], "--paste", "--margin", "0")
    hair, shape = (np.asarray(Image.open(folder / f"{n}.png")) > 0 for n in ("hair", "shape"))
    changed = (before != after).any(axis=2)
    assert changed[hair | shape].mean() > 0.8
    assert not changed[:8].any()
    assert not changed[72:].any()
    assert not changed[~(hair | shape)].any()  # the face too
    wider = (before != output(folder, *EDITS["shape"], "--paste", "--margin", "3")).any(axis=2)
    assert wider.sum() > changed.sum()


def test_a_photo_of_another_aspect(folder):
    for name in ("photo", "hair"):
        picture = Image.open(folder / f"{name}.png")
        picture.resize((80, 120), Image.Resampling.NEAREST).save(folder / f"{name}.png")
    assert output(folder).shape == (96, 64, 3)
    assert output(folder, "--paste").shape == (120, 80, 3)


def test_hair_that_is_taken_away_is_said(folder, capsys):
    output(folder, "--shape", "less.png")
    assert "the old hair stays visible" in capsys.readouterr().err
    output(folder, "--shape", "less.png", "--background", "other.png")
    assert "the old hair" not in capsys.readouterr().err


def test_the_generator_alone_edits_the_look(folder, capsys):
    output(folder, *EDITS["appearance"], checkpoint="alone.safetensors")
    capsys.readouterr()
    assert run(folder, *EDITS["shape"], checkpoint="alone.safetensors") == 1
    assert "shape: expected hair only where the structure has some" in capsys.readouterr().err
    assert run(folder, *EDITS["strokes"], checkpoint="alone.safetensors") == 1
    assert "strokes: expected none" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (("--shape", "small.png"), "small.png: expected the photo's size, 80 x 80 pixels, got 9"),
        (("--structure", "other.png"), "--structure, --structure-hair: expected both or none"),
        (("--appearance-hair", "hair.png", "hair.png"), "--appearance, --appearance-hair"),
        (("--appearance", "other.png", "--appearance-hair", "black.png"), "expected hair in white"),
        (("--strokes", "bad.json"), "bad.json: expected strokes as"),
        (("--strokes", "none.json"), "none.json: expected at least one stroke"),
        (("--strokes", "absent.png"), "cannot read absent.png"),
        (("--orientation", "other.png"), "other.png: expected an 8-bit orientation map, got RGB"),
        (("--orientation", "text.png"), "text.png: not a picture that Pillow knows"),
        (("--margin", "-1"), "--margin: expected at least 0, got -1"),
        (("--threshold", "300"), "--threshold: expected 0 to 254, got 300"),
        (("--set", "width=5"), "--set width=4"),
    ],
)
def test_bad_input_is_named(options, message, folder, capsys):
    Image.new("L", (9, 9), 255).save(folder / "small.png")
    Image.new("L", (80, 80)).save(folder / "black.png")
    (folder / "bad.json").write_text('[{"thickness": 3}]')
    (folder / "none.json").write_text("[]")
    (folder / "text.png").write_text("no picture")
    if options[0] == "--set":
        torch.save(HairGenerator(4, "normal").state_dict(), folder / "all.safetensors")
    assert run(folder, *options) == 1
    assert re.search(message, capsys.readouterr().err)


def test_the_stages_follow_each_other(photos, pretrained, tmp_path, capsys):
    shared = [
        "michigan",
        "train",
        str(photos),
        "--hair",
        str(labels_of(photos)),
        "--threshold",
        "2",
    ]
    shared += ["--device", "cpu", "--workers", "0", "--batch", "2", "--iterations", "1"]
    for name, value in SMALL["michigan"].items():
        shared += ["--set", f"{name}={value}"]
    vgg = f"--pretrained=vgg19={pretrained['vgg19']}"
    assert main([*shared, "-o", str(tmp_path / "early"), vgg]) == 1
    assert "expected a file with orientation, strokes" in capsys.readouterr().err
    first, second = tmp_path / "orientation", tmp_path / "hair"
    assert main([*shared, "-o", str(first), "--stage", "orientation"]) == 0
    (trained,) = first.glob("*.safetensors")
    command = [*shared, "-o", str(second), vgg, "--checkpoint", str(trained)]
    assert main(command) == 0
    (whole,) = second.glob("*.safetensors")
    before, _ = papers.load(trained, PAPER)
    after, _ = papers.load(whole, PAPER)
    assert after.keys() == {"generator", "discriminator", "orientation", "strokes"}
    for name in ("orientation", "strokes"):
        state = before[name].state_dict()
        assert all(v.equal(state[k]) for k, v in after[name].state_dict().items())


def test_training_without_inpainting_needs_no_earlier_stage(photos, pretrained, tmp_path):
    command = ["michigan", "train", str(photos), "--hair", str(labels_of(photos)), "-o"]
    command += [str(tmp_path), "--threshold", "2", "--workers", "0", "--batch", "1"]
    command += ["--iterations", "1", "--device", "cpu", f"--pretrained=vgg19={pretrained['vgg19']}"]
    for name, value in {**SMALL["michigan"], "inpainting": False}.items():
        command += ["--set", f"{name}={value}"]
    assert main(command) == 0
    networks, _ = papers.load(next(tmp_path.glob("*.safetensors")), PAPER)
    assert networks.keys() == {"generator", "discriminator"}


# --- published files ------------------------------------------------------------------------------


def published(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Files as they were released, of reduced networks."""
    torch.manual_seed(3)
    networks = PAPER.networks(CONFIG)
    states = {name: networks[name].state_dict() for name in ("generator", "orientation", "strokes")}
    torch.save(states["generator"], folder / "50_net_G.pth")
    torch.save({"generator": states["orientation"]}, folder / "InpaintingModel_gen.pth")
    torch.save({"generator": states["strokes"]}, folder / "SInpaintingModel_gen.pth")
    return states


def test_the_keys_are_the_published_ones():
    with torch.device("meta"):
        networks = PAPER.networks(PAPER.config())
    counts = {name: len(network.state_dict()) for name, network in networks.items()}
    assert counts["generator"] == 252
    assert counts["orientation"] == counts["strokes"] == 124
    assert counts["discriminator"] == 26
    state = networks["generator"].state_dict()
    assert state["fc.layer5.weight"].shape == (1024, 512, 3, 3)
    assert state["backgroud_enc.layer4.conv.weight"].shape == (1024, 512, 4, 4)
    assert state["up_3.conv_s.weight_v"].shape == (128,)
    state = networks["strokes"].state_dict()
    assert state["encoder.1.weight_orig"].shape == (64, 5, 7, 7)
    assert state["decoder.0.weight_v"].shape == (8192,)


def test_published_files_load_from_a_folder_and_alone(tmp_path):
    states = published(tmp_path)
    files = ("50_net_G.pth", "InpaintingModel_gen.pth", "SInpaintingModel_gen.pth")
    found, _ = papers.load(tmp_path, PAPER, CONFIG)
    assert found.keys() == states.keys()
    for (name, state), file in zip(states.items(), files, strict=True):
        alone, _ = papers.load(tmp_path / file, PAPER, CONFIG)
        assert alone.keys() == {name}
        for networks in (found, alone):
            loaded = networks[name].state_dict()
            assert loaded.keys() == state.keys()
            assert all(value.equal(loaded[key]) for key, value in state.items())


def test_other_options_are_told(tmp_path):
    published(tmp_path)
    with pytest.raises(ValueError, match="--set width=4"):
        papers.load(tmp_path / "50_net_G.pth", PAPER)
    with pytest.raises(ValueError, match="--set inpainting_width=4 --set inpainting_blocks=1"):
        papers.load(tmp_path / "SInpaintingModel_gen.pth", PAPER)
    without = papers.configure(PAPER.config, {**SMALL["michigan"], "inpainting": False})
    with pytest.raises(ValueError, match="needs the option inpainting"):
        papers.load(tmp_path / "InpaintingModel_gen.pth", PAPER, without)


def test_a_missing_entry_is_named(tmp_path):
    state = published(tmp_path)["generator"]
    del state["up_2.norm_1.mlp_gamma.bias"]
    torch.save(state, tmp_path / "50_net_G.pth")
    with pytest.raises(ValueError, match=r"lacks up_2\.norm_1\.mlp_gamma\.bias"):
        papers.load(tmp_path / "50_net_G.pth", PAPER, CONFIG)


def test_the_files_are_known_as_this_papers(tmp_path):
    for name, state in published(tmp_path).items():
        assert papers.looks_like(state) == "michigan", name
    discriminator = PAPER.networks(CONFIG, ["discriminator"])["discriminator"]
    assert papers.looks_like(discriminator.state_dict()) == "michigan"
