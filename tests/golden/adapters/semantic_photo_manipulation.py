"""Semantic photo manipulation: ProGAN's blocks, around the package's pixel norm.

Stand-ins with the published keys, for the normalisation's sake: pixel norm, nearest up-sampling, a
convolution with a run-time scale, bias, leaky ReLU. Scale, bias and activation are a modulation.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchext
from torchext.nn import PixelNorm

from .base import Adapter


class WScale(nn.Module):
    def __init__(self, scale: float, channels: int, slope: float | None) -> None:
        super().__init__()
        self.scale = scale
        self.slope = slope
        self.b = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.b.expand(x.shape[0], -1)
        scale = torch.full_like(bias, self.scale)
        return torchext.modulated_norm(
            x, scale, bias, statistics="none", gain="plain", activation=self.slope
        )


class NormConvBlock(nn.Module):
    upscale = 1

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int) -> None:
        super().__init__()
        self.norm = PixelNorm()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)
        scale = math.sqrt(2 / in_channels) / kernel_size
        self.wscale = WScale(scale, out_channels, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.upscale > 1:
            x = F.interpolate(x, scale_factor=self.upscale, mode="nearest")
        return self.wscale(self.conv(x))


class NormUpscaleConvBlock(NormConvBlock):
    upscale = 2


class OutputConvBlock(nn.Module):
    def __init__(self, in_channels: int, tanh: bool = False) -> None:
        super().__init__()
        self.norm = PixelNorm()
        self.conv = nn.Conv2d(in_channels, 3, 1, bias=False)
        self.wscale = WScale(1 / math.sqrt(in_channels), 3, None)
        self.clamp = tanh

    def forward(self, x: Tensor) -> Tensor:
        y = self.wscale(self.conv(self.norm(x)))
        return y.clamp(-1, 1) if self.clamp else y


class OutputAdapter(Adapter):
    """A remark stands behind the call."""

    def outputs(self, module, golden, inputs):
        return {"y": module(inputs["x"])}


ADAPTERS: dict[str, Adapter] = {
    "NormConvBlock": Adapter(NormConvBlock, "block"),
    "NormUpscaleConvBlock": Adapter(NormUpscaleConvBlock, "block"),
    "OutputConvBlock": OutputAdapter(OutputConvBlock),
}
