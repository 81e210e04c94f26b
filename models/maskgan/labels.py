"""Label maps of CelebAMask-HQ: names, colours, files, and the samples of training."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data import PairedImages, Place, Sample
from ..face_labels import NAMES, sides
from ..geometry import Field, Preparation
from ..label_maps import check_labels
from ..paper import Stage
from ..pictures import open_picture
from .networks import Config

PARTS = NAMES[1:]  # in the order in which they are laid over each other
LABELS = Field("labels", swapped=sides(NAMES))
PER_FOLDER = 2000  # photos for each folder of part masks


# --- label maps -----------------------------------------------------------------------------------


def published_values(labels: Tensor) -> Tensor:
    """Labels, float32, as the published demo makes them out of 8-bit ones: nearly whole numbers.

    It divides by 255 and then by the float32 nearest to 1/255, and cuts off what is behind the
    point: 7, 13, 14 and 15 become 6, 12, 13 and 14 by `.long()`, hair a lower lip. Whole numbers
    are what this package takes everywhere; this is to reproduce the demo's photos.
    """
    return labels.float() / 255 / torch.tensor(1 / 255, device=labels.device)


# --- files ----------------------------------------------------------------------------------------


def merge_parts(parts: Mapping[str, Any]) -> np.ndarray:
    """A label map from the data set's masks of single parts; later parts cover earlier ones.

    Args:
        parts: by the names in `PARTS`, pictures or arrays (H,W) or (H,W,3); a part is where the
            last channel is not 0.

    Returns:
        uint8 (H,W).

    Raises:
        ValueError: no parts, an unknown name, or masks of several sizes.
    """
    if not parts or (unknown := [name for name in parts if name not in PARTS]):
        got = repr(unknown[0]) if parts else "none"
        raise ValueError(f"parts: expected masks by the names {PARTS}, got {got}")
    masks = {name: np.asarray(part) for name, part in parts.items()}
    shapes = {mask.shape[:2] for mask in masks.values()}
    if len(shapes) > 1:
        raise ValueError(f"parts: expected masks of one size, got {sorted(shapes)}")
    merged = np.zeros(*shapes, np.uint8)
    for label, name in enumerate(PARTS, start=1):
        if name in masks:
            mask = masks[name] if masks[name].ndim == 2 else masks[name][..., -1]
            merged[mask != 0] = label
    return merged


def merge_files(folder: Path, index: int) -> np.ndarray:
    """The label map of a photo, uint8 (512,512), from the data set's folder of part masks.

    Args:
        folder: CelebAMask-HQ-mask-anno.
        index: of the photo, 0 to 29999.

    Raises:
        ValueError: no part of this photo is there, or one cannot be read.
    """
    subfolder = Path(folder) / str(index // PER_FOLDER)
    paths = {name: subfolder / f"{index:05d}_{name}.png" for name in PARTS}
    # Palettes give their colours, and alpha is left out.
    found = {n: open_picture(path).convert("RGB") for n, path in paths.items() if path.exists()}
    if not found:
        raise ValueError(f"{subfolder}: expected masks such as {index:05d}_skin.png, found none")
    return merge_parts(found)


# --- training -------------------------------------------------------------------------------------


class LabelledFaces(PairedImages):
    """Photos with their label maps: "image" (3,H,W) in [0,1], "labels" (1,H,W).

    And, where wanted, "reference" (1,H,W), the label map of another photo, drawn at random.

    Args:
        folders: of "image" and "labels", and of "inter" and "outer" where masks were decoded
            beforehand; see `PairedImages`.
        classes: numbers of the labels.
        preparation: of all fields.
        resampling: of photos.
        references: whether samples have one.
        seed: of everything random.

    Raises:
        ValueError: what `PairedImages` raises; in a sample, a number that is no label.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        classes: int,
        preparation: Preparation,
        *,
        resampling: Literal["bilinear", "bicubic"] = "bicubic",
        references: bool = False,
        seed: int = 0,
    ) -> None:
        fields = {name: LABELS for name in folders} | {"image": Field(resampling=resampling)}
        super().__init__(folders, {name: fields[name] for name in folders}, preparation, seed=seed)
        self.classes = classes
        self.references = references

    def __getitem__(self, place: Place) -> Sample:
        sample = self._checked(place)
        if self.references:
            epoch, position, _ = place
            # Of another sequence than the geometry's.
            random = np.random.default_rng((self.seed, epoch, position, 1))
            other = (epoch, position, int(random.integers(len(self))))
            sample["reference"] = self._checked(other)["labels"]
        return sample

    def _checked(self, place: Place) -> Sample:
        sample = super().__getitem__(place)
        paths = self.paths[Path(sample["name"])]
        for name in self.fields:
            if name != "image":
                check_labels(sample[name][None], self.classes, str(paths[name]))
        return sample


def train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, help="a folder of photos, searched at any depth")
    parser.add_argument(
        "--labels", type=Path, required=True, help="a folder of their label maps, of the same names"
    )
    parser.add_argument(
        "--inter", type=Path, help="stage 2: the same of masks decoded beforehand, toward others"
    )
    parser.add_argument("--outer", type=Path, help="stage 2: the same, away from the others")


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError where one of the folders of decoded masks is missing."""
    inter, outer = getattr(options, "inter", None), getattr(options, "outer", None)
    if (inter is None) != (outer is None):
        raise ValueError("--inter, --outer: expected both or none")


def dataset(options: argparse.Namespace, config: Config, stage: Stage) -> LabelledFaces:
    folders = {"image": options.images, "labels": options.labels}
    if stage.name == "2" and options.inter is not None:
        folders |= {"inter": options.inter, "outer": options.outer}
    return LabelledFaces(
        folders,
        config.network.labels,
        Preparation(config.network.size, "stretch", flip=config.schedule.flip),
        resampling="bilinear" if stage.name == "parser" else "bicubic",
        references=stage.name == "2" and "inter" not in folders,
        seed=options.seed,
    )
