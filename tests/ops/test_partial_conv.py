"""torchext.partial_conv2d and partial_conv3d against the float64 reference, on every backend."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.backends import parameters, running
from support.tolerance import assert_close

import torchext
from torchext import backend, reference
from torchext.ops import partial_conv as partial_conv_ops

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
RAW_OPS = ("cpu", "cuda-emulated", "triton-interpreted", "cuda", "triton")


def mask_of(pattern: str, N: int, channels: int, size: Sequence[int]) -> torch.Tensor:
    """A mask in float64, 1 known."""
    generator = torch.Generator().manual_seed(len(pattern) + channels)
    mask = torch.ones(N, channels, *size, dtype=torch.float64)
    if pattern == "hole":
        mask.zero_()
    elif pattern == "pixel":
        mask.zero_()[..., size[-2] // 2, size[-1] // 2] = 1
    elif pattern == "checkerboard":
        index = sum(torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij"))
        mask = mask * (index % 2)
    elif pattern == "border":
        mask[..., 1:-1, 1:-1] = 0
    elif pattern == "irregular":
        mask = (F.avg_pool1d(torch.rand(mask.shape, generator=generator).flatten(1, -2), 3, 1, 1)
                .view(mask.shape) > 0.5).double()  # fmt: skip
        mask[..., : size[-2] // 2, : size[-1] // 2] = 0
    elif pattern == "fractional":
        mask = torch.rand(mask.shape, generator=generator, dtype=torch.float64) * 0.3
        mask[..., : size[-2] // 2, :] = 0
    elif pattern != "known":
        raise ValueError(pattern)
    return mask


@dataclass(frozen=True)
class Case:
    """A partial convolution; `mask` is the pattern, or None."""

    x: tuple[int, ...]
    out: int
    kernel: tuple[int, ...]
    mask: str | None = "irregular"
    mask_channels: int = 1
    batch_of_mask: int | None = None
    bias: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        kind = f"{self.mask}{self.mask_channels}{'b' if self.bias else ''}"
        return f"{'x'.join(map(str, self.x))}-{'x'.join(map(str, self.kernel))}-{kind}-{options}"


CASES = [
    *(Case((2, 5, 11, 14), 6, (3, 3), pattern, options={"padding": 1})
      for pattern in ("known", "hole", "pixel", "checkerboard", "border", "irregular",
                      "fractional")),
    Case((2, 5, 11, 14), 6, (3, 3), "fractional", bias=False, options={"padding": 1}),
    Case((2, 5, 11, 14), 6, (3, 3), None, options={"padding": 1}),
    Case((2, 5, 11, 14), 6, (3, 3), None, options={"padding": 1, "form": "sum"}),
    Case((2, 5, 11, 14), 6, (3, 3), bias=False, options={"padding": 1, "form": "sum"}),
    Case((2, 5, 11, 14), 6, (3, 3), "fractional", 5, options={"padding": 1, "form": "sum"}),
    Case((2, 8, 16, 16), 16, (5, 5), "irregular", 8, options={"stride": 2, "padding": 2}),
    Case((3, 8, 17, 16), 4, (7, 7), "irregular", options={"stride": 2, "padding": 3}),
    Case((2, 4, 18, 16), 6, (3, 3), "irregular", 4, bias=False,
         options={"padding": 2, "dilation": 2}),
    Case((2, 3, 12, 15), 4, (1, 5), "irregular", 3,
         options={"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}),
    Case((2, 6, 9, 8), 8, (3, 3), "irregular", options={"padding": 1, "groups": 2}),
    Case((2, 6, 9, 8), 8, (3, 3), "irregular", 6, options={"padding": 1, "groups": 2}),
    Case((2, 16, 8, 8), 4, (3, 3), "irregular", 2,
         options={"padding": 1, "mask_channels": (12, 4), "form": "sum"}),
    Case((2, 7, 8, 9), 4, (3, 3), "fractional", 3,
         options={"padding": 1, "mask_channels": (2, 4, 1)}),
    Case((3, 5, 11, 14), 6, (3, 3), batch_of_mask=1, options={"padding": 1}),
    Case((3, 6, 11, 14), 6, (3, 3), "irregular", 6, batch_of_mask=1, options={"padding": 1}),
    Case((2, 5, 11, 14), 6, (2, 4), options={"padding": "same"}),
    Case((2, 5, 11, 14), 6, (3, 3), options={"padding": "valid"}),
    Case((2, 1, 6, 7), 1, (1, 1)),
    Case((0, 5, 11, 14), 6, (3, 3), options={"padding": 1}),
    Case((1, 4, 5, 7, 6), 3, (3, 3, 3), options={"stride": (1, 2, 2), "padding": 1}),
    Case((2, 4, 4, 6, 7), 3, (2, 3, 3), "irregular", 4, options={"padding": (0, 1, 2)}),
    Case((2, 4, 4, 6, 7), 3, (2, 3, 3), "fractional", options={"form": "sum"}),
]  # fmt: skip


@dataclass
class Tensors:
    x: torch.Tensor
    mask: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor | None

    def leaves(self) -> dict[str, torch.Tensor]:
        found = {"x": self.x, "weight": self.weight, "bias": self.bias}
        return {key: value for key, value in found.items() if value is not None}


def make(case: Case, dtype: torch.dtype, device: str = "cpu", last: bool = False) -> Tensors:
    """Seeded tensors; in float16 and bfloat16 what float64 holds exactly."""
    generator = torch.Generator().manual_seed(sum(case.x))

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    x = randn(*case.x)
    if last:
        x = x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    mask = None
    if case.mask is not None:
        N = case.x[0] if case.batch_of_mask is None else case.batch_of_mask
        mask = mask_of(case.mask, N, case.mask_channels, case.x[2:]).to(device, dtype)
        if last and case.mask_channels > 1 and mask.dim() == 4:
            mask = mask.to(memory_format=torch.channels_last)
    inputs = case.x[1] // case.options.get("groups", 1)
    scale = (inputs * len(case.kernel)) ** -0.5
    weight = (scale * randn(case.out, inputs, *case.kernel)).to(dtype)
    bias = randn(case.out) if case.bias else None
    return Tensors(x, mask, weight, bias)


def partial_conv(case: Case, tensors: Tensors, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    function = torchext.partial_conv2d if len(case.kernel) == 2 else torchext.partial_conv3d
    return function(
        tensors.x, tensors.mask, tensors.weight, tensors.bias, **{**case.options, **more}
    )


def expected(case: Case, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """y, mask and, for a cotangent of sines, the gradients: the formula in float64."""
    leaves = {k: v.detach().double().cpu().requires_grad_() for k, v in tensors.leaves().items()}
    options = dict(case.options)
    form = options.pop("form", "ratio")
    dimensions = len(case.kernel)

    def each(name: str, default: int) -> list[int]:
        value = options.get(name, default)
        return [value] * dimensions if isinstance(value, int) else list(value)

    x, mask, dilation = leaves["x"], tensors.mask, each("dilation", 1)
    mask = None if mask is None else mask.double().cpu()
    if options.get("padding") == "valid":
        options["padding"] = 0
    if options.get("padding") == "same":  # by hand: pad both, then no padding
        total = [d * (k - 1) for d, k in zip(dilation, case.kernel, strict=True)]
        border = [n for size in reversed(total) for n in (size // 2, size - size // 2)]
        x, mask = F.pad(x, border), F.pad(mask, border)
        options["padding"] = 0
    channels = list(options.get("mask_channels", []))
    if form == "sum" and (mask is None or mask.shape[1] == 1):
        channels = [case.x[1]]
    stride, padding = each("stride", 1), each("padding", 0)
    known = x.new_ones((1, 1, *x.shape[2:])) if mask is None else mask
    sizes = zip(x.shape[2:], padding, dilation, case.kernel, stride, strict=True)
    output_size = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in sizes]
    scale, updated = reference.mask_window(
        known, channels, case.kernel, stride, padding, dilation, output_size, form == "ratio",
        case.bias, 1e-8,
    )  # fmt: skip
    tail = (leaves.get("bias"), None, None, 1.0, False)
    y = reference.partial_conv(
        x, mask, channels, scale, updated, leaves["weight"], *tail, stride, padding, dilation,
        options.get("groups", 1),
    )  # fmt: skip
    y.backward(cotangent(y))
    return y, updated, {key: leaf.grad for key, leaf in leaves.items()}


def cotangent(y: torch.Tensor) -> torch.Tensor:
    return torch.arange(y.numel(), dtype=torch.float64).mul(0.7).sin().view(y.shape)


def compare(case: Case, tensors: Tensors, y: torch.Tensor, updated: torch.Tensor) -> None:
    """Outputs and the gradients of `tensors` with the formula's."""
    wanted, mask, gradients = expected(case, tensors)
    length = case.x[1] * torch.Size(case.kernel).numel()
    halves = y.dtype in (torch.float16, torch.bfloat16)
    # The convolution rounds its own result to a half before the scale, and the halves' gradients.
    room = 4.0 if halves else 1.0
    scale = max(1e-3, wanted.abs().max().item() if wanted.numel() else 0) * room
    assert_close("y", y, wanted, length=length, scale=scale)
    assert_close("mask", updated, mask, length=length)
    pixels = max(1, y.numel() // case.out)
    for key, leaf in tensors.leaves().items():
        size = max(1e-3, gradients[key].abs().max().item() if gradients[key].numel() else 0)
        if key != "x":  # sums over all pixels of terms of either sign: their size sets the scale
            size = max(size, pixels**0.5)
        assert_close(key, leaf.grad, gradients[key], length=pixels * length, scale=size * room)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case: Case, dtype: torch.dtype, last: bool, name: str) -> None:
    if name == "triton-interpreted" and (dtype != torch.float32 or last) and case != CASES[5]:
        pytest.skip("the interpreter runs one case of the other dtypes and layouts")
    with running(name) as device:
        tensors = make(case, dtype, device, last)
        for leaf in tensors.leaves().values():
            leaf.requires_grad_()
        y, updated = partial_conv(case, tensors)
        assert y.dtype == updated.dtype == dtype
        y.backward(cotangent(y).to(device, dtype))
    compare(case, tensors, y, updated)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_float16(last: bool, name: str) -> None:
    """No NaN where a hole meets eps; the published float16 form has them."""
    case = Case((2, 8, 12, 16), 8, (3, 3), "pixel", options={"padding": 1})
    with running(name) as device:
        tensors = make(case, torch.float16, device, last)
        y, updated = partial_conv(case, tensors)
    wanted, mask, _ = expected(case, tensors)
    assert_close("y", y, wanted, length=72, scale=4 * wanted.abs().max().item())
    assert torch.equal(updated.cpu().double(), mask)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_holes_may_hold_garbage(last: bool, garbage: float, name: str) -> None:
    case = Case((2, 8, 12, 16), 8, (3, 3), "irregular", options={"padding": 1})
    with running(name) as device:
        clean = make(case, torch.float32, device, last)
        dirty = make(case, torch.float32, device, last)
        dirty.x = torch.where(dirty.mask == 0, garbage, dirty.x).requires_grad_()
        clean.x.requires_grad_()
        results = [partial_conv(case, tensors)[0] for tensors in (clean, dirty)]
        for y in results:
            y.sum().backward()
    assert torch.equal(*results)
    assert torch.equal(clean.x.grad, dirty.x.grad)
    assert (dirty.x.grad[dirty.mask.expand_as(dirty.x) == 0] == 0).all()


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"negative_slope": 0.0},
        {"negative_slope": 0.2, "norm": True},
        {"norm": True},
        {"mask_output": True, "norm": True, "negative_slope": 0.0},
    ],
    ids=str,
)
def test_fused_epilogue(options: dict, dtype: torch.dtype, last: bool, name: str) -> None:
    """Inference batch norm, activation and the next layer's product, forward and backward."""
    options = dict(options)
    case = Case((2, 8, 12, 16), 8, (3, 3), "fractional", options={"padding": 1})
    with running(name) as device:
        tensors = make(case, dtype, device, last)
        leaves = tensors.leaves()
        if options.pop("norm", False):
            norm = {key: make(case, dtype, device).bias for key in ("norm_weight", "norm_bias")}
            norm["norm_bias"] = norm["norm_bias"].flip(0)
            options |= norm
            leaves |= norm
        for leaf in leaves.values():
            leaf.requires_grad_()
        y, _ = partial_conv(case, tensors, **options)
        weights = cotangent(y).to(device, dtype)
        got = torch.autograd.grad(y, list(leaves.values()), weights)
        with torch.no_grad():  # the fused form without gradients is the same one
            assert torch.equal(partial_conv(case, tensors, **options)[0], y)
    doubles = {k: v.detach().double().cpu().requires_grad_() for k, v in leaves.items()}
    plain = Tensors(doubles["x"], tensors.mask.double().cpu(), doubles["weight"], doubles["bias"])
    with running("reference"):
        wanted, mask = partial_conv(case, plain)
    if "norm_weight" in doubles:
        wanted = wanted * doubles["norm_weight"].view(1, -1, 1, 1)
        wanted = wanted + doubles["norm_bias"].view(1, -1, 1, 1)
    if "negative_slope" in options:
        wanted = F.leaky_relu(wanted, options["negative_slope"])
    if "mask_output" in options:
        wanted = wanted * mask
    room = 8 if dtype == torch.bfloat16 else 1
    assert_close("y", y, wanted, length=72, scale=room * wanted.abs().max().item())
    gradients = torch.autograd.grad(wanted, list(doubles.values()), weights.double().cpu())
    if dtype == torch.float32:  # a rounded bfloat16 may lie on the other side of the kink
        for key, value, gradient in zip(doubles, got, gradients, strict=True):
            assert_close(key, value, gradient, length=3000)


