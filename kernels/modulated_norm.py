"""Modulated normalisation in Triton: SPADE, SPDNorm, AdaIN, pixel norm.

Formula: y = leaky(xn * scale + beta * weight), xn = (x - mean) * rstd, scale = 1 + gamma * weight,
gamma * weight or 1 + sigmoid(gamma) * weight (torchext.modulated_norm). Backward, with gn the
gradient of xn: grad_x = rstd * (gn - mean of gn - xn * mean of gn * xn) over what the statistics
are taken over.

Passes over memory (T = one tensor; gamma and beta count as tensors where they are full), floors in
brackets. Statistics per channel: region normalisation's, with one region, read T; apply reads x,
gamma, beta and writes y: 5T (5T; 4T where a channel fits the cache). Backward sums with the maps'
gradients read 3T and write 2T, apply reads 3T and writes T: 9T (6T). Statistics per pixel: forward
4T (4T) and backward 6T (6T) in one launch each, whose later sweeps find their pixels in the cache.

Launches: statistics per channel 3 forward, 2 backward and small sums of partial results;
statistics per pixel 1 and 1. A gradient that is summed across the walk (of a map per pixel with
statistics per channel, or per channel with statistics per pixel) is written for every element
first. Grid: one program per image, block of channels and split of the pixels, or per image and
block of pixels. Nothing is atomic.
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
from .region_norm import region_statistics

ABSENT, ELEMENT, PIXEL, CHANNEL, TABLE = range(5)  # which elements one value of a map belongs to
_ELEMENT, _PIXEL, _CHANNEL, _TABLE = (
    tl.constexpr(value) for value in (ELEMENT, PIXEL, CHANNEL, TABLE)
)
MAX_SPLITS = 64
PROGRAMS_WANTED = 1024

_SIZES = ("splits", "tiles", "tiles_per_split")


@triton.jit
def _map(values, index, rows, image, c, p, offsets, C, P, mask, absent, EXTENT: tl.constexpr):
    """A map's values at a tile of elements; `absent` where there is no map.

    Of a table (C,rows) those of the rows in `index`.
    """
    result = tl.full((1, 1), absent, tl.float32)
    if EXTENT == _ELEMENT:
        result = accumulated(tl.load(values + offsets, mask=mask, other=0.0))
    elif EXTENT == _PIXEL:
        result = tl.load(values + image * P + p, mask=p < P, other=0.0)
    elif EXTENT == _CHANNEL:
        result = tl.load(values + image * C + c, mask=c < C, other=0.0)
    elif EXTENT == _TABLE:
        row = tl.load(index + image * P + p, mask=p < P, other=0)
        result = tl.load(values + c.to(tl.int64) * rows + row, mask=mask, other=0.0)
    return result


@triton.jit
def _gamma(
    gamma, index, rows, image, c, p, offsets, C, P, mask,
    EXTENT: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """What gamma stands for in the scale."""
    value = _map(gamma, index, rows, image, c, p, offsets, C, P, mask, 0.0, EXTENT)
    if SIGMOID:
        value = 1.0 / (1.0 + tl.exp(-value))
    return value


@triton.jit
def _modulated(
    xn, gamma, beta, weight, index, rows, image, c, p, offsets, C, P, mask,
    SLOPE: tl.constexpr, BASE: tl.constexpr, SIGMOID: tl.constexpr, MAPS: tl.constexpr,
    WEIGHT: tl.constexpr,
):  # fmt: skip
    t = _gamma(gamma, index, rows, image, c, p, offsets, C, P, mask, MAPS, SIGMOID)
    b = _map(beta, index, rows, image, c, p, offsets, C, P, mask, 0.0, MAPS)
    w = _map(weight, index, rows, image, c, p, offsets, C, P, mask, 1.0, WEIGHT)
    z = xn * (BASE + t * w) + b * w
    return tl.where(z > 0, z, z * SLOPE)


@triton.jit
def _gradients(
    grad, y, xn, gamma, weight, index, rows, image, c, p, offsets, C, P, mask,
    SLOPE: tl.constexpr, BASE: tl.constexpr, SIGMOID: tl.constexpr, MAPS: tl.constexpr,
    WEIGHT: tl.constexpr,
):  # fmt: skip
    """The gradient behind the activation, gamma's value, the weight, and gn."""
    g = accumulated(tl.load(grad + offsets, mask=mask, other=0.0))
    if y is not None:  # y has the sign of what was activated
        sign = accumulated(tl.load(y + offsets, mask=mask, other=0.0))
        g = tl.where(sign > 0, g, g * SLOPE)
    t = _gamma(gamma, index, rows, image, c, p, offsets, C, P, mask, MAPS, SIGMOID)
    w = _map(weight, index, rows, image, c, p, offsets, C, P, mask, 1.0, WEIGHT)
    return g, t, w, g * (BASE + t * w)


