"""A region of a fashion photo anew, by what is drawn there. Mask: **1 known, 0 hole**."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .. import inpainting, pictures
from ..blocks import folded
from ..checks import check_image_and_mask, check_images, check_mask
from ..files import MASK_THRESHOLD, read_mask
from ..label_maps import add_palette, check_labels, read_palette
from .inputs import guidance, inpainting_input, parsing_input
from .labels import picture_of, read_parsing
from .networks import Config, InpaintingGenerator, Network, ParsingGenerator


class Edit(NamedTuple):
    """What an edit gives.

    Attributes:
        image: (N,3,H,W) in [0,1]; what was known is as it was.
        labels: int64 (N,1,H,W), the parsing that stage one made.
    """

    image: Tensor
    labels: Tensor


class FashionEditor:
    """Edits photos: stage one completes the parsing, stage two paints by it.

    Spectral norms are folded into copies of the weights once. One editor does any number of edits;
    with another sketch, other colours or another seed the same hole becomes something else.

    Args:
        parsing, generator: trained.
    """

    def __init__(self, parsing: ParsingGenerator, generator: InpaintingGenerator) -> None:
        self.parsing = folded(parsing)
        self.generator = folded(generator)
        self.classes = self.generator.sizes[0]

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        labels: Tensor,
        known: Tensor,
        *,
        sketch: Tensor | None = None,
        colours: Tensor | None = None,
        strokes: Tensor | None = None,
        seed: int = 0,
    ) -> Edit:
        """The edited photo and its parsing.

        Args:
            image: (N,3,H,W) in [0,1], H and W multiples of the parsing network's step (16). What
                the holes hold is not read.
            labels: (N,1,H,W), integers: the photo's parsing, not read in the holes either.
            known: (N or 1,1,H,W); what is not wholly known is painted.
            sketch: (N or 1,1,H,W), 1 on lines; none without it.
            colours: (N or 1,3,H,W) in [0,1]; none without them.
            strokes: (N or 1,1,H,W), 1 where the colours count; everywhere without it.
            seed: of the noise.

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        check_image_and_mask(image, known)
        N, _, H, W = image.shape
        if H % self.parsing.step or W % self.parsing.step:
            raise ValueError(
                f"image: expected a height and width that are multiples of {self.parsing.step}, got"
                f" {H} x {W}"
            )
        labels = check_labels(labels, self.classes)
        if labels.shape != (N, 1, H, W):
            raise ValueError(
                f"labels: expected the shape {(N, 1, H, W)} of the image, got {tuple(labels.shape)}"
            )
        if strokes is not None and colours is None:
            raise ValueError("strokes: expected colours with them, got none")
        for name, mask in (("sketch", sketch), ("strokes", strokes)):
            if mask is not None:
                check_mask(name, mask, image)
        if colours is not None:
            check_images("colours", colours, 3)
            if colours.shape[0] not in (1, N) or colours.shape[2:] != (H, W):
                raise ValueError(
                    f"colours: expected the image's shape {tuple(image.shape)}, got"
                    f" {tuple(colours.shape)}"
                )
        hole = (known < 1).to(image).expand(N, 1, H, W)
        nowhere = torch.zeros_like(hole)
        if colours is None:
            colours, strokes = nowhere, nowhere
        noise = torch.randn(N, 1, H, W, generator=torch.Generator().manual_seed(seed)).to(image)
        drawn = guidance(
            hole,
            nowhere if sketch is None else sketch.to(image),
            colours.to(image).expand(N, 3, H, W),
            torch.ones_like(hole) if strokes is None else strokes.to(image),
            noise,
        )
        made = self.parsing(parsing_input(labels, drawn, self.classes)).argmax(dim=1, keepdim=True)
        painted = self.generator(inpainting_input(made, image, drawn, self.classes))
        return Edit(torch.where(hole > 0, (painted + 1) / 2, image), made)


# --- files ----------------------------------------------------------------------------------------


def working_size(source: tuple[int, int], network: Network) -> tuple[int, int]:
    """Height and width in which a photo of another width and height is edited.

    The height is the network's; the width follows the photo's form, in whole steps of the parsing
    network's halvings: 512 x 320 for the data set's photos.
    """
    height = network.size[0]
    width = round(height * source[0] / source[1] / network.step)
    return height, max(width, 2) * network.step


