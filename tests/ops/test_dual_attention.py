"""torchext.dual_attention and its pools against the float64 reference, on every backend."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.backends import parameters, running
from support.tolerance import assert_close
from torch import Tensor

import torchext
from torchext import reference

SHAPES = [
    *((2, 5, 9, 13), (1, 64, 16, 16), (1, 33, 20, 17), (3, 1, 7, 7), (1, 4, 1, 40)),
    *((2, 260, 8, 8), (1, 8, 40, 48), (0, 3, 6, 6)),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NATIVE = ("cpu", "cuda-emulated", "triton-interpreted", "cuda")
NAMES = ("high", "low", "gate", "attention")


def problem(shape: tuple, dtype: torch.dtype, device: str, last: bool = False) -> list[Tensor]:
    """high, low, gate, attention."""
    generator = torch.Generator().manual_seed(sum(shape))
    N, C, H, W = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(device)

    maps = [normal(*shape).to(dtype) for _ in range(2)]
    if last:
        maps = [x.to(memory_format=torch.channels_last) for x in maps]
    small = torch.float64 if dtype == torch.float64 else torch.float32
    return [*maps, normal(N, C).sigmoid().to(small), normal(N, 1, H, W).sigmoid().to(small)]


def check(run: Callable, formula: Callable, leaves: list[Tensor], length: int) -> None:
    """Outputs and gradients against the formula in float64."""
    for leaf in leaves:
        leaf.requires_grad_()
    outputs = run(*leaves)
    cotangents = [torch.randn(y.shape).to(y) for y in outputs]
    torch.autograd.backward(outputs, cotangents)
    leaves64 = [x.detach().double().requires_grad_() for x in leaves]
    expected = formula(*leaves64)
    torch.autograd.backward(expected, [c.double() for c in cotangents])
    for i, (got, want) in enumerate(zip(outputs, expected, strict=True)):
        assert_close(f"output {i}", got, want, length=length)
    for name, got, want in zip(NAMES, leaves, leaves64, strict=False):
        scale = max(1.0, want.grad.abs().max().item()) if want.numel() else 1.0
        assert got.grad.dtype == got.dtype
        assert_close(f"grad_{name}", got.grad, want.grad, length=length, scale=scale)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape: tuple, dtype: torch.dtype, last: bool, name: str) -> None:
    _, C, H, W = shape
    with running(name) as device:
        leaves = problem(shape, dtype, device, last)
        check(
            lambda *given: [torchext.dual_attention(*given, negative_slope=0.2)],
            lambda *given: [reference.dual_attention(*given, 0.2)],
            leaves,
            max(C, H * W),
        )
        y = torchext.dual_attention(*leaves)
        assert y.dtype == dtype
        if y.numel() and C > 1:
            assert y.stride() == leaves[1].stride()
        check(
            torchext.dual_attention_pools,
            lambda *given: reference.dual_attention_pools(*given)[:2],
            problem(shape, dtype, device, last)[:2],
            max(C, H * W),
        )


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_slopes_and_mixed_formats(slope: float, name: str) -> None:
    with running(name) as device:
        leaves = problem((2, 6, 5, 7), torch.float32, device)
        leaves[0] = leaves[0].to(memory_format=torch.channels_last)
        check(
            lambda *given: [torchext.dual_attention(*given, negative_slope=slope)],
            lambda *given: [reference.dual_attention(*given, slope)],
            leaves,
            35,
        )


@pytest.mark.parametrize("name", parameters(*NATIVE))
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_maximum_takes_the_first_of_equals_and_nan(name: str, last: bool) -> None:
    low = torch.zeros(1, 6, 2, 4)
    low[0, 3, 0, 0] = low[0, 5, 0, 0] = 2.0
    low[0, 2, 0, 1] = float("nan")
    low[0, 1, 0, 2] = float("-inf")
    if last:
        low = low.to(memory_format=torch.channels_last)
    with running(name) as device:
        ops = torchext.backend.choose("dual_attention_pools", low).ops
        averages, pooled, argmax = ops.dual_attention_pools(low.to(device), low.to(device))
    for got, want in zip(
        (averages, pooled, argmax), reference.dual_attention_pools(low, low), strict=True
    ):
        torch.testing.assert_close(got.cpu(), want, equal_nan=True)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"low": 3}, TypeError, "low: expected a torch.Tensor, got int"),
        ({"high": torch.ones(2, 3, 4, 6)}, ValueError, "high: expected the shape of low, (2, 3,"),
        ({"high": torch.ones(2, 3, 4, 5).half()}, TypeError, "high: expected the dtype of low, t"),
        ({"gate": torch.ones(2, 4)}, ValueError, "gate: expected the shape (2, 3), got (2, 4)"),
        ({"attention": torch.ones(2, 4, 5)}, ValueError, "attention: expected the shape (2, 1, 4,"),
        ({"negative_slope": -1.0}, ValueError, "negative_slope: expected a slope from 0 to 1"),
    ],
)
def test_bad_input(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    names = (*NAMES, "negative_slope")
    given = dict(zip(names, (*problem((2, 3, 4, 5), torch.float32, "cpu"), 0.2), strict=True))
    with pytest.raises(kind) as error:
        torchext.dual_attention(**{**given, **changes})
    assert message in str(error.value)
