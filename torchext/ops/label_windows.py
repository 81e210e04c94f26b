"""The distinct windows of a label map: what a convolution of it must be computed for, once each."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import backend, reference
from .checks import check_integer, check_tensor, refuse_tracing
from .labels import LABEL_DTYPES
from .op import Op

MAX_KERNEL = 15


@dataclass(frozen=True)
class LabelWindows:
    """The distinct windows of a map and, level by level, the windows of these.

    Attributes:
        kernel_size: k, of every level.
        vectors: (V,C), the distinct vectors of a map of several channels; None for a label map.
        windows: for each level, the distinct windows (count,k*k), int32: of the first level labels
            or rows of `vectors`, of the others rows of the level before; -1 outside the map.
        indices: for each level, each pixel's window (N,H,W), int32.
    """

    kernel_size: int
    vectors: Tensor | None
    windows: tuple[Tensor, ...]
    indices: tuple[Tensor, ...]

    @property
    def index(self) -> Tensor:
        """Each pixel's window of the last level."""
        return self.indices[-1]

    @property
    def share(self) -> float:
        """Distinct windows of the last level for each pixel: 1 where no two are the same."""
        return self.windows[-1].shape[0] / max(1, self.index.numel())


def label_windows(labels: Tensor, kernel_size: int = 3, levels: int = 2) -> LabelWindows:
    """Number the distinct windows of a map, shared by the whole batch.

    A convolution's result depends on the window under it alone, so it need be computed only once
    for each; a second convolution behind it on windows of these, and so on. Exact: what looks the
    same is compared.

    Args:
        labels: (N,H,W) or (N,1,H,W), integers from 0 to 2^31 - 1; or any map (N,C,H,W) of several
            channels or floating-point values, such as a one-hot map, with an edge channel say.
        kernel_size: odd, at most 15.
        levels: of convolutions, at least 1. SPADE has 2.

    Returns:
        Their numbers, as `torchext.spade_modulation_table` and `torchext.modulated_norm` take them.

    On a CUDA device their count is waited for.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a shape or range does not fit, or, in eager mode on the CPU, a label is out of
            range.
    """
    refuse_tracing()
    check_tensor("labels", labels)
    kernel_size = check_integer("kernel_size", kernel_size, 1, MAX_KERNEL)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
    levels = check_integer("levels", levels, 1, 15)
    shape = tuple(labels.shape)
    if labels.dim() not in (3, 4) or 0 in shape[1:]:
        raise ValueError(f"labels: expected the shape (N, H, W) or (N, C, H, W), got {shape}")
    labels = labels.detach()
    vectors = None
    if labels.dtype in LABEL_DTYPES and (labels.dim() == 3 or shape[1] == 1):
        values = labels[:, None] if labels.dim() == 3 else labels
        if values.numel() and backend.readable(values):
            low, high = (int(bound) for bound in torch.aminmax(values))
            if low < 0 or high >= 2**31:
                wrong = low if low < 0 else high
                raise ValueError(f"labels: expected 0 to {2**31 - 1}, got {wrong}")
        values = values.to(torch.int32).contiguous()
    else:
        if labels.dim() == 3:
            raise TypeError(f"labels: expected integers for a map (N, H, W), got {labels.dtype}")
        dtype = torch.float64 if labels.dtype == torch.float64 else torch.float32
        # What is the same has the same bits: 64 of them in two channels.
        bits = labels.to(dtype).unsqueeze(-1).contiguous().view(torch.int32)
        values, rows, _ = LABEL_WINDOWS(bits.movedim(-1, 2).flatten(1, 2).contiguous(), 1)
        values, vectors = values[:, None], rows.view(dtype)
    windows, indices = [], []
    for _ in range(levels):
        index, distinct, _ = LABEL_WINDOWS(values, kernel_size)
        windows.append(distinct)
        indices.append(index)
        values = index[:, None]
    return LabelWindows(kernel_size, vectors, tuple(windows), tuple(indices))


# --- ops ----------------------------------------------------------------------------------------


def _compose(ops: Any, values: Tensor, kernel_size: int) -> tuple[Tensor, Tensor, Tensor]:
    if values.is_cpu and backend.has_tiles(ops):
        return ops.number_windows(values, kernel_size)
    return reference.label_windows(values, kernel_size)


def _fake(values: Tensor, kernel_size: int) -> tuple[Tensor, Tensor, Tensor]:
    N, C, H, W = values.shape
    count = torch.library.get_ctx().new_dynamic_size()
    windows = values.new_empty((count, C * kernel_size**2))
    return values.new_empty((N, H, W)), windows, values.new_empty((1,))


NUMBER_WINDOWS = Op(name="number_windows", fake=_fake)
LABEL_WINDOWS = Op(name="label_windows", fake=_fake, compose=_compose)
