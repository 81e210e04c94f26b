"""MagGAN learns from photographs; what its commands read and write."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.training import (
    SMALL,
    attributes_of,
    labels_of,
    train_in_two_processes,
    trainer,
    weights,
    write_label_map,
    write_photo,
)
from torch import Tensor

from torchext.models import papers
from torchext.models.__main__ import main
from torchext.models.data import EpochBatches, loader
from torchext.models.face_labels import BISENET_NAMES, COLOURS, NAMES
from torchext.models.loop import Processes
from torchext.models.maggan import (
    ATTRIBUTES,
    CELEBA,
    PAPER,
    STGAN,
    AttributeEditor,
    Config,
    networks,
    one_hot,
    parse,
    stgan_input,
)
from torchext.models.maggan.attributes import labels_of as present
from torchext.models.maggan.evaluate import evaluate
from torchext.models.maggan.evaluate import main as evaluation
from torchext.models.maggan.parser import resize_labels
from torchext.models.maggan.prepare import main as prepare
from torchext.models.paper import configure


def config_of(**changes: object) -> Config:
    return configure(Config, {**SMALL["maggan"], **changes})


def recipe_of(stage: str = "editing", **changes: object) -> torch.nn.Module:
    config = config_of(**changes)
    torch.manual_seed(0)
    found = PAPER.stage(stage)
    return found.recipe(networks(config, found.networks), config)


def batch(count: int = 3, size: int = 64) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand((count, 3, size, size), generator=random),
        "labels": torch.randint(19, (count, 1, size, size), generator=random),
        "attributes": torch.randint(2, (count, 13), generator=random).float(),
    }


# --- schedules and steps --------------------------------------------------------------------------


def test_the_published_schedule():
    recipe = recipe_of(discriminator_steps=5, rate=2e-4)
    steps = [recipe.phases(i)[0].optimizers[0] for i in range(12)]
    assert steps == ([*["discriminator"] * 5, "generator"]) * 2
    rates = [recipe.learning_rates(epoch, 0)["generator"] for epoch in (0, 99, 100, 199, 200)]
    assert rates == pytest.approx([2e-4, 2e-4, 2e-5, 2e-5, 2e-6])
    assert recipe.networks["generator"].encoder[0].norm.momentum == 1e-3
    decoded = recipe_of(momentum=0.2).networks["generator"]
    assert decoded.encoder[0].norm.momentum == 0.2
    assert decoded.decoder[0].norm.param_free_norm.momentum == 0.1
    group = recipe.optimizers["discriminator"].param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.5, 0.999), 1e-8)

    parsing = recipe_of("parser", parser_iterations=80_000, warm_up=1000)
    rates = [parsing.learning_rates(0, i) for i in (0, 500, 1000, 40_500, 80_000)]
    expected = [1e-5, 1e-5 * 1000**0.5, 1e-2, 1e-2 * 0.5**0.9, 0]
    assert [rate["parser"] for rate in rates] == pytest.approx(expected)
    assert [rate["heads"] for rate in rates] == pytest.approx([10 * value for value in expected])
    decays = {
        (name, p.dim() > 1): group["weight_decay"]
        for name, optimizer in parsing.optimizers.items()
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert decays == {(n, wide): 5e-4 * wide for n in ("parser", "heads") for wide in (True, False)}
    trained = [p for o in parsing.optimizers.values() for g in o.param_groups for p in g["params"]]
    assert len(trained) == len({*trained}) == len([*parsing.parameters()])


def test_statistics_of_batch_norms_follow_the_published_order():
    """A step of the discriminator runs encoder and decoder once, one of the generator 1 and 2."""
    for iteration, decoded in ((0, 1), (1, 2)):
        recipe = recipe_of().train()
        generator = recipe.networks["generator"]
        recipe.phases(iteration)[0].loss(batch(), None)
        assert generator.encoder[1].norm.num_batches_tracked == 1
        assert generator.decoder[1].norm.param_free_norm.num_batches_tracked == decoded


def test_a_step_of_each_leaves_the_other(photos, tmp_path):
    run = trainer("maggan", photos, tmp_path, iterations=1)
    before = {k: v.clone() for k, v in run.recipe.networks.named_parameters()}
    run.run()  # of the discriminator
    for key, value in run.recipe.networks.named_parameters():
        if not key.endswith(("gan.1.bias", "score.bias")):  # the same for photos and fakes
            assert value.equal(before[key]) == key.startswith("generator"), key


@pytest.mark.parametrize(
    "changes",
    [
        {"adversarial": "least_squares"},
        {"adversarial": "non_saturating"},
        {"normalise": "area"},
        {"model": "stgan"},
        {"model": "stgan", "condition": "target", "use_stu": False, "one_more_conv": 3},
        {"regions": "Bald+:hair|hat", "size": 128},
        {"norm": "syncbatch", "stu_norm": "bn", "stu_state": "gru"},
    ],
)
def test_forms_of_the_training(changes):
    recipe = recipe_of(**changes).train()
    names: list[set[str]] = []
    for iteration in (0, 1):
        (phase,) = recipe.phases(iteration)
        terms = phase.loss(batch(size=recipe.config.network.size), None)
        total = torch.stack([*terms.values()]).sum()
        total.backward()
        trained = recipe.networks[phase.optimizers[0]].parameters()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
        names.append({*terms})
    assert ("mask" in names[1]) == (recipe.config.network.model == "maggan")
    assert "penalty" in names[0]
    rows = recipe.eval().samples(batch(size=recipe.config.network.size))
    assert len(rows) == (3 if recipe.config.network.model == "stgan" else 4)


def test_what_is_preserved_in_training():
    """The loss of the masks is that of the pixels outside of the shuffled labels' regions."""
    recipe = recipe_of(mask_weight=1.0).train()
    given = batch(2)
    given["attributes"] = torch.zeros(2, 13)
    given["attributes"][1, ATTRIBUTES.index("Blond_Hair")] = 1
    given["labels"][:] = BISENET_NAMES.index("cloth")
    given["labels"][..., :32, :] = BISENET_NAMES.index("hair")
    made: list[Tensor] = []
    generator = recipe.networks["generator"]
    decode = generator.decode
    generator.decode = lambda *inputs: made.append(decode(*inputs)) or made[-1]
    for seed in range(20):  # until the two labels change places
        torch.manual_seed(seed)
        if torch.randperm(2)[0] == 1:
            break
    torch.manual_seed(seed)
    terms = recipe.phases(1)[0].loss(given, None)
    image = given["image"] * 2 - 1
    expected = (made[0] - image)[..., 32:, :].abs().sum() / image.numel()
    torch.testing.assert_close(terms["mask"], expected)
    l1 = (made[1] - image).abs().mean()
    torch.testing.assert_close(terms["reconstruction"], 100 * l1)


