"""Nearest up-sampling by two, then a convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, addend: Tensor | None = None
) -> Tensor:
    """conv(up(x)) + bias + addend, zero padded to keep the size; kernels of odd size."""
    padding = [size // 2 for size in weight.shape[2:]]
    y = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=padding)
    return y if addend is None else y + addend


def interleave_phases(
    phases: Tensor, bias: Tensor | None, addend: Tensor | None, offsets: list[int]
) -> Tensor:
    """y[n, c, 2i + a, 2j + b] = phases[n, 2a + b, c, i + offsets[a], j + offsets[2 + b]].

    phases: (N,4*C,h,w), phase outermost; offsets of even and odd rows, of even and odd columns.
    The result has 2 (h - max offset) rows, columns alike. Then + bias (C,) + addend.
    """
    N, channels, h, w = phases.shape
    C = channels // 4
    height, width = h - max(offsets[:2]), w - max(offsets[2:])
    parts = phases.view(N, 2, 2, C, h, w)
    rows = []
    for a in range(2):
        top = offsets[a]
        row = [
            parts[:, a, b, :, top : top + height, left : left + width]
            for b, left in enumerate(offsets[2:])
        ]
        rows.append(torch.stack(row, dim=-1).flatten(-2))
    y = torch.stack(rows, dim=-2).flatten(-3, -2)
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    if bias is not None:
        y = y + bias.view(1, -1, 1, 1)
    if addend is not None:
        y = y + addend
    return y.to(phases.dtype)


def interleave_phases_backward(grad: Tensor, offsets: list[int], height: int, width: int) -> Tensor:
    """The gradient of the phases (N,4*C,height,width)."""
    N, C = grad.shape[:2]

    def formula(phases: Tensor) -> Tensor:  # linear: where it is taken does not matter
        return interleave_phases(phases, None, None, offsets)

    _, pullback = torch.func.vjp(formula, grad.new_zeros((N, 4 * C, height, width)))
    return pullback(grad)[0]
