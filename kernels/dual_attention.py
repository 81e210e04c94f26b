"""The tail of "Dual Attention GANs for Semantic Image Synthesis" (ACM MM 2020) in Triton.

Formula: y = leaky(high + low * (gate + attention)), gate per channel, attention per pixel.
Backward, with m = grad where y > 0 and slope * grad elsewhere: grad_high = m, grad_low = m * (gate
+ attention), grad_gate and grad_attention the sums of m * low over pixels and over channels.

Passes over memory (T = one feature map), all the floor: dual_attention_pools 2T, dual_attention
3T, its backward 5T. Launches: 1 each, and 1 that adds up the programs' sums. Grid: a program for
each image and block of pixels walks over all channels, as the sums of both kinds need.
"""

import torch
import triton
import triton.language as tl

from .common import (
    INTERPRETED,
    accumulate_dtype,
    accumulated,
    element_offsets,
    is_channels_last,
    launch,
    recorded,
    unique,
    variant_tensors,
)
from .self_aware_affine import channel_mean_max_kernel

BLOCK_P = 4096 if INTERPRETED else 64
BLOCK_C = 8 if INTERPRETED else 32


@triton.jit(do_not_specialize=("tiles_per_image",))
def dual_attention_sums_kernel(
    x, parts, C, P, tiles_per_image,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """parts (programs,C): each channel's sum over the program's pixels."""
    image = (tl.program_id(0) // tiles_per_image).to(tl.int64)
    p = (tl.program_id(0) % tiles_per_image) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)[:, None]
        offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
        value = accumulated(tl.load(x + offsets, mask=(c < C) & (p < P), other=0.0))
        place = tl.cast(tl.program_id(0), tl.int64) * C + c
        tl.store(parts + place, tl.sum(value, axis=1, keep_dims=True), mask=c < C)


@triton.jit(do_not_specialize=("tiles_per_image", "stride"))
def dual_attention_total_kernel(
    parts, totals, C, P, tiles_per_image, stride, MEAN: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """totals[image * stride + c]: the sum over the image's programs in their order, or its mean."""
    blocks = tl.cdiv(C, BLOCK_C)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), parts.dtype.element_ty)
    for tile in range(tiles_per_image):
        place = (image * tiles_per_image + tile) * C + c
        total += tl.load(parts + place, mask=c < C, other=0.0)
    if MEAN:
        total = total / P
    tl.store(totals + image * stride + c, total, mask=c < C)