@triton.jit
def _map_gradients(
    g, t, w, xn, beta, index, rows, grad_gamma, grad_beta, grad_weight, image, c, p, offsets, C, P,
    mask, SIGMOID: tl.constexpr, MAPS: tl.constexpr,
):  # fmt: skip
    """The elements' gradients of gamma, beta and weight, stored where there is a place for them."""
    of_beta = tl.where(mask, g * w, 0.0)
    of_gamma = of_beta * xn
    if SIGMOID:
        of_gamma *= t * (1.0 - t)
    of_weight = of_beta
    if grad_gamma is not None:
        tl.store(grad_gamma + offsets, of_gamma.to(grad_gamma.dtype.element_ty), mask=mask)
    if grad_beta is not None:
        tl.store(grad_beta + offsets, of_beta.to(grad_beta.dtype.element_ty), mask=mask)
    if beta is not None:
        b = _map(beta, index, rows, image, c, p, offsets, C, P, mask, 0.0, MAPS)
        of_weight = tl.where(mask, g * (xn * t + b), 0.0)
        if grad_weight is not None:
            tl.store(grad_weight + offsets, of_weight.to(grad_weight.dtype.element_ty), mask=mask)
    return of_gamma, of_beta, of_weight


@triton.jit
def _place(program, C, splits, BLOCK_C: tl.constexpr):
    """Image, channels and split of a program; neighbours share their pixels."""
    channel_blocks = tl.cdiv(C, BLOCK_C)
    c = program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    rest = program // channel_blocks
    return (rest // splits).to(tl.int64), c, rest % splits


# ---- statistics per channel ---------------------------------------------------------------------


@triton.jit
def _of_channels(table, group, c, C, absent):
    result = tl.full((1, 1), absent, tl.float32)
    if table is not None:
        result = tl.load(table + group * C + c, mask=c < C, other=0.0)
    return result


@triton.jit(do_not_specialize=("elements", "count", "group_stride", *_SIZES))
def modulated_norm_apply_kernel(
    x, y, mean, spread, rstd, gamma, beta, weight, index, rows, elements, count,
    group_stride, C, P, splits, tiles, tiles_per_split,
    EPS: tl.constexpr, SLOPE: tl.constexpr, BASE: tl.constexpr, SIGMOID: tl.constexpr,
    MAPS: tl.constexpr, WEIGHT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y. `spread` is rstd, or with EPS the variance, from which rstd is made and written.

    The squared deviations of `elements` values are divided by `count`."""
    image, c, split = _place(tl.program_id(0), C, splits, BLOCK_C)
    group = image * group_stride
    center = _of_channels(mean, group, c, C, 0.0)
    scale = _of_channels(spread, group, c, C, 1.0)
    if EPS is not None:
        correction = elements.to(scale.dtype) / count.to(scale.dtype)
        scale = tl.rsqrt(scale * correction + EPS)
        if split == 0:
            tl.store(rstd + group * C + c, scale, mask=c < C)
    for t in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, tiles)):
        p = t * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
        mask = (p < P) & (c < C)
        offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
        xn = (accumulated(tl.load(x + offsets, mask=mask, other=0.0)) - center) * scale
        z = _modulated(
            xn, gamma, beta, weight, index, rows, image, c, p, offsets, C, P, mask,
            SLOPE, BASE, SIGMOID, MAPS, WEIGHT,
        )  # fmt: skip
        tl.store(y + offsets, z.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("group_stride", *_SIZES))
def modulated_norm_backward_sums_kernel(
    grad, y, x, mean, rstd, gamma, beta, weight, index, rows, grad_gamma, grad_beta, grad_weight,
    partials, group_stride, C, P, splits, tiles, tiles_per_split,
    SLOPE: tl.constexpr, BASE: tl.constexpr, SIGMOID: tl.constexpr,
    MAPS: tl.constexpr, WEIGHT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Gradients of the maps, and partials (N,S,4,C): gn, gn * xn, and gamma's and beta's."""
    image, c, split = _place(tl.program_id(0), C, splits, BLOCK_C)
    group = image * group_stride
    center = _of_channels(mean, group, c, C, 0.0)
    scale = _of_channels(rstd, group, c, C, 1.0)
    zero = tl.zeros((BLOCK_C, 1), partials.dtype.element_ty)
    sum0, sum1, sum2, sum3 = zero, zero, zero, zero
    for tile in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, tiles)):
        p = tile * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
        mask = (p < P) & (c < C)
        offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
        xn = (accumulated(tl.load(x + offsets, mask=mask, other=0.0)) - center) * scale
        g, t, w, gn = _gradients(
            grad, y, xn, gamma, weight, index, rows, image, c, p, offsets, C, P, mask,
            SLOPE, BASE, SIGMOID, MAPS, WEIGHT,
        )  # fmt: skip
        of_gamma, of_beta, _ = _map_gradients(
            g, t, w, xn, beta, index, rows, grad_gamma, grad_beta, grad_weight, image, c, p,
            offsets, C, P, mask, SIGMOID, MAPS,
        )  # fmt: skip
        gn = tl.where(mask, gn, 0.0)
        sum0 += tl.sum(gn, axis=1, keep_dims=True)
        sum1 += tl.sum(gn * xn, axis=1, keep_dims=True)
        sum2 += tl.sum(of_gamma, axis=1, keep_dims=True)
        sum3 += tl.sum(of_beta, axis=1, keep_dims=True)
    place = partials + (image * splits + split) * 4 * C + c
    tl.store(place, sum0, mask=c < C)
    tl.store(place + C, sum1, mask=c < C)
    tl.store(place + 2 * C, sum2, mask=c < C)
    tl.store(place + 3 * C, sum3, mask=c < C)