@pytest.mark.slow
def test_two_processes_average_what_each_finds_alone(photos, tmp_path):
    """Patches, places and shuffled labels of each process are its own."""
    given = {"settings": {"rate": 1e-12}, "double": True, "iterations": 2, "batch": 2}
    train_in_two_processes("maggan", tmp_path / "two", photos=photos, **given)
    alone = []
    for rank in (0, 1):
        run = trainer("maggan", photos, tmp_path / str(rank), **given)
        run.loop.processes = Processes(rank=rank)
        places = EpochBatches(len(run.dataset), 2, seed=0, rank=rank, world=2)
        batches = iter(loader(run.dataset, places))
        run.recipe.train()
        for _ in range(2):
            run.loop.step([next(batches)], 0)
        alone.append(run.loop.state())
    both = weights(tmp_path / "two")
    moments = [key for key in both if key.endswith("exp_avg")]
    assert len(moments) > 60
    for key in moments:
        mean = (alone[0][key] + alone[1][key]) / 2
        scale = max(mean.abs().max().item(), 1e-9)
        assert (both[key] - mean).abs().max().item() < 1e-6 * scale, key
    assert any(not alone[0][key].equal(alone[1][key]) for key in moments)


def test_accumulated_parts_are_taken(photos, tmp_path):
    losses = trainer("maggan", photos, tmp_path, iterations=2, accumulate=2).run()
    assert np.isfinite([*losses.values()]).all()


# --- data -----------------------------------------------------------------------------------------


