"""Partial convolution: arXiv 1804.07723 (irregular holes) and arXiv 1811.11718 (padding)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_window(
    mask: Tensor,
    mask_channels: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_size: Sequence[int],
    ratio: bool,
    bias: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """A convolution's scale and updated mask, (N,1,*output_size), from the mask's window sums.

    s = sum of the zero-padded mask over the window and over channels, mask channel i counted
    mask_channels[i] times (once each if empty). ratio: updated = clamp(s, 0, 1), scale = window /
    (s + eps) * updated, and once more * updated if there is a bias. Else: updated = [s != 0],
    scale = updated / s.
    """
    dimensions = len(kernel_size)
    mask = mask.to(torch.promote_types(mask.dtype, torch.float32))
    channels = list(mask_channels) or [1] * mask.shape[1]
    counts = torch.tensor(channels, dtype=mask.dtype, device=mask.device)
    total = (mask * counts.view(1, -1, *[1] * dimensions)).sum(dim=1, keepdim=True)
    border: list[int] = []
    for dim in reversed(range(dimensions)):
        needed = (output_size[dim] - 1) * stride[dim] + dilation[dim] * (kernel_size[dim] - 1) + 1
        border += [padding[dim], needed - padding[dim] - mask.shape[2 + dim]]
    convolve = F.conv3d if dimensions == 3 else F.conv2d
    ones = total.new_ones((1, 1, *kernel_size))
    s = convolve(F.pad(total, border), ones, stride=list(stride), dilation=list(dilation))
    if not ratio:
        known = s != 0
        return torch.where(known, 1 / torch.where(known, s, 1), 0), known.to(s.dtype)
    window = ones.numel() * sum(channels)
    updated = s.clamp(0, 1)
    scale = window / (s + eps) * updated
    return scale * updated if bias else scale, updated


def mask_product(x: Tensor, mask: Tensor, mask_channels: Sequence[int]) -> Tensor:
    """x * mask, 0 wherever the mask is 0 whatever x holds there.

    The mask has one channel, x's channels, or one for each run of mask_channels[i] channels of x.
    """
    if 1 < mask.shape[1] < x.shape[1]:
        repeats = torch.tensor(list(mask_channels), device=mask.device)
        mask = mask.repeat_interleave(repeats, dim=1, output_size=x.shape[1])
    return torch.where(mask == 0, 0, x * mask)


def partial_conv_epilogue(
    raw: Tensor,
    scale: Tensor,
    updated: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    negative_slope: float,
    mask_output: bool,
) -> Tensor:
    """raw * scale + bias * updated, 0 where updated is 0; then norm_weight * y + norm_bias and
    a leaky ReLU of that slope (1: none), then once more * updated if mask_output."""

    def per_channel(value: Tensor) -> Tensor:
        return value.view(1, -1, *[1] * (raw.dim() - 2))

    y = raw.to(scale.dtype) * scale
    if bias is not None:
        y = y + per_channel(bias) * updated
    y = torch.where(updated == 0, 0, y)
    if norm_weight is not None and norm_bias is not None:
        y = y * per_channel(norm_weight) + per_channel(norm_bias)
    if negative_slope != 1:
        y = torch.where(y > 0, y, y * negative_slope)
    if mask_output:
        y = mask_product(y, updated, [])
    return y.to(raw.dtype)


def partial_conv_epilogue_backward(
    grad: Tensor,
    y: Tensor | None,
    raw: Tensor | None,
    scale: Tensor,
    updated: Tensor,
    norm_weight: Tensor | None,
    negative_slope: float,
    mask_output: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient of the raw output, and three sums (3,C) over all but the channels.

    With g the gradient before mask_output and activation, those of g * updated, g and
    g * scale * raw (0 without raw): the gradients of the bias (times norm_weight), of norm_bias,
    and together of norm_weight (bias times the first, and the third). The sign of y is that of what
    the activation was given; without one y is not needed.
    """
    value = grad.to(scale.dtype)
    if mask_output:
        value = mask_product(value, updated, [])
    if y is not None:
        value = torch.where(y > 0, value, value * negative_slope)
    grad_raw = torch.where(updated == 0, 0, value * scale)
    terms = [mask_product(value, updated, []), value]
    if raw is not None:
        terms.append(torch.where(updated == 0, 0, grad_raw * raw))
    sums = [term.transpose(0, 1).flatten(1).sum(dim=1) for term in terms]
    if raw is None:
        sums.append(torch.zeros_like(sums[0]))
    if norm_weight is not None:
        grad_raw = grad_raw * norm_weight.view(1, -1, *[1] * (grad.dim() - 2))
    return grad_raw.to(grad.dtype), torch.stack(sums)


def partial_conv(
    x: Tensor,
    mask: Tensor | None,
    mask_channels: Sequence[int],
    scale: Tensor,
    updated: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    negative_slope: float,
    mask_output: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The zero-padded convolution of x * mask and its epilogue, of (N,Ci,H,W) or (N,Ci,D,H,W)."""
    if mask is not None:
        x = mask_product(x, mask, mask_channels)
    convolve = F.conv3d if x.dim() == 5 else F.conv2d
    raw = convolve(x, weight, None, list(stride), list(padding), list(dilation), groups)
    return partial_conv_epilogue(
        raw, scale, updated, bias, norm_weight, norm_bias, negative_slope, mask_output
    )
