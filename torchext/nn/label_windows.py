"""The windows of a segmentation map, found once for all layers that are given it."""

import dataclasses

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .. import backend
from ..ops import winograd_conv
from ..ops.checks import autocast_dtype
from ..ops.label_windows import LabelWindows, label_windows
from .resize import nearest

Capacity = int | tuple[int, int] | None
Shared = dict[tuple[int, Capacity], LabelWindows]  # of one map at one size, in a graph

# Nanoseconds of one thread, measured with AVX-512; elsewhere all take longer alike.
_DIRECT = 0.018  # a multiplication of a direct convolution; as a share of it in bfloat16:
_BFLOAT16, _BFLOAT16_IN_TILES = 0.7, 0.12  # the second with AMX, by its peak
_LABEL = 0.3  # a value that a label adds in a convolution of labels
_PRODUCT = 0.021  # a multiplication of the table's matrix product
_ROW = 0.25  # a value that is added to a row
_TURNED = 1.25  # a value of the table, turned so that a channel's rows lie side by side
_WEIGHT = 1.3  # a value of the weights, likewise
_LOOK_UP = 0.5  # a value that is looked up rather than read in order
_LEAST = 1.1  # by which the table must be ahead


@dataclasses.dataclass
class _Known:
    """The windows of a map, as it was at a version, by size, kernel and capacity."""

    version: int
    windows: dict[tuple[int, int, int, Capacity], LabelWindows] = dataclasses.field(
        default_factory=dict
    )


_known = WeakTensorKeyDictionary()  # by the identity of the map, with which an entry goes


def windows_of(
    layer: nn.Module,
    segmap: Tensor,
    x: Tensor,
    weight: Tensor,
    modulation_weight: Tensor,
    capacity: Capacity = None,
    shared: Shared | None = None,
) -> LabelWindows | None:
    """The windows of a map at x's size where a table of them pays, else None.

    Where values may not be looked at, by a capacity alone; without `LabelWindows.counts` they are
    sure to fit.

    Args:
        layer: to which `torchext.backend.explain_windows` gives the choice.
        segmap: as `torchext.nn.SPADE` takes it.
        x: (N,C,H,W).
        weight, modulation_weight: of SPADE's first convolution, and of one of the others.
        capacity: as `torchext.label_windows` takes it, of two levels.
        shared: where a graph's windows are kept for the next layer.
    """
    windows, gain = None, None
    reason = _problem(segmap, x, capacity)
    if not reason and backend.readable(segmap):
        windows, gain, reason = _counted(segmap, x, weight, modulation_weight)
    elif not reason:
        windows, reason = _bounded(segmap, x, weight.shape[-1], capacity, shared)
    if not backend.traced():
        counts = () if windows is None else tuple(rows.shape[0] for rows in windows.windows)
        tell(layer, x, reason, counts, gain)
    return None if reason else windows


def tell(
    layer: nn.Module,
    x: Tensor,
    reason: str,
    counts: tuple[int, ...] = (),
    gain: float | None = None,
) -> None:
    """Of a layer's choice; see `torchext.backend.WindowChoice`."""
    backend.tell_windows(backend.WindowChoice(layer, tuple(x.shape), counts, gain, reason))


def _problem(segmap: Tensor, x: Tensor, capacity: Capacity) -> str:
    """Why there are no windows, "" if there may be."""
    if segmap.requires_grad:
        return "the map needs a gradient"
    if segmap.numel() == 0 or x.numel() == 0 or segmap.shape[0] != x.shape[0]:
        return "the map and x are not of as many images, or empty"
    if backend.readable(segmap):
        return ""
    if capacity is None:
        return "values may not be looked at (in a graph, on a device), and no capacity is set"
    if torch.compiler.is_compiling():
        return ""
    if torch.jit.is_tracing() or backend.mapped(segmap):
        return "torch.jit.trace and torch.func.vmap have no branches"
    if segmap.is_cuda and torch.cuda.is_current_stream_capturing():
        return "the stream is captured, which cannot wait to see whether the capacity suffices"
    return ""


