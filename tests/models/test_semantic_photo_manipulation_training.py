"""Generator and encoder of semantic photo manipulation learn: each stage, resumed, in processes."""

import json
import multiprocessing
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training import SMALL, trainer, worker
from torch import Tensor

from torchext.models import checkpoint, papers
from torchext.models.__main__ import main
from torchext.models.data import EpochBatches, loader
from torchext.models.loop import Loop
from torchext.models.recipe import Passed
from torchext.models.semantic_photo_manipulation import (
    PAPER,
    GeneratorTraining,
    LayersTraining,
    networks,
)
from torchext.models.semantic_photo_manipulation.networks import (
    Config,
    ScaledConvBlock,
    with_deviation,
)
from torchext.models.semantic_photo_manipulation.training import growth
from torchext.models.training import checkpoints

STAGES = ("resnet", "layers", "joint")
ALL_STAGES = ("generator", *STAGES)
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


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_resume_is_exact(stage, photos, tmp_path):
    """The generator's run goes on where it begins to grow, and is resumed in the fade."""
    name = f"{PAPER.name} stage {stage}"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    how = {"average": 0.9, "settings": {"growth_iterations": 2}}
    trainer(name, photos, whole, iterations=5, **how).run()
    trainer(name, photos, parts, iterations=3, **how).run()
    trainer(name, photos, parts, iterations=5, resume=True, **how).run()
    first, second = weights(whole), weights(parts)
    assert first.keys() == second.keys()
    assert all(value.equal(second[key]) for key, value in first.items())
    assert log(whole) == log(parts)


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_two_processes_equal_one_that_accumulates(stage, photos, tmp_path):
    """Each part of a batch has its own statistics in batch norms, in both.

    Without the gradient penalty, whose places are drawn for each process.
    """
    name = f"{PAPER.name} stage {stage}"
    how = {"photos": photos, "iterations": 1, "double": True, "batch": 2}
    how["settings"] = {"penalty_weight": 0.0}
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


# --- the generator ------------------------------------------------------------------------------


def grown(iteration: int = 0, **settings: object) -> GeneratorTraining:
    """The recipe as of an iteration: phases of four, 128 pixels."""
    given = {"resolution": 128, "width": 16, "growth_iterations": 4, **settings}
    config = papers.configure(Config, given)
    torch.manual_seed(0)
    stage = PAPER.stage("generator")
    recipe = GeneratorTraining(networks(config, stage.networks), config).double()
    recipe.phases(iteration)
    return recipe


def drawn(count: int = 3) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    image = torch.rand(count, 3, 128, 128, generator=random, dtype=torch.float64)
    return {
        "image": image,
        "noise": torch.randn(count, 16, generator=random, dtype=torch.float64),
    }


def test_phases_of_growing():
    found = [growth(iteration, 4, 16) for iteration in (0, 3, 4, 5, 7, 8, 11, 12, 14, 16, 20, 999)]
    assert [side for side, _ in found] == [4, 4, 8, 8, 8, 8, 8, 16, 16, 16, 16, 16]
    assert [alpha for _, alpha in found] == [1, 1, 0, 0.25, 0.75, 1, 1, 0, 0.5, 1, 1, 1]
    # 13 phases of 800,000 images up to 256 pixels, in batches of 16
    assert growth(12 * 50_000 - 1, 50_000, 256) == (256, 1 - 1 / 50_000)
    assert growth(12 * 50_000, 50_000, 256) == (256, 1.0)


def test_the_discriminator_mirrors_the_generator():
    with torch.device("meta"):
        built = networks(Config(), PAPER.stage("generator").networks)
    shapes = {name: tuple(p.shape) for name, p in built["discriminator"].named_parameters()}
    assert shapes["input_256x256.conv.weight"] == (32, 3, 1, 1)
    assert shapes["level_256x256.0.conv.weight"] == (32, 32, 3, 3)
    assert shapes["level_256x256.1.conv.weight"] == (64, 32, 3, 3)
    assert shapes["level_8x8.1.conv.weight"] == (512, 512, 3, 3)
    assert shapes["judge.0.conv.weight"] == (512, 513, 3, 3)
    assert shapes["judge.1.conv.weight"] == (512, 512, 4, 4)
    assert shapes["judge.2.conv.weight"] == (1, 512, 1, 1)
    assert [*built["outputs"]] == [f"output_{2**i}x{2**i}" for i in range(2, 8)]
    assert built["outputs"]["output_128x128"].conv.weight.shape == (3, 64, 1, 1)
    for side in (4, 32, 256):
        assert built["discriminator"](torch.rand(2, 3, side, side, device="meta")).shape == (2, 1)
    with pytest.raises(ValueError, match=r"image: expected a square of 4, 8, .* 256 pixels, got 5"):
        built["discriminator"](torch.rand(2, 3, 5, 5, device="meta"))


