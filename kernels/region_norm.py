"""Region normalisation in Triton.

Formula: "Region Normalization for Image Inpainting" (AAAI 2020), for K regions. With k the label
of a pixel, xhat = (x - mean[k]) * rstd[k], rstd = 1 / sqrt(variance + e), where e = eps * M /
count[k] (published) or eps, and y = xhat * weight[k] + bias[k], or xhat times a map plus a map.
Backward: grad_x = rstd[k] * (w * grad - s0[k] / count[k] - xhat * s1[k] / count[k]), with
s0 = sum of w * grad and s1 = sum of w * grad * xhat over the region.

Passes over x (T = its bytes), floors in brackets: statistics read T (T), apply reads T and writes
T (2T); forward 3T (2T where x fits the cache: apply walks backwards, through what statistics read
last). Backward sums read 2T, backward apply reads 2T and writes T: 5T (3T). All K regions are
taken from one read; the work of statistics and sums grows with the regions present in a tile.
Labels and spatial maps add one byte or one accumulator per pixel; with a spatial weight the two
per-pixel sums over channels are written once for each 32 channels.

Launches: with K = 2 each direction takes two (partial sums, then apply, whose programs each merge
the partials of their channels in fixed order); more regions merge in a launch of their own.
A spatial weight with more channels than one tile adds the sum of the per-pixel partials.
Grid: one program per (statistics group, split of the pixels, block of channels). Nothing is
atomic, so results do not depend on the order in which programs run.

Variance: two passes over each tile in registers (its mean, then the deviations from it), merged
by Chan's formula in coordinates relative to a pivot, so that |mean| = 10^4 * deviation costs one
rounding of the mean and nothing more. Values are selected by region, never multiplied by a mask.
"""

import itertools
from typing import NamedTuple

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

MAX_SPLITS = 128  # partial results per region and channel
WARPS_WANTED = 4096  # enough to fill the largest devices once

_SWEEP = ("tiles_per_image", "tiles", "tiles_per_split", "splits")
_COUNTS = ("K", "pixels", "plane", "partial_splits", "first_region")


class Sweep(NamedTuple):
    """How the programs of one launch share (N,C,P): see `_program` and `_tile`."""

    programs: int
    channel_blocks: int
    splits: int
    sizes: tuple[int, ...]
    blocks: dict


def _sweep(x, labels, per_instance: bool, channel_sums: bool = False) -> Sweep:
    N, C, H, W = x.shape
    P = H * W
    channels_last = is_channels_last(x)
    wide = x.dtype == torch.float64
    num_warps = 4
    if INTERPRETED:  # few programs: each one costs the interpreter milliseconds
        block_c, block_p = min(triton.next_power_of_2(C), 32), 1024 if P <= 1024 else 2048
    elif channel_sums:
        block_c, block_p, num_warps = 32, 64, 8
    elif channels_last:
        block_c = 64 // x.element_size()
        # Halves: half as many, since a thread's 8 channels need more registers than 4 or 2.
        block_p, num_warps = (4096 if x.dtype == torch.float32 else 2048) // block_c, 8
    else:
        block_c = 1
        block_p, num_warps = (1024 if wide else 2048, 4) if P >= 2048 else (512, 2 if wide else 1)
    groups = N if per_instance else 1
    channel_blocks = triton.cdiv(C, block_c)
    tiles_per_image = triton.cdiv(P, block_p)
    tiles = tiles_per_image if per_instance else N * tiles_per_image
    programs_wanted = 2 if INTERPRETED else WARPS_WANTED // num_warps
    splits = triton.cdiv(programs_wanted, max(groups, 1) * channel_blocks)
    tiles_per_split = max(triton.cdiv(tiles, min(splits, MAX_SPLITS)), 1)
    splits = max(triton.cdiv(tiles, tiles_per_split), 1)
    label_stride = P if labels.shape[0] > 1 else 0
    return Sweep(
        groups * splits * channel_blocks,
        channel_blocks,
        splits,
        (C, P, label_stride, tiles_per_image, tiles, tiles_per_split, splits),
        {
            "CHANNELS_LAST": channels_last,
            "BLOCK_C": block_c,
            "BLOCK_P": block_p,
            "num_warps": num_warps,
        },
    )


