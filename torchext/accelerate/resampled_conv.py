"""MAT's partial convolution, whose ratio stands behind bias and activation."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.mat_conv import ACTIVATIONS, known_scale, resampled_conv
from .family import Draw, Family, attribute, expect

_SIZE = (12, 14)


class ResampledPartialConv(Family):
    """`Conv2dLayerPartial`: StyleGAN's convolution in a child, and a mask beside it."""

    saves = (
        "bias, activation and ratio are part of the convolution; one plane of the mask is summed"
    )
    arity = (1, 2)
    attributes = frozenset({"conv", "weight_maskUpdater", "slide_winsize", "stride", "padding"})

    def check(self, layer: Any) -> None:
        conv = layer.conv
        weight = getattr(conv, "weight", None)
        expect(isinstance(weight, Tensor) and weight.dim() == 4, "conv has no weight of a window")
        kernel_size = weight.shape[2]
        expect(
            weight.shape[3] == kernel_size and kernel_size % 2 == 1, "its window is no odd square"
        )
        expect(isinstance(getattr(conv, "weight_gain", None), float), "conv has no weight_gain")
        attribute(conv, "activation", *ACTIVATIONS, label="conv.")
        up, down = (attribute(conv, name, 1, 2, label="conv.") for name in ("up", "down"))
        expect((up, down) != (2, 2), "conv enlarges and shrinks")
        expect(hasattr(conv, "resample_filter"), "conv has no resample_filter")
        attribute(layer, "slide_winsize", kernel_size**2)
        attribute(layer, "stride", down, (down, down))
        for kernel in self.kernels(layer):
            expect(self.is_kernel(kernel), "weight_maskUpdater holds other values than 1")
        expect(not conv._forward_pre_hooks, "the weight of conv is reparametrised")

    def kernels(self, layer: Any) -> Iterable[Tensor]:
        kernel = layer.weight_maskUpdater
        return [kernel] if isinstance(kernel, Tensor) else []

    def replaced(self, layer: Any) -> Iterable[nn.Module]:
        return [layer.conv]

    def takes(self, layer: Any, facts: None, x: Any, mask: Any = None) -> bool:
        if mask is None:
            return isinstance(x, Tensor)
        return (
            isinstance(x, Tensor)
            and isinstance(mask, Tensor)
            and not mask.requires_grad
            and mask.dim() == 4
            and mask.shape[1] == 1
            and layer.conv.up == 1
            and mask.shape[2:] == x.shape[2:]
            and not any(size % layer.conv.down for size in x.shape[2:])
        )

    def forward(
        self, layer: Any, facts: None, x: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        conv, scale, updated = layer.conv, None, None
        if mask is not None:
            scale, updated = known_scale(mask.to(x.dtype), conv.weight.shape[2], conv.down)
        y = resampled_conv(
            x,
            conv.weight * conv.weight_gain,
            conv.bias,
            scale,
            conv.resample_filter,
            up=conv.up,
            down=conv.down,
            activation=conv.activation,
            clamp=conv.conv_clamp,
        )
        return y, None if updated is None else updated.to(x.dtype)

    def calls(self, layer: Any, facts: None, draw: Draw) -> list[tuple[Any, ...]]:
        C = layer.conv.weight.shape[1]
        hole = 2 * layer.conv.weight.shape[2] + 1
        x, three = draw.features(2, C, *_SIZE), draw.features(3, C, *_SIZE)
        calls: list[tuple[Any, ...]] = [(x,), (three, None)]
        if layer.conv.up == 1:
            mask = draw.mask(2, 1, *_SIZE, hole=hole)
            soft = draw.soft_mask(3, 1, *_SIZE)
            calls += [(x, mask), (three, torch.ones_like(soft)), (three, soft)]
        return calls
