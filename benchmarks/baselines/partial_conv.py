"""Partial convolution as published, op by op (arXiv 1804.07723), and up-sampling with convolution.

The mask is convolved with ones (of all channels where it has all), the input multiplied by it, the
bias taken out of the convolution, the ratio applied, the bias added and the holes set to 0.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PartialConv2d(nn.Conv2d):
    """y of a mask (N,1,H,W), or (N,Ci,H,W) with multi_channel; and the mask with return_mask.

    Without a mask the last one's ratio is taken where the size is the same, as published.
    """

    def __init__(
        self, *args: int, multi_channel: bool = False, return_mask: bool = False, **kwargs: int
    ) -> None:
        super().__init__(*args, **kwargs)
        self.multi_channel = multi_channel
        self.return_mask = return_mask
        self.last_size: torch.Size | None = None

    def convolved(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        return super().forward(x)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        if mask is not None or self.last_size != x.shape:
            self.last_size = x.shape
            with torch.no_grad():
                shape = self.weight.shape if self.multi_channel else (1, 1, *self.kernel_size)
                ones = torch.ones(shape, dtype=x.dtype, device=x.device)
                if mask is None:
                    known = x.new_ones(x.shape if self.multi_channel else (1, 1, *x.shape[2:]))
                else:
                    known = mask
                s = F.conv2d(known, ones, None, self.stride, self.padding, self.dilation)
                self.updated = s.clamp(0, 1)
                # float16 would round the published 1e-8 to 0
                eps = 1e-8 if x.dtype != torch.float16 else 1e-6
                self.ratio = ones[0].numel() / (s + eps) * self.updated
        raw = self.convolved(x if mask is None else x * mask)
        if self.bias is None:
            y = raw * self.ratio
        else:
            bias = self.bias.view(1, -1, 1, 1)
            y = ((raw - bias) * self.ratio + bias) * self.updated
        return (y, self.updated) if self.return_mask else y


class PartialConv(nn.Module):
    """The widely used U-Net's layer; x and mask (N,Ci,H,W), 1 known -> y and mask (N,Co,Ho,Wo)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        shape = (in_channels, out_channels, kernel_size, stride, padding)
        self.input_conv = nn.Conv2d(*shape, bias=bias)
        self.mask_conv = nn.Conv2d(*shape, bias=False)
        nn.init.ones_(self.mask_conv.weight)
        self.mask_conv.weight.requires_grad_(False)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.input_conv(x * mask)
        if self.input_conv.bias is None:
            bias = torch.zeros_like(output)
        else:
            bias = self.input_conv.bias[None, :, None, None].expand_as(output)
        with torch.no_grad():
            s = self.mask_conv(mask)
        holes = s == 0
        output = (output - bias) / s.masked_fill(holes, 1.0) + bias
        output = output.masked_fill(holes, 0.0)
        return output, torch.ones_like(output).masked_fill(holes, 0.0)


class UpsampleConv2d(nn.Conv2d):
    """Nearest up-sampling by two, then a convolution that keeps the size."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
