"""torchext.upsample_conv2d and partial_upsample_conv2d against what they stand for."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from support.backends import emulator, parameters, running
from support.tolerance import assert_close

import torchext
from torchext import nn, reference
from torchext.ops import upsample_conv

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SHAPES = [(2, 5, 6, 9, 3), (1, 8, 4, 4, 16), (2, 3, 1, 5, 2), (1, 1, 3, 1, 1), (0, 2, 3, 3, 2)]


@pytest.fixture(autouse=True)
def by_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases for small images too."""
    monkeypatch.setattr(upsample_conv, "_FEWEST_PIXELS", 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_few_pixels_are_convolved_as_they_are(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = tensors(SHAPES[0], (3, 3), dtype, "cpu", False)
    wanted = reference.upsample_conv2d(**{k: v.double() for k, v in leaves.items()})
    monkeypatch.setattr(upsample_conv, "_FEWEST_PIXELS", 2 * 6 * 9 + 1)
    y = torchext.upsample_conv2d(**leaves)
    assert y.dtype == dtype
    assert_close("y", y, wanted, length=45, scale=4 * wanted.abs().max().item())


def tensors(
    shape: tuple, kernel: tuple[int, int], dtype: torch.dtype, device: str, last: bool
) -> dict[str, torch.Tensor]:
    N, C, H, W, out = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype)

    x, addend = randn(N, C, H, W), randn(N, out, 2 * H, 2 * W)
    if last:
        x, addend = (t.to(memory_format=torch.channels_last) for t in (x, addend))
    weight = randn(out, C, *kernel) / C**0.5
    return {"x": x, "weight": weight, "bias": randn(out), "addend": addend}


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (1, 7), (1, 1), (7, 3)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(
    shape: tuple, kernel: tuple[int, int], dtype: torch.dtype, last: bool, name: str
) -> None:
    with running(name) as device:
        leaves = tensors(shape, kernel, dtype, device, last)
        for leaf in leaves.values():
            leaf.requires_grad_()
        y = torchext.upsample_conv2d(**leaves)
        assert y.dtype == dtype
        weights = torch.arange(y.numel()).mul(0.7).sin().view(y.shape).to(device, dtype)
        got = torch.autograd.grad(y, list(leaves.values()), weights)
    doubles = {k: v.detach().double().cpu().requires_grad_() for k, v in leaves.items()}
    wanted = reference.upsample_conv2d(**doubles)
    gradients = torch.autograd.grad(wanted, list(doubles.values()), weights.double().cpu())
    length = shape[1] * kernel[0] * kernel[1]
    room = 4 if dtype == torch.bfloat16 else 1  # phases and folded weights are rounded too
    size = wanted.abs().max().item() if wanted.numel() else 0
    assert_close("y", y, wanted, length=length, scale=room * max(size, 1))
    pixels = max(1, y.numel() // shape[-1])
    for key, value, gradient in zip(leaves, got, gradients, strict=True):
        size = gradient.abs().max().item() if gradient.numel() else 0
        scale = room * max(size, 1 if key in ("x", "addend") else pixels**0.5)
        assert_close(key, value, gradient, length=length * pixels, scale=scale)


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "cuda"))
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("offsets", [[0, 1, 0, 1], [1, 0, 2, 0], [0, 0, 1, 1]], ids=str)
@pytest.mark.parametrize("size", [(2, 3, 5, 6), (1, 8, 4, 17), (1, 2, 3, 140)], ids=str)
def test_interleaving(
    size: tuple, offsets: list[int], dtype: torch.dtype, last: bool, name: str
) -> None:
    """Exact, beginning at any address, in any order of threads."""
    N, C, h, w = size
    generator = torch.Generator().manual_seed(w)
    high = (N, C, 2 * (h - max(offsets[:2])), 2 * (w - max(offsets[2:])))
    layout = torch.channels_last if last else torch.contiguous_format
    phases = torch.randn(N, 4 * C, h, w, generator=generator).to(dtype)
    bias = torch.randn(C, generator=generator, dtype=torch.promote_types(dtype, torch.float32))
    grad = torch.randn(high, generator=generator).to(dtype)

    def moved(value: torch.Tensor, device: str, aside: int) -> torch.Tensor:
        """In the layout, `aside` elements after an aligned address."""
        value = value.contiguous(memory_format=layout).to(device)
        room = value.new_empty(value.numel() + aside)[aside:]
        return room.as_strided(value.shape, value.stride(), aside).copy_(value)

    wanted = reference.interleave_phases(phases, bias, grad, offsets)
    wanted_back = reference.interleave_phases_backward(grad, offsets, h, w)
    with running(name) as device:
        orders = ("forward", "reverse", "shuffled:7") if name == "cuda-emulated" else ("",)
        for order in orders:
            with emulator().order(order) if order else contextlib.nullcontext():
                for aside in (0, 1):
                    given = (moved(phases, device, aside), bias.to(device))
                    addend = moved(grad, device, aside)
                    y = upsample_conv.INTERLEAVE_PHASES(*given, addend, offsets)
                    assert_close("y", y, wanted.double(), length=3)
                    back = upsample_conv.INTERLEAVE_PHASES_BACKWARD(addend, offsets, h, w)
                    assert torch.equal(back.cpu(), wanted_back)