def dataset(arguments: list[str], stage: str = "editing", **changes: object):
    parser = argparse.ArgumentParser()
    PAPER.train_arguments(parser)
    given = parser.parse_args(arguments)
    given.seed = 0
    return PAPER.dataset(given, config_of(**changes), PAPER.stage(stage))


def arguments_of(folder: Path) -> list[str]:
    return [
        *(str(folder), "--labels", str(labels_of(folder))),
        *("--attributes", str(attributes_of(folder))),
    ]


@pytest.fixture
def pair(tmp_path):
    """One photo with a left eye at the left, of CelebA's numbers, and its attributes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    labels_of(folder).mkdir()
    values = np.zeros((64, 64), np.uint8)
    values[:, :32] = NAMES.index("l_eye")
    values[:, 32:] = NAMES.index("hair")
    Image.fromarray(values).save(labels_of(folder) / "a.png")
    Image.fromarray(values * 10).save(folder / "a.jpg")
    shown = ["1" if name in ("Bald", "Smiling") else "-1" for name in CELEBA]
    attributes_of(folder).write_text(f"{' '.join(CELEBA)}\na.jpg {' '.join(shown)}\n")
    return folder


def test_samples_in_the_mirror(pair):
    arguments = [*arguments_of(pair), "--numbering", "celebamask"]
    for flip, names in ((0.0, ("l_eye", "hair")), (1.0, ("hair", "r_eye"))):
        sample = dataset(arguments, flip=flip)[0, 0, 0]
        found = [BISENET_NAMES[sample["labels"][0, 5, x]] for x in (5, 60)]
        assert tuple(found) == names
    assert sample["attributes"].tolist() == [1.0] + [0.0] * 12
    everything = dataset(arguments, "classifier")[0, 0, 0]
    assert everything["attributes"].sum() == 2
    assert "labels" not in everything
    colours = np.array(COLOURS, np.uint8)[np.array(Image.open(labels_of(pair) / "a.png"))]
    Image.fromarray(colours).save(labels_of(pair) / "a.png")
    for numbering in ("bisenet", "celebamask"):  # colours are what they are
        sample = dataset([*arguments_of(pair), "--numbering", numbering], flip=0.0)[0, 0, 0]
        assert BISENET_NAMES[sample["labels"][0, 5, 60]] == "hair"


def test_samples_of_the_parser(pair):
    arguments = [*arguments_of(pair), "--numbering", "celebamask"]
    data = dataset(arguments, "parser", parser_size=64, parser_crop=32)
    samples = [data[0, i, 0] for i in range(40)]
    assert {tuple(sample["image"].shape) for sample in samples} == {(3, 32, 32)}
    assert torch.equal(samples[3]["image"], data[0, 3, 0]["image"])
    brightness = torch.stack([sample["image"].mean() for sample in samples])
    assert brightness.std() > 0.05
    shares = [
        (sample["labels"] == BISENET_NAMES.index("hair")).float().mean() for sample in samples
    ]
    assert min(shares) == 0
    assert max(shares) == 1


def test_stgans_crop_and_resize(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (218, 178, 3), np.uint8)
    Image.fromarray(values).save(folder / "000001.png")
    attributes_of(folder).write_text(f"{' '.join(CELEBA)}\n000001.jpg {' '.join(['1'] * 40)}\n")
    arguments = [str(folder), "--attributes", str(attributes_of(folder))]
    sample = dataset(arguments, **STGAN)[0, 0, 0]
    image = torch.from_numpy(values).movedim(-1, 0)[None].float()
    wanted = stgan_input(image, 128, (3, 26, 173, 196))[0]
    torch.testing.assert_close(sample["image"] * 2 - 1, wanted, atol=1e-5, rtol=0)
    Image.fromarray(values[:200]).save(folder / "000001.png")
    with pytest.raises(ValueError, match="crop: expected aligned photos of CelebA, 178 x 218 pix"):
        dataset(arguments, **STGAN)[0, 0, 0]


@pytest.mark.parametrize(
    "words, stage, message",
    [
        (["--attributes"], "editing", "--labels: expected label maps, which stage editing learns"),
        (["--labels"], "editing", "--attributes: expected a file, which stage editing learns"),
        (["--labels"], "classifier", "--attributes: expected a file, which stage classifier"),
        (["--attributes"], "parser", "--labels: expected label maps, which stage parser learns"),
    ],
)
def test_missing_files_are_named(words, stage, message, pair):
    files = {"--labels": labels_of(pair), "--attributes": attributes_of(pair)}
    arguments = [str(pair), *(word for name in words for word in (name, str(files[name])))]
    with pytest.raises(ValueError, match=message):
        dataset(arguments, stage)


def test_bad_samples_are_named(pair):
    text = attributes_of(pair).read_text()
    attributes_of(pair).write_text(text.replace("a.jpg", "b.jpg"))
    with pytest.raises(ValueError, match="attributes: expected a line for each photo, found none"):
        dataset(arguments_of(pair))
    names = [name for name in CELEBA if name != "Bald"]
    attributes_of(pair).write_text(f"{' '.join(names)}\na.jpg {' '.join(['1'] * 39)}\n")
    with pytest.raises(ValueError, match="attributes: expected Bald, found"):
        dataset(arguments_of(pair))
    attributes_of(pair).write_text(text)
    Image.fromarray(np.full((64, 64), 19, np.uint8)).save(labels_of(pair) / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: expected labels from 0 to 18, got 19"):
        dataset(arguments_of(pair))[0, 0, 0]


# --- commands -------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path) -> Path:
    config = config_of()
    torch.manual_seed(0)
    path = tmp_path / "networks.safetensors"
    papers.save(path, PAPER, config, networks(config))
    write_photo(tmp_path)
    write_label_map(tmp_path)
    return path


def edit(saved: Path, *words: object, output: str = "out.png") -> int:
    command = ["maggan", "edit", str(saved.parent / "photo.png"), *map(str, words)]
    return main([*command, "-o", str(saved.parent / output), "--checkpoint", str(saved)])


def picture(saved: Path, name: str = "out.png") -> np.ndarray:
    return np.asarray(Image.open(saved.parent / name)).astype(int)


def test_the_picture_is_that_of_the_editor(saved):
    words = ["Blond_Hair=2", "Eyeglasses", "--intensity", "1.5", "--have", "Young, Male"]
    assert edit(saved, *words, "--labels", saved.parent / "labels.png") == 0
    found, _ = papers.load(saved, PAPER)
    photo = Image.open(saved.parent / "photo.png").resize((64, 64), Image.Resampling.BICUBIC)
    photo = torch.from_numpy(np.array(photo)).movedim(-1, 0)[None] / 255
    labels = torch.from_numpy(np.array(Image.open(saved.parent / "labels.png")))[None, None]
    masks = one_hot(resize_labels(labels.long(), 64, 64))
    source = present({"Young", "Male"})
    editor = AttributeEditor(found["generator"].eval(), photo, source, masks=masks)
    made = editor({"Blond_Hair": 2.0, "Eyeglasses": 1.5}).photo
    written = torch.from_numpy(picture(saved)).movedim(-1, 0)
    assert ((made[0] * 255).round() - written).abs().max() <= 1


def test_parser_and_classifier_take_the_files_places(saved, capsys):
    """Without label map and attributes the checkpoint's own networks look."""
    assert edit(saved, "Pale_Skin", "--write-parsing") == 0
    assert "out-parsing.png" in capsys.readouterr().out
    assert picture(saved, "out-parsing.png").shape == (64, 64, 3)
    assert edit(saved, "Pale_Skin", "--soft", output="soft.png") == 0
    found, config = papers.load(saved, PAPER)
    alone = saved.parent / "generator.safetensors"
    papers.save(alone, PAPER, config, {"generator": found["generator"]})
    for name in ("parser", "classifier"):
        torch.save(found[name].state_dict(), saved.parent / f"{name}.pth")
    files = [f"--{name}={saved.parent / name}.pth" for name in ("parser", "classifier")]
    assert edit(alone, "Pale_Skin", *files, output="files.png") == 0
    assert np.array_equal(picture(saved), picture(saved, "files.png"))
    assert edit(alone, "Pale_Skin", files[0]) == 1
    assert (
        "--have: expected the photo's attributes, or --classifier FILE" in capsys.readouterr().err
    )
    assert edit(alone, "Pale_Skin", files[1]) == 1
    assert "--labels: expected a label map, or --parser FILE" in capsys.readouterr().err
    assert edit(alone, "Pale_Skin", f"--parser={saved.parent}/classifier.pth", files[1]) == 1
    assert "expected a parser, found ['classifier']" in capsys.readouterr().err


