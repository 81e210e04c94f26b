"""The distinct windows of a label map: what a convolution of it must be computed for, once each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backend, reference
from ..reference.label_windows import in_rows
from .checks import check_integer, check_tensor, refuse_tracing
from .labels import LABEL_DTYPES
from .op import Op

MAX_KERNEL = 15


@dataclass(frozen=True)
class LabelWindows:
    """The distinct windows of a map and, level by level, the windows of these.

    Attributes:
        kernel_size: k, of every level.
        vectors: (V,C), the distinct vectors of a map of several channels, with a capacity zeros
            behind them; None for a label map.
        windows: for each level, the distinct windows (count,k*k), int32: of the first level labels
            or rows of `vectors`, of the others rows of the level before; -1 outside the map.
        indices: for each level, each pixel's window (N,H,W), int32.
        counts: with a capacity: for each level, how many windows there are (1,), int32, on the
            device; more than their rows where these do not suffice. Empty without one, where the
            rows are the windows.
    """

    kernel_size: int
    vectors: Tensor | None
    windows: tuple[Tensor, ...]
    indices: tuple[Tensor, ...]
    counts: tuple[Tensor, ...] = ()

    @property
    def index(self) -> Tensor:
        """Each pixel's window of the last level."""
        return self.indices[-1]

    @property
    def fits(self) -> Tensor:
        """Whether the rows suffice: one bool on the device. Where not, some pixels' are others'."""
        if not self.counts:
            return torch.ones((), dtype=torch.bool, device=self.index.device)
        enough = zip(self.counts, self.windows, strict=True)
        return torch.cat([count <= windows.shape[0] for count, windows in enough]).all()

    @property
    def share(self) -> float:
        """Distinct windows of the last level for each pixel: 1 where no two are the same.

        With a capacity the device is waited for.
        """
        count = int(self.counts[-1]) if self.counts else self.windows[-1].shape[0]
        return count / max(1, self.index.numel())


