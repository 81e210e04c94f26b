"""What the inpainting papers share on the command line: a photo and its mask."""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from . import masks, pictures
from .data import MaskedImages
from .files import MASK_THRESHOLD, is_same
from .geometry import Preparation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PHOTO and MASK."""
    parser.add_argument("photo", type=Path, help="a picture of any size")
    parser.add_argument("mask", type=Path, help="a picture of that size; white = hole")
    parser.add_argument(
        "--quality",
        type=int,
        help="of a JPEG (default: 95), 1 to 100; a WebP is lossless without it",
    )
    add_mask_options(parser)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """A folder of images, and where their masks come from."""
    parser.add_argument("images", type=Path, help="a folder, searched at any depth")
    parser.add_argument(
        "--masks",
        default="strokes",
        help="a folder of masks, or strokes, walk, boxes (default: %(default)s)",
    )
    parser.add_argument(
        "--share",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=(0.1, 0.4),
        help="of the hole in generated masks",
    )
    parser.add_argument(
        "--inner-holes", action="store_true", help="generated holes do not touch the border"
    )
    add_mask_options(parser)


def dataset(
    options: argparse.Namespace, preparation: Preparation, *, noise: tuple[int, ...] = ()
) -> MaskedImages:
    """The images and masks that `add_train_arguments` took."""
    source = mask_source(options)
    return MaskedImages(options.images, source, preparation, noise=noise, seed=options.seed)


def mask_source(options: argparse.Namespace) -> masks.MaskSource:
    """The masks that `add_train_arguments` took; `masks` may be a source of them already."""
    if callable(options.masks):
        return options.masks
    if options.masks in masks.KINDS:
        share = None if options.masks == "walk" else tuple(options.share)
        return masks.GeneratedMasks(options.masks, share, border=not options.inner_holes)
    return masks.MaskFolder(
        Path(options.masks),
        white=options.white,
        binary=not options.fractions,
        threshold=options.threshold,
    )


def add_mask_options(parser: argparse.ArgumentParser) -> None:
    """How mask files are read."""
    parser.add_argument(
        "--white",
        choices=("hole", "known"),
        default="hole",
        help="what white, or what is drawn on transparency, means in mask files (default:"
        " %(default)s); what is erased from a photo is always a hole",
    )
    parser.add_argument(
        "--threshold",
        type=int,
        default=MASK_THRESHOLD,
        help="white is above this, of 255 (default: %(default)s)",
    )
    parser.add_argument("--fractions", action="store_true", help="keep grey values of mask files")


def check_options(options: argparse.Namespace) -> None:
    """What `add_arguments` or `add_train_arguments` took.

    Raises:
        ValueError: an option is out of range; the text names it.
    """
    if not 0 <= options.threshold <= 254:
        raise ValueError(f"--threshold: expected 0 to 254, got {options.threshold}")
    quality = getattr(options, "quality", None)
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"--quality: expected 1 to 100, got {quality}")
    low, high = getattr(options, "share", (0, 0))
    if not 0 <= low <= high <= 0.8:
        raise ValueError(f"--share: expected 0 <= LOW <= HIGH <= 0.8, got {low} {high}")


def read(options: argparse.Namespace) -> tuple[pictures.Photo, Tensor, Tensor]:
    """The photo's file, the photo (1,3,H,W) in [0,1] and its mask (1,1,H,W), 1 known and 0 hole.

    Raises:
        ValueError: a file that cannot be read or used, or sizes that differ.
    """
    photo = pictures.read_photo(options.photo)
    mask, known = masks.read_known(
        options.mask,
        white=options.white,
        threshold=options.threshold,
        binary=not options.fractions,
    )
    if photo.size != known.shape[::-1]:
        raise ValueError(
            f"{options.mask}: expected the photo's size, {photo.size[0]} x {photo.size[1]} pixels,"
            f" got {known.shape[1]} x {known.shape[0]}"
        )
    masks.check_hole(options.mask, mask, known, options.white, options.threshold)
    soft = "" if options.fractions else mask.warning(options.mask, options.threshold)
    if soft:
        print(f"warning: {soft}", file=sys.stderr)
    understood = {
        "opaque": "",
        "drawn": ", as drawn on transparency",
        "cut out": ", where the photo in the mask's file is transparent",
    }[mask.kind]
    print(f"the hole is {(1 - known).mean():.2%} of the photo{understood}")
    image = photo.tensor()[None].to(options.device)
    return photo, image, torch.from_numpy(known)[None, None].to(options.device)


def edit(options: argparse.Namespace, fills: Callable[[Tensor, Tensor], Iterable[Tensor]]) -> None:
    """Read a photo and its mask, fill the hole, and write what comes out.

    Known pixels are the file's own, with its bits, alpha, colour profile, EXIF and resolution.

    Args:
        options: as parsed.
        fills: of an image and what is known of it, the filled images (1,3,H,W); several are written
            as NAME-0, NAME-1, ...
    """
    photo, image, known = read(options)
    results = list(fills(image, known))
    paths: list[Path] = [options.output]
    if len(results) > 1:
        stem = options.output.stem
        paths = [options.output.with_stem(f"{stem}-{i}") for i in range(len(results))]
    for path in paths:
        check_not_read(path, options)
    for i, (path, filled) in enumerate(zip(paths, results, strict=True)):
        filled = photo.with_fill(filled[0], known[0])
        notes = pictures.write_photo(filled, path, quality=options.quality)
        print(f"wrote {path}")
        for note in notes if i == 0 else ():
            print(f"note: {note}")


def check_not_read(path: Path, options: argparse.Namespace) -> None:
    """Nothing that is read is overwritten.

    Raises:
        ValueError: the path is a file among the options.
    """
    for name, given in vars(options).items():
        if name != "output" and isinstance(given, Path) and is_same(path, given):
            raise ValueError(f"--output: {path} is the {name} itself; choose another name")
