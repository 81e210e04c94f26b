"""Holes for training and evaluation. Every source gives a float32 (height, width): 1 known, 0 hole.

A source is called with the height, the width and a NumPy generator, and depends on nothing else.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from .files import MASK_THRESHOLD, Mask, PictureError
from .files import read_mask as read_mask_file
from .geometry import middle
from .pictures import Files, find_images

MaskSource = Callable[[int, int, np.random.Generator], np.ndarray]
Kind = Literal["strokes", "walk", "boxes"]
KINDS = ("strokes", "walk", "boxes")
# The hole shares by which inpainting is commonly evaluated.
SHARE_BINS = tuple((low / 10, (low + 1) / 10) for low in range(6))
INNER = 0.05  # of the shorter side: how far holes without border contact stay away from it


def _check_share(height: int, width: int, share: float | None) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"height, width: expected at least 1, got {height} x {width}")
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"share: expected 0 to 1, got {share}")


def irregular_hole(
    height: int, width: int, *, share: float = 0.25, seed: int | np.random.Generator = 0
) -> np.ndarray:
    """A bool (height, width) array, True in the hole: brush strokes until `share` is covered."""
    _check_share(height, width, share)
    random = np.random.default_rng(seed)
    hole = np.zeros((height, width), dtype=bool)
    size = max(height, width)
    while hole.mean() < share:
        point = random.uniform((0, 0), (height, width))
        angle = random.uniform(0, 2 * np.pi)
        radius = max(0.6, random.uniform(0.015, 0.05) * size)
        for _ in range(random.integers(3, 9)):
            angle += random.normal(0, 0.9)
            step = random.uniform(0.06, 0.16) * size * np.array((np.sin(angle), np.cos(angle)))
            # Only the box that the segment point .. point + step reaches.
            corners = np.stack((point, point + step))
            begin = np.maximum(np.floor(corners.min(0) - radius), 0).astype(int)
            end = np.maximum(np.ceil(corners.max(0) + radius).astype(int) + 1, begin)
            box = hole[begin[0] : end[0], begin[1] : end[1]]
            rows = np.arange(begin[0], begin[0] + box.shape[0])[:, None]
            columns = np.arange(begin[1], begin[1] + box.shape[1])
            # Distance of every pixel from the segment.
            along = (rows - point[0]) * step[0] + (columns - point[1]) * step[1]
            along = np.clip(along / (step @ step), 0, 1)
            distance = np.hypot(
                rows - point[0] - along * step[0], columns - point[1] - along * step[1]
            )
            box |= distance <= radius
            point = np.clip(point + step, 0, (height - 1, width - 1))
            if hole.mean() >= share:
                break
    return hole


def random_walk(
    height: int,
    width: int,
    *,
    share: float | None = None,
    seed: int | np.random.Generator = 0,
) -> np.ndarray:
    """A bool (height, width) array, True in the hole: where a walk of single pixels has been.

    It starts anywhere and is held at the borders. Without `share` it makes height * width steps,
    as the training masks of the partial-convolution U-Net did (15 to 22 % holes at 512 pixels).
    """
    _check_share(height, width, share)
    random = np.random.default_rng(seed)
    hole = np.zeros((height, width), dtype=bool)
    row, column = int(random.integers(height)), int(random.integers(width))
    steps = height * width
    left = -1 if share is None else int(np.ceil(share * steps))
    visited = hole.reshape(-1)
    while left:
        for direction in random.integers(4, size=steps).tolist():
            if direction == 0:
                row = min(row + 1, height - 1)
            elif direction == 1:
                row = max(row - 1, 0)
            elif direction == 2:
                column = min(column + 1, width - 1)
            else:
                column = max(column - 1, 0)
            place = row * width + column
            if not visited[place]:
                visited[place] = True
                left -= 1
                if left == 0:
                    break
        if share is None:
            break
    return hole


def boxes(
    height: int, width: int, *, share: float = 0.25, seed: int | np.random.Generator = 0
) -> np.ndarray:
    """A bool (height, width) array, True in the hole: boxes until `share` is covered."""
    _check_share(height, width, share)
    random = np.random.default_rng(seed)
    hole = np.zeros((height, width), dtype=bool)
    while (missing := share - hole.mean()) > 0:
        area = missing * height * width * random.uniform(0.3, 1)
        tall = np.sqrt(area * random.uniform(0.5, 2))
        sides = np.clip(np.ceil((tall, area / tall)).astype(int), 1, (height, width))
        top, left = (int(random.integers(n)) for n in (height, width) - sides + 1)
        hole[top : top + sides[0], left : left + sides[1]] = True
    return hole


@dataclass(frozen=True)
class GeneratedMasks:
    """Masks made up on the spot.

    Attributes:
        kind: "strokes", "walk" or "boxes".
        share: the hole's share of the picture is drawn between these two (at least that share is
            covered); see `SHARE_BINS`. None, for "walk" only: as many steps as pixels.
        border: whether holes may touch the picture's border.
    """

    kind: Kind = "strokes"
    share: tuple[float, float] | None = (0.1, 0.4)
    border: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {KINDS}, got {self.kind!r}")
        if self.share is None and self.kind != "walk":
            raise ValueError(f"share: expected two numbers for masks of kind {self.kind!r}")
        if self.share is not None and not 0 <= self.share[0] <= self.share[1] <= 0.8:
            raise ValueError(f"share: expected 0 <= low <= high <= 0.8, got {self.share}")

    def __call__(self, height: int, width: int, random: np.random.Generator) -> np.ndarray:
        margin = 0 if self.border else max(1, round(INNER * min(height, width)))
        inner = (height - 2 * margin, width - 2 * margin)
        if min(inner) < 1:
            raise ValueError(f"masks: {height} x {width} has no room inside its border")
        known = np.ones((height, width), np.float32)
        make = {"strokes": irregular_hole, "walk": random_walk, "boxes": boxes}[self.kind]
        options = {}
        if self.share is not None:
            scale = height * width / (inner[0] * inner[1])
            options["share"] = min(random.uniform(*self.share) * scale, 1)
        hole = make(*inner, seed=random, **options)
        known[margin : height - margin, margin : width - margin][hole] = 0
        return known


# Shares of the hole beyond which a mask file is taken for a mistake.
LEAST_HOLE, MOST_HOLE = 1e-5, 0.99


def read_known(
    path: Path,
    *,
    white: Literal["hole", "known"] = "hole",
    threshold: int = MASK_THRESHOLD,
    binary: bool = True,
) -> tuple[Mask, np.ndarray]:
    """A mask file as it was understood, and as float32 (H,W), 1 known, 0 hole.

    What is erased from a photo is a hole, whatever white means; see `files.read_mask`.

    Raises:
        PictureError: it cannot be read.
    """
    mask = read_mask_file(
        path,
        threshold=threshold if binary else None,
        erased="white" if white == "hole" else "black",
    )
    return mask, mask.white if white == "known" else 1 - mask.white


def check_hole(path: Path, mask: Mask, known: np.ndarray, white: str, threshold: int) -> None:
    """What `read_known` gave must leave a hole, and something known beside it.

    Raises:
        PictureError: nearly all is hole, or nothing.
    """
    hole = float((1 - known).mean())
    if LEAST_HOLE <= hole <= MOST_HOLE:
        return
    understood = {
        "opaque": f"white is {white}",
        "drawn": f"what is drawn on transparency is {white}",
        "cut out": "the transparent part of a photo is the hole",
    }[mask.kind]
    raise PictureError(
        f"{path}: expected a hole and something known beside it, got a hole of {hole:.2%}"
        f" ({understood}, above {threshold} of 255). If the mask means the opposite, --white"
        f" {'known' if white == 'hole' else 'hole'} turns it around; --threshold moves the limit"
    )


class MaskFolder:
    """Masks from the pictures in a folder, one drawn for every call.

    A file that cannot be used (broken, nearly all hole, or without one) is named in a warning once,
    and the next one is taken in its place.

    Args:
        folder: searched recursively, hidden files left out.
        white: what white means in them, "hole" or "known".
        binary: cut at the threshold, also after the resize. False keeps fractions (the released
            partial-convolution U-Net was trained on such masks).
        square: cut the largest square out of the middle first, rather than change the aspect.
        threshold: white is above this, of 255; at 0 holes or known regions grow a little at their
            edges, as the published loaders have it.

    Raises:
        ValueError: a folder without pictures.
    """

    def __init__(
        self,
        folder: Path,
        *,
        white: Literal["hole", "known"] = "hole",
        binary: bool = True,
        square: bool = True,
        threshold: int = MASK_THRESHOLD,
    ) -> None:
        if white not in ("hole", "known"):
            raise ValueError(f"white: expected 'hole' or 'known', got {white!r}")
        if not 0 <= threshold <= 254:
            raise ValueError(f"threshold: expected 0 to 254, got {threshold}")
        self.files = Files(find_images(folder))
        self.white = white
        self.binary = binary
        self.square = square
        self.threshold = threshold
        self.said_soft = torch.zeros(1, dtype=torch.bool).share_memory_()  # by any worker

    def __call__(self, height: int, width: int, random: np.random.Generator) -> np.ndarray:
        index = int(random.integers(len(self.files)))
        _, known = self.files.read(index, self._read)
        picture = Image.fromarray((255 * known).round().astype(np.uint8))
        if self.white == "hole":
            picture = picture.point([*range(255, -1, -1)])
        return self.known(picture, height, width)

    def _read(self, path: Path) -> np.ndarray:
        mask, known = read_known(
            path, white=self.white, threshold=self.threshold, binary=self.binary
        )
        check_hole(path, mask, known, self.white, self.threshold)
        soft = mask.warning(path, self.threshold) if self.binary else ""
        if soft and not self.said_soft:
            self.said_soft.fill_(True)
            warnings.warn(f"{soft}; of further masks like it nothing is said", stacklevel=2)
        return known

    def known(self, picture: Image.Image, height: int, width: int) -> np.ndarray:
        """A mask of the wanted size from grey values."""
        if self.square:
            picture = picture.crop(middle(picture.size, (1, 1)))
        return known_from(
            picture,
            height,
            width,
            white=self.white,
            binary=self.binary,
            threshold=self.threshold,
        )


def known_from(
    picture: Image.Image,
    height: int,
    width: int,
    *,
    white: Literal["hole", "known"] = "hole",
    binary: bool = True,
    threshold: int = MASK_THRESHOLD,
) -> np.ndarray:
    """1 known, 0 hole, from grey values; see `MaskFolder`."""
    values = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    values = (values > threshold).astype(np.float32) if binary else values / 255
    return values if white == "known" else 1 - values
