"""PD-GAN's diversity maps in Triton.

Formula: "PD-GAN: Probabilistic Diverse GAN for Image Inpainting" (CVPR 2021). Hard:
base^-min(ceil(d / r), n), d the chessboard distance to the nearest known pixel; soft: 1 if known,
else sigmoid(logits).
base^-min(ceil(d / r), n), d the chessboard distance to the nearest known pixel; soft: 1 where
known, else sigmoid(logits).

Passes over memory: a hard map in two launches, rings above and below each pixel (one byte), then
the least of max(rings aside, rings of that column); labels read and the map written once, what lies
around from the cache. Soft 2T in one launch, its backward 3T: the floors. Grid: one program per
block of pixels (hard) or elements (soft).
"""

import torch
import triton
import triton.language as tl

from .common import (
    INTERPRETED,
    accumulated,
    is_channels_last,
    launch,
    recorded,
    unique,
    variant_tensors,
)

_SIZES = ("height", "width", "map_height", "map_width", "reach", "radius", "steps")


@triton.jit(do_not_specialize=_SIZES)
def diversity_map_vertical_kernel(
    labels, rings, elements, height, width, map_height, map_width, reach, radius, steps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """ceil(d / radius) of the nearest known pixel of the column, at most `steps`."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = index // map_width
    y = row % map_height
    column = (index % map_width) * width // map_width
    plane = labels + (row // map_height) * height * width
    ring = tl.zeros((BLOCK,), tl.int32) + steps
    for dy in range(reach + 1):
        above, below = y - dy, y + dy
        up = tl.load(
            plane + above * height // map_height * width + column,
            mask=(index < elements) & (above >= 0), other=0,
        )  # fmt: skip
        down = tl.load(
            plane + below * height // map_height * width + column,
            mask=(index < elements) & (below < map_height), other=0,
        )  # fmt: skip
        found = (up != 0) | (down != 0)
        ring = tl.where(found, tl.minimum(ring, (dy + radius - 1) // radius), ring)
    tl.store(rings + index, ring.to(tl.uint8), mask=index < elements)


@triton.jit(do_not_specialize=_SIZES)
def diversity_map_horizontal_kernel(
    rings, out, elements, map_width, reach, radius, steps,
    BASE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = index % map_width
    inside = index < elements
    best = tl.load(rings + index, mask=inside, other=0).to(tl.int32)
    for k in range(1, reach + 1):
        left = tl.load(rings + index - k, mask=inside & (x >= k), other=255).to(tl.int32)
        right = tl.load(rings + index + k, mask=inside & (x + k < map_width), other=255)
        nearest = tl.minimum(left, right.to(tl.int32))
        best = tl.minimum(best, tl.maximum(nearest, (k + radius - 1) // radius))
    rate = tl.log2(tl.full((1,), BASE, out.dtype.element_ty))
    level = tl.exp2(-best.to(out.dtype.element_ty) * rate)
    tl.store(out + index, level, mask=inside)


@triton.jit(do_not_specialize=("label_stride",))
def soft_diversity_map_kernel(
    logits, labels, y, elements, C, P, label_stride, CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    known = _known(labels, index, C, P, label_stride, inside, CHANNELS_LAST)
    value = accumulated(tl.load(logits + index, mask=inside, other=0.0))
    soft = tl.where(known, 1.0, 1.0 / (1.0 + tl.exp(-value)))
    tl.store(y + index, soft.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("label_stride",))
def soft_diversity_map_backward_kernel(
    grad, y, labels, grad_logits, elements, C, P, label_stride, CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    known = _known(labels, index, C, P, label_stride, inside, CHANNELS_LAST)
    g = accumulated(tl.load(grad + index, mask=inside, other=0.0))
    s = accumulated(tl.load(y + index, mask=inside, other=0.0))
    result = tl.where(known, 0.0, g * s * (1.0 - s))
    tl.store(grad_logits + index, result.to(grad_logits.dtype.element_ty), mask=inside)


@triton.jit
def _known(labels, index, C, P, label_stride, inside, CHANNELS_LAST: tl.constexpr):
    """Whether the pixel of each element is known."""
    image = index // (C * P)
    within = index - image * (C * P)
    pixel = within // C if CHANNELS_LAST else within % P
    return tl.load(labels + image * label_stride + pixel, mask=inside, other=0) != 0


def diversity_maps(labels, steps, windows, heights, widths, base, dtype):
    """The maps of all sizes, one behind the other."""
    N, _, H, W = labels.shape
    counts = [N * height * width for height, width in zip(heights, widths, strict=True)]
    out = torch.empty(sum(counts), dtype=dtype, device=labels.device)
    parts = out.split(counts)
    block = 65536 if INTERPRETED else 256
    for part, n, window, height, width in zip(parts, steps, windows, heights, widths, strict=True):
        radius = window // 2
        reach = (n - 1) * radius
        elements = part.numel()
        rings = torch.empty(elements, dtype=torch.uint8, device=labels.device)
        programs = triton.cdiv(elements, block)
        launch(
            diversity_map_vertical_kernel, programs,
            labels, rings, elements, H, W, height, width, reach, radius, n, BLOCK=block,
        )  # fmt: skip
        launch(
            diversity_map_horizontal_kernel, programs,
            rings, part, elements, width, reach, radius, n, BASE=base, BLOCK=block,
        )  # fmt: skip
    return out


def _elementwise(kernel, x, labels, *tensors) -> None:
    _, C, H, W = x.shape
    block = 65536 if INTERPRETED else 1024
    label_stride = H * W if labels.shape[0] > 1 else 0
    launch(
        kernel, triton.cdiv(x.numel(), block), *tensors, x.numel(), C, H * W, label_stride,
        CHANNELS_LAST=is_channels_last(x), BLOCK=block,
    )  # fmt: skip


def soft_diversity_map(logits, labels):
    """1 where known, else sigmoid(logits)."""
    y = torch.empty_like(logits)
    _elementwise(soft_diversity_map_kernel, logits, labels, logits, labels, y)
    return y


def soft_diversity_map_backward(grad, y, labels):
    """The gradient of the logits, 0 where known."""
    grad_logits = torch.empty_like(y)
    _elementwise(soft_diversity_map_backward_kernel, y, labels, grad, y, labels, grad_logits)
    return grad_logits


def ahead_of_time_variants():
    """Every variant that the launchers can run."""
    with recorded() as variants:
        labels = torch.empty((2, 1, 64, 64), dtype=torch.uint8, device="meta")
        for dtype in (torch.float32, torch.float64):
            for sizes in ([64, 32], [40, 9]):
                diversity_maps(labels, [7, 2], [5, 3], sizes, sizes, 2.718281828459045, dtype)
        labels = torch.empty((1, 1, 1, 1), dtype=torch.uint8, device="meta")
        diversity_maps(labels, [1], [3], [1], [1], 2.718281828459045, torch.float32)
        for x in variant_tensors():
            labels = torch.empty((len(x), 1, *x.shape[2:]), dtype=torch.uint8, device="meta")
            soft_diversity_map_backward(x, soft_diversity_map(x, labels), labels)
    return unique(variants)
