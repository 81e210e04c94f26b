"""torchext.diversity_map and soft_diversity_map against the reference, on every backend."""

import math

import pytest
import torch
from support.backends import parameters, running
from support.tolerance import assert_close

import torchext
from torchext import reference

PATTERNS = ("sparse", "hole", "none", "all_hole", "half")


def mask_of(pattern: str, shape: tuple[int, int, int]) -> torch.Tensor:
    """(N,1,H,W), 1 known."""
    N, H, W = shape
    mask = torch.ones(N, 1, H, W)
    if pattern == "sparse":
        generator = torch.Generator().manual_seed(H + W)
        mask = (torch.rand(mask.shape, generator=generator) > 0.98).float()
    elif pattern == "hole":
        mask[:, :, H // 4 : H - H // 5, W // 5 : W - W // 4] = 0
    elif pattern == "all_hole":
        mask.zero_()
    elif pattern == "half":
        mask[..., W // 2 :] = 0
    return mask


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    ("steps", "window", "shape", "size"),
    [
        (2, 3, (2, 17, 23), None),
        (7, 5, (1, 70, 90), None),
        (3, 9, (1, 40, 33), (20, 17)),
        (5, 3, (2, 16, 16), (37, 21)),
        (1, 3, (1, 8, 8), None),
        (4, 7, (1, 1, 300), None),
        (3, 5, (0, 8, 8), None),
    ],
)
def test_hard(steps: int, window: int, shape: tuple, size: tuple | None, pattern: str, name: str):
    mask = mask_of(pattern, shape)
    height, width = size or shape[1:]
    expected = reference.diversity_maps(
        mask.to(torch.uint8), [steps], [window], [height], [width], math.e, torch.float64
    ).view(-1, 1, height, width)
    with running(name) as device:
        got = torchext.diversity_map(mask.to(device), steps, window, size=size)
    assert got.dtype == torch.float32
    assert_close("map", got, expected, length=steps)


@pytest.mark.parametrize("name", parameters())
def test_several_maps_are_the_single_ones(name: str) -> None:
    steps, windows = [2, 3, 4, 7], [3, 3, 5, 5]
    sizes = [(4, 4), (8, 9), (16, 16), (32, 48)]
    with running(name) as device:
        mask = mask_of("hole", (2, 32, 48)).to(device)
        maps = torchext.diversity_map(mask, steps, windows, 4.0, sizes)
        for n, k, size, got in zip(steps, windows, sizes, maps, strict=True):
            assert got.shape == (2, 1, *size)
            assert torch.equal(got, torchext.diversity_map(mask, n, k, 4.0, size))
        same = torchext.diversity_map(mask, 3, 3, size=[(8, 8)])
        assert torch.equal(same[0], torchext.diversity_map(mask, 3, 3, size=(8, 8)))


@pytest.mark.parametrize("name", parameters())
def test_mask_dtypes_and_double(name: str) -> None:
    mask = mask_of("hole", (1, 20, 20))
    with running(name) as device:
        expected = torchext.diversity_map(mask.to(device), 3, 5)
        for dtype in (torch.bool, torch.uint8, torch.int64, torch.bfloat16):
            assert torch.equal(torchext.diversity_map(mask.to(device, dtype), 3, 5), expected)
        double = torchext.diversity_map(mask.to(device).double(), 3, 5)
    exact = reference.diversity_maps(
        mask.to(torch.uint8), [3], [5], [20], [20], math.e, torch.float64
    ).view(double.shape)
    assert double.dtype == torch.float64
    assert_close("double", double, exact, length=3)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 9, 12), (1, 64, 16, 16), (0, 3, 4, 4)], ids=str)
def test_soft(shape: tuple, dtype: torch.dtype, last: bool, name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, grad = (4 * torch.randn(2, *shape, generator=generator)).to(dtype)
    if last:
        logits, grad = (t.to(memory_format=torch.channels_last) for t in (logits, grad))
    mask = mask_of("hole", (shape[0], *shape[2:]))
    with running(name) as device:
        leaf = logits.to(device, copy=True).requires_grad_()
        y = torchext.soft_diversity_map(leaf, mask.to(device))
        y.backward(grad.to(device))
    exact = logits.double().requires_grad_()
    expected = reference.soft_diversity_map(exact, mask)
    expected.backward(grad.double())
    assert y.dtype == dtype
    assert y.numel() == 0 or y.stride() == logits.stride()
    assert_close("y", y, expected, length=1)
    # The gradient is formed from y, which was rounded.
    assert_close("logits", leaf.grad, exact.grad, length=4, scale=8.0)
    assert y.numel() == 0 or (y.detach().cpu()[(mask != 0).expand(shape)] == 1).all()


@pytest.mark.parametrize("name", parameters())
def test_soft_resizes_the_mask(name: str) -> None:
    logits = torch.randn(2, 3, 5, 6)
    mask = mask_of("half", (1, 20, 18))
    with running(name) as device:
        y = torchext.soft_diversity_map(logits.to(device), mask.to(device), resize_mask=True)
    labels = reference.region_labels(mask, 5, 6, 2, True)
    assert_close("y", y, reference.soft_diversity_map(logits.double(), labels), length=1)


MASK = torch.ones(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": [1]}, TypeError, "mask: expected a torch.Tensor, got list"),
        ({"mask": MASK[0]}, ValueError, "mask: expected the shape (N, 1, H, W), got (1, 4, 4)"),
        ({"mask": MASK * 0.5}, ValueError, "mask: expected only the values 0 and 1, got 0.500000"),
        ({"steps": 0}, ValueError, "steps: expected 1 to 255, got 0"),
        ({"steps": 2.0}, TypeError, "steps: expected an int, got float"),
        ({"window": 4}, ValueError, "window: expected an odd number, got 4"),
        ({"window": 1}, ValueError, "window: expected 3 to 255, got 1"),
        ({"base": 0.0}, ValueError, "base: expected a positive finite number, got 0.0"),
        (
            {"size": 4},
            TypeError,
            "size: expected (height, width) or a sequence of such, got 4",
        ),
        ({"size": (0, 4)}, ValueError, f"size: expected 1 to {2**31 - 1}, got 0"),
        ({"steps": [2, 3]}, TypeError, "steps: expected an int, got list"),
        (
            {"steps": [2, 3], "size": [(4, 4)]},
            ValueError,
            "steps: expected 1 numbers, one for each size, got 2",
        ),
    ],
)
def test_bad_input(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        torchext.diversity_map(**{"mask": MASK, "steps": 2, "window": 3, **arguments})
    assert str(raised.value) == message


def test_bad_input_of_the_soft_map() -> None:
    with pytest.raises(TypeError, match=r"^logits: expected a torch.Tensor, got NoneType$"):
        torchext.soft_diversity_map(None, MASK)
    with pytest.raises(ValueError, match=r"^mask: expected the shape \(2 or 1, 1, 5, 5\)"):
        torchext.soft_diversity_map(torch.zeros(2, 3, 5, 5), MASK)
