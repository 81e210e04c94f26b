"""The partial convolution of MAT, "Mask-Aware Transformer for Large Hole Image Inpainting"."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.checks import check_choice, check_feature_map
from ..ops.convolution import check_mask
from ..ops.partial_conv import EPS, mask_window, partial_conv2d
from ..ops.winograd_conv import conv2d

# Slope for negative values, and the gain that keeps the variance.
ACTIVATIONS = {"linear": (1.0, 1.0), "relu": (0.0, math.sqrt(2)), "lrelu": (0.2, math.sqrt(2))}


def resampled_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    resample_filter: Tensor,
    *,
    up: int = 1,
    down: int = 1,
    activation: str = "linear",
    clamp: float | None = None,
) -> Tensor:
    """clamp(act(conv(x) + bias)) * scale, with x resampled by a filter before or behind.

    Args:
        x: (N,Ci,H,W).
        weight, bias: (Co,Ci,k,k), (Co,), as they are to be used, k odd.
        scale: (N or 1,1,Ho,Wo), not negative; None for ones.
        resample_filter: (f,f), f even, symmetric, of sum 1.
        up, down: factors, one of them 1.
        activation: one of ACTIVATIONS, with its gain.
        clamp: bound of the result before scale.
    """
    slope, gain = ACTIVATIONS[activation]
    border, taps = weight.shape[2] // 2, resample_filter.shape[0]
    if up > 1:
        x = F.conv_transpose2d(x, weight.flip((2, 3)).transpose(0, 1), stride=up)
        missing = (taps - 1 + up - weight.shape[2]) // 2  # so that up * H rows are left
        x = _filtered(F.pad(x, [missing] * 4), resample_filter * up**2)
        x = x if bias is None else x + bias.view(1, -1, 1, 1)
        x = F.leaky_relu(x, slope) * gain if clamp is None else _bounded(x, slope, gain, clamp)
        return x if scale is None else x * scale.to(x.dtype)
    if down > 1:
        x = _filtered(F.pad(x, [border + (taps - down) // 2] * 4), resample_filter)
        border = 0
    if scale is None or clamp is not None:
        x = conv2d(x, weight, bias, (down, down), (border, border), (1, 1))
        x = F.leaky_relu(x, slope) * gain if clamp is None else _bounded(x, slope, gain, clamp)
        return x if scale is None else x * scale.to(x.dtype)
    # Gain and scale are not negative, so they may stand in front of the activation.
    bias = None if bias is None else bias * gain
    options: dict[str, Any] = {"window": (scale, scale), "negative_slope": slope}
    return partial_conv2d(x, None, weight * gain, bias, down, border, **options)[0]


def _bounded(x: Tensor, slope: float, gain: float, clamp: float) -> Tensor:
    return (F.leaky_relu(x, slope) * gain).clamp(-clamp, clamp)


def _filtered(x: Tensor, resample_filter: Tensor) -> Tensor:
    C = x.shape[1]
    kernel = resample_filter.to(x.dtype).expand(C, 1, -1, -1)
    return F.conv2d(x, kernel, groups=C)


def known_scale(mask: Tensor, kernel_size: int, down: int) -> tuple[Tensor, Tensor]:
    """k * k / (S + 1e-8) * U and U = clamp(S, 0, 1), S the mask's sums over windows."""
    return mask_window(mask, kernel_size, down, kernel_size // 2, eps=EPS)


class _ResampledConv2d(nn.Module):
    """StyleGAN's convolution: weight times a gain, resampled, with activation.

    Parameters (buffers where they are not trainable): weight (Co,Ci,k,k), bias (Co,). Buffer:
    resample_filter (f,f).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool,
        resample_filter: Sequence[float],
        trainable: bool,
    ) -> None:
        super().__init__()
        self.taps = tuple(resample_filter)
        self.register_buffer("resample_filter", torch.empty(len(self.taps), len(self.taps)))
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        if not bias:
            self.register_parameter("bias", None)
        values = {"weight": torch.empty(shape)} | ({"bias": torch.empty(shape[0])} if bias else {})
        for name, value in values.items():
            if trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        taps = self.resample_filter.new_tensor(self.taps)
        with torch.no_grad():
            self.resample_filter.copy_(taps.outer(taps) / taps.sum() ** 2)
            self.weight.normal_()
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: Tensor, scale: Tensor | None = None, **options: Any) -> Tensor:
        weight = self.weight * self.weight_gain
        return resampled_conv(x, weight, self.bias, scale, self.resample_filter, **options)


class Conv2dLayerPartial(nn.Module):
    """MAT's partial convolution. Mask: **1 known, 0 hole**, or between.

    y = act(conv(x) + bias) * k^2 / (S + 1e-8) * U, S the mask's sum over the window and
    U = clamp(S, 0, 1) the updated mask. **x is not multiplied by the mask**, and the ratio comes
    after bias and activation. Weights are used divided by sqrt(in_channels * k^2), "relu" and
    "lrelu" (slope 0.2) are times sqrt(2).

    Stands on `torchext.partial_conv2d`, of which bias, activation and ratio are a part, unless
    conv_clamp is given or up is 2.

    Args:
        in_channels, out_channels: of x and y.
        kernel_size: k, odd.
        bias: whether the convolution has one.
        activation: "linear", "relu" or "lrelu".
        up: 2 for a transposed convolution of stride 2 with the filter behind; x then has no mask.
        down: 2 for the filter and a convolution of stride 2.
        resample_filter: the filter of one axis, an even number of values, symmetric.
        conv_clamp: bound of the activation's result.
        trainable: False for buffers in place of parameters.

    State: conv.weight, conv.bias, conv.resample_filter, as published.

    Shape: x (N,Ci,H,W), mask (N or 1,1,H,W) or None -> y (N,Co,Ho,Wo), H * up / down,
    and the updated mask (N or 1,1,Ho,Wo), or None.

    Raises:
        ValueError: an option is none of these; there is a mask, and up is 2.
        TypeError, ValueError: x or mask do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: Literal["linear", "relu", "lrelu"] = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        conv_clamp: float | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        check_choice("activation", activation, tuple(ACTIVATIONS))
        if (up, down) not in ((1, 1), (1, 2), (2, 1)):
            raise ValueError(f"up, down: expected 1 or one of them 2, got {(up, down)}")
        taps = list(resample_filter)
        if len(taps) % 2 or not taps or taps != taps[::-1] or not sum(taps):
            raise ValueError(
                f"resample_filter: expected an even number of values, symmetric, got {taps}"
            )
        self.kernel_size = kernel_size
        self.up, self.down = up, down
        self.activation = activation
        self.conv_clamp = conv_clamp
        self.conv = _ResampledConv2d(in_channels, out_channels, kernel_size, bias, taps, trainable)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        check_feature_map("x", x)
        scale = updated = None
        if mask is not None:
            if self.up > 1:
                raise ValueError("mask: expected none with up=2")
            mask, _ = check_mask("mask", mask, x, None)
            if mask.shape[1] != 1:
                raise ValueError(f"mask: expected one channel, got {tuple(mask.shape)}")
            if any(size % self.down for size in mask.shape[2:]):
                raise ValueError(
                    f"mask: expected sizes that down={self.down} divides, got {tuple(mask.shape)}"
                )
            scale, updated = known_scale(mask, self.kernel_size, self.down)
        options = {"up": self.up, "down": self.down, "activation": self.activation}
        y = self.conv(x, scale, **options, clamp=self.conv_clamp)
        return y, None if updated is None else updated.to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, activation={self.activation!r}, up={self.up},"
            f" down={self.down}"
        )
