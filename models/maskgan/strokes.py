"""Label maps that are painted over by strokes, pixel for pixel as the published demo does.

It draws with OpenCV's `line`, whose rules these are: ends are cut, in whole pixels, to the picture
grown by the thickness; a thin line is Bresenham's, from left to right; a thick one is a rectangle
with its outline, with 16 binary digits behind the point, and a disc at both ends.
"""

import json
import operator
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..face_labels import NAMES
from ..label_maps import check_labels

DIGITS = 16
ONE = 1 << DIGITS
HALF = ONE >> 1
THICKNESS = 6
THICKEST = 255
FARTHEST = 1 << 14  # of a point from the origin

Point = tuple[int, int]


class Stroke(NamedTuple):
    """What a brush draws.

    Attributes:
        label: of the class.
        points: (x, y) in pixels, integers, joined by straight lines; a single one is a dot.
        thickness: in pixels; the published demo has 1 to 15.
    """

    label: int
    points: Sequence[Point]
    thickness: int = THICKNESS


def paint(
    labels: Tensor, strokes: Sequence[Stroke], *, order: Literal["time", "label"] = "time"
) -> Tensor:
    """A label map with strokes drawn into it.

    Args:
        labels: (1,1,H,W), integers.
        strokes: in the order of drawing; their points may lie outside.
        order: which stroke covers which: "time", a later one an earlier; "label", one of a higher
            class that of a lower, as in the published demo.

    Returns:
        int64 (1,1,H,W).

    Raises:
        TypeError: labels or a stroke's numbers are no integers.
        ValueError: a shape, a label, a thickness or a point out of range.
    """
    if order not in ("time", "label"):
        raise ValueError(f"order: expected 'time' or 'label', got {order!r}")
    checked = [_checked(i, stroke) for i, stroke in enumerate(strokes)]
    found = check_labels(labels, len(NAMES))
    if len(found) != 1:
        raise ValueError(f"labels: expected the shape (1, 1, H, W), got {tuple(labels.shape)}")
    if order == "label":
        checked.sort(key=lambda stroke: stroke.label)
    painted = found[0, 0].cpu().numpy().copy()
    for label, points, thickness in checked:
        for begin, end in pairwise(points if len(points) > 1 else points * 2):
            draw_line(painted, begin, end, label, thickness)
    return torch.from_numpy(painted).to(labels.device)[None, None]


def _checked(number: int, stroke: Any) -> Stroke:
    name = f"strokes[{number}]"
    try:
        label, points, thickness = stroke
        given = [label, thickness, *(value for x, y in points for value in (x, y))]
        label, thickness, *values = (operator.index(value) for value in given)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: expected a label, points (x, y) and a thickness, all integers, got {stroke!r}"
        ) from None
    if not 0 <= label < len(NAMES):
        raise ValueError(f"{name}: expected a label from 0 to {len(NAMES) - 1}, got {label}")
    if not 1 <= thickness <= THICKEST:
        raise ValueError(f"{name}: expected a thickness from 1 to {THICKEST}, got {thickness}")
    if not values or max(map(abs, values)) > FARTHEST:
        raise ValueError(f"{name}: expected points from {-FARTHEST} to {FARTHEST}, at least one")
    return Stroke(label, list(zip(values[::2], values[1::2], strict=True)), thickness)


