"""Convolutions and pools that hide again what they have spread: SparK (ICLR 2023) and nnssl."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import backend
from ..ops.checks import check_feature_map
from ..ops.convolution import SPATIAL, geometry_of
from ..ops.partial_conv import partial_conv2d, partial_conv3d
from .masked_norm import (
    SparseBatchNorm2d,
    SparseConvNeXtLayerNorm,
    SparseInstanceNorm2d,
    SparseInstanceNorm3d,
    SparseSyncBatchNorm2d,
    sparse_layer_norm,
)
from .plain import plain
from .visible import as_floats, visible_at


def sparse_conv(conv: Any, x: Tensor, at: Callable[[tuple[int, ...]], Tensor | None]) -> Tensor:
    """A convolution times a mask of the size of its result.

    Args:
        conv: has what `torch.nn.Conv2d` or `Conv3d` has.
        x: the features, not masked.
        at: gives the mask for that size, None where all is visible.
    """
    kernel = conv.weight.shape[2:]
    geometry = geometry_of(x.shape[2:], kernel, conv.stride, conv.padding, conv.dilation)
    mask = at(tuple(geometry.output_size))
    if mask is None:
        return conv._conv_forward(x, conv.weight, conv.bias)
    mask = as_floats(mask, x)
    if all(size == 1 for size in kernel):  # too little work for tiles to be picked
        return conv._conv_forward(x, conv.weight, conv.bias).mul_(mask)
    # Scale and updated mask of a partial convolution: tiles where all is hidden are not convolved.
    y, _ = (partial_conv2d if len(kernel) == 2 else partial_conv3d)(
        x,
        None,
        conv.weight,
        conv.bias,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        padding_mode=conv.padding_mode,
        window=(mask, mask),
    )
    return y


class _SparseConv(nn.modules.conv._ConvNd):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        check_feature_map("x", x, SPATIAL[len(self.kernel_size)])
        return sparse_conv(self, x, lambda size: visible_at(mask, x, size))


class SparseConv2d(_SparseConv, nn.Conv2d):
    """SparK's convolution, whose result is 0 where it is hidden. Mask: **1 visible, 0 hidden**.

    x is not masked. Stands on `torchext.partial_conv2d`, of which the product is a part; on the
    CPU, where many tiles of the result are hidden altogether, only the others are convolved.

    Args: those of `torch.nn.Conv2d`; parameters and state keys are the same.

    Shape: x (N,Ci,H,W); mask as for `torchext.nn.visible`, or None for the mask of that block
    -> (N,Co,Ho,Wo).

    Raises:
        TypeError, ValueError: x or mask do not fit, or there is no mask.
    """


class SparseConv3d(_SparseConv, nn.Conv3d):
    """nnssl's: `SparseConv2d` over volumes, x (N,Ci,D,H,W)."""