@pytest.mark.parametrize("name", parameters(*RAW_OPS))
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 300, 2, 2), (1, 5, 6, 6)], ids=str)
def test_epilogue(size: tuple, dtype: torch.dtype, last: bool, name: str) -> None:
    """Of planes enough for several to share the maps, and of pixels that fit 64 bits alone."""
    if name == "triton-interpreted" and (size[0] != 1 or dtype not in DTYPES[::3]):
        pytest.skip("the interpreter runs one size in two dtypes")
    N, C, H, W = size
    generator = torch.Generator().manual_seed(C)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    form = torch.channels_last if last else torch.contiguous_format
    raw = torch.randn(size, generator=generator).to(dtype).contiguous(memory_format=form)
    updated = mask_of("fractional", N, 1, (H, W)).to(accumulate)
    raw = torch.where(updated == 0, float("nan"), raw)
    channels = torch.randn(3, C, generator=generator).to(accumulate)
    given = (raw, 3 * updated, updated, *channels, 0.2, True)
    with running(name) as device:
        moved = [v.to(device) if isinstance(v, torch.Tensor) else v for v in given]
        got = partial_conv_ops.PARTIAL_CONV_EPILOGUE(*moved)
    exact = [v.double() if isinstance(v, torch.Tensor) else v for v in given]
    wanted = reference.partial_conv_epilogue(*exact)
    assert_close("y", got, wanted, length=4, scale=wanted.abs().max().item())


