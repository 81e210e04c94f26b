"""Partial convolution of the tiles of an output that are not all hole, on the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backend
from .op import Op
from .winograd_conv import convolve

# A convolution of tiles is worth its gathering where fewer than this share of them is live.
LIVE_SHARE = 0.8
TILE = 8  # as in csrc/cpu/partial_conv_kernels.h
_MIN_TILES = 64


def live_tiles(ops: Any, x: Tensor, updated: Tensor) -> Tensor | None:
    """Each tile's place among those to be convolved, -1 where all is hole; None if too many."""
    if not backend.has_tiles(ops) or x.dim() != 4 or not x.is_contiguous():
        return None
    rows, columns = (-(-size // TILE) for size in updated.shape[2:])
    if x.shape[0] * rows * columns < _MIN_TILES:
        return None
    live = F.max_pool2d(updated, TILE, ceil_mode=True)[:, 0] > 0
    live = live.expand(x.shape[0], -1, -1)
    if int(live.sum()) > LIVE_SHARE * live.numel():
        return None
    places = live.flatten().cumsum(0, dtype=torch.int32).sub_(1).view(live.shape)
    return places.masked_fill_(~live, -1)


def convolve_tiles(
    ops: Any,
    x: Tensor,
    mask: Tensor | None,
    mask_channels: list[int],
    slots: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    extent = [
        (TILE - 1) * s + d * (k - 1) + 1
        for s, d, k in zip(stride, dilation, weight.shape[2:], strict=True)
    ]
    count = int(slots.max()) + 1
    if mask is not None:
        mask = mask.contiguous()
    tiles = ops.gather_tiles(x, mask, mask_channels, slots, count, extent, stride, padding)
    return convolve(ops, tiles, weight, stride, [0, 0], dilation, groups).contiguous()


def _fake_gather(
    x: Tensor,
    mask: Tensor | None,
    mask_channels: list[int],
    slots: Tensor,
    count: int,
    extent: list[int],
    *_: Any,
) -> Tensor:
    return x.new_empty((count, x.shape[1], *extent))


def _fake_scatter(tiles: Tensor, slots: Tensor, scale: Tensor, *_: Any) -> Tensor:
    return tiles.new_empty((slots.shape[0], tiles.shape[1], *scale.shape[2:]))


GATHER_TILES = Op(name="gather_tiles", fake=_fake_gather)
SCATTER_TILES = Op(name="scatter_tiles", fake=_fake_scatter)
