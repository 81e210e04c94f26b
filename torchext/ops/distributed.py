"""Moments over the processes of a group."""

import torch
import torch.distributed as dist
from torch import Tensor


def merged_moments(
    count: Tensor, mean: Tensor, variance: Tensor, eps: float, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and rstd (1,C) and the count (1,1) of all processes, from region statistics of each.

    Two small all-reduces: counts with sums, then squared deviations from the common mean, so that a
    large mean costs no accuracy.
    """
    local = count.double()
    mean64, variance = mean[:, 0].double(), variance[:, 0]
    totals = torch.cat((local, local * mean64), dim=-1)
    dist.all_reduce(totals, group=group)
    size = totals[:, :1].clamp(min=1)
    common = totals[:, 1:] / size
    squares = local * (variance + (mean64 - common).square())
    dist.all_reduce(squares, group=group)
    return common.to(mean.dtype), torch.rsqrt(squares / size + eps).to(mean.dtype), size