@triton.jit(do_not_specialize=("tiles_per_image",))
def dual_attention_kernel(
    high, low, gate, attention, y, C, P, tiles_per_image,
    SLOPE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    image = (tl.program_id(0) // tiles_per_image).to(tl.int64)
    p = (tl.program_id(0) % tiles_per_image) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    of_pixel = tl.load(attention + image * P + p, mask=p < P, other=0.0)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)[:, None]
        offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
        inside = (c < C) & (p < P)
        scale = tl.load(gate + image * C + c, mask=c < C, other=0.0) + of_pixel
        mixed = accumulated(tl.load(low + offsets, mask=inside, other=0.0)) * scale
        mixed += accumulated(tl.load(high + offsets, mask=inside, other=0.0))
        result = tl.where(mixed > 0, mixed, SLOPE * mixed)
        tl.store(y + offsets, result.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("tiles_per_image",))
def dual_attention_backward_kernel(
    grad, y, low, gate, attention, grad_high, grad_low, grad_attention, parts,
    C, P, tiles_per_image,
    SLOPE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """parts (programs,C): the gate's gradient, each program's share."""
    image = (tl.program_id(0) // tiles_per_image).to(tl.int64)
    p = (tl.program_id(0) % tiles_per_image) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    of_pixel = tl.load(attention + image * P + p, mask=p < P, other=0.0)
    by_pixel = tl.zeros((1, BLOCK_P), parts.dtype.element_ty)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)[:, None]
        offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
        inside = (c < C) & (p < P)
        scale = tl.load(gate + image * C + c, mask=c < C, other=0.0) + of_pixel
        given = accumulated(tl.load(grad + offsets, mask=inside, other=0.0))
        positive = accumulated(tl.load(y + offsets, mask=inside, other=0.0)) > 0
        mixed = tl.where(positive, given, SLOPE * given)
        product = mixed * accumulated(tl.load(low + offsets, mask=inside, other=0.0))
        tl.store(grad_high + offsets, mixed.to(grad_high.dtype.element_ty), mask=inside)
        tl.store(grad_low + offsets, (mixed * scale).to(grad_low.dtype.element_ty), mask=inside)
        by_pixel += tl.sum(product, axis=0, keep_dims=True)
        place = tl.cast(tl.program_id(0), tl.int64) * C + c
        tl.store(parts + place, tl.sum(product, axis=1, keep_dims=True), mask=c < C)
    tl.store(grad_attention + image * P + p, by_pixel, mask=p < P)


def _tiles(x: torch.Tensor) -> tuple[int, int, int, int, dict]:
    """Images, channels, pixels, tiles of an image, and the constants of a walk."""
    N, C, H, W = x.shape
    tiling = {"CHANNELS_LAST": is_channels_last(x), "BLOCK_C": BLOCK_C, "BLOCK_P": BLOCK_P}
    return N, C, H * W, triton.cdiv(H * W, BLOCK_P), tiling


def _total(parts, totals, C: int, P: int, tiles: int, images: int, mean: bool) -> None:
    launch(
        dual_attention_total_kernel, images * triton.cdiv(C, BLOCK_C),
        parts, totals, C, P, tiles, totals.stride(0), MEAN=mean, BLOCK_C=BLOCK_C,
    )  # fmt: skip


def dual_attention_pools(high, low):
    """Averages of both maps' channels (N,2C), and low's mean and maximum over its channels."""
    N, C, P, tiles, tiling = _tiles(low)
    _, _, H, W = low.shape
    accumulate = accumulate_dtype(low)
    pooled = torch.empty((N, 2, H, W), dtype=accumulate, device=low.device)
    argmax = torch.empty((N, 1, H, W), dtype=torch.int32, device=low.device)
    averages = torch.empty((N, 2 * C), dtype=accumulate, device=low.device)
    parts = torch.empty((N * tiles, C), dtype=accumulate, device=low.device)
    for x, totals in ((high, averages[:, :C]), (low, averages[:, C:])):
        launch(dual_attention_sums_kernel, N * tiles, x, parts, C, P, tiles, **tiling)
        _total(parts, totals, C, P, tiles, N, mean=True)
    launch(channel_mean_max_kernel, N * tiles, low, pooled, argmax, C, P, tiles, **tiling)
    return averages, pooled, argmax


def dual_attention(high, low, gate, attention, slope):
    """leaky(high + low * (gate + attention))."""
    N, C, P, tiles, tiling = _tiles(low)
    y = torch.empty_like(low)
    launch(
        dual_attention_kernel, N * tiles,
        high, low, gate, attention, y, C, P, tiles, SLOPE=slope, **tiling,
    )  # fmt: skip
    return y


def dual_attention_backward(grad, y, low, gate, attention, slope):
    """Gradients of high, low, gate and attention."""
    N, C, P, tiles, tiling = _tiles(low)
    grad_high, grad_low = torch.empty_like(low), torch.empty_like(low)
    grad_gate, grad_attention = torch.empty_like(gate), torch.empty_like(attention)
    parts = gate.new_empty((N * tiles, C))
    launch(
        dual_attention_backward_kernel, N * tiles,
        grad, y, low, gate, attention, grad_high, grad_low, grad_attention, parts,
        C, P, tiles, SLOPE=slope, **tiling,
    )  # fmt: skip
    _total(parts, grad_gate, C, P, tiles, N, mean=False)
    return grad_high, grad_low, grad_gate, grad_attention


def ahead_of_time_variants():
    """Every variant that the launchers can run."""
    with recorded() as variants:
        for x in variant_tensors():
            N, C, H, W = x.shape
            small = {"dtype": accumulate_dtype(x), "device": "meta"}
            gate, attention = torch.empty((N, C), **small), torch.empty((N, 1, H, W), **small)
            dual_attention_pools(x, x)
            dual_attention(x, x, gate, attention, 0.2)
            dual_attention_backward(x, x, x, gate, attention, 0.2)
    return unique(variants)