def _counted(
    segmap: Tensor, x: Tensor, weight: Tensor, modulation_weight: Tensor
) -> tuple[LabelWindows | None, float | None, str]:
    """The windows, the gain that is expected, and why they are not to be used."""
    kernel_size = weight.shape[-1]
    key = (x.shape[2], x.shape[3], kernel_size, None)
    known = _known_of(segmap)
    windows = known.windows.get(key)
    if windows is None:
        resized = nearest(segmap[:, None] if segmap.dim() == 3 else segmap, x)
        if not _in_regions(resized):
            return None, None, "fewer than half of the pixels are as their left neighbours"
        windows = known.windows[key] = label_windows(resized, kernel_size, levels=1)
    gain = _gain(windows, segmap, x, weight, modulation_weight)
    if gain > _LEAST and len(windows.windows) == 1:
        wide = label_windows(windows.index, kernel_size, levels=1)
        known.windows[key] = windows = LabelWindows(
            kernel_size,
            windows.vectors,
            windows.windows + wide.windows,
            windows.indices + wide.indices,
        )
        gain = _gain(windows, segmap, x, weight, modulation_weight)
    return windows, gain, "" if gain > _LEAST else "too many windows differ"


def _bounded(
    segmap: Tensor, x: Tensor, kernel_size: int, capacity: Capacity, shared: Shared | None
) -> tuple[LabelWindows | None, str]:
    """Windows in the capacity's rows, and why they are not to be used."""

    def number() -> LabelWindows:
        resized = nearest(segmap[:, None] if segmap.dim() == 3 else segmap, x)
        return label_windows(resized, kernel_size, capacity=capacity)

    if backend.traced():  # whose tensors may not be kept beyond it
        shared = {} if shared is None else shared
        if (kernel_size, capacity) not in shared:
            shared[kernel_size, capacity] = number()
        return shared[kernel_size, capacity], ""
    known, key = _known_of(segmap), (x.shape[2], x.shape[3], kernel_size, capacity)
    windows = known.windows.get(key)
    if windows is None:
        windows = number()
        if windows.fits:  # waits, once for each map and size
            windows = dataclasses.replace(windows, counts=())
        known.windows[key] = windows
    return windows, "more windows differ than the capacity" if windows.counts else ""


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


def _gain(
    windows: LabelWindows, segmap: Tensor, x: Tensor, weight: Tensor, modulation_weight: Tensor
) -> float:
    """How many times faster than the convolutions the table and looking it up should be.

    Of a level that is not there yet: there are no fewer windows than of the one before.
    """
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    inner, outer = windows.windows[0].shape[0], windows.windows[-1].shape[0]
    hidden, classes, kernel_size, _ = weight.shape
    taps, maps = kernel_size**2, 2 * modulation_weight.shape[0]
    if windows.vectors is None:
        first, products = _LABEL * pixels * hidden * taps, 0.0
    else:
        first = _convolution(segmap, x, weight, hidden)
        products = _PRODUCT * windows.vectors.shape[0] * classes * taps * hidden
    convolutions = first + _convolution(segmap, x, modulation_weight, maps)
    table = products + _ROW * inner * taps * hidden
    table += (_PRODUCT * inner + _WEIGHT) * hidden * maps * taps
    table += (_ROW * taps + _TURNED) * outer * maps
    return convolutions / (table + _LOOK_UP * pixels * maps)


def _convolution(segmap: Tensor, x: Tensor, weight: Tensor, channels: int) -> float:
    """Nanoseconds of a convolution by a weight to so many channels, at x's size."""
    kernel, once = tuple(weight.shape[2:]), (1, 1)
    shape = (x.shape[0], weight.shape[1], *x.shape[2:])
    time = _DIRECT * shape[0] * shape[2] * shape[3] * channels * weight[0].numel()
    dtype = autocast_dtype(x)
    if dtype is not None:
        in_tiles = torch.cpu.get_capabilities().get("amx_bf16", False)
        return time * (_BFLOAT16_IN_TILES if in_tiles else _BFLOAT16)
    if backend.chosen_convolution() == "direct":
        return time
    # What the input will be like, without its memory: of the map's memory format.
    last = segmap.dim() == 4 and not segmap.is_contiguous()
    pixels = torch.empty(
        (1, shape[1], 2, 2),
        dtype=weight.dtype,
        device=weight.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
    ops = backend.choose("winograd_conv2d", pixels).ops
    if backend.has_tiles(ops) and not winograd_conv.problem(pixels, channels, once, kernel):
        whole = pixels[:1, :, :1, :1].expand(shape)
        time /= max(1, winograd_conv.gain(whole, channels, shape[2:], once, kernel=kernel[0]))
    return time