def test_pasted_edits_keep_the_rest(saved, capsys):
    """Of 1024 pixels, too."""
    Image.open(saved.parent / "photo.png").resize((1024, 1024)).save(saved.parent / "photo.png")
    labels = np.full((64, 64), BISENET_NAMES.index("cloth"), np.uint8)
    labels[:32] = BISENET_NAMES.index("hair")
    Image.fromarray(labels).save(saved.parent / "labels.png")
    words = ["Blond_Hair", "--have", "", "--labels", saved.parent / "labels.png"]
    assert edit(saved, *words, "--size", 1024, output="whole.png") == 0
    assert picture(saved, "whole.png").shape == (1024, 1024, 3)
    before = picture(saved, "photo.png")
    for more in ([], ["--size", 1024], ["--feather", 3]):
        assert edit(saved, *words, "--paste", *more) == 0
        after = picture(saved)
        assert np.array_equal(after[512:], before[512:])
        assert (after[:480] != before[:480]).any(axis=2).mean() > 0.9
    assert edit(saved, *words, "--paste", "--regions", "Blond_Hair+:cloth") == 0
    assert np.array_equal(picture(saved)[:512], before[:512])


def test_slides_and_sheets(saved):
    words = ["--have", "Male", "--labels", saved.parent / "labels.png"]
    assert edit(saved, "--slide", "Bald", *words) == 0
    steps = np.split(picture(saved), 10, axis=1)
    assert steps[0].shape == (64, 64, 3)
    assert not np.array_equal(steps[0], steps[-1])
    assert edit(saved, "--sheet", *words) == 0
    assert picture(saved).shape == (64, 64 + 6 + 14 * 64, 3)
    assert picture(saved)[:, 64:70].max() == 0


