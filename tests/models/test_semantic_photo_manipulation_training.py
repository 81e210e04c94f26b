"""The encoder of semantic photo manipulation learns: each stage, resumed, in two processes."""

import json
import multiprocessing
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training import trainer, worker
from torch import Tensor

from torchext.models import checkpoint, papers
from torchext.models.loop import Loop
from torchext.models.recipe import Passed
from torchext.models.semantic_photo_manipulation import PAPER, LayersTraining, networks
from torchext.models.semantic_photo_manipulation.networks import Config
from torchext.models.training import checkpoints

STAGES = ("resnet", "layers", "joint")
FALLS = {
    "resnet": ("resnet",),
    "layers": ("inv1", "inv2", "inv3", "inv4"),
    "joint": ("resnet", "photo"),
}


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint.load(checkpoints(folder)[-1])[0]


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", STAGES)
def test_losses_fall(stage, photos, tmp_path):
    """The generator's weights are random and stay as they are, its biases 0: z decides more."""
    run = trainer(
        f"{PAPER.name} stage {stage}", photos, tmp_path, iterations=40, batch=6,
        settings={"photo_weight": 1.0, "width": 32, "encoder_width": 8},
    )  # fmt: skip
    for name, parameter in run.recipe.networks["generator"].named_parameters():
        if name.endswith("wscale.b"):
            torch.nn.init.zeros_(parameter)
    before = {k: v.clone() for k, v in run.recipe.networks["generator"].state_dict().items()}
    run.run()
    lines = log(tmp_path)
    for name in FALLS[stage]:
        values = [line[name] for line in lines]
        assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5]), (name, values)
    after = run.recipe.networks["generator"].state_dict()
    assert all(value.equal(after[key]) for key, value in before.items())
    (sheet,) = tmp_path.glob("samples-*.png")
    assert sheet.stat().st_size > 1000


@pytest.mark.parametrize("stage", STAGES)
def test_resume_is_exact(stage, photos, tmp_path):
    name = f"{PAPER.name} stage {stage}"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer(name, photos, whole, iterations=3, average=0.9).run()
    trainer(name, photos, parts, iterations=1, average=0.9).run()
    trainer(name, photos, parts, iterations=3, average=0.9, resume=True).run()
    first, second = weights(whole), weights(parts)
    assert first.keys() == second.keys()
    assert all(value.equal(second[key]) for key, value in first.items())
    assert log(whole) == log(parts)


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_equal_one_that_accumulates(stage, photos, tmp_path):
    """Each part of a batch has its own statistics in batch norms, in both."""
    name = f"{PAPER.name} stage {stage}"
    how = {"photos": photos, "iterations": 1, "double": True, "batch": 2}
    one, other = tmp_path / "one", tmp_path / "other"
    trainer(name, output=one, accumulate=2, **how).run()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=worker, args=(rank, str(other), name, {**how, "port": port}))
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = weights(one), weights(other)
    # By Adam's first moments: the step itself blows rounding errors up.
    moments = [key for key in first if key.endswith("exp_avg")]
    assert len(moments) > 10
    largest = max(first[key].abs().max().item() for key in moments)
    for key in moments:
        scale = max(first[key].abs().max().item(), 1e-6 * largest)
        assert (first[key] - second[key]).abs().max().item() < 1e-6 * scale, key


def test_rates_fall_as_published():
    config = Config()
    with torch.device("meta"):
        built = networks(config)
        recipes = {stage.name: stage.recipe(built, config, initialise=()) for stage in PAPER.stages}
    rates = [recipes["layers"].learning_rates(0, 100 * epoch) for epoch in (19, 20, 60, 80)]
    assert rates[0] == pytest.approx(dict.fromkeys(("inv1", "inv2", "inv3", "inv4"), 1e-4))
    assert [rate["inv1"] for rate in rates] == pytest.approx([1e-4, 1e-5, 1e-6, 1e-6])
    assert [rate["inv2"] for rate in rates] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-6])
    rates = [recipes["joint"].learning_rates(0, 100 * e)["encoder"] for e in (49, 50, 150, 350)]
    assert rates == pytest.approx([1e-5, 5e-6, 2.5e-6, 1.25e-6])
    assert recipes["resnet"].learning_rates(0, 9999) == {"resnet": 1e-2}
    frozen = {
        id(p) for g in recipes["joint"].optimizers["encoder"].param_groups for p in g["params"]
    }
    left = [name for name, p in built["encoder"].named_parameters() if id(p) not in frozen]
    assert left == ["inv4.conv3.weight", "inv4.conv3.bias", "inv3.conv3.weight", "inv3.conv3.bias"]


def test_the_layers_losses_by_the_formula():
    config = papers.configure(Config, {"resolution": 128, "width": 8, "encoder_width": 4})
    torch.manual_seed(0)
    recipe = LayersTraining(networks(config), config).double()
    batch = {"noise": torch.randn(3, 8, dtype=torch.float64)}
    passed, found = Passed(), {}
    recipe.train()
    for phase in recipe.phases(0):
        found |= phase.loss(batch, passed)
    generator, encoder = recipe.generator, recipe.encoder
    x, codes = batch["noise"][:, :, None, None], []
    for i in range(1, 5):
        codes.append(x)
        x = generator.get_submodule(f"layer{i}")(x)
    codes.append(x)

    def error(a: Tensor, b: Tensor) -> Tensor:
        return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean()

    for i in range(1, 5):
        estimate = encoder.get_submodule(f"inv{i}")(codes[i])
        again = generator.get_submodule(f"layer{i}")(estimate)
        torch.testing.assert_close(found[f"inv{i}"], error(codes[i - 1], estimate))
        torch.testing.assert_close(found[f"inv{i}_again"], 0.01 * error(codes[i], again))


def test_training_is_contiguous_whatever_is_asked_for(photos, tmp_path):
    run = trainer(PAPER.name, photos, tmp_path, iterations=1, channels_last=True)
    kernels = [p for p in run.recipe.parameters() if p.dim() == 4]
    assert all(kernel.is_contiguous() for kernel in kernels)
    seen = []
    run.recipe.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    run.run()
    assert seen
    assert all(x.is_contiguous() for x in seen)


def test_a_resolution_without_an_encoder_is_named():
    with pytest.raises(ValueError, match=r"resolution: expected one of \(128, 256\)"):
        networks(papers.configure(Config, {"resolution": 64}), ["generator", "encoder"])


def test_precision_of_the_loop(photos):
    """A step in bfloat16 is finite and near that in float32."""
    config = papers.configure(Config, {"resolution": 128, "width": 16, "encoder_width": 4})
    losses = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        built = networks(config)
        loop = Loop(PAPER.stage("joint").recipe(built, config), precision=precision)
        batch = {"noise": torch.randn(4, 16, generator=torch.Generator().manual_seed(1))}
        loop.recipe.train()
        losses.append(loop.step([batch], 0))
    for name, value in losses[0].items():
        assert losses[1][name] == pytest.approx(value, rel=0.1, abs=0.05)
