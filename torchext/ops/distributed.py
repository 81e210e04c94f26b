"""Sums and moments over the processes of a group."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class AllReduce(torch.autograd.Function):
    """The sum over a group's processes; its gradient is the sum of all processes' gradients.

    Not torch.distributed.nn's: that one is deprecated, and importing it after the default group
    exists keeps the group alive past destroy_process_group, which aborts the process at exit.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = value.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return AllReduce.apply(grad, ctx.group), None


def merged_moments(
    count: Tensor, mean: Tensor, variance: Tensor, eps: float, group: "dist.ProcessGroup | None"
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and rstd (1,C) and the count (1,1) of all processes, from region statistics of each.

    Two small all-reduces: counts with sums, then squared deviations from the common mean, so that a
    large mean costs no accuracy.
    """
    local = count.double()
    mean64, variance = mean[:, 0].double(), variance[:, 0]
    totals = torch.cat((local, local * mean64), dim=-1)
    if group is not None:
        dist.all_reduce(totals, group=group)
    size = totals[:, :1].clamp(min=1)
    common = totals[:, 1:] / size
    squares = local * (variance + (mean64 - common).square())
    if group is not None:
        dist.all_reduce(squares, group=group)
    return common.to(mean.dtype), torch.rsqrt(squares / size + eps).to(mean.dtype), size