@pytest.mark.parametrize("name", parameters(*RAW_OPS))
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(3, 6, 17, 13), (2, 8, 40, 36), (1, 40, 3, 3), (0, 4, 5, 5)])
def test_epilogue_backward(size: tuple, dtype: torch.dtype, last: bool, name: str) -> None:
    """Every combination of its parts, with garbage in what holes hide."""
    if name == "triton-interpreted" and (size[0] != 3 or dtype not in DTYPES[::3]):
        pytest.skip("the interpreter runs one size in two dtypes")
    N, C, H, W = size
    generator = torch.Generator().manual_seed(C)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    form = torch.channels_last if last else torch.contiguous_format
    grad, y, raw = (
        torch.randn(size, generator=generator).to(dtype).contiguous(memory_format=form)
        for _ in range(3)
    )
    for images in (N, 1):
        maps = mask_of("fractional", 2 * images, 1, (H, W)).to(accumulate)
        scale, updated = 3 * maps[:images], maps[:images]
        raw = torch.where(updated == 0, float("nan"), raw)
        weight = torch.randn(C, generator=generator).to(accumulate)
        for values, norm, slope, remask in (
            (None, None, 1.0, False),
            (None, weight, 1.0, True),
            (None, None, 0.0, False),
            (raw, weight, 0.2, True),
            (raw, None, 0.0, False),
        ):
            sides = None if slope == 1 else y
            given = (grad, sides, values, scale, updated, norm, slope, remask)
            with running(name) as device:
                moved = [v.to(device) if isinstance(v, torch.Tensor) else v for v in given]
                got = partial_conv_ops.PARTIAL_CONV_EPILOGUE_BACKWARD(*moved)
            exact = [v.double() if isinstance(v, torch.Tensor) else v for v in given]
            wanted = reference.partial_conv_epilogue_backward(*exact)
            assert got[0].dtype == dtype
            assert got[1].shape == (3, C)
            assert_close("grad_raw", got[0], wanted[0], length=4)
            pixels = max(1, N * H * W)
            assert_close("sums", got[1], wanted[1], length=pixels, scale=3 * pixels**0.5)


