"""Winograd's convolutions on the CPU: F(4x4, 3x3) takes 36 products instead of 144.

PyTorch's own convolution of float32 runs at 80 to 90 % of a CPU's peak: only fewer multiplications
make it faster. Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*, CVPR 2016.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .. import backend, schema
from .checks import (
    PLAIN,
    autocast_dtype,
    check_feature_map,
    check_integer,
    check_parameter,
    check_tensor,
)
from .convolution import LARGEST, Sizes, geometry_of
from .op import Gradients, Op

_KERNELS = ((3, 3), (2, 2))


class Cost(NamedTuple):
    """Nanoseconds of one thread, measured with AVX-512; with AVX2 all take longer alike.

    Fitted to `python -m benchmarks.winograd_grid`. Of kernels of 3x3; those of 2x2 take as many
    times less as they have fewer products.

    Attributes:
        of_call: once.
        of_in, of_out, of_pair: of a tile of 4 x 4 pixels, for each input channel, output channel
            and pair of both.
        of_panels: of reading the transformed weight, for each pair.
        of_weight: of transforming it, for each pair.
        direct_...: of a direct convolution: once, of 4 x 4 pixels, and of reading the weight.
    """

    of_call: float
    of_in: float
    of_out: float
    of_pair: float
    of_panels: float
    of_weight: float
    direct_call: float
    direct_in: float
    direct_out: float
    direct_pair: float
    direct_weight: float


class _Costs(NamedTuple):
    forward: Cost
    input_gradient: Cost
    weight_gradient: Cost


COSTS = _Costs(
    forward=Cost(5e4, 15.0, 12.0, 0.72, 2.4, 22.0, 6e4, 21.0, 9.0, 2.36, 6.8),
    input_gradient=Cost(12e4, 13.5, 14.3, 0.72, 2.1, 6.2, 7e4, 0.0, 46.0, 2.15, 8.0),
    # The sums over tiles are written and read again; the weight is not transformed.
    weight_gradient=Cost(10e4, 35.0, 35.0, 0.78, 60.0, 0.0, 6e4, 13.0, 12.0, 2.94, 9.0),
)
_TILES = 16  # fewer take as long
_DIRECT_PANEL = 16  # output channels that a direct convolution computes together
_PANEL = 8  # output channels that are computed together
_MOST_KEPT = 1 << 25  # numbers that are made of a weight, 128 MiB
_GAIN = 1.25  # by which it must be ahead: the model's error
_GAIN_OF_IMAGES = 1.6  # likewise with the few channels of an image, which PyTorch treats apart
_REASON = "Winograd's is expected to be {:.1f} times as fast"


def winograd_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` by 3x3 or 2x2 kernels with stride 1, in Winograd's form.

    For contiguous float32 tensors on the CPU, forward and backward; all others are convolved by
    PyTorch. Errors are about ten times those of a direct
    convolution: 1e-5 of the largest value. The same for any number of threads.

    Whether it is faster depends on the sizes; `torchext.nn.Conv2d` and our other layers ask
    `torchext.backend.convolution` and take the faster one.

    Args:
        x: (N,Ci,H,W), float32, float64, float16 or bfloat16.
        weight: (Co,Ci,3,3) or (Co,Ci,2,2), x's dtype.
        bias: (Co,), x's dtype.
        padding: zeros on each side; an int, or one for rows and one for columns.
        dilation: likewise.

    Returns:
        (N,Co,Ho,Wo), x's dtype.

    Extra memory: four times the weight; a few MiB for each thread.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape does not fit.
    """
    check_feature_map("x", x)
    check_tensor("weight", weight)
    if weight.dim() != 4 or tuple(weight.shape[2:]) not in _KERNELS:
        raise ValueError(
            "weight: expected the shape (Co, Ci, 3, 3) or (Co, Ci, 2, 2), got"
            f" {tuple(weight.shape)}"
        )
    kernel = tuple(weight.shape[2:])
    check_parameter("weight", weight, (weight.shape[0], x.shape[1], *kernel), x)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.dtype != x.dtype:
            raise TypeError(f"{name}: expected the dtype of x, {x.dtype}, got {value.dtype}")
    if bias is not None:
        check_parameter("bias", bias, (weight.shape[0],), x)
    geometry = geometry_of(x.shape[2:], kernel, 1, padding, dilation)
    if not geometry.symmetric:
        raise ValueError(f"padding: expected numbers, got {padding!r}")
    return WINOGRAD_CONV2D(x, weight, bias, geometry.padding, geometry.dilation)


