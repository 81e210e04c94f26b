"""Cases of the convolution of 3x3 kernels: PyTorch's own layer against ours."""

import torch
from torch import nn

import torchext.nn

from .harness import Case, Problem

CHANNELS = {  # out channels by what a case's name stands for
    "Conv2d to 32": 32,
    "Conv2d to 64": 64,
    "Conv2d to 128": 128,
    "Conv2d to 256": 256,
    "Conv2d to 512": 512,
}
CASES = [
    Case("Conv2d to 32", (1, 32, 256, 256)),
    Case("Conv2d to 64", (1, 64, 256, 256)),
    Case("Conv2d to 64", (1, 64, 128, 128)),
    Case("Conv2d to 128", (1, 128, 128, 128)),
    Case("Conv2d to 256", (1, 128, 64, 64)),
    Case("Conv2d to 256", (1, 256, 64, 64)),
    Case("Conv2d to 512", (1, 512, 32, 32)),
]
HEADLINE = [CASES[1], CASES[5]]
SCALING = [Case("Conv2d to 64", (1, 64, size, size)) for size in (16, 32, 64, 128, 256)]


def setup(case: Case, dtype: torch.dtype, device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    sizes = (case.shape[1], CHANNELS[case.op], 3)
    published = nn.Conv2d(*sizes, padding=1).to(device, dtype)
    ours = torchext.nn.Conv2d(*sizes, padding=1).to(device, dtype)
    ours.load_state_dict(published.state_dict())

    def normal(channels: int) -> torch.Tensor:
        shape = (case.shape[0], channels, *case.shape[2:])
        x = torch.randn(shape, generator=generator).to(device, dtype)
        return x.contiguous(memory_format=case.memory_format)

    return Problem(published, ours, (normal(sizes[0]),), normal(sizes[1]))
