"""RN-L, region normalisation that finds its regions: AAAI 2020."""

from torch import Tensor

from .region_norm import region_norm
from .self_aware_affine import channel_mean_max, self_aware_maps


def self_aware_region_norm(
    x: Tensor,
    conv_weight: Tensor,
    gamma_weight: Tensor,
    gamma_bias: Tensor,
    beta_weight: Tensor,
    beta_bias: Tensor,
    threshold: float,
    per_instance: bool,
    eps: float,
    scale_eps: bool,
) -> tuple[Tensor, ...]:
    """y = region_norm(x, saliency >= threshold) * (1 + gamma) + beta, and what it is made of."""
    pooled, argmax = channel_mean_max(x)
    saliency, gamma, beta, labels = self_aware_maps(
        pooled, conv_weight, gamma_weight, gamma_bias, beta_weight, beta_bias, threshold
    )
    y, count, mean, rstd = region_norm(
        x, labels, None, None, 1 + gamma, beta, 2, per_instance, eps, scale_eps, False
    )
    return y, pooled, argmax, saliency, gamma, labels, count, mean, rstd
