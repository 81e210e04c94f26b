"""One cut, scale and mirror image for all that belongs to a sample, each field by its own rules."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .pictures import UnreadableError, as_rgb, open_picture, to_tensor

Box = tuple[int, int, int, int]  # left, top, right, bottom, as Pillow has it


class Geometry(NamedTuple):
    """How a picture becomes a training image: cut, scale, cut again, mirror.

    Attributes:
        source: width and height that it was drawn for.
        cut: what is left of the picture before it is scaled.
        scaled: width and height.
        window: what is left of the scaled one.
        mirrored: left and right change places.
    """

    source: tuple[int, int]
    cut: Box | None
    scaled: tuple[int, int]
    window: Box | None
    mirrored: bool

    def apply(self, picture: Image.Image, resampling: Image.Resampling) -> Image.Image:
        """Everything but the mirror image, whose rule is the field's."""
        if self.cut is not None:
            picture = picture.crop(self.cut)
        picture = picture.resize(self.scaled, resampling)
        return picture if self.window is None else picture.crop(self.window)


@dataclass(frozen=True)
class Field:
    """What a file of a sample holds, and what scaling and mirroring do to it.

    Attributes:
        kind: "picture" gives (3,H,W) and "grey" (1,H,W) in [0,1]; "labels" int64 (1,H,W), nearest
            neighbour; "angle" (1,H,W) in [0,pi) from codes 0..255 for 0..pi, nearest neighbour, pi
            minus itself in the mirror.
        resampling: of pictures and grey values.
        swapped: pairs of labels, left and right, that change places in the mirror.
    """

    kind: Literal["picture", "grey", "labels", "angle"] = "picture"
    resampling: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    swapped: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if self.kind not in ("picture", "grey", "labels", "angle"):
            raise ValueError(
                f"kind: expected 'picture', 'grey', 'labels' or 'angle', got {self.kind!r}"
            )

    def read(self, path: Path) -> Image.Image:
        """The file, in the form that `tensor` takes.

        Raises:
            UnreadableError: it cannot be read, or holds something else.
        """
        picture = open_picture(path)
        if self.kind == "picture":
            return as_rgb(picture)
        if self.kind == "labels":
            if picture.mode not in ("1", "L", "P", "I", "I;16"):
                raise UnreadableError(
                    f"{path}: expected labels, one number for each pixel, got {picture.mode}"
                )
            return Image.fromarray(np.asarray(picture).astype(np.int32))
        return picture.convert("L")

    def tensor(self, picture: Image.Image, geometry: Geometry) -> Tensor:
        """The field of a sample."""
        if self.kind in ("picture", "grey"):
            picture = geometry.apply(picture, Image.Resampling[self.resampling.upper()])
            values = to_tensor(picture) if self.kind == "picture" else _grey(picture)
            return values.flip(-1) if geometry.mirrored else values
        picture = geometry.apply(picture, Image.Resampling.NEAREST)
        values = torch.from_numpy(np.array(picture))[None]
        if geometry.mirrored:
            values = values.flip(-1)
        if self.kind == "labels":
            return self._swapped(values.long()) if geometry.mirrored else values.long()
        angle = values.float() * (math.pi / 255)
        angle = math.pi - angle if geometry.mirrored else angle
        return torch.where(angle >= math.pi, angle - math.pi, angle)

    def _swapped(self, labels: Tensor) -> Tensor:
        result = labels.clone()
        for one, other in self.swapped.items():
            result[labels == one] = other
            result[labels == other] = one
        return result


def _grey(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture, np.float32))[None] / 255


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes a training image.

    Attributes:
        size: of the result: one number for height and width, or (height, width).
        fit: "stretch" ignores the aspect; "square" cuts the largest box of the result's aspect from
            the middle and scales it; "crop" scales until the result's size is covered and cuts a
            random window (the middle one if `random_crop` is off).
        random_crop: for "crop".
        flip: probability of a mirror image.
        flip_mask: "with" mirrors a generated mask with its image; "apart" mirrors it left-right and
            upside-down at random, on its own; "never" leaves it.

    Raises:
        ValueError: a size below 1, no probability, or an unknown choice.
    """

    size: int | tuple[int, int] = 256
    fit: Literal["stretch", "square", "crop"] = "square"
    random_crop: bool = True
    flip: float = 0.0
    flip_mask: Literal["with", "apart", "never"] = "with"

    def __post_init__(self) -> None:
        if min(self.height_and_width) < 1:
            raise ValueError(f"size: expected at least 1, got {self.size}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip: expected a probability from 0 to 1, got {self.flip}")
        if self.fit not in ("stretch", "square", "crop"):
            raise ValueError(f"fit: expected 'stretch', 'square' or 'crop', got {self.fit!r}")
        if self.flip_mask not in ("with", "apart", "never"):
            raise ValueError(
                f"flip_mask: expected 'with', 'apart' or 'never', got {self.flip_mask!r}"
            )

    @property
    def height_and_width(self) -> tuple[int, int]:
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    def draw(self, source: tuple[int, int], random: np.random.Generator) -> Geometry:
        """The geometry of one sample.

        Args:
            source: width and height of its pictures.
            random: asked for the window and the mirror alone.
        """
        height, width = self.height_and_width
        cut = window = None
        scaled = (width, height)
        if self.fit == "square":
            cut = middle(source, (width, height))
        elif self.fit == "crop":
            scale = max(width / source[0], height / source[1])
            scaled = (
                max(width, round(source[0] * scale)),
                max(height, round(source[1] * scale)),
            )
            if self.random_crop:
                left = int(random.integers(scaled[0] - width + 1))
                top = int(random.integers(scaled[1] - height + 1))
            else:
                left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
            window = (left, top, left + width, top + height)
        return Geometry(source, cut, scaled, window, bool(random.random() < self.flip))


def middle(source: tuple[int, int], aspect: tuple[int, int]) -> Box:
    """The largest box of an aspect (width, height) in the middle of a picture."""
    width = min(source[0], max(1, source[1] * aspect[0] // aspect[1]))
    height = min(source[1], max(1, source[0] * aspect[1] // aspect[0]))
    left, top = (source[0] - width) // 2, (source[1] - height) // 2
    return left, top, left + width, top + height
