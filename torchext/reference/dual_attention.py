"""The tail of "Dual Attention GANs for Semantic Image Synthesis" (ACM MM 2020)."""

import torch
from torch import Tensor

from .self_aware_affine import channel_mean_max


def dual_attention_pools(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every channel's average (N,2C), high's first; low's mean and maximum over its channels."""
    pooled, argmax = channel_mean_max(low)
    averages = torch.cat((high, low), dim=1).to(pooled.dtype).mean(dim=(2, 3))
    return averages, pooled, argmax


def dual_attention(
    high: Tensor, low: Tensor, gate: Tensor, attention: Tensor, slope: float
) -> Tensor:
    """y = leaky(high + low * gate + low * attention)."""
    mixed = high + low * gate[..., None, None] + low * attention
    return torch.where(mixed > 0, mixed, slope * mixed).to(low.dtype)


def dual_attention_backward(
    grad: Tensor, y: Tensor, low: Tensor, gate: Tensor, attention: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of high, low, gate and attention."""
    mixed = torch.where(y > 0, grad, slope * grad).to(attention.dtype)
    product = mixed * low
    grad_low = mixed * (gate[..., None, None] + attention)
    return (
        mixed.to(low.dtype),
        grad_low.to(low.dtype),
        product.sum(dim=(2, 3)),
        product.sum(dim=1, keepdim=True),
    )