@pytest.mark.parametrize("name", parameters(*RAW_OPS))
@pytest.mark.parametrize("frozen", [False, True], ids=["learned", "frozen"])
@pytest.mark.parametrize("slope, remask", [(1.0, False), (0.0, True), (0.2, False)])
def test_epilogue_gradients(slope: float, remask: bool, frozen: bool, name: str) -> None:
    """Of the op that compilers see, which is given the raw output."""
    generator = torch.Generator().manual_seed(1)
    raw = torch.randn(2, 5, 12, 9, generator=generator, dtype=torch.float64)
    updated = mask_of("fractional", 2, 1, (12, 9))
    scale = updated * 2
    parameters_of = list(torch.randn(3, 5, generator=generator, dtype=torch.float64))

    def gradients(backend_name: str) -> tuple:
        with running(backend_name) as device:
            leaves = [t.clone().to(device).requires_grad_() for t in (raw, *parameters_of)]
            if frozen:
                leaves[2].requires_grad_(False)
            y = partial_conv_ops.PARTIAL_CONV_EPILOGUE(
                leaves[0], scale.to(device), updated.to(device), *leaves[1:], slope, remask
            )
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            return torch.autograd.grad(y, wanted, cotangent(y).to(device))

    for key, got, wanted in zip("abcd", gradients(name), gradients("reference"), strict=False):
        assert_close(key, got, wanted, length=300)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_mode_is_of_x_alone(mode: str) -> None:
    """The mask stays zero padded."""
    x, weight, bias = torch.randn(2, 3, 9, 8), torch.randn(4, 3, 3, 3), torch.randn(4)
    mask = mask_of("irregular", 2, 1, (9, 8)).float()
    y, updated = torchext.partial_conv2d(x, mask, weight, bias, padding=1, padding_mode=mode)
    s = F.conv2d(mask, torch.ones(1, 1, 3, 3), padding=1)
    raw = F.conv2d(F.pad(x * mask, (1, 1, 1, 1), mode), weight)
    wanted = (raw * 9 / (s + 1e-8) + bias.view(1, -1, 1, 1)) * (s > 0)
    assert_close("y", y, wanted.double(), length=27)
    assert torch.equal(updated, (s > 0).float())


