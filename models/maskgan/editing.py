"""Photos of faces from changed label maps."""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .. import pictures
from ..checks import check_images
from ..face_labels import read_labels
from ..label_maps import add_palette, check_labels, read_palette
from .labels import published_values
from .networks import Config, DenseMappingNetwork, Network
from .parser import MULTIPLE, FaceParser
from .strokes import paint, read_strokes


@torch.no_grad()
def parse(parser: FaceParser, photo: Tensor) -> Tensor:
    """Label maps int64 (N,1,H,W) of photos (N,3,H,W) in [0,1], H and W multiples of 16.

    Args:
        parser: trained, in evaluation mode.
    """
    return parser(photo * 2 - 1).argmax(dim=1, keepdim=True)


class FaceEditor:
    """Edits of one photo, whose style is computed once.

    Args:
        generator: trained, in evaluation mode.
        photo: (1,3,H,W) in [0,1].
        labels: (1,1,H,W), integers, its label map.
        style: another photo and its label map, of any size, whose style is copied.
        classes: numbers of the labels.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    def __init__(
        self,
        generator: DenseMappingNetwork,
        photo: Tensor,
        labels: Tensor,
        *,
        style: tuple[Tensor, Tensor] | None = None,
        classes: int = 19,
    ) -> None:
        self.generator = generator
        self.classes = classes
        self.photo = photo
        self.labels = self._checked("labels", photo, labels)
        style_photo, style_labels = (photo, labels) if style is None else style
        style_labels = self._checked("style", style_photo, style_labels)
        with torch.no_grad():
            self.style = generator.encode_style(style_labels, style_photo * 2 - 1)

    def _checked(self, name: str, photo: Tensor, labels: Tensor) -> Tensor:
        check_images("photo", photo, 3)
        labels = check_labels(labels, self.classes, name)
        expected = (1, *photo.shape[2:])
        if len(photo) != 1 or (len(labels), *labels.shape[2:]) != expected:
            raise ValueError(
                f"{name}: expected one photo, and labels of its height and width"
                f" {tuple(photo.shape[2:])}, got the shapes {tuple(photo.shape)} and"
                f" {tuple(labels.shape)}"
            )
        return labels

    @torch.no_grad()
    def __call__(self, edited: Tensor) -> Tensor:
        """Photos (N,3,H,W) in [0,1] of edited label maps (N,1,H,W), integers.

        The whole face is generated anew, as published; see `unedited` for what to keep.
        """
        edited = check_labels(edited, self.classes, "edited")
        if edited.shape[2:] != self.labels.shape[2:]:
            raise ValueError(
                f"edited: expected the height and width {tuple(self.labels.shape[2:])} of the"
                f" photo, got {tuple(edited.shape[2:])}"
            )
        return (self.generator.generate(edited, self.style) + 1) / 2

    def unedited(self, edited: Tensor, margin: int = 0) -> Tensor:
        """float32 (N,1,H,W): 1 where an edited label map is as it was, 0 elsewhere.

        Args:
            edited: (N,1,H,W), integers.
            margin: pixels around the change that count as edited.
        """
        if margin < 0:
            raise ValueError(f"margin: expected at least 0, got {margin}")
        changed = (check_labels(edited, self.classes, "edited") != self.labels).float()
        return 1 - F.max_pool2d(changed, 2 * margin + 1, stride=1, padding=margin)

    def paste(self, edited: Tensor, margin: int = 0) -> Tensor:
        """Photos of edited label maps, with the photo's own pixels where nothing was edited."""
        return pictures.composite(self.photo, self.unedited(edited, margin), self(edited))


# --- files ----------------------------------------------------------------------------------------


def working_size(source: tuple[int, int], network: Network) -> tuple[int, int]:
    """Width and height in which a picture of another width and height is edited.

    As published, the width is the network's and the height follows, here in whole steps of the
    generator's and the face parser's halvings.
    """
    step = max(2**network.downsamplings, MULTIPLE)
    height = round(network.size * source[1] / source[0] / step) * step
    return network.size, max(height, 2 * step)


