"""MaskGAN learns from photographs, in one process and in two; options of paper and code."""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.training import InDouble, labels_of
from torch import Tensor

from torchext.models import checkpoint
from torchext.models.maskgan import PAPER, Config, networks
from torchext.models.paper import configure
from torchext.models.training import Options, Trainer, checkpoints

SMALL = {
    "size": 128, "labels": 19, "width": 4, "downsamplings": 2, "residual_blocks": 1,
    "blender_width": 2, "blender_downsamplings": 2, "blender_blocks": 1,
    "discriminator_width": 4, "discriminator_layers": 2, "vae_width": 1, "code": 8,
    "parser_scale": 16, "rate": 2e-3, "vae_rate": 1e-2, "parser_rate": 1e-2,
}  # fmt: skip


def train(
    stage_name: str,
    photos: Path,
    output: Path,
    vgg19: Path,
    *,
    iterations: int,
    batch: int,
    double: bool = False,
    **changes: object,
) -> None:
    """A run of a stage from new weights, on photographs and maps of their shades."""
    stage = PAPER.stage(stage_name)
    config = configure(Config, {**SMALL, **changes})
    parser = argparse.ArgumentParser()
    PAPER.train_arguments(parser)
    given = parser.parse_args([str(photos), "--labels", str(labels_of(photos))])
    given.seed = 0
    data = PAPER.dataset(given, config, stage)
    torch.manual_seed(0)
    pretrained = {"vgg19": vgg19} if stage.pretrained else {}
    recipe = stage.recipe(networks(config, stage.networks), config, pretrained=pretrained)
    if double:
        recipe, data = recipe.double(), InDouble(data)
    how = Options(output, iterations, batch, log_every=1, quiet=True)
    Trainer(PAPER, config, stage, recipe, data, how).run()


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint.load(checkpoints(folder)[-1])[0]


@pytest.mark.parametrize(
    "stage, iterations, falling",
    [
        ("1", 12, ("vgg", "mask_vae")),
        pytest.param("2", 10, ("vgg", "blend_vgg"), marks=pytest.mark.slow),
        ("parser", 24, ("parsing",)),
    ],
)
def test_losses_of_photographs_fall(stage, iterations, falling, photos, pretrained, tmp_path):
    train(stage, photos, tmp_path, pretrained["vgg19"], iterations=iterations, batch=3)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == iterations
    for name in falling:
        values = [line[name] for line in lines]
        assert np.mean(values[-3:]) < 0.9 * np.mean(values[:3]), (name, values)


@pytest.mark.slow
def test_two_processes_equal_one_with_the_joined_batch(photos, pretrained, tmp_path):
    """Of stage 2; MaskVAE's batch norms in stage 1 see a process's own part."""
    how = {"iterations": 1, "double": True}
    one, other = tmp_path / "one", tmp_path / "other"
    train("2", photos, one, pretrained["vgg19"], batch=2, **how)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [Path(__file__).parent, Path(__file__).parents[1]]
    program = (
        f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from test_maskgan_training import train\n"
        "torch.set_num_threads(1)\n"
        f"train('2', Path({str(photos)!r}), Path({str(other)!r}),"
        f" Path({str(pretrained['vgg19'])!r}), batch=1, **{how!r})"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        )
        for rank in (0, 1)
    ]
    assert [process.wait(300) for process in started] == [0, 0]
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    # By Adam's first moments: the step itself blows rounding errors up.
    moments = [key for key in first if key.endswith("exp_avg")]
    assert len(moments) > 100
    largest = max(first[key].abs().max().item() for key in moments)
    for key in moments:
        scale = max(first[key].abs().max().item(), 1e-6 * largest)
        assert (first[key] - second[key]).abs().max().item() < 1e-6 * scale, key


def test_one_weight_for_all_colours():
    """The paper's blending map; published code has one for each colour."""
    config = configure(Config, {**SMALL, "blender_weights": 1})
    blender = networks(config, ["blender"])["blender"]
    assert PAPER.options(blender.state_dict())["blender_weights"] == 1
    _, alpha = blender(torch.zeros(1, 3, 128, 128), torch.ones(1, 3, 128, 128))
    assert alpha.shape == (1, 1, 128, 128)
    with pytest.raises(ValueError, match="blender_weights: expected 1 or 3, got 2"):
        configure(Config, {"blender_weights": 2})


def test_the_rate_of_both_together_as_published():
    rates = []
    for decays in (True, False):
        config = configure(Config, {**SMALL, "vgg_weight": 0, "joint_decay": decays})
        stage = PAPER.stage("2")
        recipe = stage.recipe(networks(config, stage.networks), config)
        rates.append(recipe.learning_rates(150, 0))
    assert rates[0] == pytest.approx(dict.fromkeys(rates[0], 1e-3))
    assert rates[1] == rates[0] | {"joint": 2e-3}


def test_mirrored_parts_change_places(tmp_path):
    for name in ("photos", "photos-labels"):
        (tmp_path / name).mkdir()
    labels = np.zeros((128, 128), np.uint8)
    labels[:, :64], labels[:64, 64:] = 4, 7  # an eye at the left, a brow
    Image.fromarray(labels).save(tmp_path / "photos-labels" / "0.png")
    Image.fromarray(labels * 10).save(tmp_path / "photos" / "0.png")
    config = configure(Config, {**SMALL, "flip": 1.0})
    parser = argparse.ArgumentParser()
    PAPER.train_arguments(parser)
    arguments = [str(tmp_path / "photos"), "--labels", str(tmp_path / "photos-labels")]
    given = parser.parse_args(arguments)
    given.seed = 0
    sample = PAPER.dataset(given, config, PAPER.stage("1"))[0, 0, 0]
    found = sample["labels"][0]
    assert found[0, 0] == 6
    assert found[127, 0] == 0
    assert found[0, 127] == 5
    assert (sample["image"][0] * 255).round()[0, 127] == 40
    with pytest.raises(ValueError, match=r"flip: expected a probability from 0 to 1, got 2\.0"):
        configure(Config, {"flip": 2})
