"""RN-L, region normalisation that finds its regions: AAAI 2020.

One op made of others: the self-aware affine, then region normalisation with its regions and maps.
As one op its backward adds both gradients of x while the second is written.
"""

from typing import Any

import torch
from torch import Tensor

from .. import backend, reference
from ..schema import implement
from .checks import check_choice, check_positive, memory_format, native
from .region_norm import EpsForm, Scope
from .registration import call, differentiated, gradients_of_reference, operator, register
from .self_aware_affine import check_self_aware


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
    options = {
        "threshold": float(threshold),
        "per_instance": scope == "instance",
        "eps": float(eps),
        "scale_eps": eps_form == "published",
    }
    chosen = backend.choose("self_aware_region_norm", x)
    if chosen is backend.REFERENCE:
        return reference.self_aware_region_norm(x, *weights, **options)
    arguments = (native(x), *weights, *options.values())
    return call(chosen.namespace, "self_aware_region_norm", *arguments)[0]


# --- registration -------------------------------------------------------------------------------


def _forward(namespace: str) -> Any:
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
        weights = (conv_weight, gamma_weight, gamma_bias, beta_weight, beta_bias)
        pooled, argmax = operator(namespace, "channel_mean_max")(x)
        saliency, gamma, beta, labels = operator(namespace, "self_aware_maps")(
            pooled, *weights, threshold
        )
        y, count, mean, rstd = operator(namespace, "region_norm")(
            x, labels, None, None, gamma + 1, beta, 2, per_instance, eps, scale_eps, False
        )
        return y, pooled, argmax, saliency, gamma, labels, count, mean, rstd

    return self_aware_region_norm


def _backward_op(namespace: str) -> Any:
    def self_aware_region_norm_backward(
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
        sums, grad_gamma, grad_beta = operator(namespace, "region_norm_backward_sums")(
            grad, x, labels, mean, rstd, spatial_weight, *tail
        )
        grad_pooled, *weight_gradients = operator(namespace, "self_aware_maps_backward")(
            torch.zeros_like(saliency),
            grad_gamma,
            grad_beta,
            pooled,
            saliency,
            conv_weight,
            gamma_weight,
            beta_weight,
        )
        grad_x = operator(namespace, "region_norm_backward_apply")(
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

    return self_aware_region_norm_backward


def _fake(
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
    N, C, H, W = x.shape
    groups = N if per_instance else 1
    statistics = (groups, 2, C)

    def new(shape: tuple[int, ...], dtype: torch.dtype = conv_weight.dtype) -> Tensor:
        return x.new_empty(shape, dtype=dtype)

    return (
        torch.empty_like(x),
        new((N, 2, H, W)),
        new((N, 1, H, W), torch.int32),
        new((N, 1, H, W)),
        new((N, 1, H, W)),
        new((N, 1, H, W), torch.uint8),
        new((groups, 2), torch.int64),
        new(statistics),
        new(statistics),
    )


def _fake_backward(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    conv_weight, gamma_weight, beta_weight, _ = rest[-4:]
    return (
        torch.empty_like(x),
        torch.empty_like(conv_weight),
        torch.empty_like(gamma_weight),
        gamma_weight.new_empty((1,)),
        torch.empty_like(beta_weight),
        beta_weight.new_empty((1,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *weights, threshold, per_instance, eps, scale_eps = inputs
    _, *saved = output
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *weights, *saved)
    ctx.options = {
        "threshold": threshold,
        "per_instance": per_instance,
        "eps": eps,
        "scale_eps": scale_eps,
    }


def _backward(namespace: str) -> Any:
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        tail = (None,) * 4
        if grad is None:
            return (None,) * 6 + tail
        x, *rest = ctx.saved_tensors
        weights, saved = rest[:5], rest[5:]
        if differentiated():  # the gradient itself will be differentiated

            def function(*tensors: Tensor) -> Tensor:
                return reference.self_aware_region_norm(*tensors, **ctx.options)

            return *gradients_of_reference(function, [x, *weights], grad), *tail
        conv_weight, gamma_weight, _, beta_weight, _ = weights
        grad = grad.to(x.dtype).contiguous(memory_format=memory_format(x))
        gradients = operator(namespace, "self_aware_region_norm_backward")(
            grad,
            x,
            *saved,
            conv_weight,
            gamma_weight,
            beta_weight,
            ctx.options["per_instance"],
        )
        return *gradients, *tail

    return backward


def register_ops(namespace: str) -> None:
    key = "CompositeExplicitAutograd"
    implement(namespace, "self_aware_region_norm", _forward(namespace), key)
    implement(namespace, "self_aware_region_norm_backward", _backward_op(namespace), key)
    register(namespace, "self_aware_region_norm", _fake, _setup_context, _backward(namespace))
    register(namespace, "self_aware_region_norm_backward", _fake_backward)
