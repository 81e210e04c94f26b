"""The windows of a segmentation map, found once for all layers that are given it."""

import dataclasses

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .. import backend
from ..ops.checks import autocast_dtype
from ..ops.label_windows import LabelWindows, label_windows
from .resize import nearest

# Where the table and looking it up are as fast as the convolutions: time per multiplication of
# the convolutions, of the table's matrix product and of adding up rows, as shares of the first.
# Measured on a CPU of two cores.
_PRODUCT, _ROW, _LOOK_UP = 1.3, 60.0, 60.0
_MOST = 0.9  # of the convolutions' time


@dataclasses.dataclass
class _Known:
    """The windows of a map, as it was at a version, by size and kernel."""

    version: int
    windows: dict[tuple[int, int, int], LabelWindows] = dataclasses.field(default_factory=dict)


_known = WeakTensorKeyDictionary()  # by the identity of the map, with which an entry goes


def windows_of(
    segmap: Tensor, x: Tensor, weight: Tensor, modulation_weight: Tensor
) -> LabelWindows | None:
    """The windows of a map at x's size where a table of them pays, else None.

    Args:
        segmap: as `torchext.nn.SPADE` takes it.
        x: (N,C,H,W).
        weight, modulation_weight: of SPADE's first convolution, and of one of the others.
    """
    if not backend.readable(segmap) or segmap.requires_grad or segmap.numel() == 0:
        return None
    if autocast_dtype(x) is not None or x.numel() == 0 or segmap.shape[0] != x.shape[0]:
        return None
    kernel_size = weight.shape[-1]
    key = (x.shape[2], x.shape[3], kernel_size)
    known = _known_of(segmap)
    windows = known.windows.get(key)
    if windows is None:
        resized = nearest(segmap[:, None] if segmap.dim() == 3 else segmap, x)
        if not _in_regions(resized):
            return None
        windows = known.windows[key] = label_windows(resized, kernel_size, levels=1)
    if not _pays(windows, x, weight, modulation_weight):
        return None
    if len(windows.windows) == 1:
        wide = label_windows(windows.index, kernel_size, levels=1)
        known.windows[key] = windows = LabelWindows(
            kernel_size,
            windows.vectors,
            windows.windows + wide.windows,
            windows.indices + wide.indices,
        )
    return windows if _pays(windows, x, weight, modulation_weight) else None


def _known_of(segmap: Tensor) -> _Known:
    if segmap.is_inference():  # whose changes are not counted
        return _Known(0)
    known = _known.get(segmap)
    if known is None or known.version != segmap._version:
        known = _known[segmap] = _Known(segmap._version)
    return known


def _in_regions(segmap: Tensor) -> bool:
    """Whether at least half of the pixels are as their left neighbours, by every eighth row.

    Random labels and continuous maps are not worth the numbering.
    """
    if segmap.shape[3] == 1:
        return True
    rows = segmap[:, :, ::8]
    same = (rows[..., 1:] == rows[..., :-1]).all(dim=1)
    return 2 * int(same.sum()) >= same.numel()


def _pays(windows: LabelWindows, x: Tensor, weight: Tensor, modulation_weight: Tensor) -> bool:
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    columns = 2 * modulation_weight[:, 0].numel()  # of the table, taps included
    hidden = weight.shape[0]
    # Of a level that is not there yet: there are no fewer than of the one before.
    inner, outer = windows.windows[0].shape[0], windows.windows[-1].shape[0]
    convolutions = pixels * columns * hidden
    table = _PRODUCT * inner * columns * hidden + _ROW * outer * columns
    look_up = _LOOK_UP * pixels * 2 * modulation_weight.shape[0]
    return table + look_up < _MOST * convolutions