def test_known_window_has_ratio_one() -> None:
    for kernel in (3, 5, 7):
        for channels in (1, 64, 92):
            mask = torch.ones(1, 1, 9, 9)
            scale, updated = torchext.mask_window(mask, kernel, mask_channels=[channels])
            assert (scale == 1).all()
            assert (updated == 1).all()


def test_mask_kinds_agree() -> None:
    """bool, integer and float masks; one channel, x's channels, expanded, grouped."""
    case = Case((2, 6, 11, 14), 4, (3, 3), options={"padding": 1, "form": "sum"})
    tensors = make(case, torch.float32)
    one = tensors.mask
    y, updated = partial_conv(case, tensors)
    assert updated.shape == (2, 1, 11, 14)
    all_channels = one.repeat(1, 6, 1, 1)
    for mask in (one.bool(), one.long(), one.double(), one.expand_as(tensors.x), all_channels):
        tensors.mask = mask
        again, mask_again = partial_conv(case, tensors)
        assert_close("y", again, y.double(), length=54)
        assert torch.equal(mask_again, updated)
    tensors.mask = one.repeat(1, 2, 1, 1)
    again, _ = partial_conv(case, tensors, mask_channels=(4, 2))
    assert_close("y", again, y.double(), length=54)


@pytest.mark.parametrize("name", parameters())
def test_any_number_of_groups(name: str) -> None:
    """More than a GPU kernel takes as arguments."""
    generator = torch.Generator().manual_seed(3)
    counts = [1] * 69 + [3]
    with running(name) as device:
        mask = (torch.rand(1, 70, 6, 5, generator=generator) > 0.3).float().to(device)
        repeated = mask.repeat_interleave(torch.tensor(counts, device=device), dim=1)
        x = torch.randn(1, 72, 6, 5, generator=generator).to(device)
        weight = torch.randn(2, 72, 3, 3, generator=generator).to(device)
        y, updated = torchext.partial_conv2d(x, mask, weight, padding=1, mask_channels=counts)
        wanted, known = torchext.partial_conv2d(x, repeated, weight, padding=1)
        assert torch.equal(y, wanted)
        assert torch.equal(updated, known)
        scale, _ = torchext.mask_window(mask, 3, mask_channels=counts)
        assert torch.equal(scale, torchext.mask_window(repeated, 3)[0])


