"""Normalise, modulate, activate: the formula that SPADE, SPDNorm, AdaIN and pixel norm share."""

from collections.abc import Callable

import torch
from torch import Tensor


def _identity(value: Tensor) -> Tensor:
    return value


def _normalised(
    x: Tensor, statistics: str, unbiased: bool, eps: float, all_reduce: Callable[[Tensor], Tensor]
) -> Tensor:
    if statistics == "none":
        return x
    if statistics == "rms":
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)
    dims = {"instance": (2, 3), "batch": (0, 2, 3), "position": (1,)}[statistics]
    count = all_reduce(torch.ones_like(x).sum(dims, keepdim=True))
    mean = all_reduce(x.sum(dims, keepdim=True)) / count.clamp(min=1)
    squares = all_reduce((x - mean).square().sum(dims, keepdim=True))
    return (x - mean) * torch.rsqrt(squares / (count - int(unbiased)).clamp(min=1) + eps)


def _per_element(value: Tensor | None) -> Tensor | None:
    """(N,C) to (N,C,1,1); maps as they are."""
    return value[:, :, None, None] if value is not None and value.dim() == 2 else value


def modulated_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    weight: Tensor | None = None,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    *,
    statistics: str = "instance",
    unbiased: bool = False,
    eps: float = 1e-5,
    gain: str = "one_plus",
    slope: float = 1.0,
    all_reduce: Callable[[Tensor], Tensor] = _identity,
) -> Tensor:
    """y = leaky(xn * scale + beta * weight), xn = (x - mean) / sqrt(variance + eps).

    scale = 1 + gamma * weight ("one_plus"), gamma * weight ("plain") or 1 + sigmoid(gamma) * weight
    ("sigmoid"). A `mean` and `rstd` (1,C) that are given are constants. `all_reduce` sums a tensor
    over processes.
    """
    dtype = x.dtype
    accumulate = torch.promote_types(dtype, torch.float32)
    x, gamma, beta, weight = (
        None if value is None else value.to(accumulate)
        for value in (x, _per_element(gamma), _per_element(beta), weight)
    )
    if mean is None:
        normal = _normalised(x, statistics, unbiased, eps, all_reduce)
    else:
        normal = (x - _per_element(mean)) * _per_element(rstd)
    if gamma is not None:
        scale = torch.sigmoid(gamma) if gain == "sigmoid" else gamma
        if weight is not None:
            scale, beta = scale * weight, beta * weight
        normal = normal * (scale if gain == "plain" else 1 + scale) + beta
    return torch.where(normal > 0, normal, slope * normal).to(dtype)