def read_strokes(path: Path) -> list[Stroke]:
    """Strokes of a JSON file: [{"label": 13, "points": [[x, y], ...], "thickness": 6}, ...].

    A label may be a name in `NAMES`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    try:
        content = json.loads(Path(path).read_text())
        strokes = [
            Stroke(
                NAMES.index(given["label"]) if isinstance(given["label"], str) else given["label"],
                given["points"],
                given.get("thickness", THICKNESS),
            )
            for given in content
        ]
        return [_checked(i, stroke) for i, stroke in enumerate(strokes)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected strokes as [{{'label': 'hair', 'points': [[x, y], ...],"
            f" 'thickness': 6}}, ...] ({error})"
        ) from None


# --- OpenCV's line --------------------------------------------------------------------------------


def draw_line(image: np.ndarray, begin: Point, end: Point, value: int, thickness: int) -> None:
    """Set the pixels of a line to a value.

    Args:
        image: (H,W), changed in place.
        begin, end: (x, y); they may lie outside.
        value: of the line.
        thickness: at least 1.
    """
    height, width = image.shape
    grown = 0 if thickness == 1 else thickness
    moved = [(x + grown, y + grown) for x, y in (begin, end)]
    clipped = _clipped(width + 2 * grown, height + 2 * grown, *moved)
    if clipped is None:
        return
    begin, end = ((x - grown, y - grown) for x, y in clipped)
    if thickness == 1:
        _thin_line(image, begin, end, value)
        return
    (x0, y0), (x1, y1) = ((x * ONE, y * ONE) for x, y in (begin, end))
    dx, dy = float(begin[0] - end[0]), float(end[1] - begin[1])
    length = dx * dx + dy * dy
    if length > 0:
        across = (thickness + thickness % 2) * HALF / length**0.5
        px, py = round(dy * across), round(dx * across)
        corners = [(x0 + px, y0 + py), (x0 - px, y0 - py), (x1 - px, y1 - py), (x1 + px, y1 + py)]
        _fill_convex(image, corners, value)
    for x, y in (begin, end):
        _fill_disc(image, x, y, (thickness + 1) // 2, value)


def _row(image: np.ndarray, y: int, left: int, right: int, value: int) -> None:
    if 0 <= y < image.shape[0] and right >= 0:
        image[y, max(left, 0) : right + 1] = value


def _truncated(numerator: int, denominator: int) -> int:
    """A quotient of integers, rounded towards 0."""
    quotient = abs(numerator) // abs(denominator)
    return quotient if (numerator < 0) == (denominator < 0) else -quotient


def _clipped(width: int, height: int, begin: Point, end: Point) -> tuple[Point, Point] | None:
    """What of a line lies inside; None if nothing does."""
    points = [list(begin), list(end)]

    def outside(point: list[int], axis: int) -> int:
        last = (width, height)[axis] - 1
        return -1 if point[axis] < 0 else int(point[axis] > last)

    for axis in (1, 0):
        sides = [outside(point, axis) for point in points]
        if sides[0] == sides[1] != 0:
            return None
        for i, side in enumerate(sides):
            if side == 0:
                continue
            edge = 0 if side < 0 else (width, height)[axis] - 1
            one, other = points
            share = float(edge - points[i][axis]) * (other[1 - axis] - one[1 - axis])
            points[i][1 - axis] += int(share / (other[axis] - one[axis]))
            points[i][axis] = edge
    return tuple(points[0]), tuple(points[1])


def _thin_line(image: np.ndarray, begin: Point, end: Point, value: int) -> None:
    (x, y), (x1, y1) = sorted((begin, end), key=lambda point: point[0])
    across, down = x1 - x, abs(y1 - y)
    step = 1 if y1 >= y else -1
    steep = down > across
    long, short = (down, across) if steep else (across, down)
    error = long - 2 * short
    for _ in range(long + 1):
        image[y, x] = value
        turns = error < 0
        error += 2 * long * turns - 2 * short
        x += 1 if turns or not steep else 0
        y += step if turns or steep else 0


def _fine_line(image: np.ndarray, begin: Point, end: Point, value: int) -> None:
    """A line between points with digits behind the point."""
    height, width = image.shape
    clipped = _clipped(width * ONE, height * ONE, begin, end)
    if clipped is None:
        return
    one, other = clipped
    flat = abs(other[0] - one[0]) > abs(other[1] - one[1])
    main = 0 if flat else 1
    if other[main] < one[main]:
        one, other = other, one
    length, rise = other[main] - one[main], other[1 - main] - one[1 - main]
    step = _truncated(rise * ONE, length | 1)
    places = [((other[0] + HALF) >> DIGITS, (other[1] + HALF) >> DIGITS)]
    along, beside = (one[main] + HALF) >> DIGITS, one[1 - main] + HALF
    for i in range((length >> DIGITS) + 1):
        place = (along + i, (beside + i * step) >> DIGITS)
        places.append(place if flat else place[::-1])
    for x, y in places:
        if 0 <= x < width and 0 <= y < height:
            image[y, x] = value


def _fill_convex(image: np.ndarray, corners: list[Point], value: int) -> None:
    """A convex polygon and its outline."""
    count = len(corners)
    for i in range(count):
        _fine_line(image, corners[i - 1], corners[i], value)
    rows = [(y + HALF) >> DIGITS for _, y in corners]
    first = min(range(count), key=lambda i: corners[i][1])
    bottom = min(max(rows), image.shape[0] - 1)
    y = rows[first]
    # Both sides from the highest corner down: place, slope, last row, corner, direction.
    sides = [{"x": -ONE, "dx": 0, "until": y, "at": first, "by": by} for by in (1, count - 1)]
    left_over = count
    while y <= bottom:
        for side in sides:
            if y < side["until"]:
                continue
            at, following = side["at"], (side["at"] + side["by"]) % count
            while left_over > 0:
                left_over -= 1
                if rows[following] > y:
                    rise = rows[following] - y
                    run = corners[following][0] - corners[at][0]
                    side |= {"x": corners[at][0], "dx": _truncated(2 * run + rise, 2 * rise)}
                    side |= {"until": rows[following], "at": following}
                    break
                at, following = following, (following + side["by"]) % count
            else:
                return
        left, right = sorted(side["x"] for side in sides)
        _row(image, y, (left + HALF) >> DIGITS, (right + HALF) >> DIGITS, value)
        for side in sides:
            side["x"] += side["dx"]
        y += 1


def _fill_disc(image: np.ndarray, x: int, y: int, radius: int, value: int) -> None:
    error, wide, high = 0, radius, 0
    while wide >= high:
        for up, across in ((high, wide), (wide, high)):
            _row(image, y - up, x - across, x + across, value)
            _row(image, y + up, x - across, x + across, value)
        high += 1
        error += 2 * high - 1
        if error > 0:
            error -= 2 * wide - 1
            wide -= 1
