"""The last step of a convolution of an up-sampled image by phases, in Triton.

y[2i + a, 2j + b] = phases[2a + b][i + offset_a, j + offset_b] + bias + addend. interleave_phases
reads the phases (and the addend) and writes y in one launch, 2T (3T), the floor; its backward reads
the gradient and writes the phases' in one launch, 2T, the floor. Grid: one program per BLOCK
elements of what is written.
"""

import itertools

import torch
import triton
import triton.language as tl

from .common import INTERPRETED, accumulated, is_channels_last, launch, recorded, unique


@triton.jit
def _place(index, C, H, W, CHANNELS_LAST: tl.constexpr):
    """Image, channel, row and column of an element."""
    if CHANNELS_LAST:
        pixel = index // C
        n, c, row, column = pixel // W // H, index % C, pixel // W % H, pixel % W
    else:
        plane = index // W // H
        n, c, row, column = plane // C, plane % C, index // W % H, index % W
    return n, c, row, column


@triton.jit
def _index(n, c, row, column, C, H, W, CHANNELS_LAST: tl.constexpr):
    if CHANNELS_LAST:
        result = ((n * H + row) * W + column) * C + c
    else:
        result = ((n * C + c) * H + row) * W + column
    return result


@triton.jit
def interleave_phases_kernel(
    phases, bias, addend, y, elements, C, h, w, H, W,
    ROW: tl.constexpr, COLUMN: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROW, COLUMN: the offsets of odd rows and columns; those of even ones are 0."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    n, c, row, column = _place(at, C, H, W, CHANNELS_LAST)
    channel = (2 * (row % 2) + column % 2) * C + c
    source = _index(n, channel, row // 2 + row % 2 * ROW, column // 2 + column % 2 * COLUMN, 4 * C,
                    h, w, CHANNELS_LAST)  # fmt: skip
    value = accumulated(tl.load(phases + source, mask=inside, other=0.0))
    if bias is not None:
        value += tl.load(bias + c, mask=inside, other=0.0)
    if addend is not None:
        value += accumulated(tl.load(addend + at, mask=inside, other=0.0))
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def interleave_phases_backward_kernel(
    grad, phases, elements, C, h, w, H, W,
    ROW: tl.constexpr, COLUMN: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    n, channel, row, column = _place(at, 4 * C, h, w, CHANNELS_LAST)
    a, b = channel // C // 2, channel // C % 2
    to_row, to_column = 2 * (row - a * ROW) + a, 2 * (column - b * COLUMN) + b
    taken = inside & (to_row >= 0) & (to_row < H) & (to_column >= 0) & (to_column < W)
    source = _index(n, channel % C, to_row, to_column, C, H, W, CHANNELS_LAST)
    tl.store(phases + at, tl.load(grad + source, mask=taken, other=0.0), mask=inside)


def _empty(like, N, C, H, W):
    if is_channels_last(like):
        return like.new_empty((N, H, W, C)).permute(0, 3, 1, 2)
    return like.new_empty((N, C, H, W))


BLOCK = 16384 if INTERPRETED else 1024


def interleave_phases(phases, bias, addend, offsets):
    """The phases in their places, + bias + addend."""
    N, channels, h, w = phases.shape
    C, H, W = channels // 4, 2 * (h - max(offsets[:2])), 2 * (w - max(offsets[2:]))
    y = _empty(phases, N, C, H, W)
    launch(
        interleave_phases_kernel, triton.cdiv(y.numel(), BLOCK), phases, bias, addend, y,
        y.numel(), C, h, w, H, W, ROW=offsets[1], COLUMN=offsets[3],
        CHANNELS_LAST=is_channels_last(phases), BLOCK=BLOCK,
    )  # fmt: skip
    return y


def interleave_phases_backward(grad, offsets, height, width):
    """The phases' gradient; 0 where no output takes them."""
    N, C, H, W = grad.shape
    phases = _empty(grad, N, 4 * C, height, width)
    launch(
        interleave_phases_backward_kernel, triton.cdiv(phases.numel(), BLOCK), grad, phases,
        phases.numel(), C, height, width, H, W, ROW=offsets[1], COLUMN=offsets[3],
        CHANNELS_LAST=is_channels_last(grad), BLOCK=BLOCK,
    )  # fmt: skip
    return phases


def ahead_of_time_variants():
    """Every variant that the launchers run, for 3x3 and 5x5 kernels."""
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    formats = (torch.contiguous_format, torch.channels_last)
    with recorded() as variants:
        for dtype, layout, offset in itertools.product(dtypes, formats, (0, 1)):
            offsets = [0, offset, 0, offset]
            phases = torch.empty(
                (2, 64, 32 + offset, 32 + offset), dtype=dtype, device="meta", memory_format=layout
            )
            y = interleave_phases(phases, None, None, offsets)
            double = dtype == torch.float64
            bias = phases.new_empty((16,), dtype=torch.float64 if double else torch.float32)
            interleave_phases(phases, bias, y, offsets)
            interleave_phases_backward(y, offsets, *phases.shape[2:])
    return unique(variants)
