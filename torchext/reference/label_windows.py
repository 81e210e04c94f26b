"""The distinct windows of a map."""

import torch
import torch.nn.functional as F
from torch import Tensor


def label_windows(
    values: Tensor, kernel_size: int, capacity: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Each pixel's window (N,H,W) of a map (N,C,H,W), the distinct ones, and their count.

    Windows are (C * k * k), channels outermost; outside the map everything is -1. With a capacity
    they have so many rows, those too many -1.
    """
    N, C, H, W = values.shape
    half = kernel_size // 2
    around = F.pad(values, (half,) * 4, value=-1)
    windows = around.unfold(2, kernel_size, 1).unfold(3, kernel_size, 1)
    rows = windows.permute(0, 2, 3, 1, 4, 5).reshape(N * H * W, C * kernel_size**2)
    if N == 0:
        distinct, index = rows, rows.new_empty((0,))
    else:
        distinct, index = torch.unique(rows, dim=0, return_inverse=True)
    count = torch.full((1,), distinct.shape[0], dtype=torch.int32, device=values.device)
    found = (index.view(N, H, W).to(torch.int32), distinct, count)
    return found if capacity is None else in_rows(*found, capacity)


def in_rows(
    index: Tensor, windows: Tensor, count: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Numbered windows in so many rows; what is beyond them has the last one's number."""
    windows = F.pad(windows[:capacity], (0, 0, 0, max(0, capacity - len(windows))), value=-1)
    return index.clamp(max=capacity - 1), windows, count
