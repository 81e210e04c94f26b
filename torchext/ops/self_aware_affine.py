"""The self-aware affine of RN-L: "Region Normalization for Image Inpainting" (AAAI 2020)."""

from typing import Any

import torch
from torch import Tensor

from .. import backend, reference
from .checks import (
    accumulate_dtype,
    check_feature_map,
    check_number,
    check_parameter,
    check_tensor,
    native,
)
from .registration import call, differentiated, gradients_of_reference, operator, register

MAX_KERNEL = 15


def self_aware_affine(
    x: Tensor,
    conv_weight: Tensor,
    gamma_weight: Tensor,
    gamma_bias: Tensor,
    beta_weight: Tensor,
    beta_bias: Tensor,
    threshold: float = 0.8,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A feature map's saliency, affine maps and regions, as RN-L finds them.

    saliency = sigmoid(conv(mean over C, max over C)); gamma = conv(saliency) + gamma_bias; beta =
    conv(saliency) + beta_bias; labels = 1 where saliency >= threshold. Convolutions are zero
    padded.

    Args:
        x: (N,C,H,W), float32, float64, float16 or bfloat16.
        conv_weight: (1,2,k,k), k odd, at most 15.
        gamma_weight, beta_weight: (1,1,k,k).
        gamma_bias, beta_bias: (1,).
        threshold: a saliency, 0 to 1.

    Returns:
        saliency in (0,1), gamma, beta: (N,1,H,W), float32 (float64 for a float64 x).
        labels: uint8 (N,1,H,W), not differentiable.

    The maximum's gradient goes to the first channel that attains it.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape or device does not fit.
    """
    weights = check_self_aware(
        x, conv_weight, gamma_weight, gamma_bias, beta_weight, beta_bias, threshold
    )
    chosen = backend.choose("self_aware_maps", x)
    if chosen is backend.REFERENCE:
        return reference.self_aware_affine(x, *weights, float(threshold))
    pooled, _ = call(chosen.namespace, "channel_mean_max", native(x))
    return call(chosen.namespace, "self_aware_maps", pooled, *weights, float(threshold))


def check_self_aware(
    x: Tensor,
    conv_weight: Tensor,
    gamma_weight: Tensor,
    gamma_bias: Tensor,
    beta_weight: Tensor,
    beta_bias: Tensor,
    threshold: float,
) -> list[Tensor]:
    """Raise what the functions document; returns the weights in the accumulate dtype."""
    check_feature_map("x", x)
    check_tensor("conv_weight", conv_weight)
    size = conv_weight.shape[-1] if conv_weight.dim() == 4 else 0
    if size % 2 == 0 or size > MAX_KERNEL:
        raise ValueError(
            f"conv_weight: expected the shape (1, 2, k, k) with k odd and at most {MAX_KERNEL},"
            f" got {tuple(conv_weight.shape)}"
        )
    check_parameter("conv_weight", conv_weight, (1, 2, size, size), x)
    check_parameter("gamma_weight", gamma_weight, (1, 1, size, size), x)
    check_parameter("gamma_bias", gamma_bias, (1,), x)
    check_parameter("beta_weight", beta_weight, (1, 1, size, size), x)
    check_parameter("beta_bias", beta_bias, (1,), x)
    check_number("threshold", threshold)
    accumulate = accumulate_dtype(x.dtype)
    weights = (conv_weight, gamma_weight, gamma_bias, beta_weight, beta_bias)
    return [value.to(accumulate).contiguous() for value in weights]


# --- registration -------------------------------------------------------------------------------


def _fake_mean_max(x: Tensor) -> tuple[Tensor, Tensor]:
    N, _, H, W = x.shape
    pooled = x.new_empty((N, 2, H, W), dtype=accumulate_dtype(x.dtype))
    return pooled, x.new_empty((N, 1, H, W), dtype=torch.int32)


def _setup_mean_max(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    (x,), (_, argmax) = inputs, output
    ctx.mark_non_differentiable(argmax)
    ctx.save_for_backward(argmax)
    ctx.channels, ctx.dtype = x.shape[1], x.dtype


def _backward_mean_max(ctx: Any, grad: Tensor, _: Any) -> Tensor:
    (argmax,) = ctx.saved_tensors
    share = grad[:, :1] / ctx.channels
    channel = torch.arange(ctx.channels, device=grad.device).view(1, -1, 1, 1)
    return (share + torch.where(argmax == channel, grad[:, 1:], 0)).to(ctx.dtype)


def fake_maps(pooled: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    N, _, H, W = pooled.shape
    maps = [pooled.new_empty((N, 1, H, W)) for _ in range(3)]
    return *maps, pooled.new_empty((N, 1, H, W), dtype=torch.uint8)


def _fake_maps_backward(
    grad_saliency: Tensor,
    grad_gamma: Tensor,
    grad_beta: Tensor,
    pooled: Tensor,
    saliency: Tensor,
    conv_weight: Tensor,
    gamma_weight: Tensor,
    beta_weight: Tensor,
) -> tuple[Tensor, ...]:
    return (
        torch.empty_like(pooled),
        torch.empty_like(conv_weight),
        torch.empty_like(gamma_weight),
        pooled.new_empty((1,)),
        torch.empty_like(beta_weight),
        pooled.new_empty((1,)),
    )


def _setup_maps(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, threshold = inputs
    saliency, _, _, labels = output
    ctx.mark_non_differentiable(labels)
    ctx.save_for_backward(*tensors, saliency)
    ctx.threshold = threshold


def _backward_maps(namespace: str) -> Any:
    def backward(
        ctx: Any, grad_saliency: Tensor, grad_gamma: Tensor, grad_beta: Tensor, _: Any
    ) -> tuple[Any, ...]:
        *inputs, saliency = ctx.saved_tensors
        pooled, conv_weight, gamma_weight, _, beta_weight, _ = inputs
        grads = (grad_saliency, grad_gamma, grad_beta)
        if differentiated():  # the gradient itself will be differentiated

            def function(*tensors: Tensor) -> Tensor:
                maps = reference.self_aware_maps(*tensors, ctx.threshold)[:3]
                return torch.cat(maps, dim=1)

            return *gradients_of_reference(function, inputs, torch.cat(grads, dim=1)), None
        gradients = operator(namespace, "self_aware_maps_backward")(
            *(grad.contiguous() for grad in grads),
            pooled,
            saliency,
            conv_weight,
            gamma_weight,
            beta_weight,
        )
        return *gradients, None

    return backward


def register_ops(namespace: str) -> None:
    register(namespace, "channel_mean_max", _fake_mean_max, _setup_mean_max, _backward_mean_max)
    register(namespace, "self_aware_maps", fake_maps, _setup_maps, _backward_maps(namespace))
    register(namespace, "self_aware_maps_backward", _fake_maps_backward)
