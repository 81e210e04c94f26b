"""A SPADE generator (CVPR 2019) with 35 classes, as one-hot maps, accelerated."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.modulated_layers import SPADE

from .before_and_after import compare

CLASSES = 35


class Block(nn.Module):
    """Two modulated convolutions beside a shortcut."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        middle = min(fin, fout)
        spectral = nn.utils.spectral_norm
        self.conv_0 = spectral(nn.Conv2d(fin, middle, 3, padding=1))
        self.conv_1 = spectral(nn.Conv2d(middle, fout, 3, padding=1))
        self.norm_0 = SPADE("instance", fin, CLASSES)
        self.norm_1 = SPADE("instance", middle, CLASSES)
        self.learned_shortcut = fin != fout
        if self.learned_shortcut:
            self.conv_s = spectral(nn.Conv2d(fin, fout, 1, bias=False))
            self.norm_s = SPADE("instance", fin, CLASSES)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x, labels)) if self.learned_shortcut else x
        main = self.conv_0(F.leaky_relu(self.norm_0(x, labels), 0.2))
        main = self.conv_1(F.leaky_relu(self.norm_1(main, labels), 0.2))
        return shortcut + main


class Generator(nn.Module):
    """From a thirty-second of the size, as published; ngf 64."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(CLASSES, 1024, 3, padding=1)
        self.head = Block(1024, 1024)
        self.middle = nn.ModuleList([Block(1024, 1024), Block(1024, 1024)])
        widths = (1024, 512, 256, 128, 64)
        self.up = nn.ModuleList(Block(wide, narrow) for wide, narrow in itertools.pairwise(widths))
        self.conv_img = nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, labels: Tensor) -> Tensor:
        x = self.fc(F.interpolate(labels, scale_factor=1 / 32))
        x = F.interpolate(self.head(x, labels), scale_factor=2.0)
        for block in self.middle:
            x = block(x, labels)
        for block in self.up:
            x = block(F.interpolate(x, scale_factor=2.0), labels)
        return torch.tanh(self.conv_img(F.leaky_relu(x, 0.2)))


def inputs(size: int) -> tuple[Tensor]:
    """Rectangles of classes, the later over the earlier, as a one-hot map."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(size, size, dtype=torch.long)
    for _ in range(60):
        top, left, height, width = (
            int(value * size) for value in torch.rand(4, generator=generator).mul(0.8)
        )
        value = torch.randint(CLASSES, (), generator=generator)
        labels[top : top + height // 2 + 8, left : left + width // 2 + 8] = value
    return (F.one_hot(labels, CLASSES).permute(2, 0, 1)[None].float(),)


if __name__ == "__main__":
    compare(Generator, inputs)
