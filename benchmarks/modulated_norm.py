"""Cases of modulated normalisation: the cores of SPDNorm and SPADE, without their convolutions."""

import torch
from torch import Tensor, nn

import torchext

from .baselines import modulated_norm as baseline
from .harness import Case, Problem
from .masks import irregular_hole

CASES = [
    Case("SPDNorm", (1, 128, 128, 128)),
    Case("SPADE", (1, 128, 128, 128)),
    Case("SPDNorm", (1, 128, 128, 128), "channels_last"),
]
HEADLINE = CASES[:2]
SCALING = [
    Case(op, (1, 128, size, size)) for op in ("SPDNorm", "SPADE") for size in (16, 32, 64, 128, 256)
]


class Ours(nn.Module):
    """A core's maps as parameters, and the fused op."""

    def __init__(self, op: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.statistics = "position" if op == "SPDNorm" else "instance"
        self.gamma = nn.Parameter(torch.zeros(shape))
        self.beta = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return torchext.modulated_norm(
            x,
            self.gamma,
            self.beta,
            weight=weight,
            statistics=self.statistics,
            unbiased=self.statistics == "position",
        )


def setup(case: Case, dtype: torch.dtype, device: str) -> Problem:
    """Both forms of a core with the same maps, on the same seeded input."""
    N, _, H, W = case.shape
    generator = torch.Generator().manual_seed(0)

    def ready(value: Tensor) -> Tensor:
        value = value.to(device, dtype)
        return value.contiguous(memory_format=case.memory_format)

    x, grad = (ready(torch.randn(case.shape, generator=generator)) for _ in range(2))
    make = baseline.SPDNormCore if case.op == "SPDNorm" else baseline.SPADECore
    published, ours = make(case.shape), Ours(case.op, case.shape)
    for name in ("gamma", "beta"):
        value = ready(torch.randn(case.shape, generator=generator))
        for module in (published, ours):
            setattr(module, name, nn.Parameter(value.clone()))
    inputs: tuple[Tensor, ...] = (x,)
    if case.op == "SPDNorm":
        known = torch.stack([torch.from_numpy(irregular_hole(H, W, seed=n)) for n in range(N)])
        mask = 1 - known[:, None].float()
        inputs = (x, torchext.diversity_map(mask, 7, 5).to(device, dtype))
    return Problem(published, ours, inputs, grad)