@triton.jit(do_not_specialize=("group_stride", *_SIZES))
def modulated_norm_backward_apply_kernel(
    grad, y, x, mean, rstd, mean_sum, mean_product, gamma, weight, index, rows, grad_x,
    group_stride, C, P, splits, tiles, tiles_per_split,
    SLOPE: tl.constexpr, BASE: tl.constexpr, SIGMOID: tl.constexpr,
    MAPS: tl.constexpr, WEIGHT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    image, c, split = _place(tl.program_id(0), C, splits, BLOCK_C)
    group = image * group_stride
    center = _of_channels(mean, group, c, C, 0.0)
    scale = _of_channels(rstd, group, c, C, 1.0)
    level = _of_channels(mean_sum, group, c, C, 0.0)
    tilt = _of_channels(mean_product, group, c, C, 0.0)
    for tile in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, tiles)):
        p = tile * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
        mask = (p < P) & (c < C)
        offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
        xn = (accumulated(tl.load(x + offsets, mask=mask, other=0.0)) - center) * scale
        _, _, _, gn = _gradients(
            grad, y, xn, gamma, weight, index, rows, image, c, p, offsets, C, P, mask,
            SLOPE, BASE, SIGMOID, MAPS, WEIGHT,
        )  # fmt: skip
        out = scale * (gn - level - xn * tilt)
        tl.store(grad_x + offsets, out.to(grad_x.dtype.element_ty), mask=mask)


# ---- statistics per pixel -----------------------------------------------------------------------