def test_window_can_be_shared() -> None:
    case = Case((2, 6, 11, 14), 4, (3, 3), options={"padding": 1})
    tensors = make(case, torch.float32)
    y, updated = partial_conv(case, tensors)
    window = torchext.mask_window(tensors.mask, 3, padding=1, bias=True)
    again, mask = partial_conv(case, tensors, window=window)
    assert torch.equal(again, y)
    assert torch.equal(mask, updated)


def test_masked_input_leaves_the_product_out() -> None:
    case = Case((2, 6, 11, 14), 4, (3, 3), options={"padding": 1})
    tensors = make(case, torch.float32)
    y, _ = partial_conv(case, tensors)
    tensors.x = tensors.x * tensors.mask
    assert torch.equal(partial_conv(case, tensors, masked_input=True)[0], y)


def test_gradient_of_an_activation_needs_its_result() -> None:
    raw, maps = torch.randn(2, 4, 4, 2), torch.ones(2, 1, 4, 2)
    given = (raw, None, None, maps, maps, None, 0.5, False)
    with pytest.raises(ValueError, match="y: expected the result of the activation"):
        torch.ops.torchext.partial_conv_epilogue_backward(*given)


BLOB = torch.zeros(2, 1, 75, 83)
BLOB[0, :, 10:30, 50:83] = BLOB[1, :, 60:, :20] = 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masks", [1, 5])
@pytest.mark.parametrize(
    "kernel, options",
    [
        (3, {"padding": 1}),
        (5, {"padding": 2, "stride": (1, 2)}),
        (3, {"padding": 2, "dilation": 2}),
        (1, {}),
        (3, {"padding": 1, "negative_slope": 0.2, "norm": True}),
        (3, {"padding": 1, "negative_slope": 0.0, "norm": True, "mask_output": True}),
    ],
    ids=str,
)
def test_tiles_of_holes_are_skipped(
    kernel: int, options: dict, masks: int, dtype: torch.dtype
) -> None:
    """A mask with large holes, where only some tiles of the output are convolved."""
    options = dict(options)
    generator = torch.Generator().manual_seed(kernel)
    x = torch.randn(2, 5, 75, 83, generator=generator).to(dtype)
    x[BLOB.expand_as(x) == 0] = float("nan")
    weight = torch.randn(6, 5, kernel, kernel, generator=generator).to(dtype)
    bias = torch.randn(6, generator=generator).to(dtype)
    mask = BLOB.repeat(1, masks, 1, 1)
    if options.pop("norm", False):
        options |= {"norm_weight": bias.flip(0), "norm_bias": bias + 1}
    skipped = []
    live_tiles = partial_conv_ops.live_tiles
    # Winograd's form has tiles of its own.
    with backend.convolution("direct"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            partial_conv_ops,
            "live_tiles",
            lambda *a: skipped.append(live_tiles(*a)) or skipped[-1],
        )
        y, updated = torchext.partial_conv2d(x, mask, weight, bias, **options)
    assert (skipped[0] < 0).float().mean() > 0.3
    doubles = {key: v.double() for key, v in options.items() if isinstance(v, torch.Tensor)}
    with running("reference"):
        wanted, wanted_mask = torchext.partial_conv2d(
            x.double(), mask, weight.double(), bias.double(), **{**options, **doubles}
        )
    room = 4 if dtype == torch.bfloat16 else 1
    assert_close("y", y, wanted, length=5 * kernel**2, scale=room * wanted.abs().max().item())
    assert torch.equal(updated.double(), wanted_mask)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_window_of_any_geometry(data: st.DataObject) -> None:
    """The window's op against the formula, kernels larger than the image included."""
    sizes = st.integers(1, 9)
    dimensions = data.draw(st.integers(2, 3))

    def draw(values: st.SearchStrategy) -> list[int]:
        return [data.draw(values) for _ in range(dimensions)]

    size, kernel, stride = draw(st.integers(1, 12)), draw(sizes), draw(st.integers(1, 4))
    padding, dilation = draw(st.integers(0, 6)), draw(st.integers(1, 3))
    output = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    if min(output) < 1:
        return
    channels = data.draw(st.integers(1, 3))
    mask = mask_of(data.draw(st.sampled_from(["irregular", "fractional"])), 2, channels, size)
    counts = data.draw(st.sampled_from([[], list(range(1, channels + 1))]))
    arguments = (counts, kernel, stride, padding, dilation, output)
    rule = (data.draw(st.booleans()), data.draw(st.booleans()), 1e-8)
    wanted = reference.mask_window(mask, *arguments, *rule)
    got = torch.ops.torchext.mask_window(mask, *arguments, *rule)
    for name, value, exact in zip(("scale", "updated"), got, wanted, strict=True):
        assert_close(name, value, exact, length=1000)