def photo_tensor(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """(1,3,H,W) in [0,1] of an RGB picture, bicubic, as published."""
    return pictures.to_tensor(_resized(picture, size, Image.Resampling.BICUBIC))[None]


def label_tensor(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """int64 (1,1,H,W) of a picture of numbers, by nearest neighbour."""
    resized = _resized(picture, size, Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(resized)).long()[None, None]


def _resized(
    picture: Image.Image, size: tuple[int, int], resampling: Image.Resampling
) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, resampling)


def as_bytes(photo: Tensor) -> Tensor:
    """uint8 (N,H,W,3) of photos (N,3,H,W) in [0,1], cut off as published, not rounded."""
    return (photo * 255).to(torch.uint8).movedim(1, -1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", type=Path, help="a photo of a face, aligned as in CelebA-HQ")
    parser.add_argument(
        "edited",
        type=Path,
        nargs="?",
        help="its label map, changed: numbers 0 to 18 or the data set's colours (without: as it"
        " was, with --strokes or in another --style)",
    )
    parser.add_argument(
        "--strokes",
        type=Path,
        help="a JSON file of strokes to paint over that map, in pixels of the network's size:"
        ' [{"label": "hair", "points": [[x, y], ...], "thickness": 6}, ...]',
    )
    parser.add_argument(
        "--order",
        choices=("time", "label"),
        default="time",
        help="a later stroke covers an earlier one, or, as in the published demo, one of a higher"
        " label one of a lower (default: %(default)s)",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        help="its label map as it was (without: by the face parser, if the checkpoint has one)",
    )
    add_palette(parser)
    parser.add_argument(
        "--numbering",
        choices=("celebamask", "bisenet"),
        default="celebamask",
        help="what the numbers of label maps mean: those of the data set, or of face parsers that"
        " were trained on it as BiSeNets (default: %(default)s)",
    )
    parser.add_argument("--style", type=Path, help="another photo, whose style is copied")
    parser.add_argument("--style-labels", type=Path, help="its label map")
    parser.add_argument(
        "--paste", action="store_true", help="keep the photo's own pixels where nothing was edited"
    )
    parser.add_argument(
        "--margin",
        type=int,
        default=8,
        help="with --paste: pixels around the change, at the network's size, that are new, too"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="cut labels off as the published demo does, which takes hair for a lip",
    )


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for bad values of `add_arguments`."""
    if getattr(options, "style_labels", None) is not None and options.style is None:
        raise ValueError("--style-labels: expected --style, the photo that it belongs to")
    if getattr(options, "margin", 0) < 0:
        raise ValueError(f"--margin: expected at least 0, got {options.margin}")
    nothing = (getattr(options, name, 0) is None for name in ("edited", "strokes", "style"))
    if all(nothing):
        raise ValueError("edited: expected a changed label map, --strokes or --style")


def edit(networks: dict[str, nn.Module], config: Config, options: argparse.Namespace) -> None:
    """Write the photo of an edited label map."""
    given = config.network
    if "generator" not in networks:
        raise ValueError(f"{options.checkpoint}: expected a generator, found {[*networks]}")
    palette = None if options.palette is None else read_palette(options.palette)
    source = pictures.read_photo(options.photo)
    strokes = [] if options.strokes is None else read_strokes(options.strokes)

    def labels_of(path: Path, photo: Tensor, source_size: tuple[int, int]) -> Tensor:
        picture = read_labels(path, palette, options.numbering)
        if abs(picture.size[0] * source_size[1] / (picture.size[1] * source_size[0]) - 1) > 0.01:
            raise ValueError(
                f"{path}: expected the photo's aspect, {source_size[0]} x {source_size[1]}, got"
                f" {picture.size[0]} x {picture.size[1]}"
            )
        labels = label_tensor(picture, (photo.shape[3], photo.shape[2]))
        labels = check_labels(labels, given.labels, str(path))
        labels = published_values(labels).long() if options.truncate else labels
        return labels.to(options.device)

    def read(path: Path, labels: Path | None, name: str) -> tuple[Tensor, Tensor]:
        picture = pictures.read_image(path)
        photo = photo_tensor(picture, working_size(picture.size, given)).to(options.device)
        if labels is not None:
            return photo, labels_of(labels, photo, picture.size)
        if "parser" not in networks:
            raise ValueError(f"{name}: expected a label map, as the checkpoint has no face parser")
        return photo, parse(networks["parser"], photo)

    photo, labels = read(options.photo, options.labels, "--labels")
    edited = labels
    if options.edited is not None:
        edited = labels_of(options.edited, photo, source.size)
    edited = paint(edited, strokes, order=options.order)
    style = None
    if options.style is not None:
        style = read(options.style, options.style_labels, "--style-labels")
    editor = FaceEditor(networks["generator"], photo, labels, style=style, classes=given.labels)
    result = editor(edited)
    if not options.paste:
        values = as_bytes(result)[0].cpu().numpy()
        pictures.write(Image.fromarray(values), options.output)
    else:
        width, height = source.size
        kept = F.interpolate(editor.unedited(edited, options.margin), (height, width))
        filled = F.interpolate(
            result, (height, width), mode="bicubic", antialias=True, align_corners=False
        )
        pasted = source.with_fill(filled[0].cpu(), kept[0].cpu())
        for note in pictures.write_photo(pasted, options.output):
            print(f"warning: {note}", file=sys.stderr)
    print(f"wrote {options.output}")