@triton.jit
def _pixels(program, P, BLOCK_P: tl.constexpr):
    blocks = tl.cdiv(P, BLOCK_P)
    return (program // blocks).to(tl.int64), program % blocks * BLOCK_P + tl.arange(0, BLOCK_P)[
        None, :
    ]


@triton.jit(do_not_specialize=("count",))
def modulated_norm_pixel_kernel(
    x, y, mean, rstd, gamma, beta, weight, index, rows, count, C, P, EPS: tl.constexpr,
    SLOPE: tl.constexpr, BASE: tl.constexpr, SIGMOID: tl.constexpr,
    MAPS: tl.constexpr, WEIGHT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y, mean (null for the root mean square) and rstd; `count` divides the squares."""
    image, p = _pixels(tl.program_id(0), P, BLOCK_P)
    zero = tl.zeros((1, BLOCK_P), rstd.dtype.element_ty)
    channels = zero + C  # C may be a constant, which has no `to`
    inverse = 1.0 / channels
    center = zero
    if mean is not None:
        for first in range(0, C, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)[:, None]
            offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
            value = accumulated(tl.load(x + offsets, mask=(p < P) & (c < C), other=0.0))
            center += tl.sum(value, axis=0, keep_dims=True)
        center *= inverse
    drift, squares = zero, zero
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)[:, None]
        mask = (p < P) & (c < C)
        offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
        value = accumulated(tl.load(x + offsets, mask=mask, other=0.0))
        deviation = tl.where(mask, value - center, 0.0)
        drift += tl.sum(deviation, axis=0, keep_dims=True)
        squares += tl.sum(deviation * deviation, axis=0, keep_dims=True)
    if mean is not None:  # what rounding left in the mean
        drift *= inverse
        squares -= drift * drift * channels
        center += drift
        tl.store(mean + image * P + p, center, mask=p < P)
    scale = tl.rsqrt(tl.where(squares < 0, 0.0, squares) / count.to(zero.dtype) + EPS)
    tl.store(rstd + image * P + p, scale, mask=p < P)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)[:, None]
        mask = (p < P) & (c < C)
        offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
        xn = (accumulated(tl.load(x + offsets, mask=mask, other=0.0)) - center) * scale
        z = _modulated(
            xn, gamma, beta, weight, index, rows, image, c, p, offsets, C, P, mask,
            SLOPE, BASE, SIGMOID, MAPS, WEIGHT,
        )  # fmt: skip
        tl.store(y + offsets, z.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("count",))
def modulated_norm_pixel_backward_kernel(
    grad, y, x, mean, rstd, gamma, beta, weight, index, rows, grad_x, grad_gamma, grad_beta,
    grad_weight, gamma_pixels, beta_pixels, weight_pixels, count, C, P,
    SLOPE: tl.constexpr, BASE: tl.constexpr, SIGMOID: tl.constexpr,
    MAPS: tl.constexpr, WEIGHT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Every gradient; `..._pixels` take the sums over channels of a map per pixel."""
    image, p = _pixels(tl.program_id(0), P, BLOCK_P)
    at = image * P + p
    zero = tl.zeros((1, BLOCK_P), rstd.dtype.element_ty)
    center = zero
    if mean is not None:
        center = tl.load(mean + at, mask=p < P, other=0.0)
    scale = tl.load(rstd + at, mask=p < P, other=0.0)
    sum0, sum1, sum2, sum3, sum4 = zero, zero, zero, zero, zero
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)[:, None]
        mask = (p < P) & (c < C)
        offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
        xn = (accumulated(tl.load(x + offsets, mask=mask, other=0.0)) - center) * scale
        g, t, w, gn = _gradients(
            grad, y, xn, gamma, weight, index, rows, image, c, p, offsets, C, P, mask,
            SLOPE, BASE, SIGMOID, MAPS, WEIGHT,
        )  # fmt: skip
        of_gamma, of_beta, of_weight = _map_gradients(
            g, t, w, xn, beta, index, rows, grad_gamma, grad_beta, grad_weight, image, c, p,
            offsets, C, P, mask, SIGMOID, MAPS,
        )  # fmt: skip
        gn = tl.where(mask, gn, 0.0)
        sum0 += tl.sum(gn, axis=0, keep_dims=True)
        sum1 += tl.sum(gn * xn, axis=0, keep_dims=True)
        sum2 += tl.sum(of_gamma, axis=0, keep_dims=True)
        sum3 += tl.sum(of_beta, axis=0, keep_dims=True)
        sum4 += tl.sum(of_weight, axis=0, keep_dims=True)
    if gamma_pixels is not None:
        tl.store(gamma_pixels + at, sum2, mask=p < P)
        tl.store(beta_pixels + at, sum3, mask=p < P)
    if weight_pixels is not None:
        tl.store(weight_pixels + at, sum4, mask=p < P)
    level = sum0 / (zero + C) if mean is not None else zero
    tilt = sum1 / count.to(zero.dtype)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)[:, None]
        mask = (p < P) & (c < C)
        offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
        xn = (accumulated(tl.load(x + offsets, mask=mask, other=0.0)) - center) * scale
        _, _, _, gn = _gradients(
            grad, y, xn, gamma, weight, index, rows, image, c, p, offsets, C, P, mask,
            SLOPE, BASE, SIGMOID, MAPS, WEIGHT,
        )  # fmt: skip
        out = scale * (gn - level - xn * tilt)
        tl.store(grad_x + offsets, out.to(grad_x.dtype.element_ty), mask=mask)