def test_a_scaled_convolution_keeps_the_scale_of_its_input():
    torch.manual_seed(0)
    x = torch.randn(4, 64, 16, 16)
    assert ScaledConvBlock(64, 64, 3, 1)(x).square().mean().item() == pytest.approx(1, abs=0.2)
    linear = ScaledConvBlock(64, 64, 1, slope=None)
    assert linear(x).std().item() == pytest.approx(1, abs=0.1)
    wanted = torch.nn.functional.conv2d(x, linear.conv.weight) / 8
    torch.testing.assert_close(linear(x), wanted)


def test_a_discriminator_sees_whether_images_differ():
    x = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    y = with_deviation(x)
    assert y.shape == (4, 6, 3, 3)
    assert torch.equal(y[:, :5], x)
    deviation = (x - x.mean(0)).square().mean(0).sqrt().mean()
    torch.testing.assert_close(y[:, 5], deviation.expand(4, 3, 3), rtol=1e-6, atol=0)
    assert with_deviation(x[:1])[0, 5].max() < 1e-3


@pytest.mark.parametrize("side, begins", [(8, 4), (32, 20), (128, 36)])
def test_a_level_fades_in_from_nothing(side, begins):
    """At first everything is as it was one resolution below, enlarged."""
    batch = drawn()
    recipe, before, whole = grown(begins), grown(begins - 1), grown(begins + 4)
    assert recipe.grown == (side, 0.0)
    assert before.grown == (side // 2, 1.0)
    assert whole.grown == (side, 1.0)
    for made in ("fakes", "real"):
        now, lower = getattr(recipe, made)(batch), getattr(before, made)(batch)
        assert now.shape == (3, 3, side, side)
        torch.testing.assert_close(now, lower.repeat_interleave(2, 2).repeat_interleave(2, 3))
    scores = recipe._score(recipe.real(batch)), before._score(before.real(batch))
    torch.testing.assert_close(*scores)
    half = grown(begins + 2)
    for made in ("fakes", "real"):
        ends = getattr(recipe, made)(batch), getattr(whole, made)(batch)
        torch.testing.assert_close(getattr(half, made)(batch), (ends[0] + ends[1]) / 2)


def test_the_grown_generator_makes_the_published_image():
    recipe, batch = grown(10_000), drawn()
    assert recipe.grown == (128, 1.0)
    wanted = recipe.networks["generator"](batch["noise"])
    torch.testing.assert_close(recipe.fakes(batch).clamp(-1, 1), wanted)
    torch.testing.assert_close(recipe.real(batch), batch["image"] * 2 - 1)


def test_losses_of_the_generators_stage_by_the_formula():
    recipe, batch = grown(5), drawn()
    fakes = recipe.fakes(batch).detach()
    torch.manual_seed(3)
    terms = recipe.discriminator_loss(batch, fakes)
    torch.manual_seed(3)
    place = torch.rand(3, 1, 1, 1, dtype=torch.float64)
    real = recipe.real(batch)
    between = (real + place * (fakes - real)).requires_grad_()
    (gradient,) = torch.autograd.grad(recipe._score(between).sum(), between)
    lengths = gradient.square().sum(dim=(1, 2, 3)).sqrt()
    scores = recipe._score(real)
    assert {name: term.item() for name, term in terms.items()} == {
        "discriminator_real": pytest.approx(-scores.mean().item()),
        "discriminator_fake": pytest.approx(recipe._score(fakes).mean().item()),
        "penalty": pytest.approx(10 * (lengths - 1).square().mean().item()),
        "drift": pytest.approx(0.001 * scores.square().mean().item()),
    }
    generator = recipe.generator_loss(batch, fakes)["generator"]
    torch.testing.assert_close(generator, -terms["discriminator_fake"])


def test_new_generators_begin_with_biases_of_zero():
    recipe = grown()
    for name, parameter in recipe.named_parameters():
        if name.endswith("wscale.b"):
            assert not parameter.any(), name
        elif parameter.numel() > 100:
            assert parameter.std().item() == pytest.approx(1, abs=0.3), name
    rates = recipe.learning_rates(7, 70)
    assert rates == {"generator": 1e-3, "discriminator": 1e-3}
    for optimizer in recipe.optimizers.values():
        assert optimizer.defaults["betas"] == (0.0, 0.99)


def test_the_generator_learns_the_colours_of_photos(photos, tmp_path):
    settings = {"width": 32, "growth_iterations": 60, "generator_rate": 5e-3}
    run = trainer(
        f"{PAPER.name} stage generator", photos, tmp_path, iterations=120, batch=8,
        settings=settings, sample_every=60, average=0.9,
    )  # fmt: skip
    batch = run.loop.moved(next(iter(loader(run.dataset, EpochBatches(8, 8, seed=0)))))
    noise = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def distance() -> float:
        """Of the mean colours at each place of 4x4."""
        fakes = run.recipe.fakes({**batch, "noise": noise})
        real = run.recipe.real(batch)
        means = [torch.nn.functional.adaptive_avg_pool2d(x, 4).mean(0) for x in (fakes, real)]
        return (means[0] - means[1]).abs().mean().item()

    before = distance()
    run.run()
    assert run.recipe.grown.side == 8
    assert distance() < 0.5 * before
    assert len([*tmp_path.glob("samples-*.png")]) == 2
    found, config = papers.load(checkpoints(tmp_path)[-1], PAPER)
    assert found.keys() == {"generator", "outputs", "discriminator"}
    assert config.schedule.growth_iterations == 60
    last = run.recipe.networks["generator"].layer4.conv.weight
    assert not torch.equal(found["generator"].layer4.conv.weight, last)  # the average


def test_a_trained_generator_serves_the_encoders_stages(photos, tmp_path, capsys):
    how = ["--workers", "0", "--batch", "2", "--iterations", "2", "--device", "cpu"]
    how += [f"--set={name}={value}" for name, value in SMALL[PAPER.name].items()]
    command = [PAPER.name, "train", str(photos), *how]
    assert main([*command, "--stage", "generator", "-o", str(tmp_path / "first")]) == 0
    given = ["--checkpoint", str(checkpoints(tmp_path / "first")[-1])]
    assert main([*command, *given, "--stage", "resnet", "-o", str(tmp_path / "second")]) == 0
    assert "2 iterations" in capsys.readouterr().out
    first, second = (weights(tmp_path / name) for name in ("first", "second"))
    kept = [key for key in second if key.startswith("networks.generator.")]
    assert kept
    assert all(torch.equal(first[key], second[key]) for key in kept)


@pytest.mark.slow
def test_the_generator_grows_to_its_real_size(photos, tmp_path):
    """All thirteen phases, an iteration each, at the published widths."""
    settings = {"resolution": 256, "width": 512, "growth_iterations": 1, "generator_rate": 1e-3}
    run = trainer(
        f"{PAPER.name} stage generator", photos, tmp_path, iterations=13, settings=settings
    )
    run.run()
    assert run.recipe.grown == (256, 1.0)
    lines = log(tmp_path)
    assert len(lines) == 13
    assert all(np.isfinite(value) for line in lines for value in line.values())


# --- the encoder --------------------------------------------------------------------------------


def test_rates_fall_as_published():
    config = Config()
    with torch.device("meta"):
        built = networks(config)
        recipes = {name: PAPER.stage(name).recipe(built, config, initialise=()) for name in STAGES}
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


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_memory_formats_train_alike(stage, photos, tmp_path):
    found = []
    for channels_last in (False, True):
        folder = tmp_path / str(channels_last)
        how = {"iterations": 2, "channels_last": channels_last}
        how["settings"] = {"growth_iterations": 1, "photo_weight": 1.0}
        run = trainer(f"{PAPER.name} stage {stage}", photos, folder, **how)
        kernels = [p for p in run.recipe.parameters() if p.dim() == 4 and min(p.shape) > 1]
        form = torch.channels_last if channels_last else torch.contiguous_format
        assert all(kernel.is_contiguous(memory_format=form) for kernel in kernels)
        run.run()
        found.append(log(folder))
    # A step of Adam blows rounding up: the second losses are finite, which the loop has checked.
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3, abs=1e-4)
    assert len(found[0]) == len(found[1]) == 2


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
