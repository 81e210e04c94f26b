"""Oriented filters: "MichiGAN: Multi-Input-Conditioned Hair Image Generation" (SIGGRAPH 2020)."""

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
