"""DeepFaceEditing's stages: losses fall, runs resume exactly, several processes agree."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from support.training import (
    SMALL,
    assert_same_gradients,
    labels_of,
    log,
    train_in_two_processes,
    trainer,
    weights,
)

from torchext.models import papers
from torchext.models.__main__ import main
from torchext.models.deepfaceediting import PAPER, PARTS, FacePhotos
from torchext.models.deepfaceediting.config import Config
from torchext.models.deepfaceediting.training import AppearanceTraining, split
from torchext.models.losses import colour_difference
from torchext.models.recipe import Passed

skimage = pytest.importorskip("skimage.data")
NAME = "deepfaceediting"
STAGES = [f"{NAME} stage {stage.name}" for stage in PAPER.stages[:-1]] + [NAME]
FALLS = {
    "extractor": "extractor",
    "sketch": "sketch",
    "image": "geometry",
    "appearance": "vgg",
    "coarse": "photo",
    "coarse_fusion": "vgg",
    "fusion": "vgg",
}
# Smaller still, for many runs.
QUICK = {"size": 64, "downsamplings": 2, "drawing_downsamplings": 2, "appearance_downsamplings": 4,
         "image_blocks": 1, "generator_blocks": 1, "width": 4, "coarse_width": 4}  # fmt: skip


def stage_of(name: str) -> str:
    return name.partition(" stage ")[2] or "fusion"


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four crops of a real portrait; beside them drawings of its edges."""
    folder = tmp_path_factory.mktemp("faces")
    labels_of(folder).mkdir()
    picture = Image.fromarray(skimage.astronaut())
    for i, (left, top, side) in enumerate(
        ((120, 0, 220), (130, 10, 200), (110, 0, 240), (135, 5, 210))
    ):
        crop = picture.crop((left, top, left + side, top + side)).resize((128, 128))
        crop.save(folder / f"face-{i}.png")
        edges = ImageOps.autocontrast(crop.convert("L").filter(ImageFilter.FIND_EDGES))
        ImageOps.invert(edges).save(labels_of(folder) / f"face-{i}.png")
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_losses_fall(name, faces, pretrained, tmp_path):
    settings = {**QUICK, "width": 8, "coarse_width": 8}
    trainer(
        *(name, faces, tmp_path),
        pretrained=pretrained,
        settings=settings,
        iterations=25,
        batch=2,
    ).run()
    lines = log(tmp_path)
    values = [line[FALLS[stage_of(name)]] for line in lines]
    assert np.mean(values[-4:]) < 0.9 * np.mean(values[:3]), values
    (sheet,) = tmp_path.glob("samples-*.png")
    assert np.asarray(Image.open(sheet)).std() > 10


@pytest.mark.parametrize("name", STAGES)
def test_resume_is_exact(name, faces, pretrained, tmp_path):
    options = {"pretrained": pretrained, "average": 0.9, "settings": QUICK}
    trainer(name, faces, tmp_path / "whole", iterations=3, **options).run()
    trainer(name, faces, tmp_path / "parts", iterations=2, **options).run()
    trainer(name, faces, tmp_path / "parts", iterations=3, resume=True, **options).run()
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert any(key.startswith("averaged.") for key in whole)
    for key, value in whole.items():
        assert value.equal(parts[key]), key
    assert log(tmp_path / "whole") == log(tmp_path / "parts")


# Batch norms of coarse sketches see each process's photos alone.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STAGES if "coarse" not in name])
def test_two_processes_equal_one_with_the_joined_batch(name, faces, pretrained, tmp_path):
    given = {"photos": faces, "pretrained": pretrained, "settings": QUICK}
    given |= {"double": True, "iterations": 1}
    trainer(name, output=tmp_path / "one", batch=2, **given).run()
    train_in_two_processes(name, tmp_path / "two", batch=1, **given)
    assert_same_gradients(tmp_path / "one", tmp_path / "two")


