"""Layers of masked autoencoders (SparK, nnssl), whose mask is a variable beside their classes."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.masked_norm import sparse_batch_norm, sparse_instance_norm, sparse_layer_norm
from ..nn.sparse_conv import sparse_conv, sparse_convnext_block
from ..nn.visible import visible_at
from .family import Draw, Family, attribute, expect
from .modulated_norm import _process_group

_MASK = "_cur_active"
_PATCHES = 2  # along each axis of the masks of the comparison


def _variables(layer: nn.Module) -> dict[str, Any]:
    """The global variables beside a layer's class, or one that it comes from, with the mask."""
    for kind in type(layer).__mro__:
        variables = getattr(vars(kind).get("forward"), "__globals__", {})
        if _MASK in variables:
            return variables
    return {}


class _Sparse(Family):
    """A layer whose result is 0 where the mask, at its size, is."""

    def known(self, layer: nn.Module) -> bool:
        """Whether it is of a class that the fused form stands for."""
        raise NotImplementedError

    def alike(self, layer: nn.Module) -> bool:
        return self.known(layer) and _MASK in _variables(layer)

    def check(self, layer: nn.Module) -> None:
        expect(self.known(layer), f"it is a {type(layer).__bases__[0].__name__}")
        expect(_MASK in _variables(layer), f"no variable {_MASK} stands beside its class")

    @contextlib.contextmanager
    def surroundings(self, layer: nn.Module) -> Iterator[None]:
        variables = _variables(layer)
        before = variables[_MASK]
        try:
            yield
        finally:
            variables[_MASK] = before

    def prepare(self, layer: nn.Module, call: tuple[Any, ...]) -> None:
        """Half of the patches of each image visible, like the squares of a chessboard."""
        (x,) = call
        squares = torch.arange(len(x)).view(-1, *[1] * (x.dim() - 1))
        for dim in range(2, x.dim()):
            squares = squares + torch.arange(_PATCHES).view(-1, *[1] * (x.dim() - 1 - dim))
        _variables(layer)[_MASK] = (squares % 2 == 0).to(x.device)

    def takes(self, layer: Any, facts: None, x: Any) -> bool:
        mask = _variables(layer)[_MASK]
        return isinstance(x, Tensor) and isinstance(mask, Tensor) and mask.dim() == x.dim()

    def _mask(self, layer: Any, x: Tensor, size: Iterable[int]) -> Tensor | None:
        return visible_at(_variables(layer)[_MASK], x, tuple(size))


class SparseConv(_Sparse):
    """`SparseConv2d`, `SparseConv3d`."""

    saves = (
        "the mask's product is a part of the convolution; on the CPU tiles that are hidden are left"
        " out"
    )
    live = frozenset({"stride", "padding", "dilation", "groups", "padding_mode"})

    def known(self, layer: nn.Module) -> bool:
        return isinstance(layer, (nn.Conv2d, nn.Conv3d))

    def forward(self, layer: Any, facts: None, x: Tensor) -> Tensor:
        return sparse_conv(layer, x, lambda size: self._mask(layer, x, size))

    def calls(self, layer: Any, facts: None, draw: Draw) -> list[tuple[Any, ...]]:
        # As many windows as patches divide.
        sizes = [self._size(layer, i) for i in range(len(layer.kernel_size))]
        C = layer.in_channels
        return [(draw.features(2, C, *sizes),), (draw.features(3, C, *sizes),)]

    def _size(self, layer: Any, axis: int) -> int:
        windows = 4 * _PATCHES
        if isinstance(layer.padding, str):
            return windows
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        return (windows - 1) * layer.stride[axis] + reach + 1 - 2 * layer.padding[axis]


