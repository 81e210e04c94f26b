"""Cases of a handful of numbers: what a call costs before its kernel does any work.

On a GPU, whose kernels take microseconds, small layers are bound by this.
"""

from dataclasses import replace

import torch

from . import modulated_norm, partial_conv, region_norm
from .harness import Case, Problem

SHAPE = (1, 4, 4, 4)
# The op whose set-up a case takes, by the case's name.
OPS = {
    "overhead RN_B": (region_norm, "RN_B"),
    "overhead PartialConv": (partial_conv, "PartialConv k3 25% strokes"),
    "overhead UpsampleConv": (partial_conv, "UpsampleConv k3 to 32"),
    "overhead SPADE": (modulated_norm, "SPADE"),
    "overhead SPDNorm": (modulated_norm, "SPDNorm"),
}
CASES = [Case(name, SHAPE) for name in OPS]
HEADLINE: list[Case] = []  # `--filter overhead` asks for them
SCALING: list[Case] = []


def setup(case: Case, dtype: torch.dtype, device: str) -> Problem:
    op, name = OPS[case.op]
    return op.setup(replace(case, op=name), dtype, device)
