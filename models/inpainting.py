"""What the inpainting papers share on the command line: a photo and its mask."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from . import pictures
from .masks import known_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PHOTO and MASK."""
    parser.add_argument("photo", type=Path, help="a picture of any size")
    parser.add_argument("mask", type=Path, help="a picture of that size; not black = hole")
    add_mask_options(parser)


def add_mask_options(parser: argparse.ArgumentParser) -> None:
    """How mask files are read."""
    parser.add_argument(
        "--white",
        choices=("hole", "known"),
        default="hole",
        help="what white means in mask files (default: %(default)s)",
    )
    parser.add_argument("--fractions", action="store_true", help="keep grey values of mask files")


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
