"""RN-L, region normalisation that finds its regions: AAAI 2020.

One op made of others: the self-aware affine, then region normalisation with its regions and maps.
As one op its backward adds both gradients of x while the second is written.
"""

from typing import Any

import torch
from torch import Tensor

from .. import schema
from .checks import check_choice, check_positive, native
from .op import Gradients, Op
from .region_norm import EpsForm, Scope
from .self_aware_affine import WEIGHTS, check_self_aware, fake_weight_gradients


def self_aware_region_norm(
    x: Tensor,
    conv_weight: Tensor,
    gamma_weight: Tensor,
    gamma_bias: Tensor,
    beta_weight: Tensor,
    beta_bias: Tensor,
    *,
    threshold: float = 0.8,
    scope: Scope = "batch",
    eps: float = 1e-5,
    eps_form: EpsForm = "published",
) -> Tensor:
    """RN-L: normalise the two regions that a feature map's own saliency separates.

    y = region_norm(x, saliency >= threshold) * (1 + gamma) + beta, with the maps of
    `self_aware_affine` ("Region Normalization for Image Inpainting", AAAI 2020). No gradient passes
    the threshold; the weights learn through gamma and beta.

    Args:
        x: (N,C,H,W), float32, float64, float16 or bfloat16; contiguous or channels_last.
        conv_weight, gamma_weight, gamma_bias, beta_weight, beta_bias, threshold: as for
            `self_aware_affine`.
        scope, eps, eps_form: as for `region_norm`.

    Returns:
        y, with x's shape, dtype and memory format.

    Memory beyond the result: six maps of one channel; they and x are kept for backward.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape, device or choice does not fit.
    """
    weights = check_self_aware(
        x, conv_weight, gamma_weight, gamma_bias, beta_weight, beta_bias, threshold
    )
    check_choice("scope", scope, ("batch", "instance"))
    check_choice("eps_form", eps_form, ("published", "plain"))
    check_positive("eps", eps)
    options = (float(threshold), scope == "instance", float(eps), eps_form == "published")
    return SELF_AWARE_REGION_NORM(native(x), *weights, *options)[0]


# --- ops ----------------------------------------------------------------------------------------


def _compose(
    ops: Any,
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
    weights = (conv_weight, gamma_weight, gamma_bias, beta_weight, beta_bias)
    pooled, argmax = ops.channel_mean_max(x)
    saliency, gamma, beta, labels = ops.self_aware_maps(pooled, *weights, threshold)
    y, count, mean, rstd = ops.region_norm(
        x, labels, None, None, gamma + 1, beta, 2, per_instance, eps, scale_eps, False
    )
    return y, pooled, argmax, saliency, gamma, labels, count, mean, rstd


def _fake(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    N, C, H, W = x.shape
    weight, per_instance = arguments[0], arguments[6]
    groups = N if per_instance else 1

    def new(shape: tuple[int, ...], dtype: torch.dtype = weight.dtype) -> Tensor:
        return x.new_empty(shape, dtype=dtype)

    return (
        torch.empty_like(x),
        new((N, 2, H, W)),
        new((N, 1, H, W), torch.int32),
        new((N, 1, H, W)),
        new((N, 1, H, W)),
        new((N, 1, H, W), torch.uint8),
        new((groups, 2), torch.int64),
        new((groups, 2, C)),
        new((groups, 2, C)),
    )


def _backward(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    x, *weights = ops.self_aware_region_norm_backward(
        grad,
        kept.x,
        *(getattr(kept, name) for name in _FOUND),
        kept.conv_weight,
        kept.gamma_weight,
        kept.beta_weight,
        kept.per_instance,
    )
    return {"x": x, **dict(zip(WEIGHTS, weights, strict=True))}


def _compose_backward(
    ops: Any,
    grad: Tensor,
    x: Tensor,
    pooled: Tensor,
    argmax: Tensor,
    saliency: Tensor,
    gamma: Tensor,
    labels: Tensor,
    count: Tensor,
    mean: Tensor,
    rstd: Tensor,
    conv_weight: Tensor,
    gamma_weight: Tensor,
    beta_weight: Tensor,
    per_instance: bool,
) -> tuple[Tensor, ...]:
    tail = (2, per_instance, False)
    spatial_weight = gamma + 1
    sums, grad_gamma, grad_beta = ops.region_norm_backward_sums(
        grad, x, labels, mean, rstd, spatial_weight, *tail
    )
    grad_pooled, *weight_gradients = ops.self_aware_maps_backward(
        torch.zeros_like(saliency),
        grad_gamma,
        grad_beta,
        pooled,
        saliency,
        conv_weight,
        gamma_weight,
        beta_weight,
    )
    grad_x = ops.region_norm_backward_apply(
        grad,
        x,
        labels,
        count,
        mean,
        rstd,
        sums,
        None,
        spatial_weight,
        grad_pooled,
        argmax,
        *tail,
    )
    return grad_x, *weight_gradients


def _fake_backward(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *fake_weight_gradients(*rest[-4:-1])


# The outputs behind y.
_FOUND = schema.outputs("self_aware_region_norm")[1:]
SELF_AWARE_REGION_NORM = Op(
    name="self_aware_region_norm",
    fake=_fake,
    compose=_compose,
    keep=(*schema.arguments("self_aware_region_norm"), *_FOUND),
    backward=_backward,
)
SELF_AWARE_REGION_NORM_BACKWARD = Op(
    name="self_aware_region_norm_backward", fake=_fake_backward, compose=_compose_backward
)