@triton.jit
def _program(program, C, splits, BLOCK_C: tl.constexpr):
    """(channel block, split, group) of a program; neighbours share their pixels' labels."""
    channel_blocks = tl.cdiv(C, BLOCK_C)
    channel_block = program % channel_blocks
    split = (program // channel_blocks) % splits
    group = (program // (channel_blocks * splits)).to(tl.int64)
    return channel_block, split, group


@triton.jit
def _channels(channel_block, BLOCK_C: tl.constexpr):
    return channel_block * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]


@triton.jit
def _tile(
    labels, t, group, c, C, P, label_stride, tiles_per_image, K,
    CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Tile t of a group: offsets and mask into x, its regions, pixels in the image and in a map."""
    image = group + t // tiles_per_image
    p = (t % tiles_per_image) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    inside = p < P
    offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
    region = tl.load(labels + image * label_stride + p, mask=inside, other=0).to(tl.int32)
    region = tl.minimum(region, K - 1)  # a label out of range must not reach other memory
    return offsets, inside & (c < C), region, inside, image * P + p


@triton.jit
def _of_region(table, group, region, c, C, K, mask, BINARY: tl.constexpr):
    """table[group, region, c] for every pixel of a tile."""
    table += group * K * C
    if BINARY:
        row0 = tl.load(table + c, mask=c < C, other=0.0)
        row1 = tl.load(table + C + c, mask=c < C, other=0.0)
        value = tl.where(region == 0, row0, row1)
    else:
        value = tl.load(table + region * C + c, mask=mask, other=0.0)
    return value


@triton.jit
def _observe(value, member, k, count, pivot, offset, m2, REGIONS: tl.constexpr):
    """Merge the members of one tile into column k of (count, pivot + offset, M2)."""
    column = (tl.arange(0, REGIONS) == k)[None, :]
    n = tl.sum(member.to(tl.int32), axis=1, keep_dims=True)
    inverse = 1.0 / tl.maximum(n, 1).to(value.dtype)
    rough = tl.sum(tl.where(member, value, 0.0), axis=1, keep_dims=True) * inverse
    deviation = tl.where(member, value - rough, 0.0)
    drift = tl.sum(deviation, axis=1, keep_dims=True) * inverse  # rounding error of `rough`
    tile_m2 = tl.sum(deviation * deviation, axis=1, keep_dims=True) - n * drift * drift
    pivot = tl.where(column & (count == 0), rough, pivot)
    delta = (rough - pivot) + drift - offset
    share = n.to(value.dtype) / tl.maximum(count + n, 1).to(value.dtype)
    offset = tl.where(column, offset + delta * share, offset)
    m2 = tl.where(column, m2 + tile_m2 + delta * delta * share * count, m2)
    count = tl.where(column, count + n, count)
    return count, pivot, offset, m2


@triton.jit(do_not_specialize=(*_COUNTS, *_SWEEP))
def region_statistics_kernel(
    x, labels, counts, partials, plane, K, first_region,
    C, P, label_stride, tiles_per_image, tiles, tiles_per_split, splits,
    REGIONS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """counts (R,K,S) and partials (2,R,K,C,S): means and sums of squared deviations."""
    channel_block, split, group = _program(tl.program_id(0), C, splits, BLOCK_C)
    c = _channels(channel_block, BLOCK_C)
    count = tl.zeros((1, REGIONS), tl.int32)
    pivot = tl.zeros((BLOCK_C, REGIONS), partials.dtype.element_ty)
    offset = tl.zeros((BLOCK_C, REGIONS), partials.dtype.element_ty)
    m2 = tl.zeros((BLOCK_C, REGIONS), partials.dtype.element_ty)
    for t in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, tiles)):
        offsets, valid, region, inside, _ = _tile(
            labels, t, group, c, C, P, label_stride, tiles_per_image, K, CHANNELS_LAST, BLOCK_P
        )
        value = accumulated(tl.load(x + offsets, mask=valid, other=0.0))
        if REGIONS == 2:
            for k in tl.static_range(2):
                count, pivot, offset, m2 = _observe(
                    value, inside & (region == k), k, count, pivot, offset, m2, REGIONS
                )
        else:
            for k in range(K):
                member = inside & (region == k)
                if tl.sum(member.to(tl.int32)) > 0:
                    count, pivot, offset, m2 = _observe(
                        value, member, k, count, pivot, offset, m2, REGIONS
                    )
    k = tl.arange(0, REGIONS)[None, :]
    row = group * K + k
    if channel_block == 0:
        tl.store(counts + row * splits + split, count, mask=k < K)
    observed = k >= first_region
    place = (row * C + c) * splits + split
    tl.store(partials + place, tl.where(observed, pivot + offset, 0.0), mask=(k < K) & (c < C))
    tl.store(partials + plane.to(tl.int64) * splits + place, tl.where(observed, m2, 0.0),
             mask=(k < K) & (c < C))  # fmt: skip


@triton.jit
def _merged_statistics(counts, partials, plane, row, c, C, splits, MAX_SPLITS: tl.constexpr):
    """Count, mean and variance of one region (`row` = group * K + k): Chan's merge of all splits.

    As in a tile: a mean first, then the deviations from it, which also correct it."""
    s = tl.arange(0, MAX_SPLITS)[None, :]
    n = tl.load(counts + row * splits + s, mask=s < splits, other=0)
    place = (row * C + c) * splits + s
    valid = (s < splits) & (c < C)
    mean = tl.load(partials + place, mask=valid, other=0.0)
    m2 = tl.load(partials + plane.to(tl.int64) * splits + place, mask=valid, other=0.0)
    count = tl.sum(n.to(tl.int64), axis=1, keep_dims=True)
    inverse = 1.0 / tl.maximum(count, 1).to(mean.dtype)
    share = n.to(mean.dtype) * inverse
    rough = tl.sum(mean * share, axis=1, keep_dims=True)
    deviation = tl.where(n > 0, mean - rough, 0.0)
    drift = tl.sum(deviation * share, axis=1, keep_dims=True)
    variance = (
        tl.sum(m2, axis=1, keep_dims=True) * inverse
        + tl.sum(deviation * deviation * share, axis=1, keep_dims=True)
        - drift * drift
    )
    # Rounding can leave a constant region just below zero; a comparison lets NaN through.
    return count, rough + drift, tl.where(variance < 0, 0.0, variance)


@triton.jit
def _rstd(variance, count, pixels, EPS: tl.constexpr):
    """1 / sqrt(variance + e), e = EPS * pixels / count, or EPS where pixels is 0."""
    occupied = tl.where(pixels > 0, tl.maximum(count, 1), 1).to(variance.dtype)
    scale = tl.where(pixels > 0, pixels, 1).to(variance.dtype) / occupied
    return tl.rsqrt(variance + EPS * scale)


@triton.jit(do_not_specialize=_COUNTS)
def region_statistics_merge_kernel(
    counts, partials, count, mean, spread, plane, pixels, C, partial_splits,
    EPS: tl.constexpr, BLOCK: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """count (R,K), mean and spread (R,K,C): the variance, or rstd where EPS is given."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    row = tl.minimum(element, plane - 1) // C
    c = element - row * C  # C or more past the end
    n, center, variance = _merged_statistics(
        counts, partials, plane, row, c, C, partial_splits, MAX_SPLITS
    )
    result = variance if EPS is None else _rstd(variance, n, pixels, EPS)
    tl.store(count + row, n, mask=c == 0)
    tl.store(mean + element, center, mask=c < C)
    tl.store(spread + element, result, mask=c < C)


@triton.jit
def _merged_affine(
    counts, partials, count, mean, rstd, weight, bias, plane, pixels, partial_splits,
    group, k, K, c, C, first, EPS: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """Region k's mean, scale and shift of its channels; the first program writes the statistics."""
    row = group * K + k
    n, center, variance = _merged_statistics(
        counts, partials, plane, row, c, C, partial_splits, MAX_SPLITS
    )
    scale = _rstd(variance, n, pixels, EPS)
    if first:
        tl.store(count + row + tl.zeros((1, 1), tl.int32), n)
        tl.store(mean + row * C + c, center, mask=c < C)
        tl.store(rstd + row * C + c, scale, mask=c < C)
    if weight is not None:
        scale *= tl.load(weight + k * C + c, mask=c < C, other=0.0)
        shift = tl.load(bias + k * C + c, mask=c < C, other=0.0)
    else:
        shift = tl.zeros_like(scale)
    return center, scale, shift


@triton.jit(do_not_specialize=(*_COUNTS, *_SWEEP))
def region_norm_apply_kernel(
    x, labels, y, count, mean, rstd, weight, bias, spatial_weight, spatial_bias,
    counts, partials, plane, pixels, partial_splits, K, first_region,
    C, P, label_stride, tiles_per_image, tiles, tiles_per_split, splits,
    EPS: tl.constexpr, MERGE: tl.constexpr, MAX_SPLITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y. MERGE (K = 2 only): statistics come from the partials and are written; else read."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)  # backwards: the end is still in cache
    channel_block, split, group = _program(program, C, splits, BLOCK_C)
    c = _channels(channel_block, BLOCK_C)
    if MERGE:
        mean0, scale0, shift0 = _merged_affine(
            counts, partials, count, mean, rstd, weight, bias, plane, pixels, partial_splits,
            group, 0, 2, c, C, split == 0, EPS, MAX_SPLITS,
        )  # fmt: skip
        mean1, scale1, shift1 = _merged_affine(
            counts, partials, count, mean, rstd, weight, bias, plane, pixels, partial_splits,
            group, 1, 2, c, C, split == 0, EPS, MAX_SPLITS,
        )  # fmt: skip
    for t in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, tiles)):
        offsets, valid, region, inside, pixel = _tile(
            labels, t, group, c, C, P, label_stride, tiles_per_image, K, CHANNELS_LAST, BLOCK_P
        )
        value = accumulated(tl.load(x + offsets, mask=valid, other=0.0))
        if MERGE:
            out = tl.where(
                region == 0,
                (value - mean0) * scale0 + shift0,
                (value - mean1) * scale1 + shift1,
            )
        else:
            out = value - _of_region(mean, group, region, c, C, K, valid, False)
            out *= _of_region(rstd, group, region, c, C, K, valid, False)
            if weight is not None:
                out *= _of_region(weight, 0, region, c, C, K, valid, False)
                out += _of_region(bias, 0, region, c, C, K, valid, False)
        if spatial_weight is not None:
            out *= tl.load(spatial_weight + pixel, mask=inside, other=0.0)
            out += tl.load(spatial_bias + pixel, mask=inside, other=0.0)
        out = tl.where(region < first_region, 0.0, out)
        tl.store(y + offsets, out.to(y.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=(*_COUNTS, *_SWEEP))
def region_norm_backward_sums_kernel(
    grad, x, labels, mean, rstd, spatial_weight, partials, weight_map, bias_map,
    plane, map_plane, K, first_region,
    C, P, label_stride, tiles_per_image, tiles, tiles_per_split, splits,
    REGIONS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """partials (2,R,K,C,S): sums of w * grad and w * grad * xhat over each region's pixels.

    With a spatial weight also weight_map and bias_map (channel blocks, N*P): sums of grad * xhat
    and of grad over the channels of the block."""
    channel_block, split, group = _program(tl.program_id(0), C, splits, BLOCK_C)
    c = _channels(channel_block, BLOCK_C)
    sum0 = tl.zeros((BLOCK_C, REGIONS), partials.dtype.element_ty)
    sum1 = tl.zeros((BLOCK_C, REGIONS), partials.dtype.element_ty)
    column = tl.arange(0, REGIONS)[None, :]
    for t in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, tiles)):
        offsets, valid, region, inside, pixel = _tile(
            labels, t, group, c, C, P, label_stride, tiles_per_image, K, CHANNELS_LAST, BLOCK_P
        )
        counted = inside & (region >= first_region)
        g = accumulated(tl.load(grad + offsets, mask=valid, other=0.0))
        xhat = accumulated(tl.load(x + offsets, mask=valid, other=0.0))
        xhat -= _of_region(mean, group, region, c, C, K, valid, REGIONS == 2)
        xhat *= _of_region(rstd, group, region, c, C, K, valid, REGIONS == 2)
        g = tl.where(counted, g, 0.0)
        product = tl.where(counted & (c < C), g * xhat, 0.0)
        if spatial_weight is not None:
            place = channel_block.to(tl.int64) * map_plane + pixel
            tl.store(weight_map + place, tl.sum(product, axis=0, keep_dims=True), mask=inside)
            tl.store(bias_map + place, tl.sum(g, axis=0, keep_dims=True), mask=inside)
            w = tl.load(spatial_weight + pixel, mask=inside, other=0.0)
            g *= w
            product *= w
        if REGIONS == 2:
            for k in tl.static_range(2):
                member = region == k
                g_sum = tl.sum(tl.where(member, g, 0.0), axis=1, keep_dims=True)
                product_sum = tl.sum(tl.where(member, product, 0.0), axis=1, keep_dims=True)
                sum0 = tl.where(column == k, sum0 + g_sum, sum0)
                sum1 = tl.where(column == k, sum1 + product_sum, sum1)
        else:
            for k in range(first_region, K):
                member = inside & (region == k)
                if tl.sum(member.to(tl.int32)) > 0:
                    g_sum = tl.sum(tl.where(member, g, 0.0), axis=1, keep_dims=True)
                    product_sum = tl.sum(tl.where(member, product, 0.0), axis=1, keep_dims=True)
                    sum0 = tl.where(column == k, sum0 + g_sum, sum0)
                    sum1 = tl.where(column == k, sum1 + product_sum, sum1)
    observed = (column >= first_region) & (column < K)
    place = ((group * K + column) * C + c) * splits + split
    written = (column < K) & (c < C)
    tl.store(partials + place, tl.where(observed, sum0, 0.0), mask=written)
    tl.store(partials + plane.to(tl.int64) * splits + place, tl.where(observed, sum1, 0.0),
             mask=written)  # fmt: skip


@triton.jit(do_not_specialize=("blocks",))
def region_norm_backward_sums_merge_kernel(
    weight_map, bias_map, grad_spatial_weight, grad_spatial_bias, map_plane, blocks,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum over all channels from the sums over blocks of channels, in their order."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < map_plane
    weight_sum = tl.load(weight_map + pixel, mask=inside, other=0.0)
    bias_sum = tl.load(bias_map + pixel, mask=inside, other=0.0)
    place = pixel
    for _ in range(1, blocks):
        place += map_plane
        weight_sum += tl.load(weight_map + place, mask=inside, other=0.0)
        bias_sum += tl.load(bias_map + place, mask=inside, other=0.0)
    tl.store(grad_spatial_weight + pixel, weight_sum, mask=inside)
    tl.store(grad_spatial_bias + pixel, bias_sum, mask=inside)


@triton.jit
def _merged_gradient(
    partials, count, mean, rstd, sums, weight, plane, partial_splits, group, k, K, c, C, first,
    MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """Region k's mean, scale, s0 / count and rstd * s1 / count; the first program writes sums."""
    row = group * K + k
    s = tl.arange(0, MAX_SPLITS)[None, :]
    place = (row * C + c) * partial_splits + s
    valid = (s < partial_splits) & (c < C)
    next_plane = plane.to(tl.int64)
    s0 = tl.load(partials + place, mask=valid, other=0.0)
    s1 = tl.load(partials + next_plane * partial_splits + place, mask=valid, other=0.0)
    s0 = tl.sum(s0, axis=1, keep_dims=True)
    s1 = tl.sum(s1, axis=1, keep_dims=True)
    if first:
        tl.store(sums + row * C + c, s0, mask=c < C)
        tl.store(sums + next_plane + row * C + c, s1, mask=c < C)
    inverse = 1.0 / tl.maximum(tl.load(count + row), 1).to(s0.dtype)
    center = tl.load(mean + row * C + c, mask=c < C, other=0.0)
    scale = tl.load(rstd + row * C + c, mask=c < C, other=0.0)
    slope = scale * s1 * inverse
    if weight is not None:
        scale *= tl.load(weight + k * C + c, mask=c < C, other=0.0)
    return center, scale, s0 * inverse, slope


@triton.jit(do_not_specialize=(*_COUNTS, *_SWEEP))
def region_norm_backward_apply_kernel(
    grad, x, labels, grad_x, count, mean, rstd, sums, weight, spatial_weight,
    pooled_gradient, argmax, partials, plane, partial_splits, K, first_region,
    C, P, label_stride, tiles_per_image, tiles, tiles_per_split, splits,
    MERGE: tl.constexpr, MAX_SPLITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """grad_x. MERGE (K = 2 only): sums come from the partials and are written; else read."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    channel_block, split, group = _program(program, C, splits, BLOCK_C)
    c = _channels(channel_block, BLOCK_C)
    if MERGE:
        mean0, scale0, level0, slope0 = _merged_gradient(
            partials, count, mean, rstd, sums, weight, plane, partial_splits,
            group, 0, 2, c, C, split == 0, MAX_SPLITS,
        )  # fmt: skip
        mean1, scale1, level1, slope1 = _merged_gradient(
            partials, count, mean, rstd, sums, weight, plane, partial_splits,
            group, 1, 2, c, C, split == 0, MAX_SPLITS,
        )  # fmt: skip
    for t in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, tiles)):
        offsets, valid, region, inside, pixel = _tile(
            labels, t, group, c, C, P, label_stride, tiles_per_image, K, CHANNELS_LAST, BLOCK_P
        )
        g = accumulated(tl.load(grad + offsets, mask=valid, other=0.0))
        value = accumulated(tl.load(x + offsets, mask=valid, other=0.0))
        if spatial_weight is not None:
            g *= tl.load(spatial_weight + pixel, mask=inside, other=0.0)
        if MERGE:
            out = tl.where(
                region == 0,
                scale0 * (g - level0 - (value - mean0) * slope0),
                scale1 * (g - level1 - (value - mean1) * slope1),
            )
        else:
            n = tl.load(count + group * K + region, mask=inside, other=1)
            inverse = 1.0 / tl.maximum(n, 1).to(g.dtype)
            scale = _of_region(rstd, group, region, c, C, K, valid, False)
            xhat = (value - _of_region(mean, group, region, c, C, K, valid, False)) * scale
            s0 = _of_region(sums, group, region, c, C, K, valid, False)
            s1 = _of_region(sums + plane.to(tl.int64), group, region, c, C, K, valid, False)
            if weight is not None:
                scale *= _of_region(weight, 0, region, c, C, K, valid, False)
            out = scale * (g - (s0 + xhat * s1) * inverse)
        out = tl.where(region < first_region, 0.0, out)
        if pooled_gradient is not None:
            pooled = pooled_gradient + (pixel + (group + t // tiles_per_image) * P)
            out += tl.load(pooled, mask=inside, other=0.0) / C
            largest = tl.load(argmax + pixel, mask=inside, other=-1)
            out += tl.where(c == largest, tl.load(pooled + P, mask=inside, other=0.0), 0.0)
        tl.store(grad_x + offsets, out.to(grad_x.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=("height", "width", "mask_height", "mask_width"))
def region_labels_kernel(
    mask, labels, elements, height, width, mask_height, mask_width, num_regions,
    BINARY: tl.constexpr, CHECK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Nearest resize: output pixel i takes mask pixel floor(i * in / out)."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    row = index // width
    i = (row % height) * mask_height // height
    j = (index % width) * mask_width // width
    place = ((row // height) * mask_height + i) * mask_width + j
    value = tl.load(mask + place, mask=inside, other=0)
    if value.dtype == tl.bfloat16:
        value = value.to(tl.float32)
    if CHECK:
        if BINARY:
            tl.device_assert((value == 0) | (value == 1), "mask holds a value that is not 0 or 1")
        else:
            known = (value >= 0) & (value < num_regions)
            tl.device_assert(known, "mask holds a value outside 0..K-1")
    label = (value != 0).to(tl.int32) if BINARY else tl.maximum(value.to(tl.int64), 0)
    tl.store(labels + index, tl.minimum(label, num_regions - 1).to(tl.uint8), mask=inside)


def region_labels(mask, height, width, num_regions, check_values):
    """Labels 0..K-1 of every pixel at another size. Values out of range are clamped."""
    binary = mask.dtype == torch.bool or mask.is_floating_point()
    if mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    if check_values and mask.device.type == "cpu":  # the interpreter has no device assertions
        valid = (mask == 0) | (mask == 1) if binary else (mask >= 0) & (mask < num_regions)
        if not valid.all():
            expected = (
                "only the values 0 and 1" if binary else f"labels from 0 to {num_regions - 1}"
            )
            raise ValueError(f"mask: expected {expected}, got {mask[~valid][0].item()}")
    labels = torch.empty((mask.shape[0], 1, height, width), dtype=torch.uint8, device=mask.device)
    block = 65536 if INTERPRETED else 1024
    launch(
        region_labels_kernel, triton.cdiv(labels.numel(), block),
        mask, labels, labels.numel(), height, width, mask.shape[2], mask.shape[3], num_regions,
        BINARY=binary, CHECK=check_values, BLOCK=block, debug=check_values,
    )  # fmt: skip
    return labels


def _region_block(num_regions: int) -> int:
    """Columns of the per-program state: few sizes, so that few kernels are compiled."""
    return 2 if num_regions == 2 else 8 if num_regions <= 8 else 64


class _Partials(NamedTuple):
    counts: torch.Tensor  # (R,K,S)
    values: torch.Tensor  # (2,R,K,C,S)
    plane: int  # R*K*C
    splits: int


def _partial_statistics(x, labels, num_regions, per_instance, ignore_holes) -> _Partials:
    sweep = _sweep(x, labels, per_instance)
    groups, C = (x.shape[0] if per_instance else 1), x.shape[1]
    counts = torch.empty((groups, num_regions, sweep.splits), dtype=torch.int32, device=x.device)
    values = torch.empty(
        (2, groups, num_regions, C, sweep.splits), dtype=accumulate_dtype(x), device=x.device
    )
    plane = groups * num_regions * C
    launch(
        region_statistics_kernel, sweep.programs,
        x, labels, counts, values, plane, num_regions, int(ignore_holes), *sweep.sizes,
        REGIONS=_region_block(num_regions), **sweep.blocks,
    )  # fmt: skip
    return _Partials(counts, values, plane, sweep.splits)


def _empty_statistics(x, num_regions, per_instance):
    groups, C = (x.shape[0] if per_instance else 1), x.shape[1]
    count = torch.empty((groups, num_regions), dtype=torch.int64, device=x.device)
    mean = torch.empty((groups, num_regions, C), dtype=accumulate_dtype(x), device=x.device)
    return count, mean, torch.empty_like(mean)


def _scaled_pixels(x, per_instance, scale_eps) -> int:
    """M of eps * M / count; 0 leaves eps as it is (so does an empty batch)."""
    N, _, H, W = x.shape
    return (1 if per_instance else N) * H * W if scale_eps else 0


def _merge_statistics(partials: _Partials, count, mean, spread, pixels=0, eps=None) -> None:
    block = 256 if INTERPRETED else 16
    launch(
        region_statistics_merge_kernel, triton.cdiv(partials.plane, block),
        partials.counts, partials.values, count, mean, spread, partials.plane, pixels,
        mean.shape[2], partials.splits, EPS=eps, BLOCK=block, MAX_SPLITS=MAX_SPLITS,
    )  # fmt: skip


def region_statistics(x, labels, num_regions, per_instance, ignore_holes):
    """Count (R,K), mean and biased variance (R,K,C) of every region."""
    partials = _partial_statistics(x, labels, num_regions, per_instance, ignore_holes)
    count, mean, variance = _empty_statistics(x, num_regions, per_instance)
    _merge_statistics(partials, count, mean, variance)
    return count, mean, variance


def _apply(
    x, labels, count, mean, rstd, weight, bias, spatial_weight, spatial_bias,
    num_regions, per_instance, ignore_holes, partials=None, pixels=0, eps=None,
):  # fmt: skip
    y = torch.empty_like(x)
    sweep = _sweep(x, labels, per_instance)
    counts, values, plane, splits = partials or (None, None, 0, 0)
    launch(
        region_norm_apply_kernel, sweep.programs,
        x, labels, y, count, mean, rstd, weight, bias, spatial_weight, spatial_bias,
        counts, values, plane, pixels, splits, num_regions, int(ignore_holes), *sweep.sizes,
        EPS=eps, MERGE=partials is not None, MAX_SPLITS=MAX_SPLITS, **sweep.blocks,
    )  # fmt: skip
    return y


def region_norm_apply(
    x, labels, mean, rstd, weight, bias, spatial_weight, spatial_bias,
    num_regions, per_instance, ignore_holes,
):  # fmt: skip
    """y from statistics that are given (reduced over processes, say)."""
    return _apply(
        x, labels, None, mean, rstd, weight, bias, spatial_weight, spatial_bias,
        num_regions, per_instance, ignore_holes,
    )  # fmt: skip


def region_norm(
    x, labels, weight, bias, spatial_weight, spatial_bias,
    num_regions, per_instance, eps, scale_eps, ignore_holes,
):  # fmt: skip
    """y and the statistics (count, mean, rstd) that backward needs."""
    partials = _partial_statistics(x, labels, num_regions, per_instance, ignore_holes)
    count, mean, rstd = _empty_statistics(x, num_regions, per_instance)
    pixels = _scaled_pixels(x, per_instance, scale_eps)
    merge_in_apply = num_regions == 2
    if not merge_in_apply:
        _merge_statistics(partials, count, mean, rstd, pixels, eps)
    y = _apply(
        x, labels, count, mean, rstd, weight, bias, spatial_weight, spatial_bias,
        num_regions, per_instance, ignore_holes,
        *((partials, pixels, eps) if merge_in_apply else ()),
    )  # fmt: skip
    return y, count, mean, rstd


def _partial_sums(
    grad, x, labels, mean, rstd, spatial_weight, num_regions, per_instance, ignore_holes
):
    """Partials (counts left out) and the gradients of the spatial maps."""
    N, _, H, W = x.shape
    sweep = _sweep(x, labels, per_instance, channel_sums=spatial_weight is not None)
    plane = mean.numel()
    values = torch.empty((2, *mean.shape, sweep.splits), dtype=mean.dtype, device=x.device)
    map_shape = (sweep.channel_blocks, N, 1, H, W)
    maps = (None, None)
    if spatial_weight is not None:
        maps = values.new_empty(map_shape), values.new_empty(map_shape)
    launch(
        region_norm_backward_sums_kernel, sweep.programs,
        grad, x, labels, mean, rstd, spatial_weight, values, *maps, plane, N * H * W,
        num_regions, int(ignore_holes), *sweep.sizes,
        REGIONS=_region_block(num_regions), **sweep.blocks,
    )  # fmt: skip
    if spatial_weight is None:
        grad_maps = values.new_empty(0), values.new_empty(0)
    elif sweep.channel_blocks == 1:
        grad_maps = maps[0][0], maps[1][0]
    else:
        grad_maps = values.new_empty(map_shape[1:]), values.new_empty(map_shape[1:])
        block = 65536 if INTERPRETED else 256
        launch(
            region_norm_backward_sums_merge_kernel, triton.cdiv(N * H * W, block),
            *maps, *grad_maps, N * H * W, sweep.channel_blocks, BLOCK=block,
        )  # fmt: skip
    return _Partials(None, values, plane, sweep.splits), *grad_maps


def region_norm_backward_sums(
    grad, x, labels, mean, rstd, spatial_weight, num_regions, per_instance, ignore_holes
):
    """sums (2,R,K,C) over regions of w * grad and w * grad * xhat; gradients of the maps."""
    partials, *grad_maps = _partial_sums(
        grad, x, labels, mean, rstd, spatial_weight, num_regions, per_instance, ignore_holes
    )
    return partials.values.sum(-1), *grad_maps


def _backward_apply(
    grad, x, labels, count, mean, rstd, sums, weight, spatial_weight, pooled_gradient, argmax,
    num_regions, per_instance, ignore_holes, partials=None,
):  # fmt: skip
    grad_x = torch.empty_like(x)
    sweep = _sweep(x, labels, per_instance)
    _, values, _, splits = partials or (None, None, 0, 0)
    launch(
        region_norm_backward_apply_kernel, sweep.programs,
        grad, x, labels, grad_x, count, mean, rstd, sums, weight, spatial_weight,
        pooled_gradient, argmax, values, mean.numel(), splits, num_regions, int(ignore_holes),
        *sweep.sizes, MERGE=partials is not None, MAX_SPLITS=MAX_SPLITS, **sweep.blocks,
    )  # fmt: skip
    return grad_x


def region_norm_backward_apply(
    grad, x, labels, count, mean, rstd, sums, weight, spatial_weight, pooled_gradient, argmax,
    num_regions, per_instance, ignore_holes,
):  # fmt: skip
    """grad_x from sums that are given, plus what flows back through channel_mean_max."""
    return _backward_apply(
        grad, x, labels, count, mean, rstd, sums, weight, spatial_weight, pooled_gradient, argmax,
        num_regions, per_instance, ignore_holes,
    )  # fmt: skip


def region_norm_backward(
    grad, x, labels, count, mean, rstd, weight, spatial_weight,
    num_regions, per_instance, ignore_holes,
):  # fmt: skip
    """grad_x, sums, and the gradients of the spatial maps (empty without them)."""
    partials, *grad_maps = _partial_sums(
        grad, x, labels, mean, rstd, spatial_weight, num_regions, per_instance, ignore_holes
    )
    merge_in_apply = num_regions == 2
    if merge_in_apply:
        sums = torch.empty((2, *mean.shape), dtype=mean.dtype, device=x.device)
    else:
        sums = partials.values.sum(-1)
    grad_x = _backward_apply(
        grad, x, labels, count, mean, rstd, sums, weight, spatial_weight, None, None,
        num_regions, per_instance, ignore_holes, *((partials,) if merge_in_apply else ()),
    )  # fmt: skip
    return grad_x, sums, *grad_maps


def ahead_of_time_variants():
    """Every variant that the launchers can run, for sizes that allow 16-byte accesses or not."""
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    sizes = ((2, 80, 64, 64), (2, 32, 16, 16), (2, 7, 71, 71), (2, 7, 9, 9))
    formats = (torch.contiguous_format, torch.channels_last)
    with recorded() as variants:
        for shape, dtype, memory_format in itertools.product(sizes, dtypes, formats):
            x = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
            for num_regions in (2, 8, 64):
                _all_launches(x, num_regions)
        for x in variant_tensors():
            for num_regions in (1, 2):
                _all_launches(x, num_regions)
        for dtype in (*dtypes, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32,
                      torch.int64):  # fmt: skip
            mask = torch.empty((2, 1, 32, 32), dtype=dtype, device="meta")
            for check_values in (False, True):
                region_labels(mask, 16, 16, 2, check_values)
    return unique(variants)


def _all_launches(x, num_regions) -> None:
    N, C, H, W = x.shape
    A = {"dtype": accumulate_dtype(x), "device": x.device}
    labels = torch.empty((N, 1, H, W), dtype=torch.uint8, device=x.device)
    table = torch.empty((num_regions, C), **A)
    spatial = torch.empty((N, 1, H, W), **A)
    pooled_gradient = torch.empty((N, 2, H, W), **A)
    argmax = torch.empty((N, 1, H, W), dtype=torch.int32, device=x.device)
    count, mean, _ = region_statistics(x, labels, num_regions, False, False)
    sums = torch.empty((2, *mean.shape), **A)
    options = (num_regions, False, False)
    for weight, spatial_weight in ((None, None), (table, None), (None, spatial)):
        affine = weight, weight, spatial_weight, spatial_weight
        region_norm(x, labels, *affine, num_regions, False, 1e-5, True, False)
        region_norm_apply(x, labels, mean, mean, *affine, *options)
        region_norm_backward(x, x, labels, count, mean, mean, weight, spatial_weight, *options)
        for pooled in ((None, None), (pooled_gradient, argmax)):
            region_norm_backward_apply(
                x, x, labels, count, mean, mean, sums, weight, spatial_weight, *pooled, *options
            )
