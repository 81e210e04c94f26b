"""Photos of faces with attributes and label maps, for training."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from ..data import PairedImages, Place, Sample
from ..face_labels import BISENET_NAMES, Numbering, read_labels, sides
from ..geometry import Field, Geometry, Preparation
from ..label_maps import check_labels
from ..paper import Stage
from ..pictures import to_picture, to_tensor
from .attributes import CELEBA, read_attributes
from .config import Config
from .photos import CelebACrop, TensorFlowPhoto

SCALES = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)  # of photos for the face parser
JITTER = 0.5  # of brightness, contrast and saturation


@dataclass(frozen=True)
class FaceLabels(Field):
    """Label maps of faces by the parser's numbers; left and right change places in the mirror.

    Attributes:
        numbering: of the files.
    """

    kind: Literal["labels"] = "labels"
    numbering: Numbering = "bisenet"

    def read(self, path: Path) -> Image.Image:
        return read_labels(path, numbering=self.numbering, wanted="bisenet")


@dataclass(frozen=True)
class Windows(Preparation):
    """Photos stretched to a square of random size, then a random window.

    Attributes:
        stretched: the square's side, times one of `SCALES`; at least the window's.
    """

    stretched: int = 512

    def draw(self, source: tuple[int, int], random: np.random.Generator) -> Geometry:
        height, width = self.height_and_width
        side = max(height, width, round(self.stretched * SCALES[random.integers(len(SCALES))]))
        left, top = (int(random.integers(side - length + 1)) for length in (width, height))
        window = (left, top, left + width, top + height)
        return Geometry(source, None, (side, side), window, bool(random.random() < self.flip))


def jittered(image: Tensor, random: np.random.Generator) -> Tensor:
    """Another brightness, contrast and saturation of an image (3,H,W) in [0,1], in this order."""
    picture = to_picture(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(random.uniform(1 - JITTER, 1 + JITTER))
    return to_tensor(picture)


class Faces(PairedImages):
    """Photos with what is known of them.

    A sample is {"image": (3,H,W) in [0,1], "labels": int64 (1,H,W), "attributes": (n,) 0 or 1,
    "name": file}, the second and third where they are given.

    Args:
        folders: of "image" and "labels"; see `PairedImages`.
        preparation: of both.
        attributes: the labels of each photo, by its name without the suffix; see
            `attributes.read_attributes`.
        names: of the attributes in a sample.
        numbering: of the files of label maps.
        resize: of photos; see `config.Schedule`.
        resampling: of photos that are resized by "antialias".
        jitter: change the colours at random.
        seed: of everything random.

    Raises:
        ValueError: what `PairedImages` raises, or a photo or an attribute without labels; in a
            sample, a number that is no label.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        preparation: Preparation,
        *,
        attributes: Mapping[str, Mapping[str, int]] | None = None,
        names: Sequence[str] = (),
        numbering: Numbering = "bisenet",
        resize: Literal["antialias", "tensorflow"] = "antialias",
        resampling: Literal["bilinear", "bicubic"] = "bicubic",
        jitter: bool = False,
        seed: int = 0,
    ) -> None:
        photo = Field if resize == "antialias" else TensorFlowPhoto
        fields = {
            "image": photo(resampling=resampling),
            "labels": FaceLabels(swapped=sides(BISENET_NAMES), numbering=numbering),
        }
        super().__init__(folders, {name: fields[name] for name in folders}, preparation, seed=seed)
        self.jitter = jitter
        self.attributes: dict[str, Tensor] | None = None
        if attributes is None:
            return
        self.attributes = {}
        for path in self.files:
            row = attributes.get(path.stem)
            if row is None:
                raise ValueError(
                    f"attributes: expected a line for each photo, found none of {path}"
                )
            if missing := [name for name in names if name not in row]:
                raise ValueError(f"attributes: expected {missing[0]}, found {[*row]}")
            self.attributes[path.stem] = torch.tensor([float(row[name]) for name in names])

    def __getitem__(self, place: Place) -> Sample:
        sample = super().__getitem__(place)
        path = Path(sample["name"])
        if "labels" in sample:
            check_labels(
                sample["labels"][None], len(BISENET_NAMES), str(self.paths[path]["labels"])
            )
        if self.jitter:
            epoch, position, _ = place
            # Of another sequence than the geometry's.
            random = np.random.default_rng((self.seed, epoch, position, 1))
            sample["image"] = jittered(sample["image"], random)
        if self.attributes is not None:
            sample["attributes"] = self.attributes[path.stem]
        return sample


# --- command line ---------------------------------------------------------------------------------


def train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, help="a folder of photos, searched at any depth")
    parser.add_argument(
        "--attributes", type=Path, help="their attributes, as CelebA's list_attr_celeba.txt"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        help="a folder of their label maps, of the same names; `python -m"
        " torchext.models.maggan.prepare parse` writes them (not for STGAN)",
    )
    parser.add_argument(
        "--numbering",
        choices=("bisenet", "celebamask"),
        default="bisenet",
        help="what the numbers of label maps mean: those of face parsers trained as BiSeNets, or"
        " the data set's own (default: %(default)s)",
    )


def dataset(options: argparse.Namespace, config: Config, stage: Stage) -> Faces:
    """The samples of a stage.

    Raises:
        ValueError: --attributes or --labels are missing.
    """
    given, how = config.network, config.schedule
    needs_labels = stage.name == "parser" or (stage.name == "editing" and given.model == "maggan")
    if needs_labels and options.labels is None:
        raise ValueError(f"--labels: expected label maps, which stage {stage.name} learns from")
    if stage.name != "parser" and options.attributes is None:
        raise ValueError(f"--attributes: expected a file, which stage {stage.name} learns from")
    folders = {"image": options.images}
    if needs_labels:
        folders["labels"] = options.labels
    attributes = None if stage.name == "parser" else read_attributes(options.attributes)
    same = {"attributes": attributes, "numbering": options.numbering, "seed": options.seed}
    if stage.name == "parser":
        windows = Windows(how.parser_crop, flip=how.flip, stretched=how.parser_size)
        # Bilinear, as it will see photos.
        return Faces(folders, windows, resampling="bilinear", jitter=True, **same)
    square = {"editing": given.size, "classifier": given.classifier_size}[stage.name]
    if how.crop == "celeba":
        preparation: Preparation = CelebACrop(square, flip=how.flip)
    else:
        preparation = Preparation(square, "square", flip=how.flip)
    names = given.attributes if stage.name == "editing" else CELEBA
    return Faces(folders, preparation, names=names, resize=how.resize, **same)
