"""PD-GAN's diversity maps: "PD-GAN: Probabilistic Diverse GAN for Image Inpainting" (CVPR 2021)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import (
    check_feature_map,
    check_integer,
    check_positive,
    check_tensor,
    native,
    refuse_tracing,
)
from .labels import check_mask, region_labels
from .op import Gradients, Op

MAX_STEPS = 255
MAX_WINDOW = 255


def diversity_map(
    mask: Tensor,
    steps: int | Sequence[int],
    window: int | Sequence[int],
    base: float = math.e,
    size: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
) -> Tensor | list[Tensor]:
    """How far each pixel trusts the prior, less towards a hole's middle. Mask: 1 known, 0 hole.

    base^-i for the pixels that the i-th of `steps` dilations of the known region by a window x
    window box adds, base^-steps for those that none reaches, 1 for the known ("PD-GAN", CVPR 2021,
    section 3: the hard map). In closed form base^-min(ceil(d / (window // 2)), steps), with d the
    chessboard distance to the nearest known pixel.

    Args:
        mask: (N,1,H,W), bool, 0/1 integers or floats.
        steps: dilations, 1 to 255.
        window: of a dilation, odd, 3 to 255.
        base: e in the published code, 4 in the paper.
        size: (height, width) to which the mask is resized first, by nearest neighbour at index
            floor(i * in / out); the mask's own by default. Give a sequence of sizes for several
            maps in one call; `steps` and `window` may then be sequences too.

    Returns:
        (N,1,height,width), float32 (float64 for a float64 mask), or a list of such. No gradient.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape or range does not fit, or, in eager mode on the CPU (elsewhere with
            `torchext.backend.check_values`), a mask holds other values than 0 and 1.
    """
    refuse_tracing()
    check_tensor("mask", mask)
    if mask.dim() != 4 or mask.shape[1] != 1 or 0 in mask.shape[2:]:
        raise ValueError(f"mask: expected the shape (N, 1, H, W), got {tuple(mask.shape)}")
    check_mask(mask, mask, 2, False)
    check_positive("base", base)
    several = isinstance(size, Sequence) and len(size) > 0 and isinstance(size[0], Sequence)
    sizes = list(size) if several else [tuple(mask.shape[2:]) if size is None else size]
    steps_of = _each("steps", steps, len(sizes), several)
    windows = _each("window", window, len(sizes), several)
    sizes = [_checked_size(height_width) for height_width in sizes]
    steps_of = [check_integer("steps", value, 1, MAX_STEPS) for value in steps_of]
    windows = [check_integer("window", value, 3, MAX_WINDOW) for value in windows]
    for value in windows:
        if value % 2 == 0:
            raise ValueError(f"window: expected an odd number, got {value}")

    dtype = torch.float64 if mask.dtype == torch.float64 else torch.float32
    labels = region_labels(mask, mask, 2)
    heights, widths = ([height_width[i] for height_width in sizes] for i in range(2))
    flat = DIVERSITY_MAPS(labels, steps_of, windows, heights, widths, float(base), dtype)
    N = mask.shape[0]
    parts = flat.split([N * height * width for height, width in sizes])
    maps = [part.view(N, 1, *shape) for part, shape in zip(parts, sizes, strict=True)]
    return maps if several else maps[0]


def _each(name: str, value: int | Sequence[int], count: int, several: bool) -> list[int]:
    if hasattr(value, "__index__"):
        return [value] * count
    if not several or not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if len(value) != count:
        raise ValueError(f"{name}: expected {count} numbers, one for each size, got {len(value)}")
    return list(value)


def _checked_size(size: object) -> tuple[int, int]:
    if not isinstance(size, Sequence) or len(size) != 2:
        raise TypeError(f"size: expected (height, width) or a sequence of such, got {size!r}")
    height, width = (check_integer("size", value, 1, 2**31 - 1) for value in size)
    return height, width


def soft_diversity_map(logits: Tensor, mask: Tensor, *, resize_mask: bool = False) -> Tensor:
    """The learned map: 1 where known, else sigmoid(logits). Mask: 1 known, 0 hole.

    sigmoid(logits) * (1 - mask) + mask for a binary mask ("PD-GAN", CVPR 2021, section 4).

    Args:
        logits: (N,C,H,W), float32, float64, float16 or bfloat16; contiguous or channels_last.
        mask: (N or 1,1,H,W), bool, 0/1 integers or floats, on the device of logits. No gradient.
        resize_mask: take a mask of any height and width and resize it by nearest neighbour.

    Returns:
        The map, with the shape, dtype and memory format of logits.

    Memory beyond the result: one byte per pixel; backward needs no more than the result.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape or device does not fit, or, in eager mode on the CPU (elsewhere with
            `torchext.backend.check_values`), a mask holds other values than 0 and 1.
    """
    check_feature_map("logits", logits)
    mask = check_mask(logits, mask, 2, resize_mask)
    return SOFT_DIVERSITY_MAP(native(logits), region_labels(logits, mask, 2))


# --- ops ----------------------------------------------------------------------------------------


def _fake_maps(
    labels: Tensor,
    steps: list[int],
    windows: list[int],
    heights: list[int],
    widths: list[int],
    base: float,
    dtype: torch.dtype,
) -> Tensor:
    pixels = sum(height * width for height, width in zip(heights, widths, strict=True))
    return labels.new_empty((labels.shape[0] * pixels,), dtype=dtype)


def _backward(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    return {"logits": ops.soft_diversity_map_backward(grad, kept.y, kept.labels)}


DIVERSITY_MAPS = Op(name="diversity_maps", fake=_fake_maps)
SOFT_DIVERSITY_MAP = Op(
    name="soft_diversity_map",
    fake=lambda logits, labels: torch.empty_like(logits),
    keep=("y", "labels"),
    backward=_backward,
    twice="backward",
)
SOFT_DIVERSITY_MAP_BACKWARD = Op(
    name="soft_diversity_map_backward", fake=lambda grad, y, labels: torch.empty_like(y)
)
