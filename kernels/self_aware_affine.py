"""The self-aware affine of region normalisation in Triton.

Formula: RN-L of "Region Normalization for Image Inpainting" (AAAI 2020). pooled = [mean, max] of x
over its channels; saliency = sigmoid(conv(pooled)); gamma = conv(saliency) + b, beta likewise;
label = saliency >= threshold. Backward, with z = conv(pooled): grad_z = s (1 - s) (grad_saliency +
transposed convs of grad_gamma and grad_beta), grad_pooled = transposed conv of grad_z.

Passes over x: channel_mean_max reads T once and writes three values per pixel (the floor); the
rest works on maps of one value per pixel. Launches: channel_mean_max 1, self_aware_maps 2 (gamma
needs its neighbours' saliency), backward 4 (grad_z; grad_pooled; partial weight gradients; their
sum). Grid: one program per block of pixels; for weight gradients one per (tap, split of the
pixels), merged in fixed order.
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

MAX_SPLITS = 16  # partial weight gradients per tap


@triton.jit(do_not_specialize=("tiles_per_image",))
def channel_mean_max_kernel(
    x, pooled, argmax, C, P, tiles_per_image,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """pooled (N,2,P) and the index of the first maximum; NaN counts as the largest."""
    image = (tl.program_id(0) // tiles_per_image).to(tl.int64)
    p = (tl.program_id(0) % tiles_per_image) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    rows = tl.arange(0, BLOCK_C)[:, None]
    inside = p < P
    total = tl.zeros((BLOCK_C, BLOCK_P), pooled.dtype.element_ty)
    largest = tl.full((BLOCK_C, BLOCK_P), float("-inf"), pooled.dtype.element_ty)
    index = rows + tl.zeros((BLOCK_C, BLOCK_P), tl.int32)  # channel 0 wins where all are -inf
    first_nan = tl.full((BLOCK_C, BLOCK_P), 2147483647, tl.int32)
    for start in range(0, C, BLOCK_C):
        c = start + rows
        offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
        valid = (c < C) & inside
        value = accumulated(tl.load(x + offsets, mask=valid, other=0.0))
        total += value
        first_nan = tl.minimum(first_nan, tl.where(value != value, c, 2147483647))
        better = valid & (value > largest)
        index = tl.where(better, c, index)
        largest = tl.where(better, value, largest)
    maximum = tl.max(largest, axis=0, keep_dims=True)
    place = tl.min(tl.where(largest == maximum, index, 2147483647), axis=0, keep_dims=True)
    nan_place = tl.min(first_nan, axis=0, keep_dims=True)
    has_nan = nan_place < C
    pixel = image * P + p
    tl.store(pooled + pixel + image * P, tl.sum(total, axis=0, keep_dims=True) / C, mask=inside)
    tl.store(pooled + pixel + image * P + P, tl.where(has_nan, float("nan"), maximum), mask=inside)
    tl.store(argmax + pixel, tl.where(has_nan, nan_place, place), mask=inside)


@triton.jit
def _pixels(program, elements, H, W, BLOCK: tl.constexpr):
    """Index, image, row and column of a block's pixels, and which of them exist."""
    index = tl.cast(program, tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image = index // (H * W)
    pixel = (index % (H * W)).to(tl.int32)
    return index, image, pixel // W, pixel % W, index < elements


@triton.jit
def _correlation(plane, kernel, i, j, H, W, inside, SIZE: tl.constexpr, SIGN: tl.constexpr):
    """sum over taps of kernel[tap] * plane[pixel + SIGN * tap]; SIGN = -1 is the transpose.

    `plane` points to each pixel's own image, which is zero outside."""
    total = tl.zeros(i.shape, kernel.dtype.element_ty)
    for a in range(SIZE):
        row = i + SIGN * (a - SIZE // 2)
        in_rows = inside & (row >= 0) & (row < H)
        for b in tl.static_range(SIZE):
            column = j + SIGN * (b - SIZE // 2)
            valid = in_rows & (column >= 0) & (column < W)
            value = tl.load(plane + row * W + column, mask=valid, other=0.0)
            total += tl.load(kernel + a * SIZE + b) * value
    return total


@triton.jit
def self_aware_maps_saliency_kernel(
    pooled, conv_weight, saliency, labels, elements, H, W,
    THRESHOLD: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index, image, i, j, inside = _pixels(tl.program_id(0), elements, H, W, BLOCK)
    plane = pooled + image * 2 * H * W
    z = _correlation(plane, conv_weight, i, j, H, W, inside, SIZE, 1)
    z += _correlation(plane + H * W, conv_weight + SIZE * SIZE, i, j, H, W, inside, SIZE, 1)
    s = 1.0 / (1.0 + tl.exp(-z))
    tl.store(saliency + index, s, mask=inside)
    tl.store(labels + index, (s >= THRESHOLD).to(tl.uint8), mask=inside)


@triton.jit
def self_aware_maps_affine_kernel(
    saliency, gamma_weight, gamma_bias, beta_weight, beta_bias, gamma, beta, elements, H, W,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index, image, i, j, inside = _pixels(tl.program_id(0), elements, H, W, BLOCK)
    plane = saliency + image * H * W
    g = _correlation(plane, gamma_weight, i, j, H, W, inside, SIZE, 1) + tl.load(gamma_bias)
    b = _correlation(plane, beta_weight, i, j, H, W, inside, SIZE, 1) + tl.load(beta_bias)
    tl.store(gamma + index, g, mask=inside)
    tl.store(beta + index, b, mask=inside)


@triton.jit
def self_aware_maps_backward_saliency_kernel(
    grad_saliency, grad_gamma, grad_beta, saliency, gamma_weight, beta_weight, grad_z,
    elements, H, W, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of z, the sigmoid's argument."""
    index, image, i, j, inside = _pixels(tl.program_id(0), elements, H, W, BLOCK)
    plane = image * H * W
    g = tl.load(grad_saliency + index, mask=inside, other=0.0)
    g += _correlation(grad_gamma + plane, gamma_weight, i, j, H, W, inside, SIZE, -1)
    g += _correlation(grad_beta + plane, beta_weight, i, j, H, W, inside, SIZE, -1)
    s = tl.load(saliency + index, mask=inside, other=0.0)
    tl.store(grad_z + index, g * s * (1.0 - s), mask=inside)


@triton.jit
def self_aware_maps_backward_pooled_kernel(
    grad_z, conv_weight, grad_pooled, elements, H, W,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index, image, i, j, inside = _pixels(tl.program_id(0), elements, H, W, BLOCK)
    plane = grad_z + image * H * W
    g0 = _correlation(plane, conv_weight, i, j, H, W, inside, SIZE, -1)
    g1 = _correlation(plane, conv_weight + SIZE * SIZE, i, j, H, W, inside, SIZE, -1)
    tl.store(grad_pooled + index + image * H * W, g0, mask=inside)
    tl.store(grad_pooled + index + (image + 1) * H * W, g1, mask=inside)


@triton.jit(do_not_specialize=("blocks_per_split", "splits"))
def self_aware_maps_backward_weight_kernel(
    grad_z, grad_gamma, grad_beta, pooled, saliency, partials, elements, H, W,
    blocks_per_split, splits, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """partials (6,taps,S): of the mean's, the maximum's, gamma's and beta's tap, and both biases.

    The biases do not depend on the tap; every tap writes them."""
    tap = tl.program_id(0) % (SIZE * SIZE)
    split = tl.program_id(0) // (SIZE * SIZE)
    di = tap // SIZE - SIZE // 2
    dj = tap % SIZE - SIZE // 2
    zero = tl.zeros((BLOCK,), partials.dtype.element_ty)
    mean_sum, max_sum, gamma_sum, beta_sum = zero, zero, zero, zero
    gamma_bias_sum, beta_bias_sum = zero, zero
    for block in range(split * blocks_per_split, (split + 1) * blocks_per_split):
        index, image, i, j, inside = _pixels(block, elements, H, W, BLOCK)
        row, column = i + di, j + dj
        valid = inside & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        neighbour = image * H * W + row * W + column
        channel = pooled + neighbour + image * H * W
        z = tl.load(grad_z + index, mask=inside, other=0.0)
        g = tl.load(grad_gamma + index, mask=inside, other=0.0)
        b = tl.load(grad_beta + index, mask=inside, other=0.0)
        s = tl.load(saliency + neighbour, mask=valid, other=0.0)
        mean_sum += z * tl.load(channel, mask=valid, other=0.0)
        max_sum += z * tl.load(channel + H * W, mask=valid, other=0.0)
        gamma_sum += g * s
        beta_sum += b * s
        gamma_bias_sum += g
        beta_bias_sum += b
    place = partials + tap * splits + split
    plane = SIZE * SIZE * splits
    tl.store(place, tl.sum(mean_sum))
    tl.store(place + plane, tl.sum(max_sum))
    tl.store(place + 2 * plane, tl.sum(gamma_sum))
    tl.store(place + 3 * plane, tl.sum(beta_sum))
    tl.store(place + 4 * plane, tl.sum(gamma_bias_sum))
    tl.store(place + 5 * plane, tl.sum(beta_bias_sum))


@triton.jit
def _tap_sums(partials, row, taps, splits, TAPS: tl.constexpr, MAX_SPLITS: tl.constexpr):
    s = tl.arange(0, MAX_SPLITS)[None, :]
    place = (row * TAPS + taps[:, None]) * splits + s
    valid = (taps[:, None] < TAPS) & (s < splits)
    return tl.sum(tl.load(partials + place, mask=valid, other=0.0), axis=1)


@triton.jit(do_not_specialize=("splits",))
def self_aware_maps_backward_merge_kernel(
    partials, grad_conv_weight, grad_gamma_weight, grad_gamma_bias, grad_beta_weight,
    grad_beta_bias, splits,
    TAPS: tl.constexpr, MAX_TAPS: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    taps = tl.arange(0, MAX_TAPS)
    exists = taps < TAPS
    for row in tl.static_range(2):
        total = _tap_sums(partials, row, taps, splits, TAPS, MAX_SPLITS)
        tl.store(grad_conv_weight + row * TAPS + taps, total, mask=exists)
    gamma = _tap_sums(partials, 2, taps, splits, TAPS, MAX_SPLITS)
    tl.store(grad_gamma_weight + taps, gamma, mask=exists)
    beta = _tap_sums(partials, 3, taps, splits, TAPS, MAX_SPLITS)
    tl.store(grad_beta_weight + taps, beta, mask=exists)
    gamma_bias = _tap_sums(partials, 4, taps, splits, TAPS, MAX_SPLITS)
    tl.store(grad_gamma_bias + taps, gamma_bias, mask=taps < 1)
    beta_bias = _tap_sums(partials, 5, taps, splits, TAPS, MAX_SPLITS)
    tl.store(grad_beta_bias + taps, beta_bias, mask=taps < 1)


def channel_mean_max(x):
    """Mean and maximum over channels (N,2,H,W), and the first maximum's channel."""
    N, C, H, W = x.shape
    pooled = torch.empty((N, 2, H, W), dtype=accumulate_dtype(x), device=x.device)
    argmax = torch.empty((N, 1, H, W), dtype=torch.int32, device=x.device)
    block_p = 4096 if INTERPRETED else 32
    tiles_per_image = triton.cdiv(H * W, block_p)
    launch(
        channel_mean_max_kernel, N * tiles_per_image, x, pooled, argmax, C, H * W, tiles_per_image,
        CHANNELS_LAST=is_channels_last(x), BLOCK_C=8 if INTERPRETED else 64, BLOCK_P=block_p,
    )  # fmt: skip
    return pooled, argmax


def _block(elements: int) -> tuple[int, int]:
    """Pixels per program and programs."""
    block = 65536 if INTERPRETED else 128
    return block, triton.cdiv(elements, block)


def self_aware_maps(
    pooled, conv_weight, gamma_weight, gamma_bias, beta_weight, beta_bias, threshold
):
    """Saliency, gamma, beta and the labels saliency >= threshold, each (N,1,H,W)."""
    N, _, H, W = pooled.shape
    saliency, gamma, beta = (pooled.new_empty((N, 1, H, W)) for _ in range(3))
    labels = torch.empty((N, 1, H, W), dtype=torch.uint8, device=pooled.device)
    block, programs = _block(N * H * W)
    size = conv_weight.shape[-1]
    launch(
        self_aware_maps_saliency_kernel, programs,
        pooled, conv_weight, saliency, labels, N * H * W, H, W,
        THRESHOLD=threshold, SIZE=size, BLOCK=block,
    )  # fmt: skip
    launch(
        self_aware_maps_affine_kernel, programs,
        saliency, gamma_weight, gamma_bias, beta_weight, beta_bias, gamma, beta, N * H * W, H, W,
        SIZE=size, BLOCK=block,
    )  # fmt: skip
    return saliency, gamma, beta, labels


def self_aware_maps_backward(
    grad_saliency, grad_gamma, grad_beta, pooled, saliency, conv_weight, gamma_weight, beta_weight
):
    """Gradients of pooled and of every weight and bias."""
    N, _, H, W = pooled.shape
    size = conv_weight.shape[-1]
    elements = N * H * W
    block, programs = _block(elements)
    grad_z = torch.empty_like(saliency)
    grad_pooled = torch.empty_like(pooled)
    launch(
        self_aware_maps_backward_saliency_kernel, programs,
        grad_saliency, grad_gamma, grad_beta, saliency, gamma_weight, beta_weight, grad_z,
        elements, H, W, SIZE=size, BLOCK=block,
    )  # fmt: skip
    launch(
        self_aware_maps_backward_pooled_kernel, programs,
        grad_z, conv_weight, grad_pooled, elements, H, W, SIZE=size, BLOCK=block,
    )  # fmt: skip
    block = 65536 if INTERPRETED else 1024
    blocks = triton.cdiv(elements, block)
    blocks_per_split = triton.cdiv(blocks, MAX_SPLITS)
    splits = triton.cdiv(blocks, max(blocks_per_split, 1))
    partials = pooled.new_empty((6, size * size, splits))
    launch(
        self_aware_maps_backward_weight_kernel, size * size * splits,
        grad_z, grad_gamma, grad_beta, pooled, saliency, partials, elements, H, W,
        blocks_per_split, splits, SIZE=size, BLOCK=block,
    )  # fmt: skip
    grad_conv_weight = torch.empty_like(conv_weight)
    grad_gamma_weight, grad_beta_weight = (pooled.new_empty((1, 1, size, size)) for _ in range(2))
    grad_gamma_bias, grad_beta_bias = pooled.new_empty((1,)), pooled.new_empty((1,))
    launch(
        self_aware_maps_backward_merge_kernel, 1,
        partials, grad_conv_weight, grad_gamma_weight, grad_gamma_bias, grad_beta_weight,
        grad_beta_bias, splits, TAPS=size * size, MAX_TAPS=triton.next_power_of_2(size * size),
        MAX_SPLITS=MAX_SPLITS,
    )  # fmt: skip
    return (
        grad_pooled, grad_conv_weight, grad_gamma_weight, grad_gamma_bias,
        grad_beta_weight, grad_beta_bias,
    )  # fmt: skip


def ahead_of_time_variants():
    """Every variant that the launchers can run, with the published kernel sizes 3 and 7."""
    with recorded() as variants:
        for x in variant_tensors():
            channel_mean_max(x)
            if x.dtype in (torch.float32, torch.float64):
                for size in (3, 7):
                    _all_launches(x.shape, x.dtype, size)
    return unique(variants)


def _all_launches(shape, dtype, size) -> None:
    N, _, H, W = shape
    pooled = torch.empty((N, 2, H, W), dtype=dtype, device="meta")
    conv_weight = pooled.new_empty((1, 2, size, size))
    weight, bias = pooled.new_empty((1, 1, size, size)), pooled.new_empty((1,))
    saliency, gamma, beta, _ = self_aware_maps(pooled, conv_weight, weight, bias, weight, bias, 0.8)
    self_aware_maps_backward(saliency, gamma, beta, pooled, saliency, conv_weight, weight, weight)
