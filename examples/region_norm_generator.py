"""The generator of "Region Normalization for Image Inpainting" (AAAI 2020), accelerated."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.region_norm import RN_B, RN_L

from .before_and_after import compare


class Block(nn.Module):
    """A dilated residual block: the regions are found in the features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, dilation=2)
        self.norm1 = RN_L(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3)
        self.norm2 = RN_L(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.pad(x, (2, 2, 2, 2), mode="reflect"))
        y = F.relu(self.norm1(y))
        y = self.conv2(F.pad(y, (1, 1, 1, 1), mode="reflect"))
        return x + self.norm2(y)


class Generator(nn.Module):
    """RN-B where the mask is known, RN-L after."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 64, 7), RN_B(64)
        self.conv2, self.norm2 = nn.Conv2d(64, 128, 4, stride=2, padding=1), RN_B(128)
        self.conv3, self.norm3 = nn.Conv2d(128, 256, 4, stride=2, padding=1), RN_B(256)
        self.middle = nn.Sequential(*(Block(256) for _ in range(8)))
        self.decoder = nn.Sequential(
            nn.Conv2d(256, 512, 3, padding=1),
            nn.PixelShuffle(2),
            RN_L(128),
            nn.ReLU(),
            nn.Conv2d(128, 256, 3, padding=1),
            nn.PixelShuffle(2),
            RN_L(64),
            nn.ReLU(),
            nn.ReflectionPad2d(3),
            nn.Conv2d(64, 3, 7),
        )

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        x = F.pad(image, (3, 3, 3, 3), mode="reflect")
        x = F.relu(self.norm1(self.conv1(x), mask))
        x = F.relu(self.norm2(self.conv2(x), mask))
        x = F.relu(self.norm3(self.conv3(x), mask))
        return (torch.tanh(self.decoder(self.middle(x))) + 1) / 2


def inputs(size: int) -> tuple[Tensor, Tensor]:
    """A holed image, and its mask: 1 in the hole."""
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 4 : size // 2, size // 3 : 3 * size // 4] = 1
    return torch.rand(1, 3, size, size) * (1 - mask), mask


if __name__ == "__main__":
    compare(Generator, inputs)