def test_stgan_at_celebas_crop(tmp_path):
    config = config_of(**{**STGAN, "discriminator_layers": 3})
    torch.manual_seed(0)
    saved = tmp_path / "stgan.safetensors"
    papers.save(saved, PAPER, config, networks(config, ["generator"]))
    values = np.random.default_rng(0).integers(0, 256, (218, 178, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "photo.png")
    assert edit(saved, "Young", "--have", "Young") == 0
    image = torch.from_numpy(values).movedim(-1, 0)[None].float()
    x = (stgan_input(image, 128, (3, 26, 173, 196)) + 1) / 2
    found, _ = papers.load(saved, PAPER)
    made = AttributeEditor(found["generator"].eval(), x, present({"Young"}))(["Young"]).photo
    written = torch.from_numpy(picture(saved)).movedim(-1, 0)
    assert ((made[0] * 255).round() - written).abs().max() <= 1


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "attribute: expected some of them, --slide or --sheet, one of these"),
        (["Bald", "--sheet"], "attribute: expected some of them, --slide or --sheet, one of"),
        (["Blond"], "attribute: expected one of"),
        (["--slide", "Blond"], "attribute: expected one of"),
        (["Bald=x"], "Bald=x: expected an attribute, or one and its intensity, as in Bald=1.5"),
        (["Bald=-1"], "intensity: expected a number above 0 for Bald, got -1.0"),
        (["Bald", "--intensity", "0"], "intensity: expected a number above 0 for Bald, got 0.0"),
        (["Bald", "Bald"], "attribute: expected each once, got Bald twice"),
        (["Bald", "--feather", "2"], "--feather: expected --paste"),
        (["Bald", "--paste", "--feather", "-1"], "--feather: expected at least 0, got -1"),
        (["--sheet", "--paste"], "--paste: expected attributes, one picture"),
        (["Bald", "--size", "50"], "--size: expected a multiple of 32, got 50"),
        (["Bald", "--regions", "Bald+:fur"], "regions: expected parts of"),
        (["Bald", "--have", "Old"], "--have: attribute: expected one of"),
        (
            ["Bald", "--labels", "high.png"],
            "high.png: expected labels from 0 to 18, got 19",
        ),
        (
            ["Bald", "--labels", "wide.png"],
            "wide.png: expected the photo's form, 90 x 75, got 90 x 20",
        ),
        (["Bald", "--labels", "photo.png"], "photo.png: expected colours of the palette"),
    ],
)
def test_bad_commands(words, message, saved, capsys):
    Image.fromarray(np.full((75, 90), 19, np.uint8)).save(saved.parent / "high.png")
    Image.fromarray(np.zeros((20, 90), np.uint8)).save(saved.parent / "wide.png")
    words = [str(saved.parent / word) if word.endswith(".png") else word for word in words]
    more = [] if "--labels" in words else ["--labels", saved.parent / "labels.png"]
    more += [] if "--have" in words else ["--have", "Young"]
    assert edit(saved, *words, *more) == 1
    assert message in capsys.readouterr().err
    assert not (saved.parent / "out.png").exists()


