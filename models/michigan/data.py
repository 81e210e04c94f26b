"""Photos with hair masks and orientations, for training. Masks: **1 hair, 0 not**."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data import PairedImages, Place, Sample
from ..files import MASK_THRESHOLD, read_mask
from ..geometry import Field, Geometry, Preparation
from ..orientation import draw_strokes, orientation_code, orientation_flow, stroke_hole
from ..orientation import stroke_orientation as colours_of_strokes
from ..paper import Stage
from ..pictures import to_tensor
from .hair import HOLE, draw_hole, draw_noise, round_hole
from .inpainting import colour_code
from .networks import Config

HALF_TURN = 255  # codes of an angle, 0..pi
STEPS = 30  # of a stroke that follows hair, at most
STEP = 1 / 64  # of a stroke, as a share of the photo's height


@dataclass(frozen=True)
class HairField(Field):
    """A mask file of any kind; see `files.read_mask`. What is left of a photo cut out is hair."""

    threshold: int = MASK_THRESHOLD

    def read(self, path: Path) -> Image.Image:
        white = read_mask(path, threshold=self.threshold, erased="black").white
        return Image.fromarray(white.astype(np.int32))


@dataclass(frozen=True)
class Windows(Preparation):
    """Photos scaled to a square somewhat larger than the size, then a random window.

    Attributes:
        margin: by how much larger, as a share.
    """

    margin: float = 0.0

    def draw(self, source: tuple[int, int], random: np.random.Generator) -> Geometry:
        height, width = self.height_and_width
        tall, wide = (round(side * (1 + self.margin)) for side in (height, width))
        left, top = int(random.integers(wide - width + 1)), int(random.integers(tall - height + 1))
        window = (left, top, left + width, top + height)
        return Geometry(source, None, (wide, tall), window, bool(random.random() < self.flip))


def orientation_of(image: Tensor, hair: Tensor) -> Tensor:
    """The 8-bit orientation map of photos, as the published file tool finds it.

    Args:
        image: (N,3,H,W) in [0,1], H and W above 16.
        hair: (N,1,H,W).

    Returns:
        uint8 (N,1,H,W), 0..255 for 0..pi, 0 outside the hair.
    """
    return orientation_code(orientation_flow(image * 255, hair), hair)


class HairPhotos(PairedImages):
    """Photos of hair and what the networks see beside them.

    A sample is {"image": (3,H,W) in [0,1], "hair": (1,H,W), "rgb": (3,H,W), the orientation's
    colours in the hair, "hole": (1,H,W), where they are taken away, "noise": (3,H,W), "shape":
    (1,H,W), the hair mask that the generator sees, "name": file}; of the stage "orientation" also
    "stroke" (1,H,W) and "stroke_rgb" (3,H,W), one that follows the hair, and "stroke_hole" (1,H,W)
    around it.

    Args:
        folders: of "image", "hair" and, where there are maps, "orientation"; see `PairedImages`.
            Without maps orientations are found in the photos.
        config: the paper's options.
        stage: "orientation" takes holes out of the hair itself; "hair" those that another photo's
            hair leaves, as published.
        threshold: hair is above this, of 255.
        seed: of everything random.

    Raises:
        ValueError: what `PairedImages` raises.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        config: Config,
        stage: str = "hair",
        *,
        threshold: int = MASK_THRESHOLD,
        seed: int = 0,
    ) -> None:
        given = config.schedule
        fields = {
            "image": Field(resampling="bicubic"),
            "hair": HairField("labels", threshold=threshold),
            "orientation": Field("angle" if given.mirror_angles else "labels"),
        }
        size = config.network.size
        preparation = Windows(size, flip=given.flip, margin=given.margin)
        super().__init__(folders, {name: fields[name] for name in folders}, preparation, seed=seed)
        self.fields = fields
        self.stage = stage
        self.fuzzy_shape = given.fuzzy_shape

    def _read(self, path: Path) -> dict[str, Image.Image]:
        pictures = super()._read(path)
        if "orientation" not in pictures:
            hair = torch.from_numpy(np.array(pictures["hair"]))[None, None].float()
            code = orientation_of(to_tensor(pictures["image"])[None], hair)
            pictures["orientation"] = Image.fromarray(code[0, 0].numpy())
        return pictures

    def __getitem__(self, place: Place) -> Sample:
        sample = super().__getitem__(place)
        epoch, position, _ = place
        # Of another sequence than the geometry's.
        random = np.random.default_rng((self.seed, epoch, position, 1))
        hair = sample["hair"] = sample["hair"].float()
        angle = sample.pop("orientation")
        if angle.is_floating_point():
            angle = (angle * (HALF_TURN / torch.pi)).round()
        sample["rgb"] = colour_code(angle[None])[0] * hair
        H, W = hair.shape[1:]
        sample["noise"] = draw_noise(H, W, random)
        sample["shape"] = self._shape(hair, random)
        sample |= self._hole(sample, random)
        return sample

    def _shape(self, hair: Tensor, random: np.random.Generator) -> Tensor:
        """Hair grown or shrunk by a random number of pixels."""
        most = int(self.fuzzy_shape * hair.shape[1])
        by = int(random.integers(-most, most + 1))
        if by == 0:
            return hair
        mask = hair if by > 0 else 1 - hair
        grown = F.max_pool2d(mask, 2 * abs(by) + 1, stride=1, padding=abs(by))
        return grown if by > 0 else 1 - grown

    def _hole(self, sample: Sample, random: np.random.Generator) -> dict[str, Tensor]:
        hair = sample["hair"]
        if self.stage == "hair":
            index = int(random.integers(len(self)))
            _, picture = self.files.read(index, self._read_hair)
            geometry = self.preparation.draw(picture.size, random)
            other = self.fields["hair"].tensor(picture, geometry).float()
            return {"hole": draw_hole(hair[0], other[0], random)[None]}
        count = int(hair.sum())
        centre = int(random.integers(count)) if count else 0
        share = random.uniform(*HOLE) / 2  # a part of the hair stays
        line = grown_stroke(sample["rgb"], hair, centre, random)
        stroke = draw_strokes(line, *hair.shape[1:]) * hair
        return {
            "hole": round_hole(hair[0], hair[0], share, centre)[None],
            "stroke": stroke[0],
            "stroke_rgb": colours_of_strokes(stroke)[0],
            "stroke_hole": (stroke_hole(stroke) * hair)[0],
        }

    def _read_hair(self, path: Path) -> Image.Image:
        return self.fields["hair"].read(self.paths[path]["hair"])


