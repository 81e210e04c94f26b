"""accelerate with an example: what is called, compared, timed, and put back."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchext
from benchmarks.baselines import modulated_layers as modulated
from benchmarks.baselines import partial_conv as partial
from benchmarks.baselines import region_norm as published
from torchext.accelerate.layer import AcceleratedLayer


class Network(nn.Module):
    """Has running statistics, a kept mask, random numbers, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = partial.PartialConv2d(3, 4, 3, padding=1)
        self.norm = modulated.SPADE("batch", 4, 2)
        self.drop = nn.Dropout(0.5)
        self.twice = modulated.PixelNorm()
        self.never = published.RN_B(4)
        self.calls = 0
        self.average = torch.zeros(())  # no buffer

    def forward(self, x: Tensor, mask: Tensor, labels: Tensor) -> dict[str, Any]:
        self.calls += 1
        self.average.add_(1)
        x = self.norm(self.conv(x, mask), labels)
        return {"y": self.twice(self.drop(self.twice(x))), "size": x.shape[2:]}


def example() -> tuple[Tensor, ...]:
    x, labels = torch.randn(2, 3, 12, 14), torch.randn(2, 2, 6, 7)
    return x, (x[:, :1] > 0).float(), labels


def test_the_report_tells_what_was_called_and_how_long_it_took() -> None:
    model = Network()
    _, report = torchext.accelerate(model, example=example())
    assert {layer.name: layer.calls for layer in report.swapped} == {
        "conv": ("(2, 3, 12, 14), (2, 1, 12, 14)",),
        "norm": ("(2, 4, 12, 14), (2, 2, 6, 7)",),
        "twice": ("(2, 4, 12, 14)", "(2, 4, 12, 14)"),
        "never": (),
    }
    assert report.example.before > 0
    assert report.example.after > 0
    assert 0 <= report.example.difference < 1e-4
    assert not report.example.problem
    last = str(report).splitlines()[-1]
    assert last.startswith("example: ")
    assert "ms before" in last


def test_the_explanation_tells_shares_and_gains() -> None:
    _, report = torchext.accelerate(Network(), example=example())
    for layer in report.swapped:
        called = layer.name != "never"
        assert (layer.before > 0) == (layer.after > 0) == called, layer.name
    assert sum(layer.before for layer in report.swapped) < report.example.before
    *lines, share, times = report.explain().splitlines()
    assert lines == sorted(lines, key=lambda line: -float(line.split(": ")[1].split("%")[0]))
    assert re.fullmatch(
        r"norm \(SPADE\): \d+% of the model's time, [\d.]+x faster \([\d.]+ ms before, [\d.]+ ms"
        r" after\); statistics, modulation and activation are one pass; both maps are one"
        r" convolution",
        next(line for line in lines if line.startswith("norm ")),
    )
    assert re.fullmatch(r"swapped layers: \d+% of the model's time", share)
    assert times == str(report.example)


def test_arguments_by_name() -> None:
    x, mask, labels = example()
    keywords = {"x": x, "labels": labels, "mask": mask}
    _, report = torchext.accelerate(Network(), example=keywords)
    assert len(report.swapped) == 4
    assert report.example.difference < 1e-4


def test_nothing_that_a_run_changes_stays_changed() -> None:
    model = Network().train()
    arguments = example()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    kept = model.conv.last_size
    copies = [value.clone() for value in arguments]
    torchext.accelerate(model, example=arguments)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.conv.last_size is kept
    assert (model.calls, model.average) == (0, 0)
    assert all(map(torch.equal, arguments, copies))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


class AsksForTheClass(nn.Module):
    """Goes by the very class of a layer, which no swap can keep."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = modulated.PixelNorm()
        self.other = published.RN_L(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x) * (2 if type(self.layer) is modulated.PixelNorm else 1)


class NeedsTheClass(AsksForTheClass):
    def forward(self, x: Tensor) -> Tensor:
        if type(self.layer) is not modulated.PixelNorm:
            raise RuntimeError("another class")
        return super().forward(x)


@pytest.mark.parametrize(
    "kind, problem",
    [
        (AsksForTheClass, "output 0 differs by"),
        (NeedsTheClass, "RuntimeError: another class"),
    ],
)
def test_all_is_restored_where_the_outputs_differ(kind: type[nn.Module], problem: str) -> None:
    model = kind()
    x = torch.randn(2, 3, 12, 14)
    expected = model(x)
    _, report = torchext.accelerate(model, example=(x,))
    assert report.example.problem.startswith(problem)
    assert not report.swapped
    assert all(layer.reason.startswith(f"restored: {problem}") for layer in report.left)
    assert str(report).endswith("; everything was restored")
    assert not any(isinstance(part, AcceleratedLayer) for part in model.modules())
    assert torch.equal(model(x), expected)


def test_a_layer_that_differs_in_the_example_alone_is_left() -> None:
    class PixelNorm(modulated.PixelNorm):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y * 2 if x.shape[2] > 100 else y

    model = nn.Sequential(PixelNorm(), published.RN_L(3))
    _, report = torchext.accelerate(copy.deepcopy(model))
    assert len(report.swapped) == 2
    _, report = torchext.accelerate(model, example=(torch.randn(1, 3, 104, 4),))
    assert [layer.swapped for layer in report.layers] == [False, True]
    assert report.left[0].reason.startswith("output 0 differs by 5.0e-01")
    assert not report.example.problem


def test_without_known_layers() -> None:
    _, report = torchext.accelerate(nn.Sequential(nn.ReLU()), example=(torch.ones(1),))
    assert report.example.after is None
    assert not report.layers


def test_without_values() -> None:
    with torch.device("meta"):
        model = Network()
        arguments = example()
    _, report = torchext.accelerate(model, example=arguments)
    assert len(report.layers) == 4


def test_an_example_that_the_model_does_not_take() -> None:
    model = Network()
    with pytest.raises(RuntimeError, match="expected input"):
        torchext.accelerate(model, example=(*example()[:1], torch.ones(2, 5, 1, 1), None))
    assert not any(isinstance(part, AcceleratedLayer) for part in model.modules())
    expected = (
        "^example: expected a tuple of the model's arguments or a dict of its keyword arguments,"
        " got Tensor$"
    )
    with pytest.raises(TypeError, match=expected):
        torchext.accelerate(model, example=torch.ones(1))