# --- which convolution ----------------------------------------------------------------------------


def problem(
    x: Tensor, channels: int, stride: Sequence[int], kernel: Sequence[int], groups: int = 1
) -> str:
    """Why Winograd's convolution cannot take these ("" if it can).

    Args:
        x: the input.
        channels: of the output.
        stride, kernel, groups: of the convolution.
    """
    return _problem_of_sizes(channels, stride, tuple(kernel), groups) or _problem_of_tensor(x)


def _problem_of_sizes(
    channels: int, stride: Sequence[int], kernel: tuple[int, ...], groups: int
) -> str:
    if kernel not in _KERNELS or any(step != 1 for step in stride) or groups != 1:
        return "takes kernels of 3x3 and 2x2 with stride 1, in one group"
    return "" if channels else "takes tensors that are not empty"


def _problem_of_tensor(x: Tensor) -> str:
    if x.dim() != 4 or x.dtype != torch.float32 or not x.is_cpu:
        return "takes images in float32 on the CPU"
    if not x.is_contiguous() or x.numel() == 0:
        return "takes contiguous tensors that are not empty"
    if type(x) not in PLAIN or backend.mapped(x):
        return "takes no tensors that stand for others, as tracers and torch.func.vmap have them"
    return ""


def gain(
    x: Tensor,
    channels: int,
    output_size: Sequence[int],
    dilation: Sequence[int],
    cost: Cost = COSTS.forward,
    kernel: int = 3,
    fixed: bool = False,
) -> float:
    """How many times faster than a direct convolution it is expected to be.

    Args:
        fixed: the weight is to stay what it is, so that what is made of it is kept.
    """
    given = (x.shape, channels, output_size, dilation, cost, kernel, fixed)
    return _gain(backend.simd_level(), *given)


