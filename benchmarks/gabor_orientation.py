"""Cases of the oriented filters: 32 Gabor filters of 17x17 over a grey picture of 0 to 255.

The floor of the table is a copy of the image; the arithmetic's own is far above it: 1177
multiplications and additions per pixel with every symmetry of the bank. Where two filters nearly
tie, rounding decides through which of them a gradient goes: no gradient comes in there.
"""

import torch
from torch import Tensor, nn

import torchext

from .baselines import gabor_orientation as baseline
from .harness import Case, Problem

CASES = [
    Case("Gabor", (1, 1, 512, 512)),
    Case("Gabor", (1, 1, 1024, 1024)),
]
HEADLINE = CASES[:1]
SCALING = [Case("Gabor", (1, 1, size, size)) for size in (64, 128, 256, 512, 1024)]


class GaborStrength(nn.Module):
    """Ours, with the index that the published form computes too."""

    def __init__(self, filters: Tensor) -> None:
        super().__init__()
        self.register_buffer("filters", filters)

    def forward(self, grey: Tensor) -> Tensor:
        _, strength = torchext.oriented_filter_max(grey, self.filters)
        return strength.to(grey.dtype)


def setup(case: Case, dtype: torch.dtype, device: str) -> Problem:
    """Both forms with the same bank, on the same seeded picture of soft noise."""
    generator = torch.Generator().manual_seed(0)
    grey = 255 * torch.rand(case.shape, generator=generator)
    grad = torch.randn(case.shape, generator=generator)
    bank = torchext.gabor_bank(dtype=torch.float64)
    if dtype != torch.float64:
        bank = bank.float()
    responses = torchext.reference.filter_responses(grey.to(bank.dtype), bank)
    best, second = responses.relu().topk(2, dim=1).values.split(1, dim=1)
    tie = 1e-4 if dtype in (torch.float32, torch.float64) else 0.1
    grad = torch.where(best - second > tie * best, grad, 0)
    published = baseline.GaborStrength().to(device, dtype)
    ours = GaborStrength(published.filters[:, 0])
    return Problem(published, ours, (grey.to(device, dtype),), grad.to(device, dtype))
