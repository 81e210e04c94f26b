"""Partial convolution as published, op by op (arXiv 1804.07723), and up-sampling with convolution.

The mask is convolved with ones (of all channels where it has all), the input multiplied by it, the
bias taken out of the convolution, the ratio applied, the bias added and the holes set to 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PartialConv2d(nn.Conv2d):
    """y of a mask (N,1,H,W), or (N,Ci,H,W) with multi_channel."""

    def __init__(self, *args: int, multi_channel: bool = False, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        self.multi_channel = multi_channel

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            shape = self.weight.shape if self.multi_channel else (1, 1, *self.kernel_size)
            ones = torch.ones(shape, dtype=x.dtype, device=x.device)
            s = F.conv2d(mask, ones, None, self.stride, self.padding, self.dilation)
            updated = s.clamp(0, 1)
            # float16 would round the published 1e-8 to 0
            ratio = ones[0].numel() / (s + (1e-8 if x.dtype != torch.float16 else 1e-6)) * updated
        raw = super().forward(x * mask)
        bias = self.bias.view(1, -1, 1, 1)
        return ((raw - bias) * ratio + bias) * updated


class UpsampleConv2d(nn.Conv2d):
    """Nearest up-sampling by two, then a convolution that keeps the size."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
