"""Oriented filters and their maximum in Triton.

Formula: hair orientation of "MichiGAN" (SIGGRAPH 2020). index = argmax over K filters of the
rectified correlation of the image with each, response = that response. Backward: each pixel gathers
the taps of the winning filters around it; each filter sums the windows of the pixels that it won.

Passes: the image in, index and response out in 1 launch (the floor); the image's gradient 1; the
bank's 2 (partial sums, then their sum in fixed order). The statistics of all filters: the image in,
index, strength and confidence out in 1, the responses taken twice. Responses stay in registers, a
block of filters at a time. Grid: one program per block of pixels; for the bank's gradient one per
(tap, block of filters, split of the pixels). Symmetries of the bank are left to the CUDA kernels.
"""

import torch
import triton
import triton.language as tl

from .common import (
    INTERPRETED,
    accumulate_dtype,
    accumulated,
    launch,
    recorded,
    unique,
    variant_tensors,
)

MAX_SPLITS = 16  # partial sums per tap of the bank
MAX_FILTERS = 32  # filters at a time


@triton.jit
def _pixels(program, elements, H, W, BLOCK: tl.constexpr):
    """Index, image, row and column of a block's pixels, and which of them exist."""
    index = tl.cast(program, tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image = index // (H * W)
    pixel = (index % (H * W)).to(tl.int32)
    return index, image, pixel // W, pixel % W, index < elements


@triton.jit
def _responses(
    plane, bank, k, i, j, H, W, K, inside,
    SIZE: tl.constexpr, REACH: tl.constexpr, BLOCK: tl.constexpr, FILTERS: tl.constexpr,
):  # fmt: skip
    """Of filters k at pixels (i, j), from REACH rows above and columns to the left on."""
    total = tl.zeros((BLOCK, FILTERS), bank.dtype.element_ty)
    for a in range(SIZE):
        row = i + a - REACH
        in_rows = inside & (row >= 0) & (row < H)
        for b in range(SIZE):
            column = j + b - REACH
            valid = in_rows & (column >= 0) & (column < W)
            value = accumulated(tl.load(plane + row * W + column, mask=valid, other=0.0))
            weight = tl.load(bank + (k * SIZE + a) * SIZE + b, mask=k < K, other=0.0)
            total += value[:, None] * weight[None, :]
    return total


@triton.jit
def _best(
    plane, bank, i, j, H, W, K, inside, SIZE: tl.constexpr, REACH: tl.constexpr,
    ABSOLUTE: tl.constexpr, BLOCK: tl.constexpr, FILTERS: tl.constexpr,
):  # fmt: skip
    """Response and index of the first of the largest; a NaN gives NaN and filter 0."""
    dtype = bank.dtype.element_ty
    best = tl.zeros((BLOCK,), dtype)
    best_response = tl.zeros((BLOCK,), dtype)
    best_index = tl.zeros((BLOCK,), tl.int32)
    nan = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, K, FILTERS):
        k = first + tl.arange(0, FILTERS)
        total = _responses(plane, bank, k, i, j, H, W, K, inside, SIZE, REACH, BLOCK, FILTERS)
        nan = tl.maximum(nan, tl.max((total != total).to(tl.int32), axis=1))
        strength = tl.abs(total) if ABSOLUTE else total
        largest = tl.max(strength, axis=1)
        filters = k[None, :] + tl.zeros((BLOCK, FILTERS), tl.int32)
        winner = tl.min(tl.where(strength == largest[:, None], filters, 2147483647), axis=1)
        won = tl.sum(tl.where(filters == winner[:, None], total, 0.0), axis=1)
        better = largest > best
        best_index = tl.where(better, winner, best_index)
        best_response = tl.where(better, won, best_response)
        best = tl.where(better, largest, best)
    return tl.where(nan > 0, float("nan"), best_response), tl.where(nan > 0, 0, best_index)


