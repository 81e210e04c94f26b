"""Oriented filters as published, op by op: the orientation of MichiGAN (SIGGRAPH 2020).

One convolution with an output for each filter, negative responses to 0, the maximum over them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchext


class GaborStrength(nn.Module):
    """Each pixel's strongest response; the index is computed too, and not returned."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torchext.gabor_bank(dtype=torch.float64)[:, None])

    def forward(self, grey: Tensor) -> Tensor:
        responses = F.conv2d(grey, self.filters, padding=self.filters.shape[-1] // 2)
        responses = torch.where(responses < 0, torch.zeros_like(responses), responses)
        strength, _ = responses.max(dim=1, keepdim=True)
        return strength
