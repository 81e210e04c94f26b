"""Masks and label maps: what may be in them, and regions made of them."""

import torch
from torch import Tensor

from .. import backend
from .checks import check_device, check_tensor, refuse_tracing
from .op import Op

LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_mask(x: Tensor, mask: Tensor, num_regions: int, resize_mask: bool) -> Tensor:
    """Raise what `region_norm` documents for a mask; returns it as (N or 1,1,H,W)."""
    refuse_tracing()
    check_tensor("mask", mask)
    if mask.dtype == torch.bool or mask.is_floating_point():
        if num_regions != 2:
            raise TypeError(
                f"mask: expected integer labels for num_regions={num_regions}, got {mask.dtype}"
            )
    elif mask.is_complex() or mask.dtype not in LABEL_DTYPES:
        raise TypeError(f"mask: expected a bool, integer or floating-point mask, got {mask.dtype}")
    check_device("mask", mask, x)
    if mask.dim() == 4 and mask.shape[1] > 1 and mask.stride(1) == 0:
        mask = mask[:, :1]  # one channel, expanded
    N, _, H, W = x.shape
    batches = f"{N} or 1" if N != 1 else "1"
    fits = mask.dim() == 4 and mask.shape[0] in (1, N) and mask.shape[1] == 1
    if resize_mask:
        if not fits or 0 in mask.shape[2:]:
            raise ValueError(
                f"mask: expected the shape ({batches}, 1, any, any), got {tuple(mask.shape)}"
            )
    elif not fits or tuple(mask.shape[2:]) != (H, W):
        raise ValueError(
            f"mask: expected the shape ({batches}, 1, {H}, {W}) for x of {tuple(x.shape)},"
            f" got {tuple(mask.shape)}"
        )
    return mask


def region_labels(x: Tensor, mask: Tensor, num_regions: int) -> Tensor:
    """uint8 labels of x's height and width from a checked mask."""
    H, W = x.shape[2:]
    return REGION_LABELS(mask.detach().contiguous(), H, W, num_regions, backend.checks_values(x))


def check_label_map(labels: Tensor) -> Tensor:
    """Raise what `label_conv2d` documents; returns the labels as (N,H,W)."""
    check_tensor("labels", labels)
    if labels.dtype not in LABEL_DTYPES:
        raise TypeError(f"labels: expected integers, got {labels.dtype}")
    shape = tuple(labels.shape)
    if labels.dim() == 4 and shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() != 3 or 0 in labels.shape[1:]:
        raise ValueError(f"labels: expected the shape (N, H, W) or (N, 1, H, W), got {shape}")
    return labels


def _fake(mask: Tensor, height: int, width: int, num_regions: int, check_values: bool) -> Tensor:
    return mask.new_empty((mask.shape[0], 1, height, width), dtype=torch.uint8)


REGION_LABELS = Op(name="region_labels", fake=_fake, file="region_norm")