def test_only_what_a_stage_trains_changes(faces, pretrained, tmp_path):
    for name in STAGES:
        stage = PAPER.stage(stage_of(name))
        run = trainer(
            *(name, faces, tmp_path / stage.name),
            pretrained=pretrained,
            settings=QUICK,
            iterations=1,
        )
        before = {key: value.clone() for key, value in run.recipe.networks.state_dict().items()}
        run.run()
        changed = {
            key.split(".")[0]
            for key, value in run.recipe.networks.state_dict().items()
            if not value.equal(before[key])
        }
        assert changed == set(stage.trains), stage.name


def test_parts_train_apart(faces, pretrained, tmp_path):
    """What one part sees has no bearing on another part's gradients."""
    results = []
    for blank in (False, True):
        run = trainer(
            *(f"{NAME} stage appearance", faces, tmp_path / str(blank)),
            pretrained=pretrained,
            settings=QUICK,
        )
        batch = next(iter(torch.utils.data.DataLoader([run.dataset[0, 0, 0]])))
        if blank:
            box = run.config.network.boxes["mouth"]
            box.crop(batch["image"])[..., box.side // 2 :, :] = 0  # below the nose
        phase = {phase.optimizers[0]: phase for phase in run.recipe.phases(0)}
        losses = {}
        for part in ("eye1", "mouth"):
            terms = phase[f"generator_{part}"].loss(batch, Passed())
            losses[part] = torch.stack([*terms.values()]).sum()
        results.append(losses)
    assert results[0]["eye1"].equal(results[1]["eye1"])
    assert not results[0]["mouth"].equal(results[1]["mouth"])


def test_layers_of_the_decoder_may_all_count(faces, tmp_path):
    found = []
    for consistency in ("ends", "layers"):
        run = trainer(
            *(f"{NAME} stage image", faces, tmp_path / consistency),
            settings={**QUICK, "consistency": consistency},
            iterations=1,
        )
        found.append(run.run())
    assert found[1].keys() - found[0].keys() == {"layers"}
    assert found[1]["layers"] > 0
    assert found[0]["geometry"] == pytest.approx(found[1]["geometry"])


def test_a_new_appearance_starts_plain():
    config = papers.configure(Config, {**SMALL[NAME], **QUICK, "vgg_weight": 0})
    stage = PAPER.stage("appearance")
    recipe = AppearanceTraining(PAPER.networks(config, stage.networks), config)
    generator = recipe.of("generator", "nose")
    bias = generator.enc_style.model[-1].bias
    for given in bias.split(generator.splits):
        shift, scale = given.chunk(2)
        assert not shift.any()
        assert scale.eq(1).all()
    kept = PAPER.networks(config, stage.networks)
    before = kept["generator_nose"].enc_style.model[-1].bias.clone()
    AppearanceTraining(kept, config, initialise=())
    assert kept["generator_nose"].enc_style.model[-1].bias.equal(before)


def test_the_discriminators_outputs_are_split():
    x = torch.arange(6.0)[:, None]
    first, second, third = split([[x, 2 * x]], 3)
    assert first[0][0].flatten().tolist() == [0, 1]
    assert second[0][1].flatten().tolist() == [4, 6]
    assert third[0][0].flatten().tolist() == [4, 5]


def test_colours_without_lightness():
    grey = torch.full((1, 3, 4, 4), 0.2)
    assert colour_difference(grey, grey - 0.5) < 1e-3
    red = grey.clone()
    red[:, 1:] = -1
    assert colour_difference(grey, red) > 30
    dark = torch.full((1, 3, 4, 4), -1.0, requires_grad=True)
    colour_difference(dark, red).backward()
    assert dark.grad.isfinite().all()
    # By hand, of pure red: X, Y, Z are 0.412453, 0.212671, 0.019334, each over its row's sum.
    pure = torch.tensor((1.0, -1.0, -1.0))[None, :, None, None].expand(1, 3, 2, 2)
    x, y, z = 0.412453 / 0.950456, 0.212671, 0.019334 / 1.088754
    wanted = (500 * (x ** (1 / 3) - y ** (1 / 3)) + 200 * (y ** (1 / 3) - z ** (1 / 3))) / 2
    found = colour_difference(pure, torch.zeros(1, 3, 2, 2))
    assert found.item() == pytest.approx(wanted, rel=1e-4)


# --- data -----------------------------------------------------------------------------------------


def test_other_photos_are_others(faces):
    config = papers.configure(Config, {**SMALL[NAME], **QUICK})
    samples = FacePhotos({"image": faces}, config, others=True)
    for position in range(8):
        sample = samples[0, position, position % 4]
        assert sample["image"].shape == sample["other"].shape == (3, 64, 64)
        assert not sample["image"].equal(sample["other"])
        again = samples[0, position, position % 4]
        assert again["other"].equal(sample["other"])
    drawn = {float(samples[0, i, 0]["other"].sum()) for i in range(12)}
    assert len(drawn) == 3


def test_sketches_follow_their_photos(faces):
    config = papers.configure(Config, {**SMALL[NAME], **QUICK})
    samples = FacePhotos({"image": faces, "sketch": labels_of(faces)}, config)
    sample = samples[0, 0, 2]
    with Image.open(labels_of(faces) / "face-2.png") as sketch:
        wanted = np.asarray(sketch.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))
    assert np.array_equal(sample["sketch"].mul(255).round().numpy(), wanted.transpose(2, 0, 1))


