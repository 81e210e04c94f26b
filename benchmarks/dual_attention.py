"""Cases of dual attention: the end of DAGAN at 256 x 256."""

import torch

import torchext.nn

from .baselines import dual_attention as baseline
from .harness import Case, Problem

SHAPE = (1, 64, 256, 256)
CASES = [Case("DualAttention", SHAPE), Case("DualAttention", SHAPE, "channels_last")]
HEADLINE = CASES[:1]
SCALING = [Case("DualAttention", (1, 64, size, size)) for size in (32, 64, 128, 256, 512)]


def setup(case: Case, dtype: torch.dtype, device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    ours = torchext.nn.DualAttention(case.shape[1]).to(device, dtype)

    def normal() -> torch.Tensor:
        x = torch.randn(case.shape, generator=generator).to(device, dtype)
        return x.contiguous(memory_format=case.memory_format)

    return Problem(baseline.DualAttention(ours), ours, (normal(), normal()), normal())