def test_saved_for_backward_is_little() -> None:
    """x, the weight and maps of one channel; the result, too, after an activation."""
    saved = {}
    x, weight = torch.randn(1, 32, 40, 40, requires_grad=True), torch.randn(32, 32, 3, 3)
    weight.requires_grad_()
    mask = torch.ones(1, 1, 40, 40)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torchext.partial_conv2d(x, mask, weight, torch.randn(32), padding=1)
    few = x.nbytes + weight.nbytes + 3 * mask.nbytes + 4 * 32
    assert sum(saved.values()) <= few
    saved.clear()
    norm = {key: torch.ones(32, requires_grad=True) for key in ("norm_weight", "norm_bias")}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = torchext.partial_conv2d(
            x, mask, weight, torch.randn(32), padding=1, **norm, negative_slope=0.0
        )
    assert sum(saved.values()) <= few + y.nbytes + 2 * 4 * 32


def test_which_says_the_backend() -> None:
    assert backend.which("mask_window", torch.ones(1)) in backend.names()


SMALL_MASK = mask_of("irregular", 2, 1, (12, 11)).float()
SMALL_WEIGHT = torch.arange(108, dtype=torch.float32).sin().view(3, 4, 3, 3)


def conv2d(x: torch.Tensor) -> torch.Tensor:
    bias = SMALL_WEIGHT[:, 0, 0, 0]
    return torchext.partial_conv2d(x, SMALL_MASK, SMALL_WEIGHT, bias, padding=1)[0]


def upsample(x: torch.Tensor) -> torch.Tensor:
    return torchext.partial_upsample_conv2d(x, SMALL_MASK, SMALL_WEIGHT, negative_slope=0.2)[0]


