"""torchext.self_aware_affine against the float64 reference, on every backend."""

import pytest
import torch
from support.backends import parameters, running
from support.tolerance import assert_close

import torchext
from torchext import reference

SHAPES = [(2, 5, 9, 13), (1, 33, 20, 17), (3, 1, 7, 7), (1, 4, 1, 40), (1, 260, 8, 8), (0, 3, 6, 6)]
NAMES = ("conv_weight", "gamma_weight", "gamma_bias", "beta_weight", "beta_bias")


def formula(x: torch.Tensor, *weights_and_threshold) -> tuple[torch.Tensor, ...]:
    """As the reference has it."""
    pooled, _ = reference.channel_mean_max(x)
    return reference.self_aware_maps(pooled, *weights_and_threshold)


def weights_of(kernel: int, dtype: torch.dtype, device: str, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, 2, kernel, kernel), (1, 1, kernel, kernel), (1,), (1, 1, kernel, kernel), (1,)]
    scale = 1 / kernel
    return [
        (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)
        for shape in shapes
    ]


def feature_map(shape: tuple, dtype: torch.dtype, device: str, last: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
    return x.to(memory_format=torch.channels_last) if last else x


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape: tuple, dtype: torch.dtype, last: bool, name: str) -> None:
    if name == "triton-interpreted" and dtype != torch.float32 and shape != SHAPES[0]:
        pytest.skip("the interpreter runs one shape of the other dtypes")
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    with running(name) as device:
        x = feature_map(shape, dtype, device, last).requires_grad_()
        weights = [w.requires_grad_() for w in weights_of(7, accumulate, device)]
        *maps, labels = torchext.self_aware_affine(x, *weights, 0.5)
        cotangent = [torch.randn(m.shape, dtype=m.dtype).to(device) for m in maps]
        torch.autograd.backward(maps, cotangent)
    x64 = x.detach().double().requires_grad_()
    weights64 = [w.detach().double().requires_grad_() for w in weights]
    *expected, _ = formula(x64, *weights64, 0.5)
    torch.autograd.backward(expected, [c.double() for c in cotangent])
    length = 7 * 7 * 2 + shape[1]
    for key, got, want in zip(("saliency", "gamma", "beta"), maps, expected, strict=True):
        assert got.dtype == accumulate
        assert_close(key, got, want, length=length)
    assert torch.equal(labels, (maps[0] >= 0.5).to(torch.uint8))
    assert_close("x", x.grad, x64.grad, length=length)
    pixels = max(1, shape[0]) * shape[2] * shape[3]
    for key, got, want in zip(NAMES, weights, weights64, strict=True):
        # Sums over all pixels of terms of either sign: their size sets the scale.
        scale = max(want.grad.abs().max().item(), pixels**0.5)
        assert_close(key, got.grad, want.grad, length=pixels, scale=scale)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("kernel", [1, 3, 5, 15])
def test_kernel_sizes(kernel: int, name: str) -> None:
    with running(name) as device:
        x = feature_map((2, 4, 11, 18), torch.float32, device, False).requires_grad_()
        weights = weights_of(kernel, torch.float32, device)
        *maps, _ = torchext.self_aware_affine(x, *weights)
        torch.cat(maps, 1).square().sum().backward()
    x64 = x.detach().double().requires_grad_()
    *expected, _ = formula(x64, *(w.double() for w in weights), 0.8)
    torch.cat(expected, 1).square().sum().backward()
    for got, want in zip(maps, expected, strict=True):
        assert_close("map", got, want, length=2 * kernel**2)
    assert_close("x", x.grad, x64.grad, length=4 * kernel**2)


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "triton-interpreted", "cuda"))
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_maximum_takes_the_first_of_equals_and_nan(name: str, last: bool) -> None:
    x = torch.zeros(1, 6, 2, 4)
    x[0, 3, 0, 0] = x[0, 5, 0, 0] = 2.0
    x[0, 2, 0, 1] = float("nan")
    x[0, 4, 0, 1] = 9.0
    x[0, 1, 0, 2] = float("-inf")
    if last:
        x = x.to(memory_format=torch.channels_last)
    with running(name) as device:
        from torchext import backend

        namespace = getattr(torch.ops, backend.choose("channel_mean_max", x).namespace)
        pooled, argmax = namespace.channel_mean_max(x.to(device))
    expected, index = reference.channel_mean_max(x)
    assert torch.equal(argmax.cpu(), index)
    assert torch.equal(pooled.cpu().isnan(), expected.isnan())
    assert torch.equal(pooled.cpu().nan_to_num(), expected.nan_to_num())
