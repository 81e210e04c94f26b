"""Drawn strokes as guidance: where they lie, which way they run, and the hole around them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchext.ops.checks import check_integer, check_mask_values, check_positive, check_tensor
from torchext.ops.filter_banks import difference_of_gaussians_bank
from torchext.ops.gabor_orientation import (
    orientation_map,
    oriented_filter_max,
)

STROKE_THICKNESS = 6.0
HOLE_DIAMETER = 50


class StrokeGuidance(NamedTuple):
    """What the stroke-inpainting network reads; see `stroke_guidance`."""

    stroke: Tensor
    rgb: Tensor
    hole: Tensor


def draw_strokes(
    strokes: Sequence[Any],
    height: int,
    width: int,
    *,
    thickness: float = STROKE_THICKNESS,
) -> Tensor:
    """Polylines as a mask: 1 on a stroke, 0 elsewhere.

    Args:
        strokes: polylines, each a sequence (or tensor) of points (x, y) in pixels, x to the right
            and y down; a single point is a dot. They may leave the picture.
        height, width: of the mask.
        thickness: in pixels; ends are round.

    Returns:
        float32 (1,1,H,W).

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
    """
    check_integer("height", height, 1, 1 << 20)
    check_integer("width", width, 1, 1 << 20)
    check_positive("thickness", thickness)
    mask = torch.zeros(1, 1, height, width)
    for number, stroke in enumerate(strokes):
        points = _points(number, stroke)
        for begin, end in zip(points, [*points[1:], points[-1]], strict=True):
            _draw_segment(mask[0, 0], begin, end, thickness / 2)
    return mask


def _points(number: int, stroke: Any) -> list[tuple[float, float]]:
    try:
        points = torch.as_tensor(stroke, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"strokes[{number}]: expected a sequence of points (x, y)") from error
    if points.dim() != 2 or points.shape[1] != 2 or not len(points) or not points.isfinite().all():
        raise ValueError(
            f"strokes[{number}]: expected finite points of the shape (P, 2) with P at least 1, got"
            f" {tuple(points.shape)}"
        )
    return [(x, y) for x, y in points.tolist()]


def _draw_segment(
    mask: Tensor, begin: tuple[float, float], end: tuple[float, float], radius: float
) -> None:
    """Sets what lies within the radius of a segment to 1, looking at its bounding box only."""
    (x0, y0), (x1, y1) = begin, end
    H, W = mask.shape
    top = min(max(math.floor(min(y0, y1) - radius), 0), H)
    left = min(max(math.floor(min(x0, x1) - radius), 0), W)
    box = mask[top : max(math.ceil(max(y0, y1) + radius) + 1, 0)]
    box = box[:, left : max(math.ceil(max(x0, x1) + radius) + 1, 0)]
    y = torch.arange(box.shape[0], dtype=torch.float64)[:, None] + top
    x = torch.arange(box.shape[1], dtype=torch.float64) + left
    dx, dy = x1 - x0, y1 - y0
    length = dx * dx + dy * dy
    share = (((x - x0) * dx + (y - y0) * dy) / (length or 1)).clamp(0, 1)
    squared = (x - x0 - share * dx).square() + (y - y0 - share * dy).square()
    box[squared <= radius * radius] = 1


def stroke_orientation(stroke: Tensor) -> Tensor:
    """The colour code of drawn strokes' orientation, dense inside them. Mask: 1 stroke, 0 not.

    The published tool: oriented differences of Gaussians on the mask itself. Inside broad strokes
    filters nearly tie.

    Args:
        stroke: (N,1,H,W), values 0 and 1.

    Returns:
        (N,3,H,W): ((cos 2o + 1) / 2, (sin 2o + 1) / 2, .5) inside the strokes, 0 elsewhere; float32
        (float64 for float64).

    Raises:
        TypeError, ValueError: what `torchext.oriented_filter_max` raises.
    """
    check_tensor("stroke", stroke)
    check_mask_values("stroke", stroke)
    if not stroke.is_floating_point():
        stroke = stroke.float()
    dtype = torch.float64 if stroke.dtype == torch.float64 else torch.float32
    bank = difference_of_gaussians_bank(dtype=dtype, device=stroke.device)
    index, _ = oriented_filter_max(stroke, bank)
    two_channel = orientation_map(index.to(dtype) * (math.pi / len(bank)), order="cos_sin")
    half = torch.full_like(two_channel[:, :1], 0.5)
    return torch.cat(((two_channel + 1) / 2, half), dim=1) * stroke


def stroke_hole(stroke: Tensor, diameter: int = HOLE_DIAMETER) -> Tensor:
    """The surroundings of strokes that are to be painted anew: the strokes grown by a disc.

    Args:
        stroke: (N,1,H,W), 1 on strokes.
        diameter: of OpenCV's elliptic structuring element. Of an even diameter d, pixels grow by
            d / 2 to the lower right and d / 2 - 1 to the upper left.

    Returns:
        (N,1,H,W), 0 and 1, in the stroke's dtype.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
    """
    check_tensor("stroke", stroke)
    if stroke.dim() != 4 or stroke.shape[1] != 1:
        raise ValueError(f"stroke: expected the shape (N, 1, H, W), got {tuple(stroke.shape)}")
    check_mask_values("stroke", stroke)
    check_integer("diameter", diameter, 1, 4096)
    H, W = stroke.shape[2:]
    radius = diameter // 2
    # strokes to the left of each column, so that a row of the disc is one difference
    counts = F.pad((stroke != 0).to(torch.int32), (radius + 1, radius, radius, radius))
    counts = counts.cumsum(dim=3, dtype=torch.int32)
    found = torch.zeros(stroke.shape, dtype=torch.bool, device=stroke.device)
    for row in range(diameter):
        reach = round(radius * math.sqrt(1 - ((row - radius) / radius) ** 2)) if radius else 0
        first, last = max(radius - reach, 0), min(radius + reach, diameter - 1)
        rows = counts[:, :, row : row + H]
        found |= rows[..., last + 1 : last + 1 + W] > rows[..., first : first + W]
    return found.to(stroke.dtype)


def stroke_guidance(
    strokes: Sequence[Any],
    hair: Tensor,
    *,
    thickness: float = STROKE_THICKNESS,
    diameter: int = HOLE_DIAMETER,
) -> StrokeGuidance:
    """A user's strokes as the stroke-inpainting network reads them. Mask: 1 hair, 0 not.

    Args:
        strokes, thickness: as for `draw_strokes`.
        hair: (1,1,H,W); all results are confined to it.
        diameter: as for `stroke_hole`.

    Returns:
        stroke (1,1,H,W): 1 on strokes. rgb (1,3,H,W): their colour code, as of
        `stroke_orientation`. hole (1,1,H,W): 1 where the orientation is to be painted anew.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
    """
    check_tensor("hair", hair)
    if hair.dim() != 4 or hair.shape[:2] != (1, 1):
        raise ValueError(f"hair: expected the shape (1, 1, H, W), got {tuple(hair.shape)}")
    check_mask_values("hair", hair)
    if not hair.is_floating_point():
        hair = hair.float()
    drawn = draw_strokes(strokes, *hair.shape[2:], thickness=thickness).to(hair)
    return StrokeGuidance(
        drawn * hair, stroke_orientation(drawn) * hair, stroke_hole(drawn, diameter) * hair
    )
