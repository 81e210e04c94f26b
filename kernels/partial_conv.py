"""Partial convolution around PyTorch's convolution, in Triton.

Formula: arXiv 1804.07723 and 1811.11718; y = conv(x * m) * scale + bias * updated, scale and
updated from the mask's window sums.

Passes over memory (T = the feature map, maps of one channel not counted): mask_product reads T and
writes T; partial_conv_epilogue reads the raw output and writes the result (2T, the floor); its
backward reads the gradient and writes the raw output's (2T, the floor; it also reads y after an
activation, and raw for a norm weight's gradient), and leaves partial sums of what the parameters'
gradients need. mask_window reads a mask of many channels once for each row of the kernel, from
the cache but for the first. Launches: mask_window 2 (rows and channels, then columns), product 1,
epilogue 1, backward 2. Grid: one program per tile of BLOCK_C channels by BLOCK_P pixels; in the
backward per (image, channels, split of the pixels).
"""

import itertools

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

WANTED_PROGRAMS = 1024  # of the backward: enough for a large device


@triton.jit
def _masked(value, mask):
    return tl.where(mask == 0, 0.0, value * mask)


@triton.jit(do_not_specialize=("blocks",))
def mask_window_rows_kernel(
    mask, sums, C, P, H, W, height, stride, padding, dilation, blocks,
    KERNEL: tl.constexpr, COUNTS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """sums (N,D,height,W): over mask channels, each counted COUNTS times (once), and rows."""
    image = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    pixels = P // H * height
    inside = p < pixels
    first = p // W % height * stride - padding
    plane = p // (W * height) * H
    rows = tl.arange(0, BLOCK_C)[:, None]
    total = tl.zeros((BLOCK_C, BLOCK_P), sums.dtype.element_ty)
    for k in range(KERNEL):
        row = first + k * dilation
        there = inside & (row >= 0) & (row < H)
        pixel = (plane + row) * W + p % W
        if len(COUNTS) > 0:
            for g in tl.static_range(len(COUNTS)):
                offsets = element_offsets(image, g + tl.zeros_like(rows), pixel, C, P,
                                          CHANNELS_LAST)  # fmt: skip
                value = tl.load(mask + offsets, mask=there & (rows == 0), other=0.0)
                total += accumulated(value) * COUNTS[g]
        else:
            for start in range(0, C, BLOCK_C):
                c = start + rows
                offsets = element_offsets(image, c, pixel, C, P, CHANNELS_LAST)
                total += accumulated(tl.load(mask + offsets, mask=there & (c < C), other=0.0))
    tl.store(sums + image * pixels + p, tl.sum(total, axis=0, keep_dims=True), mask=inside)


@triton.jit
def mask_window_kernel(
    sums, scale, updated, elements, D, W, depth, rows, width, depth_stride, depth_padding,
    depth_dilation, stride, padding, dilation,
    DEPTH: tl.constexpr, KERNEL: tl.constexpr, RATIO: tl.constexpr, BIAS: tl.constexpr,
    WINDOW: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """scale and updated mask (N,depth,rows,width) from `sums` (N,D,rows,W): planes and columns."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    first = index % width * stride - padding
    row = index // width % rows
    plane = index // (width * rows) % depth * depth_stride - depth_padding
    image = index // (width * rows) // depth
    s = tl.zeros((BLOCK,), scale.dtype.element_ty)
    for a in range(DEPTH):
        d = plane + a * depth_dilation
        for k in range(KERNEL):
            column = first + k * dilation
            there = inside & (d >= 0) & (d < D) & (column >= 0) & (column < W)
            s += tl.load(sums + ((image * D + d) * rows + row) * W + column, mask=there, other=0.0)
    if RATIO:
        known = tl.minimum(tl.maximum(s, 0.0), 1.0)
        ratio = WINDOW / (s + EPS) * known
        if BIAS:
            ratio *= known
    else:
        known = tl.where(s == 0, 0.0, 1.0).to(s.dtype)
        ratio = tl.where(s == 0, 0.0, 1.0 / tl.where(s == 0, 1.0, s))
    tl.store(scale + index, ratio, mask=inside)
    tl.store(updated + index, known, mask=inside)


@triton.jit
def _tile(program, C, P, blocks, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """A program's image, channels (BLOCK_C,1) and pixels (1,BLOCK_P); pixel blocks run fastest."""
    channel_blocks = tl.cdiv(C, BLOCK_C)
    p = program % blocks * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    c = program // blocks % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    return (program // blocks // channel_blocks).to(tl.int64), c, p


@triton.jit(do_not_specialize=("blocks", "image_step"))
def mask_product_kernel(
    x, mask, y, C, P, blocks, image_step,
    ENDS: tl.constexpr, EACH: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """EACH: a mask for each channel. Else mask channel g begins at channel ENDS[g - 1]."""
    image, c, p = _tile(tl.program_id(0), C, P, blocks, BLOCK_C, BLOCK_P)
    valid = (c < C) & (p < P)
    offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
    value = accumulated(tl.load(x + offsets, mask=valid, other=0.0))
    if EACH:
        places = element_offsets(image * image_step, c, p, C, P, CHANNELS_LAST)
        m = tl.load(mask + places, mask=valid, other=0.0)
    elif len(ENDS) > 0:
        g = tl.zeros_like(c)
        for i in tl.static_range(len(ENDS)):
            g += (c >= ENDS[i]).to(tl.int32)
        places = (image * image_step * (len(ENDS) + 1) + g) * P + p
        m = tl.load(mask + places, mask=valid, other=0.0)
    else:
        m = tl.load(mask + image * image_step * P + p, mask=p < P, other=0.0)
    tl.store(y + offsets, _masked(value, accumulated(m)).to(y.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=("blocks", "image_step"))
def partial_conv_epilogue_kernel(
    raw, scale, updated, bias, norm_weight, norm_bias, y, C, P, blocks, image_step,
    SLOPE: tl.constexpr, MASK_OUTPUT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    image, c, p = _tile(tl.program_id(0), C, P, blocks, BLOCK_C, BLOCK_P)
    valid = (c < C) & (p < P)
    offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
    pixel = image * image_step * P + p
    known = tl.load(updated + pixel, mask=p < P, other=0.0)
    out = accumulated(tl.load(raw + offsets, mask=valid, other=0.0))
    out *= tl.load(scale + pixel, mask=p < P, other=0.0)
    if bias is not None:
        out += tl.load(bias + c, mask=c < C, other=0.0) * known
    out = tl.where(known == 0, 0.0, out)
    if norm_weight is not None:
        out *= tl.load(norm_weight + c, mask=c < C, other=0.0)
        out += tl.load(norm_bias + c, mask=c < C, other=0.0)
    if SLOPE != 1.0:
        out = tl.where(out > 0, out, out * SLOPE)
    if MASK_OUTPUT:
        out = _masked(out, known)
    tl.store(y + offsets, out.to(y.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=("splits", "tiles", "tiles_per_split", "image_step"))
def partial_conv_epilogue_backward_kernel(
    grad, y, raw, scale, updated, norm_weight, grad_raw, parts, C, P, splits, tiles,
    tiles_per_split, image_step, SLOPE: tl.constexpr, MASK_OUTPUT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """grad_raw, and parts (N*splits,3,C) of the sums; y and raw may be None."""
    image, c, _ = _tile(tl.program_id(0), C, P, splits, BLOCK_C, BLOCK_P)
    split = tl.program_id(0) % splits
    known_sum = tl.zeros((BLOCK_C, BLOCK_P), parts.dtype.element_ty)
    plain_sum = tl.zeros((BLOCK_C, BLOCK_P), parts.dtype.element_ty)
    raw_sum = tl.zeros((BLOCK_C, BLOCK_P), parts.dtype.element_ty)
    for t in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, tiles)):
        p = t * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
        valid = (c < C) & (p < P)
        offsets = element_offsets(image, c, p, C, P, CHANNELS_LAST)
        pixel = image * image_step * P + p
        known = tl.load(updated + pixel, mask=p < P, other=0.0)
        g = accumulated(tl.load(grad + offsets, mask=valid, other=0.0))
        if MASK_OUTPUT:
            g = _masked(g, known)
        if SLOPE != 1.0:
            result = accumulated(tl.load(y + offsets, mask=valid, other=0.0))
            g = tl.where(result > 0, g, g * SLOPE)
        known_sum += _masked(g, known)
        plain_sum += g
        factor = tl.load(scale + pixel, mask=p < P, other=0.0)
        out = tl.where(known == 0, 0.0, g * factor)
        if raw is not None:
            value = accumulated(tl.load(raw + offsets, mask=valid, other=0.0))
            raw_sum += tl.where(known == 0, 0.0, out * value)
        if norm_weight is not None:
            out *= tl.load(norm_weight + c, mask=c < C, other=0.0)
        tl.store(grad_raw + offsets, out.to(grad_raw.dtype.element_ty), mask=valid)
    place = (image * splits + split) * 3 * C + c
    tl.store(parts + place, tl.sum(known_sum, axis=1, keep_dims=True), mask=c < C)
    tl.store(parts + place + C, tl.sum(plain_sum, axis=1, keep_dims=True), mask=c < C)
    tl.store(parts + place + 2 * C, tl.sum(raw_sum, axis=1, keep_dims=True), mask=c < C)


@triton.jit(do_not_specialize=("count",))
def partial_conv_epilogue_backward_merge_kernel(
    parts, sums, count, C, BLOCK_C: tl.constexpr, BLOCK_PARTS: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    rows = tl.arange(0, BLOCK_PARTS)[:, None]
    total = tl.zeros((BLOCK_PARTS, BLOCK_C), sums.dtype.element_ty)
    for start in range(0, count, BLOCK_PARTS):
        part = (start + rows).to(tl.int64)
        valid = (part < count) & (c < C)
        total += tl.load(parts + part * C + c, mask=valid, other=0.0)
    tl.store(sums + c, tl.sum(total, axis=0, keep_dims=True), mask=c < C)


def _tile_of(x, elements=2048) -> tuple[int, int]:
    """Channels and pixels of a tile."""
    elements = 65536 if INTERPRETED else elements
    if not is_channels_last(x):
        return 1, elements
    block_c = min(triton.next_power_of_2(x.shape[1]), 64)
    return block_c, elements // block_c


def _grouped(mask_channels):
    """None where each mask channel stands for one channel of x."""
    return () if all(channels == 1 for channels in mask_channels) else tuple(mask_channels)


def mask_window(
    mask, mask_channels, kernel_size, stride, padding, dilation, output_size, ratio, bias, eps
):
    """scale and updated mask (N,1,*output_size)."""
    N, C, *size = mask.shape
    mask_channels = _grouped(mask_channels)
    dtype = accumulate_dtype(mask)
    scale, updated = (
        torch.empty((N, 1, *output_size), dtype=dtype, device=mask.device) for _ in range(2)
    )
    window = sum(mask_channels or [1] * C)
    for extent in kernel_size:
        window *= extent
    if len(size) == 2:
        depth, D, KD, depth_rule = 1, 1, 1, (1, 0, 1)
    else:
        depth, D, KD = output_size[0], size[0], kernel_size[0]
        depth_rule = (stride[0], padding[0], dilation[0])
    H, W = size[-2:]
    height, width = output_size[-2:]
    sums = torch.empty((N, D, height, W), dtype=dtype, device=mask.device)
    last = is_channels_last(mask)
    block_c = 1 if mask_channels or not last else min(triton.next_power_of_2(C), 64)
    block_p = 16384 if INTERPRETED else 256 // block_c * 4
    blocks = triton.cdiv(D * height * W, block_p)
    launch(
        mask_window_rows_kernel, N * blocks, mask, sums, C, D * H * W, H, W, height, stride[-2],
        padding[-2], dilation[-2], blocks, KERNEL=kernel_size[-2], COUNTS=mask_channels,
        CHANNELS_LAST=last, BLOCK_C=block_c, BLOCK_P=block_p,
    )  # fmt: skip
    block = 16384 if INTERPRETED else 256
    launch(
        mask_window_kernel, triton.cdiv(scale.numel(), block), sums, scale, updated, scale.numel(),
        D, W, depth, height, width, *depth_rule, stride[-1], padding[-1], dilation[-1], DEPTH=KD,
        KERNEL=kernel_size[-1], RATIO=ratio, BIAS=bias, WINDOW=float(window), EPS=eps, BLOCK=block,
    )  # fmt: skip
    return scale, updated


def _product_into(x, mask, mask_channels, y) -> None:
    N, C, H, W = x.shape
    mask_channels = _grouped(mask_channels)
    each = mask.shape[1] == C and (C == 1 or not mask_channels)
    ends = () if each else tuple(itertools.accumulate(mask_channels[:-1]))
    block_c, block_p = _tile_of(x)
    blocks = triton.cdiv(H * W, block_p)
    launch(
        mask_product_kernel, N * triton.cdiv(C, block_c) * blocks, x, mask, y, C, H * W, blocks,
        int(mask.shape[0] > 1), ENDS=ends, EACH=each, CHANNELS_LAST=is_channels_last(x),
        BLOCK_C=block_c, BLOCK_P=block_p,
    )  # fmt: skip


def mask_product(x, mask, mask_channels):
    """x * mask, 0 where the mask is."""
    y = torch.empty_like(x)
    _product_into(x, mask, mask_channels, y)
    return y


def mask_product_(x, mask, mask_channels) -> None:
    """The same, into x."""
    _product_into(x, mask, mask_channels, x)


def _epilogue_into(
    raw, scale, updated, bias, norm_weight, norm_bias, negative_slope, mask_output, y
) -> None:
    N, C, H, W = raw.shape
    block_c, block_p = _tile_of(raw)
    blocks = triton.cdiv(H * W, block_p)
    launch(
        partial_conv_epilogue_kernel, N * triton.cdiv(C, block_c) * blocks, raw, scale, updated,
        bias, norm_weight, norm_bias, y, C, H * W, blocks, int(scale.shape[0] > 1),
        SLOPE=negative_slope, MASK_OUTPUT=mask_output, CHANNELS_LAST=is_channels_last(raw),
        BLOCK_C=block_c, BLOCK_P=block_p,
    )  # fmt: skip


def partial_conv_epilogue(
    raw, scale, updated, bias, norm_weight, norm_bias, negative_slope, mask_output
):  # fmt: skip
    """The convolution's raw output, scaled, with bias, hole zeroing, affine and activation."""
    y = torch.empty_like(raw)
    tail = (bias, norm_weight, norm_bias, negative_slope, mask_output)
    _epilogue_into(raw, scale, updated, *tail, y)
    return y


def partial_conv_epilogue_(
    raw, scale, updated, bias, norm_weight, norm_bias, negative_slope, mask_output
) -> None:  # fmt: skip
    """The same, into the raw output."""
    tail = (bias, norm_weight, norm_bias, negative_slope, mask_output)
    _epilogue_into(raw, scale, updated, *tail, raw)


def partial_conv_epilogue_backward(
    grad, y, raw, scale, updated, norm_weight, negative_slope, mask_output
):  # fmt: skip
    """The raw output's gradient, and the sums (3,C) that those of the parameters are made of."""
    N, C, H, W = grad.shape
    grad_raw = torch.empty_like(grad)
    sums = torch.empty((3, C), dtype=scale.dtype, device=grad.device)
    block_c, block_p = _tile_of(grad, 1024)  # of three sums; larger ones spill in float64
    tiles, programs = triton.cdiv(H * W, block_p), N * triton.cdiv(C, block_c)
    wanted = max(1, min(tiles, triton.cdiv(WANTED_PROGRAMS, max(1, programs))))
    tiles_per_split = triton.cdiv(tiles, wanted)
    splits = triton.cdiv(tiles, tiles_per_split)
    parts = torch.empty((N * splits, 3, C), dtype=scale.dtype, device=grad.device)
    launch(
        partial_conv_epilogue_backward_kernel, programs * splits, grad, y, raw, scale, updated,
        norm_weight, grad_raw, parts, C, H * W, splits, tiles, tiles_per_split,
        int(scale.shape[0] > 1), SLOPE=negative_slope, MASK_OUTPUT=mask_output,
        CHANNELS_LAST=is_channels_last(grad), BLOCK_C=block_c, BLOCK_P=block_p,
    )  # fmt: skip
    launch(
        partial_conv_epilogue_backward_merge_kernel, triton.cdiv(3 * C, 32), parts, sums,
        N * splits, 3 * C, BLOCK_C=32, BLOCK_PARTS=32,
    )  # fmt: skip
    return grad_raw, sums


def ahead_of_time_variants():
    """Every variant that the launchers run for layers of the published networks."""
    with recorded() as variants:
        for x in variant_tensors():
            _all_launches(x)
    return unique(variants)


def _all_launches(x) -> None:
    N, C, H, W = x.shape
    one = x.new_empty((N, 1, H, W))
    # Of all channels but the last, and of the last.
    groups = [C - 1, 1] if C > 1 else [1]
    split = x.new_empty((N, len(groups), H, W))
    for size in (3, 5, 7):
        window = ([size, size], [1, 1], [size // 2, size // 2], [1, 1], [H, W])
        for ratio, bias in ((True, True), (True, False), (False, True)):
            mask_window(one, [], *window, ratio, bias, 1e-8)
        mask_window(x, [], *window, True, True, 1e-8)
        scale, updated = mask_window(split, groups, *window, False, True, 1e-8)
    for mask, channels in ((one, []), (x, []), (split, groups)):
        mask_product(x, mask, channels)
    bias = scale.new_empty((C,))
    for terms in ((bias, None, None, 1.0), (None, bias, bias, 0.0), (bias, bias, bias, 0.2)):
        partial_conv_epilogue(x, scale, updated, *terms, False)
    partial_conv_epilogue(x, scale, updated, None, None, None, 1.0, True)
    for y, raw, norm_weight, slope, mask_output in (
        (None, None, None, 1.0, False), (x, None, None, 0.0, False), (x, None, bias, 0.2, True),
        (None, x, bias, 1.0, False), (x, x, bias, 0.0, True),
    ):  # fmt: skip
        partial_conv_epilogue_backward(x, y, raw, scale, updated, norm_weight, slope, mask_output)