class _SparsePool(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        seen = visible_at(mask, x, y.shape[2:])
        return y if seen is None else y * seen.to(y.dtype)


class SparseMaxPooling(_SparsePool, nn.MaxPool2d):
    """SparK's max pooling, 0 where it is hidden. Mask: **1 visible, 0 hidden**. Plain PyTorch.

    Args: those of `torch.nn.MaxPool2d`, return_indices False.

    Shape: x (N,C,H,W); mask as for `torchext.nn.visible`, or None for the mask of that block.
    """


class SparseAvgPooling(_SparsePool, nn.AvgPool2d):
    """SparK's average pooling, as `SparseMaxPooling`; hidden zeros count in the averages."""


class SparseMaxPool3d(_SparsePool, nn.MaxPool3d):
    """`SparseMaxPooling` over volumes."""


class SparseAvgPool3d(_SparsePool, nn.AvgPool3d):
    """`SparseAvgPooling` over volumes."""


class SparseConvNeXtBlock(nn.Module):
    """SparK's ConvNeXt block. Mask: **1 visible, 0 hidden**.

    y = x + mask * gamma * pwconv2(gelu(pwconv1(norm(dwconv(x))))), dwconv depthwise. On the CPU,
    which may look at the mask, norm and pointwise layers run for the visible positions alone, on
    other devices and under compilers for all.

    Args:
        dim: C.
        drop_path: share of the images whose branch is left out in training.
        layer_scale_init_value: of gamma, which is missing where it is 0.
        sparse: False for the dense block, without a mask.
        ks: of dwconv, odd.

    Shape: x (N,C,H,W); mask as for `torchext.nn.visible`, or None for the mask of that block
    -> (N,C,H,W).

    Raises:
        ValueError: drop_path is not from 0 to below 1, ks is even.
        TypeError, ValueError: x or mask do not fit, or there is no mask.
    """

    def __init__(
        self,
        dim: int,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        sparse: bool = True,
        ks: int = 7,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path: expected 0 to below 1, got {drop_path}")
        if ks % 2 == 0:
            raise ValueError(f"ks: expected an odd number, got {ks}")
        self.drop_path = drop_path
        self.layer_scale_init_value = layer_scale_init_value
        self.sparse = sparse
        self.dwconv = nn.Conv2d(dim, dim, ks, padding=ks // 2, groups=dim)
        self.norm = SparseConvNeXtLayerNorm(dim, sparse=sparse)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma: nn.Parameter | None = None
        if layer_scale_init_value > 0:
            self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise what no child initialises."""
        if self.gamma is not None:
            nn.init.constant_(self.gamma, self.layer_scale_init_value)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        check_feature_map("x", x)
        seen = visible_at(mask, x, x.shape[2:]) if self.sparse else None
        drop = self._dropped if self.training and self.drop_path else None
        if plain(self.norm, SparseConvNeXtLayerNorm):
            return sparse_convnext_block(self, x, seen, drop)
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = _pointwise(self, self.norm(y, mask) if self.sparse else self.norm(y))
        return _added(x, y, seen, drop)

    def _dropped(self, y: Tensor) -> Tensor:
        """Without some images' branches."""
        kept = torch.empty((len(y), 1, 1, 1), dtype=y.dtype, device=y.device)
        return y * kept.bernoulli_(1 - self.drop_path).div_(1 - self.drop_path)

    def extra_repr(self) -> str:
        return f"drop_path={self.drop_path}, sparse={self.sparse}"


def sparse_convnext_block(
    block: Any, x: Tensor, mask: Tensor | None, drop: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The block's forward; where the mask may be looked at, for the visible positions alone.

    Args:
        block: has what `SparseConvNeXtBlock` has, and a norm over channels.
        x, mask: (N,C,H,W); (N or 1,1,H,W), or None for all.
        drop: what the branch, of x's shape, passes in the end.
    """
    y, norm = block.dwconv(x), block.norm
    if mask is None or not backend.readable(mask):
        y = _pointwise(block, sparse_layer_norm(norm, y, mask).permute(0, 2, 3, 1))
        return _added(x, y, mask, drop)
    where = mask.expand(len(x), -1, -1, -1)[:, 0].nonzero(as_tuple=True)
    rows = y.permute(0, 2, 3, 1)[where]
    rows = F.layer_norm(rows, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    rows = _pointwise(block, rows)
    last = x.permute(0, 2, 3, 1)
    if drop is not None:
        branch = torch.zeros_like(last, dtype=rows.dtype).index_put(where, rows)
        return x + drop(branch.permute(0, 3, 1, 2))
    rows = last[where] + rows
    return last.to(rows.dtype).index_put(where, rows).permute(0, 3, 1, 2)


def _pointwise(block: Any, y: Tensor) -> Tensor:
    y = block.pwconv2(block.act(block.pwconv1(y)))
    return y if block.gamma is None else y * block.gamma


def _added(
    x: Tensor, y: Tensor, mask: Tensor | None, drop: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """x and a branch (N,H,W,C)."""
    y = y.permute(0, 3, 1, 2)
    y = y if mask is None else y * mask.to(y.dtype)
    return x + (y if drop is None else drop(y))


_SPARSE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: SparseConv2d,
    nn.Conv3d: SparseConv3d,
    nn.MaxPool2d: SparseMaxPooling,
    nn.AvgPool2d: SparseAvgPooling,
    nn.MaxPool3d: SparseMaxPool3d,
    nn.AvgPool3d: SparseAvgPool3d,
    nn.BatchNorm2d: SparseBatchNorm2d,
    nn.SyncBatchNorm: SparseSyncBatchNorm2d,
    nn.InstanceNorm2d: SparseInstanceNorm2d,
    nn.InstanceNorm3d: SparseInstanceNorm3d,
}
# Their statistics would mix what is visible with what is not.
_WITHOUT = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def to_sparse(encoder: nn.Module) -> nn.Module:
    """Make a dense encoder's layers hide what is hidden, as SparK and nnssl do, in place.

    PyTorch's convolutions, max and average pools, batch and instance norms become the `Sparse`
    layers of this module, which see the mask of the block `torchext.nn.visible`. Layers stay the
    objects that they are, with their parameters, buffers, hooks and state keys.

    Args:
        encoder: also a single layer.

    Returns:
        The encoder itself.

    Raises:
        ValueError: a layer inside has no sparse form: a subclass of one of these layers, or another
            norm. Nothing is changed then.
    """
    dense = []
    for path, layer in encoder.named_modules():
        if type(layer) in _SPARSE:
            dense.append(layer)
        elif isinstance(layer, (*_SPARSE, *_WITHOUT)) and not _is_sparse(layer):
            raise ValueError(
                f"encoder: expected layers that have a sparse form, got a {type(layer).__name__}"
                f" at {path or 'its root'!r}"
            )
    for layer in dense:
        layer.__class__ = _SPARSE[type(layer)]
    return encoder


def _is_sparse(layer: nn.Module) -> bool:
    return type(layer) in (*_SPARSE.values(), SparseConvNeXtLayerNorm)
