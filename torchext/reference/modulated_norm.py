"""Normalise, modulate, activate: the formula that SPADE, SPDNorm, AdaIN and pixel norm share."""

import torch
from torch import Tensor


def _per_element(value: Tensor | None) -> Tensor | None:
    """(N,C) to (N,C,1,1); maps as they are."""
    return value[:, :, None, None] if value is not None and value.dim() == 2 else value


def _statistics(x: Tensor, statistics: str, unbiased: bool, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps), (N or 1,C) or (N,1,H,W); empty what there is none of."""
    nothing = x.new_empty(0)
    if statistics == "none":
        return nothing, nothing
    if statistics == "rms":
        return nothing, torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)
    dims = {"instance": (2, 3), "batch": (0, 2, 3), "position": (1,)}[statistics]
    count = torch.ones_like(x).sum(dims, keepdim=True)
    mean = x.sum(dims, keepdim=True) / count.clamp(min=1)
    squares = (x - mean).square().sum(dims, keepdim=True)
    rstd = torch.rsqrt(squares / (count - int(unbiased)).clamp(min=1) + eps)
    if statistics == "position":
        return mean, rstd
    return mean[:, :, 0, 0], rstd[:, :, 0, 0]


def _normalised(x: Tensor, mean: Tensor | None, rstd: Tensor | None) -> Tensor:
    """Without a mean, or neither, where that is None or empty."""
    if mean is not None and mean.dim() > 1:
        x = x - _per_element(mean)
    if rstd is not None and rstd.dim() > 1:
        x = x * _per_element(rstd)
    return x


def _mapped(
    gamma: Tensor | None, beta: Tensor | None, index: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Maps of every element where they are rows of a table."""
    if index is None or gamma is None or beta is None:
        return gamma, beta
    gamma, beta = (table[index.long()].permute(0, 3, 1, 2) for table in (gamma, beta))
    return gamma, beta


def _modulated(
    normal: Tensor, gamma: Tensor | None, beta: Tensor | None, weight: Tensor | None, gain: str
) -> Tensor:
    if gamma is None or beta is None:
        return normal
    scale, shift = _per_element(gamma), _per_element(beta)
    if gain == "sigmoid":
        scale = torch.sigmoid(scale)
    if weight is not None:
        scale, shift = scale * weight, shift * weight
    return normal * (scale if gain == "plain" else 1 + scale) + shift


def modulated_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    index: Tensor | None,
    statistics: str,
    unbiased: bool,
    eps: float,
    gain: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = leaky(xn * scale + beta * weight), xn = (x - mean) / sqrt(variance + eps).

    scale = 1 + gamma * weight ("one_plus"), gamma * weight ("plain") or 1 + sigmoid(gamma) * weight
    ("sigmoid"); gamma and beta are rows of tables where there is an index. A `mean` and `rstd`
    (1,C) that are given are constants; else those that were found come with y.
    """
    dtype = x.dtype
    accumulate = torch.promote_types(dtype, torch.float32)
    x, gamma, beta, weight = (
        None if value is None else value.to(accumulate) for value in (x, gamma, beta, weight)
    )
    gamma, beta = _mapped(gamma, beta, index)
    found = x.new_empty(0), x.new_empty(0)
    if mean is None:
        mean, rstd = found = _statistics(x, statistics, unbiased, eps)
    y = _modulated(_normalised(x, mean, rstd), gamma, beta, weight, gain)
    return torch.where(y > 0, y, slope * y).to(dtype), *found


def modulated_norm_backward_sums(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    index: Tensor | None,
    gain: str,
    slope: float,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums (2,1,C) over the batch of g and g * xn, with g the gradient of xn; those of the maps.

    Of rows of a table the gradients of every element. None of an element's beta where that is grad.
    """
    if beta is None:  # where it is not needed: y is linear in it
        beta = gamma
    gamma, beta = _mapped(gamma, beta, index)
    normal = _normalised(x.to(mean.dtype), mean, rstd)
    maps = {"gamma": gamma, "beta": beta, "weight": weight}
    there = {key: value.to(mean.dtype) for key, value in maps.items() if value is not None}

    def formula(normal: Tensor, there: dict[str, Tensor]) -> Tensor:
        return _modulated(normal, *(there.get(key) for key in maps), gain)

    _, pullback = torch.func.vjp(formula, normal, there)
    g, gradients = pullback(_behind_activation(grad, y, slope).to(mean.dtype))
    sums = torch.stack([value.sum((0, 2, 3)) for value in (g, g * normal)]).unsqueeze(1)
    if not weight_gradient:
        gradients.pop("weight", None)
    if gamma is not None and gamma.shape == x.shape and weight is None and slope == 1:
        gradients.pop("beta", None)
    return sums, *(
        mean.new_empty(0)
        if key not in gradients
        else gradients[key].to(x.dtype if value.shape == x.shape else value.dtype)
        for key, value in maps.items()
    )


def modulated_norm_backward_apply(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor,
    gamma: Tensor | None,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    index: Tensor | None,
    mean_sums: Tensor,
    gain: str,
    slope: float,
) -> Tensor:
    """x's gradient: (g - mean g - xn * mean of g xn) * rstd, g and xn as above."""
    gamma, _ = _mapped(gamma, gamma, index)
    normal = _normalised(x.to(mean.dtype), mean, rstd)
    maps = [None if value is None else value.to(mean.dtype) for value in (gamma, weight)]
    shift = None if maps[0] is None else torch.zeros_like(maps[0])

    def formula(normal: Tensor) -> Tensor:
        return _modulated(normal, maps[0], shift, maps[1], gain)

    _, pullback = torch.func.vjp(formula, normal)
    (g,) = pullback(_behind_activation(grad, y, slope).to(mean.dtype))
    first, second = (_per_element(value) for value in mean_sums)
    return ((g - first - normal * second) * _per_element(rstd)).to(x.dtype)


def _behind_activation(grad: Tensor, y: Tensor | None, slope: float) -> Tensor:
    return grad if y is None else torch.where(y > 0, grad, slope * grad)


def segmented_sum(
    values: Tensor, index: Tensor, order: Tensor | None, offsets: Tensor | None, rows: int
) -> Tensor:
    """Sums (rows,C) of the values (N,C,H,W) whose pixel has that index; -1 is of none.

    `order` and `offsets`, the pixels sorted by index, say the same once more.
    """
    flat = values.to(torch.promote_types(values.dtype, torch.float32)).movedim(1, -1).flatten(0, 2)
    inside = index.flatten() >= 0
    sums = flat.new_zeros((rows, values.shape[1]))
    return sums.index_add(0, index.flatten()[inside].long(), flat[inside])
