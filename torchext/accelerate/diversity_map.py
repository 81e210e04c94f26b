"""PD-GAN's hard diversity map."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.diversity_map import diversity_map
from .family import Draw, Family, convolution, expect, has_values

_MOST_DILATIONS = 32


class HardDiversityMap(Family):
    """A layer that holds `mask_conv` alone; facts are its number of dilations and its base.

    Or a single dilation, the step of a loop outside: a map of 0 and 1, whose base is 0.
    """

    saves = "all dilations are one distance transform"

    def check(self, layer: Any) -> None:
        window = convolution(layer, "mask_conv")
        size = window.kernel_size[0]
        expect(
            (window.in_channels, window.out_channels, window.bias) == (1, 1, None)
            and window.kernel_size == (size, size)
            and size % 2 == 1
            and window.padding == (size // 2, size // 2)
            and window.stride == (1, 1),
            "mask_conv is no odd window of one channel that keeps the size",
        )
        expect(self.is_kernel(window.weight), "mask_conv.weight holds values that are not positive")

    def kernels(self, layer: Any) -> Iterable[Tensor]:
        return [layer.mask_conv.weight]

    def is_kernel(self, tensor: Tensor) -> bool:
        return not has_values(tensor) or bool((tensor > 0).all())

    def replaced(self, layer: Any) -> Iterable[nn.Module]:
        return [layer.mask_conv]

    def discover(self, layer: Any, draw: Draw) -> tuple[int, float]:
        """Read off the map of one known pixel."""
        extent = layer.mask_conv.kernel_size[0] // 2 * _MOST_DILATIONS
        mask = torch.zeros(1, 1, 1, 2 * extent + 1).to(draw.device, draw.dtype)
        mask[..., 0] = 1
        try:
            with torch.no_grad():
                rings = layer(mask)
        except Exception as problem:  # whatever a user's layer may raise
            expect(False, f"it does not take a mask alone ({type(problem).__name__})")
        expect(
            isinstance(rings, Tensor) and rings.shape == mask.shape, "it gives no map of that size"
        )
        values = rings.double().unique().flip(0)
        if values.tolist() == [1, 0]:
            return 1, 0.0
        expect(
            2 <= len(values) <= _MOST_DILATIONS and float(values[-1]) > 0, "its map has no rings"
        )
        return len(values) - 1, float(values[0] / values[1])

    def takes(self, layer: Any, facts: Any, mask: Any) -> bool:
        return isinstance(mask, Tensor) and not mask.requires_grad

    def forward(self, layer: Any, facts: tuple[int, float], mask: Tensor) -> Tensor:
        steps, base = facts
        if base == 0:  # known, added or neither
            rings = diversity_map(mask, 2, layer.mask_conv.kernel_size[0], 2.0)
            return (rings >= 0.5).to(mask.dtype)
        return diversity_map(mask, steps, layer.mask_conv.kernel_size[0], base).to(mask.dtype)

    def calls(self, layer: Any, facts: Any, draw: Draw) -> list[tuple[Any, ...]]:
        mask = torch.zeros(2, 1, 64, 72, dtype=draw.dtype, device=draw.device)
        mask[0, 0, 3:9, 5:30] = 1  # the second image has no known pixel
        return [(mask,), (draw.mask(3, 1, 20, 28),)]