def test_module_stands_for_upsample_and_convolution() -> None:
    layer = nn.UpsampleConv2d(4, 6, 5)
    assert {key: tuple(v.shape) for key, v in layer.state_dict().items()} == {
        "weight": (6, 4, 5, 5),
        "bias": (6,),
    }
    x = torch.randn(2, 4, 7, 6)
    plain = torch.nn.Conv2d(4, 6, 5, padding=2)
    plain.load_state_dict(layer.state_dict())
    wanted = plain.double()(F.interpolate(x.double(), scale_factor=2))
    assert_close("y", layer(x), wanted, length=100)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("form", ["ratio", "sum"])
@pytest.mark.parametrize("skip", [False, True], ids=["alone", "skip"])
def test_partial_convolution_of_a_concatenation(skip: bool, form: str, name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x, other = torch.randn(2, 6, 5, 7, generator=generator), torch.randn(2, 3, 10, 14)
    mask = (torch.rand(2, 1, 5, 7, generator=generator) > 0.5).float()
    other_mask = (torch.rand(1, 1, 10, 14, generator=generator) > 0.7).float()
    weight = torch.randn(4, 9 if skip else 6, 3, 3, generator=generator) / 8
    bias = torch.randn(4, generator=generator)
    options = {"norm_weight": bias.flip(0), "norm_bias": bias + 1, "negative_slope": 0.2}
    with running(name) as device:
        leaves = [t.to(device).requires_grad_() for t in (x, weight, bias)]
        more = {"skip": other.to(device), "skip_mask": other_mask.to(device)} if skip else {}
        y, updated = torchext.partial_upsample_conv2d(
            leaves[0],
            mask.expand_as(x).to(device),
            *leaves[1:],
            form=form,
            **{key: v.to(device) if key != "negative_slope" else v for key, v in options.items()},
            **more,
        )
        got = torch.autograd.grad(y.square().sum(), leaves)
    doubles = [leaf.detach().double().cpu().requires_grad_() for leaf in leaves]
    big = F.interpolate(doubles[0], scale_factor=2)
    masks, channels = F.interpolate(mask.double(), scale_factor=2), None
    if skip:
        big = torch.cat((big, other.double()), 1)
        masks = torch.cat((masks, other_mask.double().expand(2, -1, -1, -1)), 1)
        channels = (6, 3)
    affine = {key: v.double() if key != "negative_slope" else v for key, v in options.items()}
    with running("reference"):
        wanted, wanted_mask = torchext.partial_conv2d(
            big, masks, *doubles[1:], padding=1, form=form, mask_channels=channels, **affine
        )
    gradients = torch.autograd.grad(wanted.square().sum(), doubles)
    assert_close("y", y, wanted, length=81)
    assert_close("mask", updated, wanted_mask, length=81)
    for key, value, gradient in zip(("x", "weight", "bias"), got, gradients, strict=True):
        assert_close(key, value, gradient, length=81 * 280)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"weight": torch.zeros(3, 4, 2, 2)}, "weight: expected the shape (Co, Ci, kh, kw) with odd"
         " sizes, got (3, 4, 2, 2)"),
        ({"weight": torch.zeros(3, 5, 3, 3)}, "weight: expected the shape (3, 4, 3, 3), got"
         " (3, 5, 3, 3)"),
        ({"bias": torch.zeros(4)}, "bias: expected the shape (3,), got (4,)"),
        ({"addend": torch.zeros(2, 3, 5, 6)}, "addend: expected the shape (2, 3, 10, 12), got"
         " (2, 3, 5, 6)"),
    ],
)  # fmt: skip
def test_bad_input(arguments: dict, error: str) -> None:
    given = {"x": torch.zeros(2, 4, 5, 6), "weight": torch.zeros(3, 4, 3, 3)} | arguments
    with pytest.raises(ValueError) as raised:
        torchext.upsample_conv2d(**given)
    assert str(raised.value) == error