class SparseBatchNorm(_Sparse):
    """`SparseBatchNorm2d`, `SparseSyncBatchNorm2d`."""

    saves = "statistics and affine of what is visible are two passes, without gathered lists"
    live = frozenset({"eps", "momentum", "track_running_stats"})

    def known(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.modules.batchnorm._BatchNorm)

    def forward(self, layer: Any, facts: None, x: Tensor) -> Tensor:
        mask = self._mask(layer, x, x.shape[2:])
        return sparse_batch_norm(layer, x, mask, _process_group(layer))

    def calls(self, layer: Any, facts: None, draw: Draw) -> list[tuple[Any, ...]]:
        C = layer.num_features
        return [(draw.features(2, C, 12, 14),), (draw.features(3, C, 6, 8),)]


class SparseInstanceNorm(_Sparse):
    """`SparseInstanceNorm3d`."""

    saves = SparseBatchNorm.saves
    live = frozenset({"eps", "momentum"})

    def known(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.modules.instancenorm._InstanceNorm)

    def check(self, layer: nn.Module) -> None:
        super().check(layer)
        attribute(layer, "track_running_stats", False)

    def forward(self, layer: Any, facts: None, x: Tensor) -> Tensor:
        return sparse_instance_norm(layer, x, self._mask(layer, x, x.shape[2:]))

    def calls(self, layer: Any, facts: None, draw: Draw) -> list[tuple[Any, ...]]:
        C = layer.num_features
        return [(draw.features(2, C, 4, 6, 8),), (draw.features(3, C, 6, 4, 4),)]


class SparseLayerNorm(_Sparse):
    """`SparseConvNeXtLayerNorm`."""

    saves = "norm, affine and mask are one pass"
    live = frozenset({"eps"})

    def known(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.LayerNorm)

    def check(self, layer: nn.Module) -> None:
        super().check(layer)
        expect(len(layer.normalized_shape) == 1, "it normalises over several axes")
        expect(layer.weight is not None and layer.bias is not None, "it has no affine")
        attribute(layer, "sparse", True, None)
        attribute(layer, "data_format", "channels_last", "channels_first")

    def takes(self, layer: Any, facts: None, x: Any) -> bool:
        return super().takes(layer, facts, x) and x.dim() == 4

    def forward(self, layer: Any, facts: None, x: Tensor) -> Tensor:
        last = layer.data_format == "channels_last"
        x = x.permute(0, 3, 1, 2) if last else x
        y = sparse_layer_norm(layer, x, self._mask(layer, x, x.shape[2:]))
        return y.permute(0, 2, 3, 1) if last else y

    def calls(self, layer: Any, facts: None, draw: Draw) -> list[tuple[Any, ...]]:
        (C,) = layer.normalized_shape
        shapes = ((2, C, 6, 8), (3, C, 12, 4))
        if layer.data_format == "channels_last":
            shapes = tuple((N, H, W, C) for N, C, H, W in shapes)
        return [(draw.features(*shape),) for shape in shapes]


class SparseBlock(_Sparse):
    """`SparseConvNeXtBlock`."""

    saves = (
        "on the CPU norm and pointwise layers run for what is visible alone; elsewhere norm, affine"
        " and mask are one pass"
    )
    attributes = frozenset({"dwconv", "norm", "pwconv1", "pwconv2", "act", "gamma"})

    def known(self, layer: nn.Module) -> bool:
        return all(hasattr(layer, name) for name in self.attributes)

    def check(self, layer: Any) -> None:
        super().check(layer)
        norm = layer.norm
        expect(isinstance(norm, nn.LayerNorm), f"norm is a {type(norm).__name__}")
        expect(norm.weight is not None and norm.bias is not None, "norm has no affine")
        attribute(layer, "sparse", True, None)

    def replaced(self, layer: Any) -> Iterable[nn.Module]:
        return [layer.norm]

    def forward(self, layer: Any, facts: None, x: Tensor) -> Tensor:
        drop = getattr(layer, "drop_path", None)
        drop = None if isinstance(drop, nn.Identity) else drop
        return sparse_convnext_block(layer, x, self._mask(layer, x, x.shape[2:]), drop)

    def calls(self, layer: Any, facts: None, draw: Draw) -> list[tuple[Any, ...]]:
        C = len(layer.norm.weight)
        return [(draw.features(2, C, 8, 6),), (draw.features(3, C, 4, 10),)]
