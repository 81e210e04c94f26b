"""Aligned photos of faces, their sketches, and other photos, for training."""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ..data import PairedImages, Place, Sample
from ..geometry import Field, Preparation
from ..paper import Stage
from .config import Config

SKETCHED = ("sketch", "image", "extractor", "coarse", "coarse_fusion")  # stages that see sketches


def preparation(config: Config) -> Preparation:
    """The shorter side scaled to the size, and the middle square of that."""
    return Preparation(config.network.size, "crop", random_crop=False)


class FacePhotos(PairedImages):
    """Photos with sketches, or with other photos whose appearance is taken.

    A sample is {"image": (3,S,S) in [0,1], "sketch": the same where a folder of them is given,
    "other": the same, another photo, where wanted, "name": file}.

    Args:
        folders: of "image" and, where there are sketches, "sketch"; see `PairedImages`.
        config: the paper's options.
        others: whether samples have another photo.
        seed: of everything random.

    Raises:
        ValueError: what `PairedImages` raises.
    """

    def __init__(
        self, folders: Mapping[str, Path], config: Config, *, others: bool = False, seed: int = 0
    ) -> None:
        fields = dict.fromkeys(folders, Field())
        super().__init__(folders, fields, preparation(config), seed=seed)
        self.others = others

    def __getitem__(self, place: Place) -> Sample:
        sample = super().__getitem__(place)
        if self.others:
            epoch, position, index = place
            # Of another sequence than the geometry's.
            random = np.random.default_rng((self.seed, epoch, position, 1))
            further = 1 + int(random.integers(max(1, len(self) - 1)))
            _, picture = self.files.read((index + further) % len(self), self._read_image)
            geometry = self.preparation.draw(picture.size, random)
            sample["other"] = self.fields["image"].tensor(picture, geometry)
        return sample

    def _read_image(self, path: Path) -> Image.Image:
        return self.fields["image"].read(path)


def train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", type=Path, help="a folder of aligned photos, searched at any depth"
    )
    parser.add_argument(
        "--sketches",
        type=Path,
        help="a folder of their sketches, of the same names, for the stages"
        f" {', '.join(SKETCHED)} (`edit PHOTO --extract` makes them)",
    )


def dataset(options: argparse.Namespace, config: Config, stage: Stage) -> FacePhotos:
    folders = {"image": options.images}
    if stage.name in SKETCHED:
        if options.sketches is None:
            raise ValueError(
                f"--sketches: expected a folder of the photos' sketches for stage {stage.name}"
            )
        folders["sketch"] = options.sketches
    others = stage.name == "appearance"
    return FacePhotos(folders, config, others=others, seed=options.seed)
