"""RN-L, region normalisation that finds its regions: AAAI 2020."""

from torch import Tensor

from .region_norm import region_norm
from .self_aware_affine import self_aware_affine


def self_aware_region_norm(
    x: Tensor,
    conv_weight: Tensor,
    gamma_weight: Tensor,
    gamma_bias: Tensor,
    beta_weight: Tensor,
    beta_bias: Tensor,
    *,
    threshold: float = 0.8,
    per_instance: bool = False,
    eps: float = 1e-5,
    scale_eps: bool = True,
) -> Tensor:
    """y = region_norm(x, saliency >= threshold) * (1 + gamma) + beta."""
    _, gamma, beta, labels = self_aware_affine(
        x, conv_weight, gamma_weight, gamma_bias, beta_weight, beta_bias, threshold
    )
    return region_norm(
        x,
        labels,
        spatial_weight=1 + gamma,
        spatial_bias=beta,
        per_instance=per_instance,
        eps=eps,
        scale_eps=scale_eps,
    )
