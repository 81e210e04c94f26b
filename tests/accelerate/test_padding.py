"""Partial convolution as padding: without a mask, its window depends on sizes alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.tolerance import assert_close

import torchext
from benchmarks.baselines.partial_conv import PartialConv2d
from torchext.ops import partial_conv

CASES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 5, "padding": 2, "stride": 2},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 1},
]


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 6, *size) for size in sizes]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", CASES)
def test_again_and_again(options: dict[str, int], bias: bool) -> None:
    """Sizes take turns, in inference mode and in training."""
    torch.manual_seed(0)
    published = PartialConv2d(6, 5, bias=bias, **options)
    accelerated, report = torchext.accelerate(copy.deepcopy(published))
    assert report.swapped, str(report)
    ours = torchext.nn.PartialConv2d(6, 5, bias=bias, **options)
    ours.load_state_dict(published.state_dict())
    for _turn in range(2):
        for x in images((12, 14), (14, 12), (12, 14)):
            expected = published(x).detach()
            for layer in (accelerated, ours):
                for _call in range(2):
                    # What the published layer keeps in inference mode fails in training.
                    with torch.inference_mode() if layer is ours else torch.no_grad():
                        assert_close("inference", layer(x), expected.double(), length=200)
                    y = layer(x.clone().requires_grad_())
                    assert_close("training", y.detach(), expected.double(), length=200)
                    y.sum().backward()
        mean = ours.weight.grad.mean()
        assert float((mean - accelerated.weight.grad.mean()).abs()) < 1e-4 * float(mean.abs())


def test_windows_are_kept_by_all_that_they_depend_on() -> None:
    (x,) = images((12, 14))
    weight = torch.randn(5, 6, 3, 3)
    found = set()
    for options in (
        {},
        {"padding": 1},
        {"padding": 1, "stride": 2},
        {"padding": 1, "dilation": 2},
        {"padding": 1, "eps": 0.5},
        {"padding": 1, "form": "sum"},
        {"padding": 1, "bias": torch.ones(5)},
    ):
        ones = torch.ones(1, 1, 12, 14)
        expected, mask = torchext.partial_conv2d(x, ones, weight, **options)
        for _call in range(2):
            y, updated = torchext.partial_conv2d(x, None, weight, **options)
            assert_close("y", y, expected.double(), length=200)
            assert torch.equal(updated, mask)
        found.add(y.sum().item())
        double = torchext.partial_conv2d(
            x.double(),
            None,
            weight.double(),
            **{k: v.double() if k == "bias" else v for k, v in options.items()},
        )
        assert double[1].dtype == torch.float64
    assert len(found) == 7


def test_a_mask_that_is_written_into_is_the_callers_own() -> None:
    (x,) = images((12, 14))
    for padding in (0, 1):
        layer = torchext.nn.PartialConv2d(6, 5, 3, padding=padding, return_mask=True)
        expected, updated = layer(x)
        updated.zero_()
        y, again = layer(x)
        assert torch.equal(y, expected)
        assert again.all()


def test_what_is_kept_is_bounded() -> None:
    kept = partial_conv._Kept(limit=4000)
    windows = [(torch.ones(10, 10), torch.ones(10, 10)) for _ in range(9)]  # 800 bytes each
    for key, window in enumerate(windows):
        kept.put(key, window)
        assert kept.get(0) is windows[0]  # used last
        assert kept.size <= 4000
    assert kept.get(1) is None  # that which was not used for longest
    assert kept.get(8) is windows[8]
    kept.put("large", (torch.ones(1000), torch.ones(1000)))
    assert kept.get("large") is None
    assert kept.size == 0


def test_without_padding_it_is_the_convolution() -> None:
    (x,) = images((12, 14))
    layer = torchext.nn.PartialConv2d(6, 5, 3, stride=2)
    with torchext.backend.convolution("direct"):
        assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, 2))


def test_compiled_and_exported_graphs_hold_no_kept_window() -> None:
    (x,) = images((12, 14))
    layer = torchext.nn.PartialConv2d(6, 5, 3, padding=1).eval()
    expected = layer(x)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert_close("compiled", compiled(x).detach(), expected.detach().double(), length=200)
    exported = torch.export.export(layer, (x,))
    assert all(value.numel() < 144 for value in exported.constants.values())
    assert_close("exported", exported.module()(x), expected.detach().double(), length=200)
