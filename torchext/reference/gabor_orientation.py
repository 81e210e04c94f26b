"""Oriented filters: "MichiGAN: Multi-Input-Conditioned Hair Image Generation" (SIGGRAPH 2020).

The statistics are those of NeuralHaircut, GaussianHaircut, Im2Haircut and MonoHair.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def filter_responses(image: Tensor, bank: Tensor) -> Tensor:
    """Cross-correlation of (N,1,H,W) with (K,k,k), zero padded: (N,K,H,W)."""
    image = image.to(torch.promote_types(image.dtype, bank.dtype))
    return F.conv2d(image, bank[:, None], padding=bank.shape[-1] // 2)


def selected_response(image: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """The response of each pixel's filter, for an index (N,1,H,W)."""
    return filter_responses(image, bank).gather(1, index.long())


def oriented_filter_max(image: Tensor, bank: Tensor, absolute: bool) -> tuple[Tensor, Tensor]:
    """The first largest rectified response, and its filter's index, (N,1,H,W).

    Rectified by |r| if `absolute`, by max(r, 0) otherwise; the response given back keeps its sign
    if `absolute`. A NaN in a pixel's window gives NaN and filter 0.
    """
    responses = filter_responses(image, bank)
    if not absolute:
        responses = responses.relu()
    rectified = responses.detach().abs()
    strength, index = rectified.max(dim=1, keepdim=True)
    index = torch.where(strength.isnan(), 0, index)
    return responses.gather(1, index), index.to(torch.int32)


def oriented_filter_max_backward_image(grad: Tensor, index: Tensor, bank: Tensor) -> Tensor:
    """The image's gradient, of each pixel's filter."""

    def formula(image: Tensor) -> Tensor:  # linear: where it is taken does not matter
        return selected_response(image, bank, index)

    _, pullback = torch.func.vjp(formula, torch.zeros_like(grad))
    return pullback(grad)[0]


def oriented_filter_max_backward_bank(
    grad: Tensor, index: Tensor, image: Tensor, count: int, size: int
) -> Tensor:
    """The bank's gradient (count,size,size)."""

    def formula(bank: Tensor) -> Tensor:
        return selected_response(image, bank, index)

    _, pullback = torch.func.vjp(formula, grad.new_zeros((count, size, size)))
    return pullback(grad)[0]


def filter_distances(index: Tensor, positions: Tensor) -> Tensor:
    """How far each filter is from the position of a pixel's filter, around the circle: (N,K,H,W).

    In steps between filters, 0 to K / 2.
    """
    count = positions.shape[0]
    filters = torch.arange(count, dtype=positions.dtype, device=positions.device)
    distance = (filters[:, None, None] - positions[index.long()]).abs()
    return torch.minimum(distance, count - distance)


def oriented_filter_statistics(
    image: Tensor, bank: Tensor, positions: Tensor, spread: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Strength, confidence and index (N,1,H,W), of windows that lie inside the image alone.

    With F the absolute responses, M the largest, and d the filters' distances in radians from the
    position of the first largest: the confidence is sum d^2 F / max(sum F, eps), or, for `spread`,
    sqrt(sum d (F - M)^2). A NaN in a pixel's window gives NaN and filter 0.
    """
    image = image.to(torch.promote_types(image.dtype, bank.dtype))
    rectified = F.conv2d(image, bank[:, None]).abs()
    strength, index = rectified.max(dim=1, keepdim=True)
    index = torch.where(strength.isnan(), 0, index)
    step = math.pi / bank.shape[0]
    distance = step * filter_distances(index, positions)
    if spread:
        total = (distance * (rectified - strength).square()).sum(1, keepdim=True)
        root = torch.where(total > 0, total, 1).sqrt()  # no gradient of 0
        confidence = torch.where(total > 0, root, total)
    else:
        total = rectified.sum(1, keepdim=True).clamp(min=eps)
        mean = (distance.square() * rectified).sum(1, keepdim=True) / torch.where(
            total > 0, total, 1
        )
        confidence = torch.where(total > 0, mean, torch.nan)  # nor here
    return strength, confidence, index.to(torch.int32)


def oriented_filter_statistics_backward(
    grad_strength: Tensor,
    grad_confidence: Tensor,
    image: Tensor,
    bank: Tensor,
    positions: Tensor,
    index: Tensor,
    spread: bool,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of the image and the bank (those that are wanted), from responses taken again."""
    image = image.to(torch.promote_types(image.dtype, bank.dtype))
    weight = bank[:, None]
    responses = F.conv2d(image, weight)
    rectified = responses.abs()
    index = index.long()
    strength = rectified.gather(1, index)
    distance = (math.pi / bank.shape[0]) * filter_distances(index, positions)
    if spread:
        below = rectified - strength
        root = (distance * below.square()).sum(1, keepdim=True).sqrt()
        grad = distance * below / torch.where(root > 0, root, torch.inf)
        grad_strength = grad_strength - grad_confidence * grad.sum(1, keepdim=True)
    else:
        total = rectified.sum(1, keepdim=True)
        squared, divisor = distance.square(), total.clamp(min=eps)
        mean = (squared * rectified).sum(1, keepdim=True) / divisor
        grad = (squared - torch.where(total < eps, 0, mean)) / divisor
        grad = torch.where(divisor > 0, grad, 0)
    grad = torch.where(grad_confidence == 0, 0, grad * grad_confidence)
    grad = grad.scatter_add(1, index, grad_strength) * responses.sign()
    grad_image, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, image, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [*wanted, False]
    )
    empty = image.new_empty(0)
    return (
        grad_image if wanted[0] else empty,
        grad_weight[:, 0] if wanted[1] else empty,
    )