def test_label_maps_for_training(saved, photos, tmp_path, capsys):
    output = tmp_path / "maps"
    command = ["parse", str(photos), "--checkpoint", str(saved), "-o", str(output)]
    assert prepare(command) == 0
    assert "6 label maps" in capsys.readouterr().out
    found, _ = papers.load(saved, PAPER)
    image = (
        torch.from_numpy(np.array(Image.open(photos / "coffee-0.png"))).movedim(-1, 0)[None] / 255
    )
    labels = parse(found["parser"].eval(), image, size=64)[0, 0]
    assert np.array_equal(np.asarray(Image.open(output / "coffee-0.png")), labels.numpy())
    arguments = [str(photos), "--labels", str(output), "--attributes", str(attributes_of(photos))]
    assert len(dataset(arguments)) == 6
    alone = tmp_path / "alone.safetensors"
    papers.save(alone, PAPER, config_of(), networks(config_of(), ["generator"]))
    command[3] = str(alone)
    assert prepare(command) == 1
    assert "expected a face parser, found ['generator']" in capsys.readouterr().err


# --- evaluation -----------------------------------------------------------------------------------


class Painter(torch.nn.Module):
    """A generator whose edits are known: it adds what is asked of one attribute to all values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, x: Tensor, att: Tensor, condition: Tensor | None) -> Tensor:
        return x + 0.2 * att[:, 7].view(-1, 1, 1, 1)  # Male


class Brightness(torch.nn.Module):
    """A classifier for which bright photos show every attribute."""

    image_size = (8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(1, 2, 3), keepdim=True)[:, :, 0, 0].expand(-1, len(CELEBA))


def test_counted_edits():
    config = config_of()
    labels = torch.full((1, 16, 16), BISENET_NAMES.index("cloth"))
    labels[:, :8] = BISENET_NAMES.index("skin")
    faces = [
        {"image": torch.full((3, 16, 16), grey), "attributes": torch.full((13,), has)}
        for grey, has in ((0.45, 0.0), (0.55, 1.0), (0.1, 0.0))
    ]
    found = evaluate(Painter(), Brightness(), faces, config)
    # The step of 1.5 * 0.1 crosses the middle of two of the three.
    assert found.accuracy == pytest.approx({name: 0.0 for name in ATTRIBUTES} | {"Male": 2 / 3})
    assert found.changed is None
    assert found.psnr > 100
    weak = evaluate(Painter(), Brightness(), faces, config, intensity=0.1)
    assert weak.accuracy["Male"] == pytest.approx(2 / 3)  # 0.55 * 0.1 does, too
    found = evaluate(
        Painter(), Brightness(), [{**face, "labels": labels} for face in faces], config
    )
    assert found.changed == pytest.approx(0.15 / 13)  # of the cloth, in one edit of thirteen
    with pytest.raises(ValueError, match="samples: expected photos, got none"):
        evaluate(Painter(), Brightness(), [], config)


def test_evaluation_of_files(saved, photos, capsys):
    command = [*arguments_of(photos), "--checkpoint", str(saved), "--count", "2"]
    assert evaluation(command) == 0
    text = capsys.readouterr().out
    assert text.count("% flipped") == 14
    assert "outside the regions" in text
    alone = saved.parent / "alone.safetensors"
    papers.save(alone, PAPER, config_of(), networks(config_of(), ["generator"]))
    command[command.index(str(saved))] = str(alone)
    assert evaluation(command) == 1
    assert "expected a classifier, found ['generator']" in capsys.readouterr().err