def label_windows(
    labels: Tensor,
    kernel_size: int = 3,
    levels: int = 2,
    capacity: int | Sequence[int] | None = None,
) -> LabelWindows:
    """Number the distinct windows of a map, shared by the whole batch.

    A convolution's result depends on the window under it alone, so it need be computed only once
    for each; a second convolution behind it on windows of these, and so on. Exact: what looks the
    same is compared.

    Args:
        labels: (N,H,W) or (N,1,H,W), integers from 0 to 2^31 - 1; or any map (N,C,H,W) of several
            channels or floating-point values, such as a one-hot map, with an edge channel say.
        kernel_size: odd, at most 15.
        levels: of convolutions, at least 1. SPADE has 2.
        capacity: the most windows that are expected, of every level or one number for each. The
            windows then have so many rows, those too many -1, and `LabelWindows.counts` tells how
            many there are: no size depends on values. `LabelWindows.fits` tells whether they
            suffice; where not, what is looked up is not to be used.

    Returns:
        Their numbers, as `torchext.spade_modulation_table` and `torchext.modulated_norm` take them.

    Memory beyond the result, with a capacity outside the CPU: the windows of all pixels.

    On a CUDA device their count is waited for; with a capacity nothing is, and a graph of
    `torch.compile`, `torch.export` or CUDA can hold it.

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
    capacities = _capacities(capacity, levels)
    shape = tuple(labels.shape)
    if labels.dim() not in (3, 4) or 0 in shape[1:]:
        raise ValueError(f"labels: expected the shape (N, H, W) or (N, C, H, W), got {shape}")
    labels = labels.detach()
    vectors = most = None
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
        # Each is in the middle of a window, so that there are no fewer windows.
        bits = bits.movedim(-1, 2).flatten(1, 2).contiguous()
        values, rows, most = LABEL_WINDOWS(bits, 1, capacities[0])
        if capacity is not None:  # rows of -1 would be NaN
            spare = torch.arange(rows.shape[0], device=rows.device) >= most
            rows = rows.masked_fill(spare[:, None], 0)
        values, vectors = values[:, None], rows.view(dtype)
    windows, indices, counts = [], [], []
    for rows in capacities:
        index, distinct, count = LABEL_WINDOWS(values, kernel_size, rows)
        # There are no fewer than of the level before, but where its rows did not suffice.
        most = count if most is None else torch.maximum(most, count)
        windows.append(distinct)
        indices.append(index)
        counts.append(most)
        values = index[:, None]
    found = tuple(counts) if capacity is not None else ()
    return LabelWindows(kernel_size, vectors, tuple(windows), tuple(indices), found)


def _capacities(capacity: int | Sequence[int] | None, levels: int) -> list[int | None]:
    if capacity is None:
        return [None] * levels
    given = list(capacity) if isinstance(capacity, Sequence) else [capacity] * levels
    if len(given) != levels:
        raise ValueError(f"capacity: expected a number for each of {levels} levels, got {capacity}")
    return [check_integer("capacity", rows, 1, 2**31 - 1) for rows in given]


# --- ops ----------------------------------------------------------------------------------------

_COLLIDED = 2**31 - 1  # the count where two windows have one hash


def _compose(
    ops: Any, values: Tensor, kernel_size: int, capacity: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    if values.is_cpu and backend.has_tiles(ops):
        numbered = ops.number_windows(values, kernel_size)
        return numbered if capacity is None else in_rows(*numbered, capacity)
    if capacity is None or values.shape[0] == 0:
        return reference.label_windows(values, kernel_size, capacity)
    return _sorted_by_hash(values, kernel_size, capacity)


def _sorted_by_hash(
    values: Tensor, kernel_size: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Without a size that depends on values: equal hashes side by side, then compared.

    Two windows with one hash, which should not be met in a lifetime, make the count too large.
    """
    N, C, H, W = values.shape
    half = kernel_size // 2
    around = F.pad(values, (half,) * 4, value=-1)
    taps = [
        around[:, c, y : y + H, x : x + W].reshape(-1)
        for c in range(C)
        for y in range(kernel_size)
        for x in range(kernel_size)
    ]
    sorted_hash, order = _hash(taps).sort(stable=True)
    starts = F.pad(sorted_hash[1:] != sorted_hash[:-1], (1, 0), value=True)
    collided = torch.zeros((), dtype=torch.bool, device=values.device)
    for tap in taps:
        ordered = tap[order]
        collided |= ((ordered[1:] != ordered[:-1]) & ~starts[1:]).any()
    numbers = starts.cumsum(0) - 1
    wanted = torch.arange(capacity, device=values.device)
    first = order[torch.searchsorted(numbers, wanted).clamp_(max=numbers.numel() - 1)]
    windows = torch.stack([tap[first] for tap in taps], dim=1)
    count = torch.where(collided, _COLLIDED, numbers[-1:] + 1).to(torch.int32)
    index = torch.empty_like(numbers).scatter_(0, order, numbers).clamp_(max=capacity - 1)
    windows = windows.masked_fill((wanted >= count)[:, None], -1)
    return index.view(N, H, W).to(torch.int32), windows, count


def _hash(taps: list[Tensor]) -> Tensor:
    """64 bits of the int32 values at every place, modulo 2^64."""
    found = torch.zeros_like(taps[0], dtype=torch.int64)
    for tap in taps:
        found = (found ^ tap) * -0xAE502812AA7333  # 0xff51afd7ed558ccd, as in MurmurHash3
        found = found ^ ((found >> 32) & 0xFFFFFFFF)  # without the sign: nothing is lost
    return found


def _fake(values: Tensor, kernel_size: int, capacity: int | None) -> tuple[Tensor, Tensor, Tensor]:
    N, C, H, W = values.shape
    rows = torch.library.get_ctx().new_dynamic_size() if capacity is None else capacity
    windows = values.new_empty((rows, C * kernel_size**2))
    return values.new_empty((N, H, W)), windows, values.new_empty((1,))


def _fake_numbers(values: Tensor, kernel_size: int) -> tuple[Tensor, Tensor, Tensor]:
    return _fake(values, kernel_size, None)


NUMBER_WINDOWS = Op(name="number_windows", fake=_fake_numbers)
LABEL_WINDOWS = Op(name="label_windows", fake=_fake, compose=_compose)
