"""Cases of the whole SPADE layer on label maps of photographs: by their distinct windows.

Ours numbers the windows anew in every call, which the layers of a network share.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchext

from .baselines import modulated_layers as baseline
from .harness import Case, Problem
from .label_maps import PHOTOGRAPHS, segmented

CLASSES = 35
SHAPES = ((1, 128, 256, 256), (1, 256, 128, 128), (1, 512, 64, 64))
CASES = [
    Case(f"SPADE layer {name}", shape) for shape in SHAPES for name in (*PHOTOGRAPHS, "random")
]
HEADLINE = CASES[:1]
SCALING = [Case("SPADE layer astronaut", (1, 128, size, size)) for size in (32, 64, 128, 256)]


class Published(baseline.SPADE):
    def forward(self, x: Tensor, one_hot: Tensor, labels: Tensor) -> Tensor:
        return super().forward(x, one_hot)


class Ours(torchext.nn.SPADE):
    def forward(self, x: Tensor, one_hot: Tensor, labels: Tensor) -> Tensor:
        return super().forward(x, labels.clone())  # which no layer has seen


def setup(case: Case, dtype: torch.dtype, device: str) -> Problem:
    N, C, H, W = case.shape
    generator = torch.Generator().manual_seed(0)
    name = case.op.rpartition(" ")[2]
    if name == "random":
        labels = torch.randint(CLASSES, (N, H, W), generator=generator)
    else:
        labels = torch.from_numpy(segmented(H, W, CLASSES, name)).expand(N, H, W).contiguous()
    published, ours = Published("instance", C, CLASSES), Ours("spadeinstance3x3", C, CLASSES)
    ours.load_state_dict(published.state_dict())
    one_hot = F.one_hot(labels, CLASSES).movedim(-1, 1).to(device, dtype).contiguous()
    x, grad = (torch.randn(case.shape, generator=generator).to(device, dtype) for _ in range(2))
    modules: tuple[nn.Module, ...] = (published.to(device, dtype), ours.to(device, dtype))
    return Problem(*modules, (x, one_hot, labels.to(device)), grad)