# ---- rows of a table ----------------------------------------------------------------------------


@triton.jit(do_not_specialize=("channel_blocks",))
def segmented_sum_kernel(
    values, order, offsets, sums, C, P, channel_blocks, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Sums over the pixels of a row, which stand in `order` from offsets[row] on."""
    row = (tl.program_id(0) // channel_blocks).to(tl.int64)
    c = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    first, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    total = tl.zeros((BLOCK_C, 1), sums.dtype.element_ty)
    for start in range(first, end, BLOCK_P):
        i = start + tl.arange(0, BLOCK_P)[None, :]
        place = tl.load(order + i, mask=i < end, other=0)
        image = (place // P).to(tl.int64)
        places = element_offsets(image, c, place % P, C, P, CHANNELS_LAST)
        value = accumulated(tl.load(values + places, mask=(i < end) & (c < C), other=0.0))
        total += tl.sum(value, axis=1, keep_dims=True)
    tl.store(sums + row * C + c, total, mask=c < C)


def segmented_sum(values, index, order, offsets, rows):
    """Sums (rows,C) of the values whose pixel has that index."""
    _, C, H, W = values.shape
    sums = torch.empty((rows, C), dtype=accumulate_dtype(values), device=values.device)
    block_c = min(triton.next_power_of_2(C), 32)
    channel_blocks = triton.cdiv(C, block_c)
    launch(
        segmented_sum_kernel, rows * channel_blocks, values, order, offsets, sums, C, H * W,
        channel_blocks, CHANNELS_LAST=is_channels_last(values), BLOCK_C=block_c, BLOCK_P=32,
    )  # fmt: skip
    return sums


# ---- launchers ----------------------------------------------------------------------------------


def _extent(value, x, index=None) -> int:
    if value is None:
        return ABSENT
    if index is not None:
        return TABLE
    if value.dim() == 2:
        return CHANNEL
    return ELEMENT if value.shape == x.shape else PIXEL


def _rows(index, *tables) -> tuple:
    """The tables with a channel's rows side by side, the index and the number of rows."""
    if index is None:
        return *tables, None, 0
    turned = [None if table is None else table.t().contiguous() for table in tables]
    return *turned, index, turned[0].shape[1]


def _forms(x, gamma, weight, index, gain, slope) -> dict:
    """What decides which variant of a kernel runs.

    The slope too: Triton takes a number as float32, which is not enough beside float64."""
    return {
        "SLOPE": slope,
        "BASE": 0 if gain == "plain" and gamma is not None else 1,
        "SIGMOID": gain == "sigmoid" and gamma is not None,
        "MAPS": _extent(gamma, x, index),
        "WEIGHT": _extent(weight, x),
        "CHANNELS_LAST": is_channels_last(x),
    }


def _sweep(x) -> tuple[int, int, tuple[int, ...], dict]:
    """Programs, splits, sizes and blocks of the kernels with statistics per channel."""
    N, C, H, W = x.shape
    P = H * W
    if INTERPRETED:  # few programs: each one costs the interpreter milliseconds
        block_c, block_p = min(triton.next_power_of_2(C), 32), 1024
    elif is_channels_last(x):
        block_c = 64 // x.element_size()
        block_p = 1024 // block_c
    else:
        block_c, block_p = 1, 1024 if P >= 1024 else 256
    channel_blocks, tiles = triton.cdiv(C, block_c), triton.cdiv(P, block_p)
    splits = triton.cdiv(2 if INTERPRETED else PROGRAMS_WANTED, max(N, 1) * channel_blocks)
    tiles_per_split = triton.cdiv(tiles, min(splits, MAX_SPLITS))
    splits = triton.cdiv(tiles, tiles_per_split)
    sizes = (C, P, splits, tiles, tiles_per_split)
    return N * channel_blocks * splits, splits, sizes, {"BLOCK_C": block_c, "BLOCK_P": block_p}


def _pixel_sweep(x) -> tuple[int, dict]:
    """Programs and blocks of the kernels with statistics per pixel."""
    N, C, H, W = x.shape
    if INTERPRETED:
        block_c, block_p = min(triton.next_power_of_2(C), 64), 512
    elif is_channels_last(x):
        block_c = min(triton.next_power_of_2(C), 256)
        block_p = max(1024 // block_c, 1)
    else:
        block_c, block_p = 32, 32
    return N * triton.cdiv(H * W, block_p), {"BLOCK_C": block_c, "BLOCK_P": block_p}


def _per_pixel(statistics: str) -> bool:
    return statistics in ("position", "rms")


def _count(x, statistics: str, unbiased: bool) -> int:
    """What squared deviations are divided by."""
    N, C, H, W = x.shape
    count = {"position": C, "rms": C, "instance": H * W}.get(statistics, N * H * W)
    return max(count - unbiased, 1)


def modulated_norm(
    x, gamma, beta, weight, mean, rstd, index, statistics, unbiased, eps, gain, slope
):  # fmt: skip
    """y, and the mean and rstd that backward needs (empty where there are none)."""
    N, C, H, W = x.shape
    y = torch.empty_like(x)
    A = {"dtype": accumulate_dtype(x), "device": x.device}
    forms = _forms(x, gamma, weight, index, gain, slope)
    gamma, beta, index, rows = _rows(index, gamma, beta)
    count = _count(x, statistics, unbiased)
    if _per_pixel(statistics):
        new_mean = torch.empty((N, 1, H, W) if statistics == "position" else (0,), **A)
        new_rstd = torch.empty((N, 1, H, W), **A)
        programs, blocks = _pixel_sweep(x)
        launch(
            modulated_norm_pixel_kernel, programs,
            x, y, new_mean if statistics == "position" else None, new_rstd, gamma, beta, weight,
            index, rows, count, C, H * W, EPS=eps, **forms, **blocks,
        )  # fmt: skip
        return y, new_mean, new_rstd
    group_stride, spread = 0, rstd
    new_mean, new_rstd = torch.empty(0, **A), torch.empty(0, **A)
    taken = mean is None and statistics != "none"
    if taken:
        labels = torch.zeros((1, 1, H, W), dtype=torch.uint8, device=x.device)
        per_instance = statistics == "instance"
        _, new_mean, spread = region_statistics(x, labels, 1, per_instance, False)
        new_mean = mean = new_mean.view(-1, C)
        new_rstd = torch.empty_like(new_mean)
        group_stride = int(per_instance)
    programs, _, sizes, blocks = _sweep(x)
    launch(
        modulated_norm_apply_kernel, programs,
        x, y, mean, spread, new_rstd if taken else None, gamma, beta, weight, index, rows,
        _count(x, statistics, False), count, group_stride, *sizes,
        EPS=eps if taken else None, **forms, **blocks,
    )  # fmt: skip
    return y, new_mean, new_rstd


class _Gradient:
    """A map's gradient: the tensor to return, and where a kernel writes elements or pixels."""

    def __init__(self, x, value, wanted: bool, in_walk: int, index=None) -> None:
        if index is not None and value is not None:
            value = x  # of a table every element's share of its row
        extent = _extent(value, x)
        self.elements = self.pixels = None
        self.extent, self.in_walk = extent, in_walk
        if not wanted or value is None:
            self.extent = ABSENT
            self.result = torch.empty(0, dtype=accumulate_dtype(x), device=x.device)
            return
        self.result = torch.empty_like(value)
        if extent == ELEMENT:
            self.elements = self.result
        elif extent != in_walk:
            self.elements = torch.empty_like(x, dtype=accumulate_dtype(x))
        elif extent == PIXEL:
            self.pixels = self.result

    def finish(self, channel_sums=None):
        """The gradient, once the kernel has run; channel_sums (N,C) if the walk formed them."""
        if self.extent in (PIXEL, CHANNEL) and self.extent != self.in_walk:
            if self.extent == PIXEL:
                return self.elements.sum(1, keepdim=True).contiguous()
            return self.elements.sum((2, 3))
        return channel_sums if self.extent == CHANNEL else self.result


def _backward(
    grad, y, x, gamma, beta, weight, mean, rstd, index, statistics, given, unbiased, gain, slope,
    weight_gradient, wants_grad_x,
):  # fmt: skip
    N, C, H, W = x.shape
    forms = _forms(x, gamma, weight, index, gain, slope)
    in_walk = PIXEL if _per_pixel(statistics) else CHANNEL
    # That of an element's beta is grad where nothing stands between beta and y.
    of_element = _extent(gamma, x, index) in (ELEMENT, TABLE)
    writes_beta = weight is not None or slope != 1 or not of_element
    gradients = [
        _Gradient(x, gamma, True, in_walk, index),
        _Gradient(x, gamma, writes_beta, in_walk, index),
        _Gradient(x, weight, weight_gradient, in_walk),
    ]
    elements = [gradient.elements for gradient in gradients]
    gamma, kept_beta, index, rows = _rows(index, gamma, beta if weight_gradient else None)
    grad_x = torch.empty_like(x)
    count = _count(x, statistics, unbiased)
    if _per_pixel(statistics):
        programs, blocks = _pixel_sweep(x)
        launch(
            modulated_norm_pixel_backward_kernel, programs,
            grad, y, x, mean if statistics == "position" else None, rstd, gamma, kept_beta, weight,
            index, rows, grad_x, *elements, *(gradient.pixels for gradient in gradients),
            count, C, H * W, **forms, **blocks,
        )  # fmt: skip
        return grad_x, None, [gradient.finish() for gradient in gradients]

    group_stride = int(statistics == "instance")
    programs, splits, sizes, blocks = _sweep(x)
    partials = torch.empty((N, splits, 4, C), dtype=accumulate_dtype(x), device=x.device)
    launch(
        modulated_norm_backward_sums_kernel, programs,
        grad, y, x, mean, rstd, gamma, kept_beta, weight, index, rows, *elements, partials,
        group_stride, *sizes, **forms, **blocks,
    )  # fmt: skip
    per_image = partials.sum(1)  # (N,4,C)
    of_maps = per_image[:, 2].contiguous(), per_image[:, 3].contiguous(), None
    maps = [g.finish(sums) for g, sums in zip(gradients, of_maps, strict=True)]
    if not wants_grad_x:
        return None, per_image[:, :2].sum(0).view(2, 1, C), maps
    if given or statistics == "none":
        means = (None, None)
    else:
        groups = per_image if group_stride else per_image.sum(0, keepdim=True)
        group_pixels = H * W * (1 if group_stride else N)
        means = groups[:, 0] / max(group_pixels, 1), groups[:, 1] / count
    _apply_gradient(
        grad, y, x, mean, rstd, *means, gamma, weight, index, rows, grad_x, group_stride, forms
    )
    return grad_x, None, maps


def _apply_gradient(
    grad, y, x, mean, rstd, mean_sum, mean_product, gamma, weight, index, rows, grad_x,
    group_stride, forms,
) -> None:  # fmt: skip
    programs, _, sizes, blocks = _sweep(x)
    launch(
        modulated_norm_backward_apply_kernel, programs,
        grad, y, x, mean, rstd, mean_sum, mean_product, gamma, weight, index, rows, grad_x,
        group_stride, *sizes, **forms, **blocks,
    )  # fmt: skip


def modulated_norm_backward(
    grad, y, x, gamma, beta, weight, mean, rstd, index, statistics, given, unbiased, gain, slope,
    weight_gradient,
):  # fmt: skip
    """grad_x, and the gradients of gamma, beta and weight (empty without them)."""
    grad_x, _, maps = _backward(
        grad, y, x, gamma, beta, weight, mean, rstd, index, statistics, given, unbiased, gain,
        slope, weight_gradient, True,
    )  # fmt: skip
    return grad_x, *maps


def modulated_norm_backward_sums(
    grad, y, x, gamma, beta, weight, mean, rstd, index, gain, slope, weight_gradient
):
    """sums (2,1,C) of gn and gn * xn over the batch, and the gradients of the maps."""
    _, sums, maps = _backward(
        grad, y, x, gamma, beta, weight, mean, rstd, index, "batch", False, False, gain, slope,
        weight_gradient, False,
    )  # fmt: skip
    return sums, *maps


def modulated_norm_backward_apply(
    grad, y, x, gamma, weight, mean, rstd, index, mean_sums, gain, slope
):  # fmt: skip
    """grad_x from the means (2,1,C) of gn and gn * xn."""
    grad_x = torch.empty_like(x)
    forms = _forms(x, gamma, weight, index, gain, slope)
    gamma, index, rows = _rows(index, gamma)
    _apply_gradient(
        grad, y, x, mean, rstd, *mean_sums, gamma, weight, index, rows, grad_x, 0, forms
    )
    return grad_x


def ahead_of_time_variants():
    """The published members of the family."""
    with recorded() as variants:
        for x in variant_tensors():
            _all_launches(x)
    return unique(variants)


def _all_launches(x) -> None:
    N, C, H, W = x.shape
    pixel = torch.empty((N, 1, H, W), dtype=accumulate_dtype(x), device=x.device)
    channel = torch.empty((N, C), dtype=accumulate_dtype(x), device=x.device)
    table = torch.empty((50, C), dtype=accumulate_dtype(x), device=x.device)
    published = (
        ("position", x, pixel, "one_plus"),  # SPDNorm with the hard map, then the soft one
        ("position", x, x, "one_plus"),
        ("position", x, x, "plain"),
        ("instance", x, None, "one_plus"),  # SPADE
        ("batch", x, None, "one_plus"),
        ("batch", x, None, "sigmoid"),  # attention normalisation
        ("instance", channel, None, "plain"),  # AdaIN
        ("rms", None, None, "one_plus"),  # pixel norm
        ("instance", pixel, None, "one_plus"),
        ("batch", table, None, "one_plus"),  # SPADE with its maps in a table
        ("instance", table, None, "one_plus"),
    )
    pixels = torch.empty((N, H, W), dtype=torch.int32, device=x.device)
    segmented_sum(x, pixels, pixels.view(-1), pixels.view(-1)[: len(table) + 1], len(table))
    for statistics, maps, weight, gain in published:
        index = pixels if maps is table else None
        for activated in (False, True):
            options = (gain, 0.2 if activated else 1.0)
            y, mean, rstd = modulated_norm(
                x, maps, maps, weight, None, None, index, statistics, False, 1e-5, *options
            )
            mean = None if statistics == "rms" else mean
            modulated_norm_backward(
                x, y if activated else None, x, maps, maps, weight, mean, rstd, index, statistics,
                False, False, *options, weight is not None and weight.shape == x.shape,
            )  # fmt: skip