@pytest.mark.parametrize("function", [conv2d, upsample], ids=lambda f: f.__name__)
class TestTransforms:
    """torch.compile, export, torch.func and autocast."""

    def gradient(self, function: Any, x: torch.Tensor) -> list[torch.Tensor]:
        x = x.clone().requires_grad_()
        y = function(x)
        return [y.detach(), *torch.autograd.grad((y * cotangent(y)).sum(), x)]

    def test_compile_fullgraph(self, function: Any) -> None:
        torch._dynamo.reset()
        x = torch.randn(2, 4, 12, 11)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for got, wanted in zip(self.gradient(compiled, x), self.gradient(function, x), strict=True):
            assert_close("compiled", got, wanted.double(), length=36)

    def test_export(self, function: Any) -> None:
        class Module(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return function(x)

        x = torch.randn(2, 4, 12, 11)
        exported = torch.export.export(Module(), (x,))
        assert_close("exported", exported.module()(x), function(x).double(), length=36)

    def test_func(self, function: Any) -> None:
        x = torch.randn(2, 4, 12, 11)
        _, wanted = self.gradient(function, x)
        weights = cotangent(function(x))
        got = torch.func.grad(lambda x: (function(x) * weights).sum())(x)
        assert_close("grad", got, wanted.double(), length=36)
        pair = torch.stack((x, 2 * x))
        both = torch.func.vmap(function)(pair)
        assert_close("vmap", both[1], function(2 * x).double(), length=36)


W = torch.zeros(6, 4, 3, 3)
IMAGE = torch.zeros(2, 4, 8, 6)
KNOWN = torch.ones(2, 1, 8, 6)


@pytest.mark.parametrize(
    "arguments, kind, error",
    [
        ({"x": [1]}, TypeError, "x: expected a torch.Tensor, got list"),
        ({"x": IMAGE.long()}, TypeError,
         "x: expected float32, float64, float16 or bfloat16, got torch.int64"),
        ({"x": IMAGE[0]}, ValueError, "x: expected the shape (N, C, H, W), got (4, 8, 6)"),
        ({"mask": KNOWN[..., :5]}, ValueError,
         "mask: expected the shape (2 or 1, 1 or 4, 8, 6) for x of (2, 4, 8, 6), got (2, 1, 8, 5)"),
        ({"mask": torch.ones(3, 1, 8, 6)}, ValueError,
         "mask: expected the shape (2 or 1, 1 or 4, 8, 6) for x of (2, 4, 8, 6), got (3, 1, 8, 6)"),
        ({"mask": torch.ones(2, 3, 8, 6)}, ValueError,
         "mask: expected the shape (2 or 1, 1 or 4, 8, 6) for x of (2, 4, 8, 6), got (2, 3, 8, 6)"),
        ({"mask": KNOWN, "mask_channels": (3, 1)}, ValueError,
         "mask: expected the shape (2 or 1, 2, 8, 6) for x of (2, 4, 8, 6), got (2, 1, 8, 6)"),
        ({"mask_channels": (3, 2)}, ValueError,
         "mask_channels: expected numbers that add up to x's 4 channels, got [3, 2]"),
        ({"mask": KNOWN.to(torch.complex64)}, TypeError,
         "mask: expected a bool, integer or floating-point mask, got torch.complex64"),
        ({"mask": KNOWN.to("meta")}, ValueError, "mask: expected the device of x, cpu, got meta"),
        ({"weight": W[0]}, ValueError,
         "weight: expected the shape (Co, Ci / groups, kh, kw), got (4, 3, 3)"),
        ({"weight": W[:, :3]}, ValueError, "weight: expected the shape (6, 4, 3, 3), got"
         " (6, 3, 3, 3)"),
        ({"weight": W.double()}, TypeError,
         "weight: expected the dtype of x, torch.float32, got torch.float64"),
        ({"groups": 3}, ValueError, "groups: expected a divisor of x's 4 channels, got 3"),
        ({"groups": 4}, ValueError, "groups: expected a divisor of weight's 6 channels, got 4"),
        ({"groups": 0}, ValueError, "groups: expected 1 to 2147483647, got 0"),
        ({"stride": -1}, ValueError, "stride: expected 1 to 2147483647, got -1"),
        ({"stride": (1, 1, 1)}, ValueError, "stride: expected an int or 2 of them, got 3"),
        ({"padding": 1.0}, TypeError, "padding: expected an int, got float"),
        ({"padding": "full"}, ValueError,
         "padding: expected one of ['same', 'valid'], got 'full'"),
        ({"padding": "same", "stride": 2}, ValueError,
         "stride: expected 1 with padding 'same', got 2"),
        ({"dilation": 4}, ValueError,
         "weight: expected windows that fit into the padded size, got a kernel of (3, 3) with"
         " dilation (4, 4) for (8, 6) padded by (0, 0)"),
        ({"bias": torch.zeros(5)}, ValueError, "bias: expected the shape (6,), got (5,)"),
        ({"form": "mean"}, ValueError, "form: expected one of ['ratio', 'sum'], got 'mean'"),
        ({"eps": 0.0}, ValueError, "eps: expected a positive finite number, got 0.0"),
        ({"padding_mode": "same"}, ValueError, "padding_mode: expected one of ['circular',"
         " 'reflect', 'replicate', 'zeros'], got 'same'"),
        ({"norm_weight": torch.ones(6)}, ValueError,
         "norm_bias: expected both norm_weight and norm_bias, or none"),
        ({"negative_slope": 2.0}, ValueError,
         "negative_slope: expected a slope from 0 to 1, got 2.0"),
        ({"negative_slope": "0"}, TypeError, "negative_slope: expected a number, got str"),
        ({"window": (KNOWN, KNOWN)}, ValueError,
         "window: expected two tensors of the shape (2 or 1, 1, 6, 4), got (2, 1, 8, 6)"),
    ],
)  # fmt: skip
def test_bad_input(arguments: dict, kind: type[Exception], error: str) -> None:
    given = {"x": IMAGE, "mask": KNOWN, "weight": W} | arguments
    with pytest.raises(kind) as raised:
        torchext.partial_conv2d(**given)
    assert str(raised.value) == error


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["x", "mask", "weight", "bias", "stride", "padding", "groups", "eps"]),
    value=st.one_of(st.none(), st.integers(-3, 0), st.text(max_size=2), st.floats(-2, 0)),
)
def test_no_bad_argument_reaches_a_kernel(name: str, value: Any) -> None:
    if (name in ("mask", "bias") and value is None) or (name == "padding" and value == 0):
        return
    if isinstance(value, float) and name == "padding":
        return
    with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
        torchext.partial_conv2d(**{"x": IMAGE, "mask": KNOWN, "weight": W, name: value})
