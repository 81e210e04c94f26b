"""The convolution of a one-hot label map in Triton, as table look-ups (torchext.label_conv2d).

Formula: y[o] = bias[o] + sum over taps of weight[o, label under the tap, tap].

Passes over memory: forward writes y once (the floor); labels and weights come from the cache.
Backward reads the gradient once per tap and block of classes, from the cache while a slice fits, in
two launches: products of the gradient with the slice's one-hot labels, then (by PyTorch) the sum of
the slices. Grid: a program per image, block of channels and block of pixels; backward one per tap,
block of channels, block of classes and slice of the pixels. Nothing is atomic.
the slices. Grid: one program per image, block of channels and block of pixels; backward one per
tap, block of channels, block of classes and slice of the pixels. Nothing is atomic.
"""

import torch
import triton
import triton.language as tl

from .common import INTERPRETED, accumulate_dtype, accumulated, launch, recorded, unique

MAX_SLICES = 32


@triton.jit
def _labels_under(labels, image, pixel, dy, dx, H, W, inside, classes):
    """The label under a tap of each pixel, -1 where there is none."""
    y = pixel // W + dy
    x = pixel % W + dx
    valid = inside & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    label = tl.load(labels + image * H * W + y * W + x, mask=valid, other=-1)
    return tl.where((label >= 0) & (label < classes), label, -1)


@triton.jit
def label_conv2d_kernel(
    labels, weight, bias, out, channels, classes, H, W,
    SIZE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    P = H * W
    blocks, channel_blocks = tl.cdiv(P, BLOCK_P), tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    pixel = program % blocks * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    o = program // blocks % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    image = (program // (blocks * channel_blocks)).to(tl.int64)
    inside = pixel < P
    total = tl.zeros((BLOCK_C, BLOCK_P), weight.dtype.element_ty)
    if bias is not None:
        total += tl.load(bias + o, mask=o < channels, other=0.0)
    for dy in range(SIZE):
        for dx in range(SIZE):
            label = _labels_under(
                labels, image, pixel, dy - SIZE // 2, dx - SIZE // 2, H, W, inside, classes
            )
            place = (o * classes + label) * (SIZE * SIZE) + dy * SIZE + dx
            total += tl.load(weight + place, mask=(o < channels) & (label >= 0), other=0.0)
    place = (image * channels + o) * P + pixel
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside & (o < channels))


@triton.jit(do_not_specialize=("slice_blocks",))
def label_conv2d_backward_kernel(
    grad, labels, partials, channels, classes, elements, H, W, slice_blocks,
    SIZE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """partials (slices, O, classes, taps)."""
    P = H * W
    class_blocks, channel_blocks = tl.cdiv(classes, BLOCK_L), tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    tap = program % (SIZE * SIZE)
    program = program // (SIZE * SIZE)
    wanted = program % class_blocks * BLOCK_L + tl.arange(0, BLOCK_L)[None, :]
    program = program // class_blocks
    o = program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    part = program // channel_blocks
    dy = tap // SIZE - SIZE // 2
    dx = tap % SIZE - SIZE // 2
    total = tl.zeros((BLOCK_C, BLOCK_L), partials.dtype.element_ty)
    first = part.to(tl.int64) * slice_blocks * BLOCK_P
    for block in range(slice_blocks):
        index = first + block * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = index < elements
        image = index // P
        pixel = index - image * P
        label = _labels_under(labels, image, pixel, dy, dx, H, W, inside, classes)
        place = (image[None, :] * channels + o) * P + pixel[None, :]
        mask = inside[None, :] & (o < channels)
        g = accumulated(tl.load(grad + place, mask=mask, other=0.0))
        one_hot = (label[:, None] == wanted).to(g.dtype)
        total += tl.dot(g, one_hot, input_precision="ieee", out_dtype=g.dtype)
    place = ((part.to(tl.int64) * channels + o) * classes + wanted) * (SIZE * SIZE) + tap
    tl.store(partials + place, total, mask=(o < channels) & (wanted < classes))


def label_conv2d(labels, weight, bias, dtype, check_values):
    """(N,O,H,W) in `dtype`; a label that is no class adds nothing."""
    N, H, W = labels.shape
    channels, classes, size, _ = weight.shape
    if check_values and labels.numel():  # CPU tensors under the interpreter only
        wrong = labels[(labels < 0) | (labels >= classes)]
        if wrong.numel():
            raise ValueError(
                f"labels: expected classes from 0 to {classes - 1}, got {wrong[0].item()}"
            )
    out = torch.empty((N, channels, H, W), dtype=dtype, device=labels.device)
    block_c, block_p = (32, 2048) if INTERPRETED else (8, 128)
    programs = N * triton.cdiv(channels, block_c) * triton.cdiv(H * W, block_p)
    launch(
        label_conv2d_kernel, programs, labels, weight, bias, out, channels, classes, H, W,
        SIZE=size, BLOCK_C=block_c, BLOCK_P=block_p,
    )  # fmt: skip
    return out


def label_conv2d_backward(grad, labels, classes, kernel):
    """The gradient of the weight, (O,classes,k,k)."""
    N, H, W = labels.shape
    channels = grad.shape[1]
    block_p = 1024 if INTERPRETED else 16
    blocks = triton.cdiv(N * H * W, block_p)
    slice_blocks = max(triton.cdiv(blocks, 2 if INTERPRETED else MAX_SLICES), 1)
    slices = max(triton.cdiv(blocks, slice_blocks), 1)
    partials = torch.empty(
        (slices, channels, classes, kernel, kernel),
        dtype=accumulate_dtype(grad), device=grad.device,
    )  # fmt: skip
    tile = 16 if grad.dtype == torch.float64 else 32
    tiles = triton.cdiv(channels, tile) * triton.cdiv(classes, tile)
    launch(
        label_conv2d_backward_kernel, kernel * kernel * tiles * slices,
        grad, labels, partials, channels, classes, N * H * W, H, W, slice_blocks,
        SIZE=kernel, BLOCK_C=tile, BLOCK_L=tile, BLOCK_P=block_p,
    )  # fmt: skip
    return partials.sum(0)


def ahead_of_time_variants():
    """Every kernel size and dtype."""
    with recorded() as variants:
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            accumulate = torch.float64 if dtype == torch.float64 else torch.float32
            for shape, classes in (((2, 64, 64), 32), ((2, 9, 7), 5), ((1, 1, 1), 1)):
                labels = torch.empty(shape, dtype=torch.int32, device="meta")
                for kernel in (1, 3, 5, 7):
                    weight = torch.empty(
                        (64, classes, kernel, kernel), dtype=accumulate, device="meta"
                    )
                    bias = weight.new_empty((64,))
                    y = label_conv2d(labels, weight, bias, dtype, False)
                    label_conv2d(labels, weight, None, dtype, False)
                    label_conv2d_backward(y, labels, classes, kernel)
    return unique(variants)
