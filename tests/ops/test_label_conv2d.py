"""torchext.label_conv2d against the convolution of the one-hot tensor, on every backend."""

import pytest
import torch
from support.backends import parameters, running
from support.tolerance import assert_close

import torchext
from torchext import reference

SHAPES = [(2, 9, 13), (1, 20, 70), (3, 1, 5), (1, 4, 130), (0, 4, 4)]
CLASSES, CHANNELS = 7, 5


def problem(
    shape: tuple,
    kernel: int,
    dtype: torch.dtype,
    device: str,
    classes: int = CLASSES,
    channels: int = CHANNELS,
) -> tuple[torch.Tensor, ...]:
    """Labels in blobs, with random ones among them; weight, bias and the incoming gradient."""
    generator = torch.Generator().manual_seed(sum(shape) + kernel)
    N, H, W = shape
    coarse = torch.randint(0, classes, (N, H // 4 + 1, W // 5 + 1), generator=generator)
    labels = coarse.repeat_interleave(4, 1).repeat_interleave(5, 2)[:, :H, :W].contiguous()
    noise = torch.randint(0, classes, (N, H, W), generator=generator)
    labels = torch.where(torch.rand(shape, generator=generator) < 0.2, noise, labels)

    def normal(*size: int) -> torch.Tensor:
        value = torch.randn(size, generator=generator, dtype=torch.float64)
        return value.to(device, dtype)

    weight = normal(channels, classes, kernel, kernel)
    return labels.to(device), weight, normal(channels), normal(N, channels, H, W)


def check(
    shape: tuple,
    kernel: int,
    dtype: torch.dtype,
    name: str,
    classes: int = CLASSES,
    channels: int = CHANNELS,
) -> None:
    with running(name) as device:
        labels, weight, bias, grad = problem(shape, kernel, dtype, device, classes, channels)
        leaves = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        y = torchext.label_conv2d(labels, *leaves)
        y.backward(grad)
    exact = weight.double().requires_grad_(), bias.double().requires_grad_()
    expected = reference.label_conv2d(labels, *exact, torch.float64, True)
    expected.backward(grad.double())
    assert y.dtype == dtype
    assert y.is_contiguous()
    assert_close("y", y, expected, length=kernel**2)
    pixels = max(1, shape[0] * shape[1] * shape[2])
    for key, got, want in zip(("weight", "bias"), leaves, exact, strict=True):
        scale = max(want.grad.abs().max().item(), pixels**0.5)
        assert_close(key, got.grad, want.grad, length=pixels, scale=scale)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32(shape: tuple, kernel: int, name: str) -> None:
    check(shape, kernel, torch.float32, name)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype, name: str) -> None:
    check((2, 9, 13), 3, dtype, name)


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "triton-interpreted", "cuda"))
def test_many_classes(name: str) -> None:
    check((1, 12, 66), 3, torch.float32, name, classes=70)


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "cuda"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 20, 64), (1, 43, 27)], ids=str)
def test_many_channels_and_pixels(shape: tuple, dtype: torch.dtype, name: str) -> None:
    """Several tiles of channels, and several slices of pixels."""
    check(shape, 3, dtype, name, channels=70)


@pytest.mark.parametrize("name", parameters("cuda-emulated", "cuda"))
def test_more_classes_than_shared_memory_holds(name: str) -> None:
    check((1, 6, 20), 3, torch.float32, name, classes=2000)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64], ids=str)
@pytest.mark.parametrize("name", parameters())
def test_any_integers_with_a_channel(dtype: torch.dtype, name: str) -> None:
    with running(name) as device:
        labels, weight, _, _ = problem((2, 9, 13), 3, torch.float32, device)
        y = torchext.label_conv2d(labels[:, None].to(dtype), weight)
    assert_close(
        "y", y, reference.label_conv2d(labels, weight.double(), None, torch.float64, True), length=9
    )


LABELS = torch.zeros(1, 4, 4, dtype=torch.int64)
WEIGHT = torch.zeros(5, 3, 3, 3)


@pytest.mark.parametrize("name", parameters("cpu", "reference", "triton-interpreted"))
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": LABELS.float()}, TypeError, "labels: expected integers, got torch.float32"),
        (
            {"labels": LABELS[0]},
            ValueError,
            "labels: expected the shape (N, H, W) or (N, 1, H, W), got (4, 4)",
        ),
        ({"labels": LABELS + 3}, ValueError, "labels: expected classes from 0 to 2, got 3"),
        ({"labels": LABELS - 1}, ValueError, "labels: expected classes from 0 to 2, got -1"),
        (
            {"weight": WEIGHT.int()},
            TypeError,
            "weight: expected a floating-point tensor, got torch.int32",
        ),
        (
            {"weight": WEIGHT[..., :2]},
            ValueError,
            "weight: expected the shape (O, classes, k, k) with k odd and at most 7,"
            " got (5, 3, 3, 2)",
        ),
        (
            {"weight": torch.zeros(5, 3, 9, 9)},
            ValueError,
            "weight: expected the shape (O, classes, k, k) with k odd and at most 7,"
            " got (5, 3, 9, 9)",
        ),
        ({"bias": torch.zeros(4)}, ValueError, "bias: expected the shape (5,), got (4,)"),
    ],
)
def test_bad_input(arguments: dict, error: type[Exception], message: str, name: str) -> None:
    with running(name), pytest.raises(error) as raised:
        torchext.label_conv2d(**{"labels": LABELS, "weight": WEIGHT, **arguments})
    assert str(raised.value) == message
