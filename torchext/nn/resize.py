"""Conditions brought to the size of a feature map."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest(value: Tensor, x: Tensor) -> Tensor:
    """(N,C,h,w) of any dtype at x's height and width, source index floor(i * in / out)."""
    size = tuple(x.shape[2:])
    height, width = value.shape[2:]
    if (height, width) == size:
        return value
    if value.is_floating_point():
        return F.interpolate(value, size=size, mode="nearest")
    rows = torch.arange(size[0], device=value.device) * height // size[0]
    columns = torch.arange(size[1], device=value.device) * width // size[1]
    return value[:, :, rows][:, :, :, columns]
