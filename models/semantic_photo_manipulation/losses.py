"""Cosine errors of codes, and the objective of fitting one photo outside an edit."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-12


def cosine_error(a: Tensor, b: Tensor, *, root: bool = False) -> Tensor:
    """Mean over N, H and W of 1 - cosine similarity along the channels.

    Args:
        a, b: (N,C,H,W).
        root: of the square root at each location, which is in the published code but in none of its
            trainings.
    """
    error = 1 - F.cosine_similarity(a, b, dim=1, eps=EPSILON)
    return (error.clamp(min=0).sqrt() if root else error).mean()


def kept_l1(image: Tensor, photo: Tensor, keep: Tensor) -> Tensor:
    """Mean over all N * 3 * H * W entries of |image * keep - photo * keep|.

    Args:
        image, photo: (N,3,H,W).
        keep: (N or 1,1,H,W) in [0,1], 1 outside the edit; enters once, also where it is a fraction.
    """
    return ((image - photo) * keep).abs().mean()


def squared(maps: Iterable[Tensor]) -> Tensor:
    """Sum over maps of the mean square."""
    return torch.stack([value.square().mean() for value in maps]).sum()
