"""Nearest up-sampling by two and a convolution, by phases: four small convolutions instead.

The pixels (2i + a, 2j + b) of the result, for one (a, b), are a convolution of the small image with
a kernel whose taps are sums of those that meet the same small pixel: 2x2 taps for a 3x3 kernel.
One convolution computes all four; `interleave_phases` puts them in their places.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import (
    accumulate_dtype,
    autocast_dtype,
    check_feature_map,
    check_parameter,
    memory_format,
    native,
    parameter_in,
)
from .convolution import check_odd_kernel
from .op import Gradients, Op
from .winograd_conv import conv2d, made_of

# For a smaller image folding the weight costs more than the fewer multiplications save: both grow
# with the channels alike. Measured on a CPU.
_FEWEST_PIXELS = 256


def upsample_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, addend: Tensor | None = None
) -> Tensor:
    """conv2d(interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=k // 2).

    Equal to rounding, with 2.25 times fewer multiplications for 3x3 kernels (2.8 for 5x5), forward
    and backward. Batches of fewer than 256 pixels are up-sampled and convolved as they are.

    Args:
        x: (N,Ci,H,W), float32, float64, float16 or bfloat16.
        weight: (Co,Ci,kh,kw), both sizes odd; x's dtype (any under autocast).
        bias: (Co,).
        addend: (N,Co,2H,2W), added to the result; its channels' share of a convolution over a
            concatenation, say.

    Returns:
        (N,Co,2H,2W), the dtype and memory format of a convolution of x.

    Extra memory: the phases, of the result's size (and up to one row and column more).

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape or device does not fit.
    """
    check_feature_map("x", x)
    check_odd_kernel(weight)
    check_parameter("weight", weight, (weight.shape[0], x.shape[1], *weight.shape[2:]), x)
    if weight.dtype != x.dtype and autocast_dtype(x) is None:
        raise TypeError(f"weight: expected the dtype of x, {x.dtype}, got {weight.dtype}")
    N, _, H, W = x.shape
    if bias is not None:
        check_parameter("bias", bias, (weight.shape[0],), x)
    if addend is not None:
        check_parameter("addend", addend, (N, weight.shape[0], 2 * H, 2 * W), x)
    return by_phases(x, weight, bias, addend)


def by_phases(x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None) -> Tensor:
    if x.shape[0] * x.shape[2] * x.shape[3] < _FEWEST_PIXELS:
        padding = [size // 2 for size in weight.shape[2:]]
        y = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, None, 1, padding)
        y = y if bias is None else y + bias.to(y.dtype).view(1, -1, 1, 1)
        return y if addend is None else y + addend.to(y.dtype)
    half = [size // 2 for size in weight.shape[2:]]
    padding = [(p + 1) // 2 for p in half]
    # Of each phase, in rows and columns of the small image: where its first window begins, from
    # where that of the first phase does.
    offsets = [phase * (p % 2) for p in half for phase in (0, 1)]
    phases = native(conv2d(x, made_of(weight, fold_weight), None, (1, 1), padding, (1, 1)))
    if bias is not None:
        bias = parameter_in(bias, accumulate_dtype(phases.dtype))
    if addend is not None:
        addend = addend.to(phases.dtype).contiguous(memory_format=memory_format(phases))
    return INTERLEAVE_PHASES(phases, bias, addend, offsets)


def fold_weight(weight: Tensor) -> Tensor:
    """(Co,Ci,kh,kw) to (4*Co,Ci,lh,lw), phase outermost, l = (k + 1) / 2."""
    Co, Ci, kh, kw = weight.shape
    small = ((kh + 1) // 2, (kw + 1) // 2)
    with torch.autocast(weight.device.type, enabled=False):
        taps = torch.eye(kh * kw, dtype=weight.dtype, device=weight.device)
        matrix = _fold_taps(taps.view(kh * kw, kh, kw)).flatten(1)
        parts = weight.reshape(Co * Ci, kh * kw) @ matrix  # one pass over the weight
    return parts.view(Co, Ci, 4, *small).permute(2, 0, 1, 3, 4).reshape(4 * Co, Ci, *small)


def _fold_taps(taps: Tensor) -> Tensor:
    """(n,kh,kw) to (n,4,lh,lw)."""
    # Neighbouring taps meet the same small pixel: sums of two, beginning at each place.
    sums = F.pad(taps, (1, 1, 1, 1))
    sums = sums[..., 1:, :] + sums[..., :-1, :]
    sums = sums[..., 1:] + sums[..., :-1]
    n, *size = taps.shape
    parts = sums.view(n, (size[0] + 1) // 2, 2, (size[1] + 1) // 2, 2).permute(0, 2, 4, 1, 3)
    # Which of two neighbouring sums a phase takes depends on where the kernel's middle lies.
    swapped = [dim for dim, k in enumerate(size, start=1) if k // 2 % 2 == 0]
    return parts.flip(swapped).flatten(1, 2)


# --- ops ----------------------------------------------------------------------------------------


def _empty(like: Tensor, shape: tuple[Any, ...]) -> Tensor:
    """In the memory format in which an op takes `like`, also where it is both."""
    if memory_format(like) == torch.contiguous_format:
        return like.new_empty(shape)
    N, C, H, W = shape
    return like.new_empty((N, H, W, C)).permute(0, 3, 1, 2)


def _fake(phases: Tensor, bias: Tensor | None, addend: Tensor | None, offsets: list[int]) -> Tensor:
    N, channels, h, w = phases.shape
    shape = (N, channels // 4, 2 * (h - max(offsets[:2])), 2 * (w - max(offsets[2:])))
    return _empty(phases, shape)


def _fake_backward(grad: Tensor, offsets: list[int], height: int, width: int) -> Tensor:
    N, C = grad.shape[:2]
    return _empty(grad, (N, 4 * C, height, width))


def _keep(given: Any, outputs: tuple[Tensor, ...], needs: set[str]) -> dict[str, Any]:
    return {
        "offsets": given.offsets,
        "size": given.phases.shape[2:],
        "bias_dtype": None if given.bias is None else given.bias.dtype,
    }


def _backward(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    bias = None
    if kept.bias_dtype is not None:
        bias = grad.sum(dim=(0, 2, 3), dtype=kept.bias_dtype)
    return {
        "phases": ops.interleave_phases_backward(grad, kept.offsets, *kept.size),
        "bias": bias,
        "addend": grad if "addend" in kept.needs else None,
    }


INTERLEAVE_PHASES = Op(
    name="interleave_phases", fake=_fake, keep=_keep, backward=_backward, twice="backward"
)
INTERLEAVE_PHASES_BACKWARD = Op(name="interleave_phases_backward", fake=_fake_backward)