def command(faces: Path, output: Path, stage: str, *further: str) -> list[str]:
    given = [NAME, "train", str(faces), "-o", str(output), "--stage", stage, "--device", "cpu"]
    given += ["--workers", "0", "--batch", "2", "--iterations", "1", *further]
    return given + [f"--set={n}={v}" for n, v in {**SMALL[NAME], **QUICK}.items()]


def test_the_stages_follow_each_other(faces, pretrained, tmp_path, capsys):
    """From photos and sketches alone to networks that edit."""
    sketches = ("--sketches", str(labels_of(faces)))
    vgg = f"--pretrained=vgg19={pretrained['vgg19']}"
    assert main(command(faces, tmp_path / "early", "image", *sketches)) == 1
    assert "expected a file with sketch_encoder_bg" in capsys.readouterr().err
    assert main(command(faces, tmp_path / "without", "sketch")) == 1
    assert "--sketches: expected a folder" in capsys.readouterr().err
    how = {
        "sketch": sketches,
        "image": sketches,
        "appearance": (vgg,),
        "fusion": (vgg,),
    }
    before: tuple[str, ...] = ()
    for stage, options in how.items():
        assert main(command(faces, tmp_path / stage, stage, *options, *before)) == 0
        [newest] = (tmp_path / stage).glob("checkpoint-*.safetensors")
        before = ("--checkpoint", str(newest))
    networks, _ = papers.load(newest, PAPER)
    kinds = ("sketch_encoder", "image_encoder", "generator")
    wanted = {f"{kind}_{part}" for kind in kinds for part in PARTS}
    assert networks.keys() == wanted | {"fusion", "fusion_discriminator"}
    earlier, _ = papers.load(tmp_path / "sketch" / newest.name, PAPER)
    state = networks["sketch_encoder_eye2"].state_dict()
    assert all(v.equal(state[k]) for k, v in earlier["sketch_encoder_eye2"].state_dict().items())
    output = tmp_path / "out.png"
    photo, sketch = faces / "face-0.png", labels_of(faces) / "face-1.png"
    edit = [NAME, "edit", str(photo), "--sketch", str(sketch), "-o", str(output)]
    assert main([*edit, "--checkpoint", str(newest)]) == 0
    assert np.asarray(Image.open(output)).shape == (64, 64, 3)