@triton.jit
def oriented_filter_max_kernel(
    image, bank, index, response, elements, H, W, K,
    SIZE: tl.constexpr, ABSOLUTE: tl.constexpr, FILTERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place, n, i, j, inside = _pixels(tl.program_id(0), elements, H, W, BLOCK)
    value, winner = _best(
        image + n * H * W, bank, i, j, H, W, K, inside,
        SIZE, SIZE // 2, ABSOLUTE, BLOCK, FILTERS,
    )  # fmt: skip
    tl.store(index + place, winner, mask=inside)
    tl.store(response + place, value, mask=inside)


@triton.jit
def oriented_filter_statistics_kernel(
    image, bank, positions, index, strength, confidence, elements, H, W, K,
    SIZE: tl.constexpr, SPREAD: tl.constexpr, EPS: tl.constexpr, FILTERS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Responses are taken again for the distances from the best, which is known at the end alone.

    H and W are the results'; the image has SIZE - 1 more of each.
    """
    place, n, i, j, inside = _pixels(tl.program_id(0), elements, H, W, BLOCK)
    high = H + SIZE - 1
    wide = W + SIZE - 1
    plane = image + n * high * wide
    value, winner = _best(
        plane, bank, i, j, high, wide, K, inside, SIZE, 0, True, BLOCK, FILTERS
    )  # fmt: skip
    largest = tl.abs(value)
    position = tl.load(positions + winner)
    dtype = bank.dtype.element_ty
    circle = tl.cast(K, dtype)
    weighted = tl.zeros((BLOCK,), dtype)
    total = tl.zeros((BLOCK,), dtype)
    for first in range(0, K, FILTERS):
        k = first + tl.arange(0, FILTERS)
        responses = tl.abs(
            _responses(plane, bank, k, i, j, high, wide, K, inside, SIZE, 0, BLOCK, FILTERS)
        )
        direct = tl.abs(k[None, :].to(dtype) - position[:, None])
        distance = tl.minimum(direct, circle - direct)
        if SPREAD:
            below = responses - largest[:, None]
            terms = distance * (below * below)
        else:
            terms = distance * distance * responses
        weighted += tl.sum(tl.where((k < K)[None, :], terms, 0.0), axis=1)
        total += tl.sum(responses, axis=1)
    step = 3.14159265358979323846 / circle
    if SPREAD:
        measured = tl.sqrt(weighted * step)
    else:
        measured = weighted * (step * step) / tl.where(total < EPS, EPS, total)
    tl.store(index + place, winner, mask=inside)
    tl.store(strength + place, largest, mask=inside)
    tl.store(confidence + place, measured, mask=inside)


@triton.jit
def oriented_filter_max_backward_image_kernel(
    grad, index, bank, grad_image, elements, H, W, SIZE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    place, n, i, j, inside = _pixels(tl.program_id(0), elements, H, W, BLOCK)
    total = tl.zeros((BLOCK,), grad_image.dtype.element_ty)
    for a in range(SIZE):
        row = i + a - SIZE // 2
        in_rows = inside & (row >= 0) & (row < H)
        for b in range(SIZE):
            column = j + b - SIZE // 2
            valid = in_rows & (column >= 0) & (column < W)
            neighbour = n * H * W + row * W + column
            g = tl.load(grad + neighbour, mask=valid, other=0.0)
            k = tl.load(index + neighbour, mask=valid, other=0)
            # a pixel looks back from where it is looked at: the tap's point reflection
            tap = (k + 1) * SIZE * SIZE - 1 - a * SIZE - b
            total += g * tl.load(bank + tap, mask=valid, other=0.0)
    tl.store(grad_image + place, total, mask=inside)


@triton.jit(do_not_specialize=("blocks_per_split", "splits"))
def oriented_filter_max_backward_bank_kernel(
    grad, index, image, partials, elements, H, W, K, blocks_per_split, splits,
    SIZE: tl.constexpr, FILTERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """partials (K,taps,splits)."""
    tap = tl.program_id(0) % (SIZE * SIZE)
    split = tl.program_id(0) // (SIZE * SIZE) % splits
    k = tl.program_id(0) // (SIZE * SIZE * splits) * FILTERS + tl.arange(0, FILTERS)
    total = tl.zeros((BLOCK, FILTERS), partials.dtype.element_ty)
    for block in range(split * blocks_per_split, (split + 1) * blocks_per_split):
        place, n, i, j, inside = _pixels(block, elements, H, W, BLOCK)
        row = i + tap // SIZE - SIZE // 2
        column = j + tap % SIZE - SIZE // 2
        valid = inside & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        g = tl.load(grad + place, mask=inside, other=0.0)
        won = tl.load(index + place, mask=inside, other=-1)
        source = image + n * H * W + row * W + column
        value = accumulated(tl.load(source, mask=valid, other=0.0))
        mine = (won[:, None] == k[None, :]) & (g != 0.0)[:, None]
        total += tl.where(mine, (g * value)[:, None], 0.0)
    target = partials + (k * SIZE * SIZE + tap) * splits + split
    tl.store(target, tl.sum(total, axis=0), mask=k < K)


@triton.jit(do_not_specialize=("splits",))
def oriented_filter_max_backward_merge_kernel(
    partials, grad_bank, elements, splits, MAX_SPLITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, MAX_SPLITS)[None, :]
    valid = (element[:, None] < elements) & (s < splits)
    values = tl.load(partials + element[:, None] * splits + s, mask=valid, other=0.0)
    tl.store(grad_bank + element, tl.sum(values, axis=1), mask=element < elements)


def _filters(count: int) -> int:
    return min(MAX_FILTERS, triton.next_power_of_2(count))


def oriented_filter_max(image, bank, absolute):
    """Signed response and index (int32) of each pixel's best filter, (N,1,H,W)."""
    N, _, H, W = image.shape
    index = torch.empty(image.shape, dtype=torch.int32, device=image.device)
    response = torch.empty(image.shape, dtype=accumulate_dtype(image), device=image.device)
    # Twice the registers for each sum: fewer pixels, so that none is spilled.
    block = 4096 if INTERPRETED else 32 if image.dtype == torch.float64 else 64
    launch(
        oriented_filter_max_kernel, triton.cdiv(N * H * W, block),
        image, bank, index, response, N * H * W, H, W, bank.shape[0],
        SIZE=bank.shape[-1], ABSOLUTE=absolute, FILTERS=_filters(bank.shape[0]), BLOCK=block,
    )  # fmt: skip
    return response, index


def oriented_filter_statistics(image, bank, positions, spread, eps):
    """Strength, confidence and index (int32), (N,1,H,W), of an image with its border."""
    N, size = image.shape[0], bank.shape[-1]
    H, W = image.shape[2] - size + 1, image.shape[3] - size + 1
    strength, confidence = (
        torch.empty((N, 1, H, W), dtype=accumulate_dtype(image), device=image.device)
        for _ in range(2)
    )
    index = torch.empty((N, 1, H, W), dtype=torch.int32, device=image.device)
    block = 4096 if INTERPRETED else 32 if image.dtype == torch.float64 else 64
    launch(
        oriented_filter_statistics_kernel, triton.cdiv(N * H * W, block),
        image, bank, positions, index, strength, confidence, N * H * W, H, W, bank.shape[0],
        SIZE=size, SPREAD=spread, EPS=eps, FILTERS=_filters(bank.shape[0]), BLOCK=block,
    )  # fmt: skip
    return strength, confidence, index


def oriented_filter_max_backward_image(grad, index, bank):
    """Gradient of the image, in grad's dtype."""
    N, _, H, W = grad.shape
    grad_image = torch.empty_like(grad)
    block = 65536 if INTERPRETED else 256
    launch(
        oriented_filter_max_backward_image_kernel, triton.cdiv(N * H * W, block),
        grad, index, bank, grad_image, N * H * W, H, W, SIZE=bank.shape[-1], BLOCK=block,
    )  # fmt: skip
    return grad_image


def oriented_filter_max_backward_bank(grad, index, image, count, size):
    """Gradient of the bank (count,size,size), in grad's dtype."""
    N, _, H, W = grad.shape
    block = 4096 if INTERPRETED else 128
    blocks = triton.cdiv(N * H * W, block)
    blocks_per_split = triton.cdiv(blocks, MAX_SPLITS)
    splits = max(triton.cdiv(blocks, max(blocks_per_split, 1)), 1)
    partials = grad.new_empty((count, size * size, splits))
    filters = _filters(count)
    launch(
        oriented_filter_max_backward_bank_kernel,
        size * size * splits * triton.cdiv(count, filters),
        grad, index, image, partials, N * H * W, H, W, count, blocks_per_split, splits,
        SIZE=size, FILTERS=filters, BLOCK=block,
    )  # fmt: skip
    grad_bank = grad.new_empty((count, size, size))
    launch(
        oriented_filter_max_backward_merge_kernel, triton.cdiv(grad_bank.numel(), 128),
        partials, grad_bank, grad_bank.numel(), splits, MAX_SPLITS=MAX_SPLITS, BLOCK=128,
    )  # fmt: skip
    return grad_bank


def ahead_of_time_variants():
    """Every variant that the launchers can run: 32 filters of the published size, and the least."""
    with recorded() as variants:
        for x in variant_tensors():
            image = x.new_empty((len(x), 1, *x.shape[2:]))
            for count, size in ((32, 17), (1, 1)):
                bank = torch.empty((count, size, size), dtype=accumulate_dtype(x), device="meta")
                for absolute in (False, True):
                    response, index = oriented_filter_max(image, bank, absolute)
                for spread in (False, True):
                    positions = bank.new_empty(count)
                    if min(image.shape[2:]) >= size:
                        oriented_filter_statistics(image, bank, positions, spread, 0.0)
                oriented_filter_max_backward_image(response, index, bank)
                oriented_filter_max_backward_bank(response, index, image, count, size)
    return unique(variants)
