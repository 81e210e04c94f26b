"""What the inpainting papers share: their inputs on the command line, and their data."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from . import pictures
from .data import MaskedImages, Preparation
from .masks import MaskFolder, MaskSource, known_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PHOTO and MASK."""
    parser.add_argument("photo", type=Path, help="a picture of any size")
    parser.add_argument("mask", type=Path, help="a picture; not black = hole")
    parser.add_argument(
        "--white",
        choices=("hole", "known"),
        default="hole",
        help="what white means in the mask (default: %(default)s)",
    )
    parser.add_argument(
        "--fractions", action="store_true", help="keep the grey values of the mask's edges"
    )


def read(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The photo (1,3,H,W) in [0,1] and its mask (1,1,H,W), 1 known and 0 hole.

    Raises:
        ValueError: a file that cannot be read, or sizes that differ.
    """
    photo, mask = pictures.read_image(options.photo), pictures.read_mask(options.mask)
    if photo.size != mask.size:
        raise ValueError(
            f"{options.mask}: expected the photo's size, {photo.size[0]} x {photo.size[1]} pixels,"
            f" got {mask.size[0]} x {mask.size[1]}"
        )
    known = known_from(mask, *mask.size[::-1], white=options.white, binary=not options.fractions)
    image = pictures.to_tensor(photo)[None]
    return image.to(options.device), torch.from_numpy(known)[None, None].to(options.device)


def dataset(
    images: Path,
    masks: Path | MaskSource,
    preparation: Preparation,
    *,
    noise: tuple[int, ...] = (),
    seed: int = 0,
    white: str = "hole",
    binary: bool = True,
    square: bool = False,
) -> MaskedImages:
    """Images with masks from a source, or from a folder read as the last three arguments say."""
    if isinstance(masks, Path):
        masks = MaskFolder(masks, white=white, binary=binary, square=square)
    return MaskedImages(images, masks, preparation, noise=noise, seed=seed)
