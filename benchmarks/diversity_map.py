"""Cases of the hard diversity map: one large map, and the six of a PD-GAN generator's forward."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import torchext

from .baselines import diversity_map as baseline
from .harness import Case, Problem
from .masks import irregular_hole

GENERATOR = ((2, 3, 4), (3, 3, 8), (4, 3, 16), (5, 3, 32), (6, 5, 64), (7, 5, 128))
CASES = [
    Case("diversity_map", (1, 1, 256, 256)),
    Case("six diversity_maps", (1, 1, 256, 256)),
]
HEADLINE = CASES[1:]
SCALING = [Case("diversity_map", (1, 1, size, size)) for size in (32, 64, 128, 256, 512)]
DIRECTIONS = ("forward",)  # the map has no gradient


class Ours(nn.Module):
    def __init__(self, maps: Sequence[tuple[int, int, int, int]]) -> None:
        super().__init__()
        self.steps, self.windows = [m[0] for m in maps], [m[1] for m in maps]
        self.sizes = [(m[2], m[3]) for m in maps]

    def forward(self, mask: Tensor) -> Tensor:
        maps = torchext.diversity_map(mask, self.steps, self.windows, size=self.sizes)
        return torch.cat([part.flatten() for part in maps]) if len(maps) > 1 else maps[0].flatten()


def setup(case: Case, dtype: torch.dtype, device: str) -> Problem:
    N, _, H, W = case.shape
    maps = [(7, 5, H, W)]
    if case.op.startswith("six"):
        maps = [(n, k, size, size) for n, k, size in GENERATOR]
    known = torch.stack([torch.from_numpy(irregular_hole(H, W, seed=n)) for n in range(N)])
    mask = (1 - known[:, None].float()).to(device, dtype)
    published = baseline.HardMaps(maps).to(device, dtype)
    pixels = sum(N * height * width for _, _, height, width in maps)
    return Problem(published, Ours(maps), (mask,), torch.zeros(pixels, device=device, dtype=dtype))
