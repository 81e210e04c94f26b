"""Cosine errors of codes, and the objective of fitting one photo outside an edit."""

from collections.abc import Iterable
from typing import Any

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
    return torch.stack([_MeanSquare.apply(value) for value in maps]).sum()


class _MeanSquare(torch.autograd.Function):
    """Of all elements: one pass forward and one back, where autograd's own takes seven."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        flat = x.flatten()
        return flat.dot(flat) / x.numel()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (grad * (2 / x.numel()))
