"""Cases of the statistics of all filters: NeuralHaircut's orientation of a grey picture, 0 to 255.

Band pass, 180 filters, and the variance from all their responses. The floor of the table is a copy
of the image; the arithmetic's own is far above it: about 5000 multiplications and additions per
pixel with every symmetry of the bank, and 1100 for the variance. Where two filters nearly tie,
rounding decides from which of them distances count: these pixels are not compared.
"""

import math

import torch
from torch import Tensor, nn

import torchext

from .baselines import oriented_filter_statistics as baseline
from .harness import Case, Problem

CASES = [Case("NeuralHaircut", (1, 1, 96, 96)), Case("NeuralHaircut", (1, 1, 512, 512))]
HEADLINE = CASES[:1]
SCALING = [Case("NeuralHaircut", (1, 1, size, size)) for size in (64, 128, 256)]
DIRECTIONS = ("forward",)  # the published form has no other


class Variance(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("bank", torchext.gabor_kernel_bank(baseline.COUNT, dtype=dtype))
        steps = torch.arange(baseline.COUNT) / baseline.COUNT
        self.register_buffer("angles", (steps.half() * torch.tensor(math.pi).half()).float())

    def forward(self, grey: Tensor, clear: Tensor) -> Tensor:
        image = torchext.difference_of_gaussians(grey)
        _, _, variance = torchext.oriented_filter_statistics(
            image, self.bank, angles=self.angles, border="wrap"
        )
        return torch.where(clear > 0, variance.to(grey.dtype), 0)


def setup(case: Case, dtype: torch.dtype, device: str) -> Problem:
    """Both forms on the same seeded picture of noise."""
    generator = torch.Generator().manual_seed(0)
    grey = 255 * torch.rand(case.shape, generator=generator)
    ours = Variance(torch.float64 if dtype == torch.float64 else torch.float32)
    bank = torchext.gabor_kernel_bank(baseline.COUNT, dtype=torch.float64)
    image = torchext.difference_of_gaussians(grey.to(dtype).double())
    half = bank.shape[-1] // 2
    wrapped = nn.functional.pad(image, [half] * 4, mode="circular")
    best, second = (
        torchext.reference.filter_responses(wrapped, bank)[..., half:-half, half:-half]
        .abs().topk(2, dim=1).values.split(1, dim=1)
    )  # fmt: skip
    tie = 1e-4 if dtype in (torch.float32, torch.float64) else 0.1
    clear = (best - second > tie * best).to(dtype)
    inputs = (grey.to(device, dtype), clear.to(device))
    return Problem(
        baseline.Variance().to(device), ours.to(device), inputs, torch.zeros_like(inputs[0])
    )
