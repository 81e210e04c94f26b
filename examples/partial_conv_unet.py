"""The U-Net of "Image Inpainting for Irregular Holes Using Partial Convolutions", accelerated.

As in the widely used code, masks have all channels at every layer, and are up-sampled and
concatenated with the features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.partial_conv import PartialConv

from .before_and_after import compare

ENCODER = ((64, 7), (128, 5), (256, 5), (512, 3), (512, 3), (512, 3), (512, 3))  # channels, kernel
DECODER = (512, 512, 512, 256, 128, 64)


class Stage(nn.Module):
    """Partial convolution, batch norm, activation."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, slope: float
    ) -> None:
        super().__init__()
        self.conv = PartialConv(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.slope = slope

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x, mask = self.conv(x, mask)
        return F.leaky_relu(self.norm(x), self.slope), mask


class UNet(nn.Module):
    """Seven levels; the first convolution has no norm, the last neither norm nor activation."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(channels for channels, _ in ENCODER)]
        self.first = PartialConv(3, 64, 7, 2, 3, bias=False)
        self.encoder = nn.ModuleList(
            Stage(widths[i], channels, kernel, 2, 0.0)
            for i, (channels, kernel) in enumerate(ENCODER)
            if i > 0
        )
        skips = widths[-2:0:-1]
        inputs = [widths[-1], *DECODER[:-1]]
        self.decoder = nn.ModuleList(
            Stage(below + skip, channels, 3, 1, 0.2)
            for below, skip, channels in zip(inputs, skips, DECODER, strict=True)
        )
        self.last = PartialConv(DECODER[-1] + 3, 3, 3, 1, 1, bias=True)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        skips = [(image, mask)]
        x, mask = self.first(image, mask)
        x = F.relu(x)
        for stage in self.encoder:
            skips.append((x, mask))
            x, mask = stage(x, mask)
        for stage in [*self.decoder, self.last]:
            x, mask = (F.interpolate(value, scale_factor=2.0) for value in (x, mask))
            features, known = skips.pop()
            x, mask = stage(torch.cat((x, features), 1), torch.cat((mask, known), 1))
        return x


def inputs(size: int) -> tuple[Tensor, Tensor]:
    """A holed image, and its mask of three channels: 1 known."""
    mask = torch.ones(1, 3, size, size)
    mask[..., size // 4 : size // 2, size // 3 : 3 * size // 4] = 0
    return torch.rand(1, 3, size, size) * mask, mask


if __name__ == "__main__":
    compare(UNet, inputs)