def grown_stroke(
    rgb: Tensor, hair: Tensor, start: int, random: np.random.Generator
) -> list[list[tuple[float, float]]]:
    """A polyline that follows the hair's orientation both ways from a pixel of it.

    Args:
        rgb: (3,H,W), the orientation's colours.
        hair: (1,H,W).
        start: which pixel of the hair, by rows.
        random: of the length.

    Returns:
        The line, in a list; none without hair.
    """
    rows, columns = hair[0].nonzero(as_tuple=True)
    if not len(rows):
        return []
    H, W = hair.shape[1:]
    step = max(1.0, STEP * H)
    ways = []
    for sign in (1, -1):
        x, y = float(columns[start]), float(rows[start])
        way, before = [(x, y)], None
        for _ in range(int(random.integers(STEPS // 3, STEPS + 1))):
            red, green, _ = rgb[:, int(y), int(x)].tolist()
            angle = np.arctan2(2 * green - 1, 2 * red - 1) / 2
            move = np.array((np.cos(angle), -np.sin(angle))) * step  # rows count downwards
            if before is None:
                move = sign * move
            elif move @ before < 0:  # of a strand's two directions the one that goes on
                move = -move
            x, y, before = x + move[0], y + move[1], move
            if not (0 <= x < W and 0 <= y < H) or not hair[0, int(y), int(x)]:
                break
            way.append((x, y))
        ways.append(way)
    return [[*ways[1][:0:-1], *ways[0]]]


def train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, help="a folder of photos, searched at any depth")
    parser.add_argument(
        "--hair", type=Path, required=True, help="a folder of hair masks, of the same names"
    )
    parser.add_argument(
        "--orientations",
        type=Path,
        help="the same of 8-bit orientation maps, as `python -m torchext.orientation` writes them"
        " (without: found in the photos, each time anew)",
    )
    add_threshold(parser)


def add_threshold(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threshold",
        type=int,
        default=MASK_THRESHOLD,
        help="hair is above this in mask files, of 255 (default: %(default)s)",
    )


def check_threshold(options: argparse.Namespace) -> None:
    """Raise ValueError for a threshold out of range."""
    if not 0 <= options.threshold <= 254:
        raise ValueError(f"--threshold: expected 0 to 254, got {options.threshold}")


def dataset(options: argparse.Namespace, config: Config, stage: Stage) -> HairPhotos:
    folders: dict[str, Any] = {"image": options.images, "hair": options.hair}
    if options.orientations is not None:
        folders["orientation"] = options.orientations
    return HairPhotos(folders, config, stage.name, threshold=options.threshold, seed=options.seed)
