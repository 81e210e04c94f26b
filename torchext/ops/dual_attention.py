"""The tail of "Dual Attention GANs for Semantic Image Synthesis" (ACM MM 2020)."""

from typing import Any

import torch
from torch import Tensor

from .checks import (
    accumulate_dtype,
    check_device,
    check_feature_map,
    check_parameter,
    check_slope,
    memory_format,
    native,
    parameter_in,
)
from .op import Gradients, Op


def dual_attention_pools(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """What both attentions of a dual attention see of two feature maps, each read once.

    Args:
        high, low: (N,C,H,W) of one shape and dtype, float32, float64, float16 or bfloat16.

    Returns:
        averages: (N,2C), of each channel of `high`, then of `low`: what channel attention sees.
        pooled: (N,2,H,W), the mean and the maximum of `low` over its channels: what spatial
            attention sees. The maximum's gradient goes to the first channel that attains it.

        Both float32 (float64 for float64 maps).

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape or device does not fit.
    """
    _check_maps(high, low)
    averages, pooled, _ = POOLS(*_native(high, low))
    return averages, pooled


def dual_attention(
    high: Tensor, low: Tensor, gate: Tensor, attention: Tensor, negative_slope: float = 0.2
) -> Tensor:
    """Channel and spatial attention, summed: leaky(gate * low + high + low * attention).

    Each map is read once and the result written once: three passes where separate operations make
    twelve. The backward makes five, and keeps `low` and the result.

    Args:
        high, low: (N,C,H,W) of one shape and dtype, float32, float64, float16 or bfloat16.
        gate: (N,C), of channel attention.
        attention: (N,1,H,W), of spatial attention.
        negative_slope: of the leaky ReLU, 0 to 1.

    Returns:
        (N,C,H,W) in low's dtype and memory format.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape, device or the slope does not fit.
    """
    _check_maps(high, low)
    N, C, H, W = low.shape
    check_parameter("gate", gate, (N, C), low)
    check_parameter("attention", attention, (N, 1, H, W), low)
    check_slope("negative_slope", negative_slope)
    accumulate = accumulate_dtype(low.dtype)
    high, low = _native(high, low)
    small = [parameter_in(value, accumulate) for value in (gate, attention)]
    return DUAL_ATTENTION(high, low, *small, float(negative_slope))


def _check_maps(high: Tensor, low: Tensor) -> None:
    check_feature_map("high", high)
    check_feature_map("low", low)
    if high.shape != low.shape:
        raise ValueError(
            f"high: expected the shape of low, {tuple(low.shape)}, got {tuple(high.shape)}"
        )
    if high.dtype != low.dtype:
        raise TypeError(f"high: expected the dtype of low, {low.dtype}, got {high.dtype}")
    check_device("high", high, low)


def _native(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Both in low's memory format."""
    low = native(low)
    return high.contiguous(memory_format=memory_format(low)), low


# --- ops ----------------------------------------------------------------------------------------


def _fake_pools(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    N, C, H, W = low.shape
    accumulate = accumulate_dtype(low.dtype)
    return (
        low.new_empty((N, 2 * C), dtype=accumulate),
        low.new_empty((N, 2, H, W), dtype=accumulate),
        low.new_empty((N, 1, H, W), dtype=torch.int32),
    )


def _keep_argmax(given: Any, outputs: tuple[Tensor, ...], needs: set[str]) -> dict[str, Any]:
    return {"argmax": outputs[2], "dtype": given.low.dtype, "format": memory_format(given.low)}


def _backward_pools(ops: Any, kept: Any, averages: Tensor, pooled: Tensor) -> Gradients:
    """Sums of broadcasts, all of them small but for the result."""
    N, _, H, W = kept.argmax.shape
    shares = (averages / (H * W))[..., None, None]
    C = shares.shape[1] // 2
    channel = torch.arange(C, device=pooled.device).view(1, -1, 1, 1)
    low = shares[:, C:] + pooled[:, :1] / C
    low = low + torch.where(kept.argmax == channel, pooled[:, 1:], 0)
    return {
        "high": shares[:, :C].to(kept.dtype).expand(N, C, H, W),
        "low": low.to(kept.dtype).contiguous(memory_format=kept.format),
    }


def _fake(high: Tensor, low: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(low)


def _backward(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    small = (kept.gate, kept.attention, kept.slope)
    found = ops.dual_attention_backward(grad, kept.y, kept.low, *small)
    return dict(zip(("high", "low", "gate", "attention"), found, strict=True))


def _fake_backward(
    grad: Tensor, y: Tensor, low: Tensor, gate: Tensor, attention: Tensor, slope: float
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in (low, low, gate, attention))


POOLS = Op(
    name="dual_attention_pools",
    fake=_fake_pools,
    keep=_keep_argmax,
    backward=_backward_pools,
    outputs=2,
    twice="backward",
)
DUAL_ATTENTION = Op(
    name="dual_attention",
    fake=_fake,
    keep=("y", "low", "gate", "attention", "slope"),
    backward=_backward,
    twice="backward",
)
DUAL_ATTENTION_BACKWARD = Op(name="dual_attention_backward", fake=_fake_backward)
