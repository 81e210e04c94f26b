"""The self-aware affine of RN-L: "Region Normalization for Image Inpainting" (AAAI 2020)."""

from typing import Any

import torch
from torch import Tensor

from .checks import (
    accumulate_dtype,
    check_feature_map,
    check_number,
    check_parameter,
    check_tensor,
    native,
    parameter_in,
)
from .op import Gradients, Op

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
    pooled, _ = CHANNEL_MEAN_MAX(native(x))
    return SELF_AWARE_MAPS(pooled, *weights, float(threshold))


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
    return [parameter_in(value, accumulate) for value in weights]


# --- ops ----------------------------------------------------------------------------------------


def _fake_mean_max(x: Tensor) -> tuple[Tensor, Tensor]:
    N, _, H, W = x.shape
    pooled = x.new_empty((N, 2, H, W), dtype=accumulate_dtype(x.dtype))
    return pooled, x.new_empty((N, 1, H, W), dtype=torch.int32)


def _keep_argmax(given: Any, outputs: tuple[Tensor, ...], needs: set[str]) -> dict[str, Any]:
    return {"argmax": outputs[1], "channels": given.x.shape[1], "dtype": given.x.dtype}


def _backward_mean_max(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    share = grad[:, :1] / kept.channels
    channel = torch.arange(kept.channels, device=grad.device).view(1, -1, 1, 1)
    x = share + torch.where(kept.argmax == channel, grad[:, 1:], 0)
    return {"x": x.to(kept.dtype)}


def _fake_maps(pooled: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    N, _, H, W = pooled.shape
    maps = [pooled.new_empty((N, 1, H, W)) for _ in range(3)]
    return *maps, pooled.new_empty((N, 1, H, W), dtype=torch.uint8)


def _keep_maps(given: Any, outputs: tuple[Tensor, ...], needs: set[str]) -> dict[str, Any]:
    return {**vars(given), "saliency": outputs[0]}


def _backward_maps(ops: Any, kept: Any, *gradients: Tensor) -> Gradients:
    return dict(
        zip(
            ("pooled", *WEIGHTS),
            ops.self_aware_maps_backward(
                *gradients,
                kept.pooled,
                kept.saliency,
                kept.conv_weight,
                kept.gamma_weight,
                kept.beta_weight,
            ),
            strict=True,
        )
    )


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
    weights = fake_weight_gradients(conv_weight, gamma_weight, beta_weight)
    return torch.empty_like(pooled), *weights


def fake_weight_gradients(
    conv_weight: Tensor, gamma_weight: Tensor, beta_weight: Tensor
) -> tuple[Tensor, ...]:
    """In the order of `WEIGHTS`."""
    return (
        torch.empty_like(conv_weight),
        torch.empty_like(gamma_weight),
        gamma_weight.new_empty((1,)),
        torch.empty_like(beta_weight),
        beta_weight.new_empty((1,)),
    )


WEIGHTS = ("conv_weight", "gamma_weight", "gamma_bias", "beta_weight", "beta_bias")
CHANNEL_MEAN_MAX = Op(
    name="channel_mean_max",
    fake=_fake_mean_max,
    keep=_keep_argmax,
    backward=_backward_mean_max,
    twice="backward",
)
SELF_AWARE_MAPS = Op(
    name="self_aware_maps", fake=_fake_maps, keep=_keep_maps, backward=_backward_maps, outputs=3
)
SELF_AWARE_MAPS_BACKWARD = Op(name="self_aware_maps_backward", fake=_fake_maps_backward)
