"""Modulated norms as published, op by op: behind the convolutions that make their maps.

SPDNorm and its hard map: PD-GAN (CVPR 2021); SPADE (CVPR 2019). gamma and beta are parameters here,
so that the layers' convolutions do not hide what is compared.
"""

import torch
from torch import Tensor, nn


class SPDNormCore(nn.Module):
    """x (N,C,H,W), weight (N,1,H,W)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(shape))
        self.beta = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        mean = x.mean(dim=1, keepdim=True)
        std = x.var(dim=1, keepdim=True).add(1e-5).sqrt()
        normalized = (x - mean) / std
        return normalized * (1 + self.gamma * weight) + self.beta * weight


class SPADECore(nn.Module):
    """x (N,C,H,W)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(shape[1], affine=False)
        self.gamma = nn.Parameter(torch.zeros(shape))
        self.beta = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * (1 + self.gamma) + self.beta
