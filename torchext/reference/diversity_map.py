"""PD-GAN's maps of how far each pixel trusts the prior: "PD-GAN" (CVPR 2021), section 3."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .region_norm import region_labels


def diversity_map(
    labels: Tensor,
    steps: int,
    window: int,
    height: int,
    width: int,
    base: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Known pixels 1; ring i of `steps` dilations by a window base^-i; the rest base^-steps."""
    known = (region_labels(labels, height, width) != 0).to(dtype)
    result = known
    for ring in range(1, steps + 1):
        dilated = F.max_pool2d(known, window, stride=1, padding=window // 2)
        result = result + (dilated - known) * base**-ring
        known = dilated
    return result + (1 - known) * base**-steps


def soft_diversity_map(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where known, else sigmoid(logits)."""
    soft = torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    return torch.where(labels != 0, 1, soft).to(logits.dtype)
