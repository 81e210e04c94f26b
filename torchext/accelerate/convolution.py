"""PyTorch's own convolution, for `accelerate(model, convolutions=True)`."""

import contextlib
from typing import Any

from torch import Tensor, nn

from .. import backend
from ..ops.winograd_conv import conv2d
from .family import Draw, Family


class Convolution(Family):
    """`torch.nn.Conv2d` itself, of 3x3 kernels with stride 1 in one group, padded by zeros."""

    saves = "Winograd's form has a quarter of the multiplications, where that is faster"
    live = frozenset(
        {"stride", "padding", "dilation", "groups", "in_channels", "out_channels", "kernel_size"}
    )

    def known(self, layer: nn.Module) -> bool:
        """By its very class: no layer only looks alike."""
        return (
            type(layer) is nn.Conv2d
            and (layer.kernel_size, layer.stride, layer.groups) == ((3, 3), (1, 1), 1)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )

    def comparison(self) -> contextlib.AbstractContextManager[None]:
        """The small convolutions of the comparison would stay direct, as they gain nothing."""
        return backend.convolution("winograd")

    def takes(self, layer: Any, facts: None, x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() == 4 and not isinstance(layer.padding, str)

    def forward(self, layer: Any, facts: None, x: Tensor) -> Tensor:
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return conv2d(x, layer.weight, layer.bias, *geometry)

    def calls(self, layer: Any, facts: None, draw: Draw) -> list[tuple[Any, ...]]:
        # At least one window, at any padding and dilation.
        rows, columns = (2 * d + 9 + 4 * i for i, d in enumerate(layer.dilation))
        C = layer.in_channels
        return [(draw.features(2, C, rows, columns),), (draw.features(3, C, columns, rows),)]
