"""Every paper trains: losses fall, a resumed run and two processes give the same weights."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.training import (
    FILLING,
    SMALL,
    assert_same_gradients,
    centre_box,
    log,
    train_in_two_processes,
    trainer,
    weights,
)
from torch import nn

from torchext.models import checkpoint
from torchext.models.training import NonFiniteLossError, Options, checkpoints

# What must fall, and settings under which a batch may be split without changing the mathematics.
FALLS = {
    "partial_convolutions": ("valid", "prc"),
    "region_normalization": ("l1",),
    "pd_gan": ("diversity",),
    "pd_gan stage 1": ("known", "perceptual"),
    "dagan": ("vgg", "matching"),
    "michigan": ("vgg", "lab"),
    "michigan stage orientation": ("orientation_l1", "strokes_l1"),
    "fe_gan": ("mask", "face"),
    "fe_gan stage parsing": ("cross_entropy",),
    "maggan": ("reconstruction", "mask"),
    "maggan stage parser": ("parsing", "parsing_16"),
    "maggan stage classifier": ("attributes",),
}
# PD-GAN's smallest images are 128 pixels wide: its runs take minutes.
PAPERS = [
    pytest.param(name, marks=[pytest.mark.slow] if "pd_gan" in name else []) for name in FALLS
]
SEPARABLE = {
    "region_normalization": {"scope": "instance"},
    "pd_gan": {"diversity_weight": 0.0},  # the reciprocal of a mean over the batch
    "pd_gan stage 1": {},
    "dagan": {},  # its batch norms see both processes
    "michigan": {"random_expand": 0.0, "bank": "gabor"},  # "dog" takes a maximum over the batch
}


@pytest.mark.parametrize("name", PAPERS)
def test_losses_fall(name, photos, pretrained, tmp_path):
    iterations = 12 if "pd_gan" in name else 30
    trainer(name, photos, tmp_path, pretrained=pretrained, iterations=iterations, batch=3).run()
    lines = log(tmp_path)
    assert len(lines) == iterations
    for loss in FALLS[name]:
        values = [line[loss] for line in lines if loss in line]  # not all step in each iteration
        assert np.mean(values[-4:]) < 0.9 * np.mean(values[:4]), (loss, values)
    (sheet,) = tmp_path.glob("samples-*.png")
    assert np.asarray(Image.open(sheet)).std() > 10


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize("workers", [0, 1])
def test_resume_is_exact(name, workers, photos, pretrained, tmp_path):
    options = {"pretrained": pretrained, "average": 0.9, "workers": workers}
    total, first = (3, 1) if "pd_gan" in name else (5, 3)
    if name == "region_normalization":
        options["settings"] = {"keep_leftover": True}  # gradients that a checkpoint must hold
    trainer(name, photos, tmp_path / "whole", iterations=total, **options).run()
    trainer(name, photos, tmp_path / "parts", iterations=first, **options).run()
    trainer(name, photos, tmp_path / "parts", iterations=total, resume=True, **options).run()
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        assert value.equal(parts[key]), key
    assert log(tmp_path / "whole") == log(tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SEPARABLE))
def test_two_processes_equal_one_with_the_joined_batch(name, photos, pretrained, tmp_path):
    given = {"photos": photos, "pretrained": pretrained, "settings": SEPARABLE[name]}
    given |= {"masks": centre_box, "double": True, "iterations": 1}
    trainer(name, output=tmp_path / "one", batch=2, **given).run()
    train_in_two_processes(name, tmp_path / "two", batch=1, **given)
    assert_same_gradients(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fe_gan", "fe_gan stage parsing"])
def test_two_processes_equal_one_with_two_parts(name, photos, pretrained, tmp_path):
    """Of networks whose batch norms see their own part of the batch alone."""
    given = {"photos": photos, "pretrained": pretrained, "iterations": 1, "batch": 1}
    # A step so small that spectral norms stay settled; gradients are what is compared.
    given |= {"double": True, "settled": True, "settings": {"rate": 1e-12}}
    trainer(name, output=tmp_path / "one", accumulate=2, **given).run()
    train_in_two_processes(name, tmp_path / "two", **given)
    assert_same_gradients(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["partial_convolutions", "fe_gan", "fe_gan stage parsing", "maggan"]
)
def test_two_processes_with_statistics_of_their_own_agree_with_each_other(
    name, photos, pretrained, tmp_path
):
    given = {"photos": photos, "pretrained": pretrained, "iterations": 2, "batch": 2}
    train_in_two_processes(name, tmp_path, **given)
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


@pytest.mark.parametrize(
    "name, settings",
    [
        # Spectral norms make a power iteration for each part.
        ("region_normalization", {"scope": "instance", "spectral": False}),
        pytest.param("pd_gan stage 1", {}, marks=pytest.mark.slow),
    ],
)
def test_accumulation_equals_a_larger_batch(name, settings, photos, pretrained, tmp_path):
    given = {"pretrained": pretrained, "settings": settings, "iterations": 1, "masks": centre_box}
    given["double"] = True
    trainer(name, photos, tmp_path / "one", batch=4, **given).run()
    trainer(name, photos, tmp_path / "parts", batch=2, accumulate=2, **given).run()
    assert_same_gradients(tmp_path / "one", tmp_path / "parts")


def test_finetuning_freezes_the_encoders_statistics(photos, pretrained, tmp_path):
    settings = {"finetune_at": 2}
    given = {"pretrained": pretrained, "settings": settings, "save_every": 2}
    run = trainer("partial_convolutions", photos, tmp_path, **given)
    run.run()
    before, _ = checkpoint.load(tmp_path / "checkpoint-00000002.safetensors")
    after = weights(tmp_path)
    mean = "networks.generator.{}.bn.running_mean"
    assert before[mean.format("enc_2")].equal(after[mean.format("enc_2")])
    assert not before[mean.format("dec_2")].equal(after[mean.format("dec_2")])
    key = "networks.generator.enc_2.bn.weight"
    assert not before[key].equal(after[key])
    assert run.recipe.optimizers["generator"].param_groups[0]["lr"] == 5e-5


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precisions_with_channels_last(name, precision, photos, pretrained, tmp_path):
    options = {"precision": precision, "channels_last": True, "iterations": 1}
    plain = trainer(name, photos, tmp_path / "plain", pretrained=pretrained, iterations=1).run()
    losses = trainer(name, photos, tmp_path / "other", pretrained=pretrained, **options).run()
    tolerance = 0.01 if precision == "float32" else 0.3
    for key, value in plain.items():
        if key != "diversity":  # a reciprocal of almost nothing, at first
            assert losses[key] == pytest.approx(value, rel=tolerance, abs=tolerance / 10), key


def test_leftover_gradients_change_the_discriminator(photos, tmp_path):
    results = []
    for keep in (False, True):
        folder = tmp_path / str(keep)
        settings = {"keep_leftover": keep}
        trainer("region_normalization", photos, folder, settings=settings, iterations=2).run()
        results.append(weights(folder)["networks.discriminator.conv1.0.weight_orig"])
    assert not results[0].equal(results[1])


def test_non_finite_loss_stops_and_names_the_batch(photos, tmp_path):
    run = trainer("region_normalization", photos, tmp_path)
    nn.init.constant_(run.recipe.networks["generator"].encoder_conv1.weight, float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"iteration 0: loss .* nan.*\.png.*batch-0"):
        run.run()
    (path,) = tmp_path.glob("batch-*.safetensors")
    tensors, header = checkpoint.load(path)
    assert tensors["image"].shape == (2, 3, 32, 32)
    assert all(Path(name).is_file() for name in header["name"])


def test_old_checkpoints_are_removed(photos, tmp_path):
    trainer("region_normalization", photos, tmp_path, iterations=5, save_every=1, keep=2).run()
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == [f"checkpoint-0000000{i}.safetensors" for i in (4, 5)]


def test_resume_refuses_what_does_not_fit(photos, pretrained, tmp_path):
    trainer("region_normalization", photos, tmp_path, iterations=1).run()
    with pytest.raises(ValueError, match="earlier run"):
        trainer("region_normalization", photos, tmp_path)
    with pytest.raises(ValueError, match=r"threshold was 0\.5 there, 0\.6 is given"):
        trainer("region_normalization", photos, tmp_path, resume=True, settings={"threshold": 0.6})
    with pytest.raises(ValueError, match="'batch': 2"):
        trainer("region_normalization", photos, tmp_path, resume=True, batch=3)
    with pytest.raises(ValueError, match="checkpoint of region_normalization"):
        trainer("partial_convolutions", photos, tmp_path, pretrained=pretrained, resume=True)


@pytest.mark.slow
def test_a_killed_run_leaves_loadable_checkpoints(photos, tmp_path):
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from support.training import trainer;"
        "trainer('region_normalization', Path(sys.argv[2]), Path(sys.argv[3]),"
        " iterations=10**6, save_every=1, sample_every=10**6).run()"
    )
    tests = Path(__file__).parents[1]
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        command = [sys.executable, "-c", program, str(tests), str(photos), str(folder)]
        with subprocess.Popen(command, cwd=tests) as process:
            deadline = time.monotonic() + 90
            while len(checkpoints(folder)) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.03 * attempt)
            os.kill(process.pid, signal.SIGKILL)
        found = checkpoints(folder)
        assert found
        for path in found:
            tensors, header = checkpoint.load(path)
            assert tensors
            assert header["paper"] == "region_normalization"


def no_hole(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    return np.ones((height, width), np.float32)


def nothing_known(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    return np.zeros((height, width), np.float32)


@pytest.mark.parametrize("masks", [no_hole, nothing_known])
@pytest.mark.parametrize("name", [name for name in SMALL if name.split()[0] in FILLING])
def test_batches_without_a_hole_or_anything_known(name, masks, photos, pretrained, tmp_path):
    given = {"pretrained": pretrained, "masks": masks, "iterations": 2, "batch": 1}
    losses = trainer(name, photos, tmp_path, **given).run()
    assert np.isfinite([*losses.values()]).all()
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


@pytest.mark.parametrize("name", SMALL)
def test_training_after_an_evaluation_in_inference_mode(name, photos, pretrained, tmp_path):
    """What an evaluation leaves behind must not be tensors that autograd refuses."""
    results = []
    for evaluates in (False, True):
        folder = tmp_path / str(evaluates)
        run = trainer(name, photos, folder, pretrained=pretrained, iterations=1, batch=2)
        if evaluates:
            batch = next(iter(torch.utils.data.DataLoader([run.dataset[0, 0, 0]])))
            run.recipe.eval()
            with torch.inference_mode():
                run.recipe.samples(batch)
        run.run()
        results.append(weights(folder))
    assert all(value.equal(results[1][key]) for key, value in results[0].items())


def test_an_old_checkpoint_that_is_in_use_is_left(photos, tmp_path, monkeypatch):
    def refuse(path: Path, missing_ok: bool = False) -> None:
        if "checkpoint" in path.name and not path.name.startswith("."):
            raise PermissionError(13, "in use")
        os.unlink(path) if path.exists() else None

    monkeypatch.setattr(Path, "unlink", refuse)
    run = trainer("region_normalization", photos, tmp_path, iterations=2, save_every=1, keep=1)
    with pytest.warns(UserWarning, match="checkpoint-00000001.safetensors: not removed"):
        run.run()
    assert len(checkpoints(tmp_path)) == 2


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("iterations", 0, "iterations: expected at least 1, got 0"),
        ("batch", 0, "batch: expected at least 1, got 0"),
        ("workers", -1, "workers: expected at least 0, got -1"),
    ],
)
def test_options_are_checked(option, value, message, tmp_path):
    given = {"output": tmp_path, "iterations": 1, "batch": 1, option: value}
    with pytest.raises(ValueError, match=message):
        Options(**given)
