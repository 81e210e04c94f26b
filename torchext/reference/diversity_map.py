"""PD-GAN's maps of how far each pixel trusts the prior: "PD-GAN" (CVPR 2021), section 3."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .region_norm import region_labels


def diversity_maps(
    labels: Tensor,
    steps: Sequence[int],
    windows: Sequence[int],
    heights: Sequence[int],
    widths: Sequence[int],
    base: float,
    dtype: torch.dtype,
) -> Tensor:
    """Known pixels 1; ring i of `steps` dilations by a window base^-i; the rest base^-steps.

    The maps (N,1,height,width) of all sizes, one behind the other in one dimension.
    """
    maps = []
    for rings, window, height, width in zip(steps, windows, heights, widths, strict=True):
        known = (region_labels(labels, height, width, 2, False) != 0).to(dtype)
        result = known
        for ring in range(1, rings + 1):
            dilated = F.max_pool2d(known, window, stride=1, padding=window // 2)
            result = result + (dilated - known) * base**-ring
            known = dilated
        maps.append((result + (1 - known) * base**-rings).flatten())
    return torch.cat(maps)


def soft_diversity_map(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where known, else sigmoid(logits)."""
    soft = torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    return torch.where(labels != 0, 1, soft).to(logits.dtype)


def soft_diversity_map_backward(grad: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the logits, from the map y itself."""
    return torch.where(labels != 0, 0, grad * y * (1 - y))