def read_lines(path: Path, source: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A file of lines or strokes, (1,1,H,W) of 0 and 1: white, or drawn on transparency.

    A pixel is on a line where any of those that it stands for is, so that thin lines stay.

    Args:
        path: see `files.read_mask`.
        source: width and height of the photo.
        size: (H,W).

    Raises:
        PictureError: it cannot be read.
        ValueError: it has another size.
    """
    white = read_mask(path).white
    _check_size(path, white.shape[::-1], source)
    return F.adaptive_max_pool2d(torch.from_numpy(white)[None, None], size)


def read_colours(
    path: Path, source: tuple[int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Colours (1,3,H,W) in [0,1] and where they count (1,1,H,W): where the file is opaque.

    Args, Raises: as for `read_lines`.
    """
    picture = pictures.open_picture(path)
    _check_size(path, picture.size, source)
    picture = picture.convert("RGBA").resize(size[::-1], Image.Resampling.NEAREST)
    values = torch.from_numpy(np.array(picture)).movedim(-1, 0)[None]
    return values[:, :3].float() / 255, (values[:, 3:] > MASK_THRESHOLD).float()


def _check_size(path: Path, size: tuple[int, ...], source: tuple[int, int]) -> None:
    if tuple(size) != tuple(source):
        raise ValueError(
            f"{path}: expected the photo's size, {source[0]} x {source[1]} pixels, got {size[0]} x"
            f" {size[1]}"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    inpainting.add_arguments(parser)
    parser.add_argument(
        "parsing",
        type=Path,
        help="the photo's human parsing: a picture of that size, of numbers or of colours; the hole"
        " is not read",
    )
    add_palette(parser)
    parser.add_argument(
        "--sketch",
        type=Path,
        help="lines: a picture of the photo's size, white on black or drawn on transparency",
    )
    parser.add_argument(
        "--colours",
        type=Path,
        help="colours: a picture of the photo's size, of strokes on transparency; an opaque one"
        " counts everywhere, or on --strokes",
    )
    parser.add_argument(
        "--strokes", type=Path, help="where --colours count: white, or drawn on transparency"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument(
        "--write-parsing",
        action="store_true",
        help="also write the parsing that the first stage makes, as NAME-parsing.png",
    )


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for bad values of what `edit` or `train` takes."""
    inpainting.check_options(options)
    if hasattr(options, "photo") and options.strokes is not None and options.colours is None:
        raise ValueError("--strokes: expected --colours with it")


def edit(networks: dict[str, nn.Module], config: Config, options: argparse.Namespace) -> None:
    """Paint a photo's hole by what is drawn, and write it."""
    given, device = config.network, options.device
    if missing := [name for name in ("parsing", "generator") if name not in networks]:
        raise ValueError(
            f"{options.checkpoint}: expected the networks of both stages, without"
            f" {' and '.join(missing)} there are {[*networks]}"
        )
    numbers = read_parsing(
        options.parsing, None if options.palette is None else read_palette(options.palette)
    )
    output = options.output.with_name(f"{options.output.stem}-parsing.png")
    if options.write_parsing:
        inpainting.check_not_read(output, options)
    editor = FashionEditor(networks["parsing"], networks["generator"])

    def fills(image: Tensor, known: Tensor) -> Iterator[Tensor]:
        source = (image.shape[3], image.shape[2])
        _check_size(options.parsing, numbers.size, source)
        size = working_size(source, given)
        labels = _resized_labels(numbers, size)
        check_labels(labels, given.classes, str(options.parsing))
        drawn = {}
        if options.sketch is not None:
            drawn["sketch"] = read_lines(options.sketch, source, size)
        if options.colours is not None:
            drawn["colours"], drawn["strokes"] = read_colours(options.colours, source, size)
        if options.strokes is not None:
            drawn["strokes"] = drawn["strokes"] * read_lines(options.strokes, source, size)
        hole = (known < 1).to(image)
        result = editor(
            _resized_known(image, hole, size),
            labels.to(device),
            # What stands for a pixel of the hole belongs to it.
            1 - F.adaptive_max_pool2d(hole, size),
            **{name: value.to(device) for name, value in drawn.items()},
            seed=options.seed,
        )
        if options.write_parsing:
            whole = picture_of(result.labels[0]).resize(source, Image.Resampling.NEAREST)
            pictures.write(whole, output)
            print(f"wrote {output}")
        yield _resized(result.image, (source[1], source[0]), "bicubic").clamp(0, 1)

    inpainting.edit(options, fills)


def _resized(image: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    if tuple(image.shape[2:]) == tuple(size):
        return image
    return F.interpolate(image, size, mode=mode, antialias=True, align_corners=False)


def _resized_known(image: Tensor, hole: Tensor, size: tuple[int, int]) -> Tensor:
    """The photo, averaged over known pixels alone: the hole does not colour its border."""
    total = _resized(image.masked_fill(hole > 0, 0), size)
    return (total / _resized(1 - hole, size).clamp(min=1e-6)).clamp(0, 1)


def _resized_labels(numbers: Image.Image, size: tuple[int, int]) -> Tensor:
    """int64 (1,1,H,W), by nearest neighbour."""
    resized = numbers.resize(size[::-1], Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(resized)).long()[None, None]
