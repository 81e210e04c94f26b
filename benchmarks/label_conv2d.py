"""Cases of the label convolution: SPADE's first, 151 classes, on regions and on random labels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchext

from .baselines import label_conv2d as baseline
from .harness import Case, Problem

CLASSES, CHANNELS, KERNEL = 151, 128, 3
CASES = [
    Case("label_conv2d regions", (1, CLASSES, 256, 256)),
    Case("label_conv2d random", (1, CLASSES, 256, 256)),
]
HEADLINE = CASES[:1]
SCALING = [Case("label_conv2d regions", (1, CLASSES, size, size)) for size in (32, 64, 128, 256)]


class Ours(nn.Conv2d):
    def forward(self, scale: Tensor, one_hot: Tensor, labels: Tensor) -> Tensor:
        return torchext.label_conv2d(labels, self.weight * scale, self.bias)


def regions(N: int, H: int, W: int, generator: torch.Generator) -> Tensor:
    """(N,H,W): some forty smooth regions, as a segmented photograph has them."""
    noise = torch.randn(N, 40, 9, 9, generator=generator)
    return F.interpolate(noise, size=(H, W), mode="bicubic").argmax(dim=1) * 3


def setup(case: Case, dtype: torch.dtype, device: str) -> Problem:
    N, _, H, W = case.shape
    generator = torch.Generator().manual_seed(0)
    if case.op.endswith("random"):
        labels = torch.randint(0, CLASSES, (N, H, W), generator=generator)
    else:
        labels = regions(N, H, W, generator)
    one_hot = F.one_hot(labels, CLASSES).permute(0, 3, 1, 2).to(device, dtype).contiguous()
    published = baseline.OneHotConvolution(CLASSES, CHANNELS, KERNEL, padding=KERNEL // 2)
    ours = Ours(CLASSES, CHANNELS, KERNEL, padding=KERNEL // 2)
    ours.load_state_dict(published.state_dict())
    grad = torch.randn(N, CHANNELS, H, W, generator=generator).to(device, dtype)
    inputs = (torch.ones((), device=device, dtype=dtype), one_hot, labels.to(device))
    return Problem(published.to(device, dtype), ours.to(device, dtype), inputs, grad)