def _gain(
    simd: str,
    shape: Sequence[int],
    channels: int,
    output_size: Sequence[int],
    dilation: Sequence[int],
    cost: Cost,
    kernel: int,
    fixed: bool,
) -> float:
    if simd not in ("avx2", "avx512"):
        return 0.0
    N, ins = shape[:2]
    grids = dilation[0] * dilation[1]
    rows, columns = (
        -(-size // (4 * step)) for size, step in zip(output_size, dilation, strict=True)
    )
    tiles = -(-N * grids * rows * columns // _TILES) * _TILES
    outs = -(-channels // _PANEL) * _PANEL
    ours = tiles * (cost.of_in * ins + cost.of_out * channels + cost.of_pair * ins * outs)
    ours += cost.of_call + cost.of_panels * ins * outs
    if not fixed or (kernel + 3) ** 2 * ins * outs > _MOST_KEPT:
        ours += cost.of_weight * ins * outs
    outs = -(-channels // _DIRECT_PANEL) * _DIRECT_PANEL
    direct = cost.direct_in * ins + cost.direct_out * channels + cost.direct_pair * ins * outs
    direct *= N * output_size[0] * output_size[1] / 16
    direct += cost.direct_call + cost.direct_weight * ins * channels
    return direct / ours * (1 if kernel == 3 else (4 / 9) / (25 / 36))


def chosen(ops: Any, *convolution: Any, **options: Any) -> bool:
    """Whether a convolution is to be one of Winograd's; the arguments of `why_direct`."""
    return not why_direct(ops, *convolution, **options)


def why_direct(
    ops: Any,
    x: Tensor,
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    cost: Cost = COSTS.forward,
    fixed: bool = False,
) -> str:
    """Why a convolution is not to be one of Winograd's, by `torchext.backend.convolution`; or "".

    Args:
        ops: of the backend that runs; only the CPU's has it.
        cost: of the convolution, or of its weight's gradient.
        fixed: the weight is to stay what it is, so that what is made of it is kept.
    """
    wanted = backend.chosen_convolution()
    if wanted == "direct":
        return "torchext.backend.convolution says so"
    if not backend.has_tiles(ops):
        return "the CPU's kernels do not run"
    reason = _problem_of_tensor(x)
    if reason:
        return reason
    sizes = (tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))
    given = (tuple(x.shape), channels, *sizes, groups, cost, fixed)
    return _why_direct(wanted, backend.simd_level(), *given)


# A network asks for the same few convolutions at every call.
@functools.lru_cache(maxsize=4096)
def _why_direct(
    wanted: str,
    simd: str,
    shape: tuple[int, ...],
    channels: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    cost: Cost,
    fixed: bool,
) -> str:
    reason = _problem_of_sizes(channels, stride, kernel, groups)
    if reason or wanted == "winograd":
        return reason
    output = _output_size(shape, kernel[0], padding, dilation)
    if min(output) < 1:
        return "the result is empty"
    expected = _gain(simd, shape, channels, output, dilation, cost, kernel[0], fixed)
    least = _GAIN_OF_IMAGES if min(shape[1], channels) < _PANEL else _GAIN
    return "" if expected > least else _REASON.format(expected)


def explain_convolution(
    x: Tensor,
    weight: Tensor,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> str:
    """Which convolution our layers take for an image, and why.

    Args:
        x: (N,Ci,H,W), floating point.
        weight: (Co,Ci/groups,kh,kw).
        stride, padding, dilation, groups: as for `torch.nn.functional.conv2d`.

    Returns:
        "winograd: ..." with how many times as fast as a direct convolution it is expected to be, or
        "direct: ..." with the reason: for this weight, as it is called now (what is made of a
        layer's that does not learn is kept). In code that is compiled it is always direct.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape does not fit.
    """
    check_feature_map("x", x)
    groups = check_integer("groups", groups, 1, LARGEST)
    check_tensor("weight", weight)
    if weight.dim() != 4 or weight.shape[1] * groups != x.shape[1]:
        raise ValueError(
            f"weight: expected the shape (Co, {x.shape[1]} / groups, kh, kw), got"
            f" {tuple(weight.shape)}"
        )
    kernel = weight.shape[2:]
    geometry = geometry_of(x.shape[2:], kernel, stride, padding, dilation)
    if not geometry.symmetric:
        return "direct: takes the same padding on both sides"
    if autocast_dtype(x) is not None or weight.dtype != x.dtype:
        return "direct: takes x and weight in float32, without autocast"
    sizes = (geometry.stride, geometry.padding, geometry.dilation)
    ops = backend.choose("winograd_conv2d", x).ops
    fixed = is_fixed(weight)
    reason = why_direct(ops, x, len(weight), kernel, *sizes, groups, fixed=fixed)
    if reason:
        return f"direct: {reason}"
    output = _output_size(x.shape, kernel[0], geometry.padding, geometry.dilation)
    expected = gain(x, len(weight), output, geometry.dilation, kernel=kernel[0], fixed=fixed)
    return f"winograd: expected to be {expected:.1f} times as fast as a direct convolution"


def _output_size(
    shape: Sequence[int], kernel: int, padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    return [
        size + 2 * p - (kernel - 1) * d
        for size, p, d in zip(shape[2:], padding, dilation, strict=True)
    ]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` as layers call it: Winograd's where that is chosen."""
    if (
        not torch.compiler.is_compiling()
        and autocast_dtype(x) is None
        and weight.dtype == x.dtype
        and chosen(
            backend.choose("winograd_conv2d", x).ops,
            *(x, len(weight), weight.shape[2:], stride, padding, dilation, groups),
            fixed=is_fixed(weight),
        )
    ):
        return WINOGRAD_CONV2D(x, weight, bias, [*padding], [*dilation])
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def convolve(
    ops: Any,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """The convolution inside of our ops, without a bias, below autograd."""
    if chosen(ops, x, len(weight), weight.shape[2:], stride, padding, dilation, groups):
        return apply(x, weight, padding, dilation)
    return direct(x, weight, None, stride, padding, dilation, groups)


def direct(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    return (F.conv3d if x.dim() == 5 else F.conv2d)(x, weight, bias, *geometry)


def convolution_gradients(
    ops: Any,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    wanted: Sequence[bool],
    *,
    always: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Of x and the weight, None where not wanted.

    Args:
        always: take Winograd's form wherever it can be taken.
    """
    of_x, of_weight = wanted[:2]
    grad_x = grad_weight = None
    outs, ins = weight.shape[:2]
    # A convolution of the gradient, taps reversed.
    border = [(k - 1) * d - p for k, p, d in zip(weight.shape[2:], padding, dilation, strict=True)]

    def taken(x: Tensor, channels: int, padding: list[int], cost: Cost) -> bool:
        if always:
            return _takes(ops, x, channels, weight)
        given = (weight.shape[2:], stride, padding, dilation, groups)
        return chosen(ops, x, channels, *given, cost)

    if of_x and min(border) >= 0 and taken(grad, ins, border, COSTS.input_gradient):
        grad_x = apply(grad, weight, border, dilation, transposed=True)
        of_x = False
    fits = grad.dtype == x.dtype and grad.is_contiguous()
    if of_weight and fits and taken(x, outs, padding, COSTS.weight_gradient):
        grad_weight = ops.winograd_weight_gradient(grad, x, weight.shape[2], padding, dilation)
        of_weight = False
    if of_x or of_weight:
        found = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups,
            [of_x, of_weight, False],
        )  # fmt: skip
        grad_x, grad_weight = found[0] if of_x else grad_x, found[1] if of_weight else grad_weight
    return grad_x, grad_weight


# --- what is made of weights ----------------------------------------------------------------------

Made = Tensor | tuple[Tensor, ...]


class _Derived:
    """What is made of a weight, kept from its second use on for as long as that stays what it is.

    In training each use sees another weight, and nothing is kept.
    """

    def __init__(self) -> None:
        self.version: int | None = None
        self.kept: tuple[Tensor | None, Made] | None = None  # a copy of the weight, what was made

    def of(self, weight: Tensor, make: Callable[[Tensor], Made]) -> Made:
        kept = self.kept  # read once, as other threads may be here too
        if kept is not None:
            copy, value = kept
            # Its version alone would not tell: what is written through `weight.data` has its own.
            if copy is None or torch.equal(weight, copy):
                return value
            self.kept = None
        ours = weight in _kept  # nobody else writes into it
        version = 0 if ours or weight.is_inference() else weight._version
        # A training step may use what an evaluation in inference mode has left here.
        with torch.inference_mode(False), torch.no_grad():
            value = make(weight)
            parts = (value,) if isinstance(value, Tensor) else value
            small = sum(part.numel() for part in parts) <= _MOST_KEPT
            if (ours or version == self.version) and small:
                self.kept = None if ours else weight.clone(), value
                for part in parts:
                    _kept[part] = True
        self.version = version
        return value


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()
_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()  # all that is, by identity


def derived(weight: Tensor, make: Callable[[Tensor], Made]) -> Any:
    """make(weight), which is not made again while an unchanged weight is used; below autograd.

    What it gives may be given to it again.
    """
    return _known.setdefault(weight, defaultdict(_Derived))[make].of(weight, make)


def made_of(weight: Tensor, make: Callable[[Tensor], Made]) -> Any:
    """make(weight): `derived` where the weight can be read and does not learn, else as it is."""
    known = backend.readable(weight) and not _learns(weight)
    return derived(weight, make) if known else make(weight)


def _learns(weight: Tensor) -> bool:
    """Whether a gradient of the weight is to be expected."""
    return torch.is_grad_enabled() and weight.requires_grad


def is_fixed(weight: Tensor) -> bool:
    """Whether the same weight is to be expected at the next call: a layer's, or what is kept."""
    return not _learns(weight) and (isinstance(weight, torch.nn.Parameter) or weight in _kept)


@functools.cache
def split_at(channels: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The part of a weight for so many input channels, and that for the others."""

    def split(weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight[:, :channels].contiguous(), weight[:, channels:].contiguous()

    return split


def panels_of(weight: Tensor) -> Tensor:
    return torch.ops.torchext.winograd_weight(weight.contiguous(), False)


def _transposed_panels(weight: Tensor) -> Tensor:
    return torch.ops.torchext.winograd_weight(weight.contiguous(), True)


NO_EPILOGUE = (None, None, None, None, None, 1.0, False)


def apply(
    x: Tensor,
    weight: Tensor,
    padding: list[int],
    dilation: list[int],
    *,
    mask: Tensor | None = None,
    epilogue: tuple[Any, ...] = NO_EPILOGUE,
    transposed: bool = False,
) -> Tensor:
    """The convolution of what `problem` does not refuse.

    Args:
        x, weight, padding, dilation: as for `winograd_conv2d`.
        mask: (N or 1,1,H,W), with which x is multiplied, 0 where it is 0.
        epilogue: as `partial_conv_epilogue` takes it, from the scale on; or with a bias alone.
        transposed: by the weight with channels exchanged and taps reversed.
    """
    panels = derived(weight, _transposed_panels if transposed else panels_of)
    channels = weight.shape[1 if transposed else 0]
    return torch.ops.torchext.winograd_apply(
        x, mask, panels, channels, *epilogue, padding, dilation
    )


# --- ops ------------------------------------------------------------------------------------------


def _takes(ops: Any, x: Tensor, channels: int, weight: Tensor) -> bool:
    return backend.has_tiles(ops) and not problem(x, channels, (1, 1), weight.shape[2:])


def _compose(
    ops: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    if _takes(ops, x, len(weight), weight):
        if bias is None:
            return apply(x, weight, padding, dilation)
        epilogue = (None, None, bias.contiguous(), *NO_EPILOGUE[3:])
        return apply(x, weight, padding, dilation, epilogue=epilogue)
    return direct(x, weight, bias, [1, 1], padding, dilation, 1)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    return torch.empty_like(direct(x, weight, bias, [1, 1], padding, dilation, 1))


def _backward(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    wanted = [name in kept.needs for name in ("x", "weight", "bias")]
    gradients = ops.winograd_conv2d_backward(
        grad, kept.x, kept.weight, kept.padding, kept.dilation, wanted
    )
    found = zip(("x", "weight", "bias"), gradients, strict=True)
    return {name: gradient for name, gradient in found if name in kept.needs}


def _compose_backward(
    ops: Any,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    padding: list[int],
    dilation: list[int],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = ([1, 1], padding, dilation, 1)
    grad_x, grad_weight = convolution_gradients(
        ops, grad, x, weight, *geometry, wanted, always=True
    )
    none = x.new_empty(0)
    return (
        none if grad_x is None else grad_x,
        none if grad_weight is None else grad_weight.contiguous(),
        grad.sum(dim=(0, 2, 3)) if wanted[2] else none,
    )


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    padding: list[int],
    dilation: list[int],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    none = x.new_empty(0)
    return (
        torch.empty_like(x) if wanted[0] else none,
        weight.new_empty(weight.shape) if wanted[1] else none,
        weight.new_empty((weight.shape[0],)) if wanted[2] else none,
    )


def _fake_weight(weight: Tensor, transposed: bool) -> Tensor:
    outs, ins = weight.shape[:2] if not transposed else (weight.shape[1], weight.shape[0])
    return weight.new_empty((-(-outs // _PANEL), (weight.shape[2] + 3) ** 2, ins, _PANEL))


def _fake_apply(x: Tensor, mask: Tensor | None, panels: Tensor, channels: int, *rest: Any) -> Any:
    kernel = 2 if panels.shape[1] == 25 else 3
    return x.new_empty((x.shape[0], channels, *_output_size(x.shape, kernel, *rest[-2:])))


WINOGRAD_CONV2D = Op(
    name="winograd_conv2d",
    fake=_fake,
    compose=_compose,
    keep=schema.arguments("winograd_conv2d"),
    backward=_backward,
)
WINOGRAD_CONV2D_BACKWARD = Op(
    name="winograd_conv2d_backward", fake=_fake_backward, compose=_compose_backward
)
WINOGRAD_WEIGHT = Op(name="winograd_weight", fake=_fake_weight)
WINOGRAD_WEIGHT_GRADIENT = Op(
    name="winograd_weight_gradient",
    fake=lambda grad, x, kernel, *_: x.new_empty((grad.shape[1], x.shape[1], kernel, kernel)),
)
WINOGRAD_APPLY = Op(name="winograd_apply", fake=_fake_apply)
