"""Files of label maps: numbers, or colours by a palette."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from torchext.ops.labels import check_label_map

from .geometry import Field
from .pictures import UnreadableError, as_rgb, open_picture

Colour = tuple[int, int, int]
LABELS = Field("labels")


def add_palette(parser: argparse.ArgumentParser) -> None:
    """The option --palette."""
    parser.add_argument(
        "--palette",
        type=Path,
        help="a text file with a line for each colour of label maps: its number, red, green, blue",
    )


def read_palette(path: Path) -> dict[Colour, int]:
    """The number of each colour.

    A line for each: a number, then the colour as three numbers from 0 to 255, or as #rrggbb; what
    follows is a name, and lines that begin with // are remarks.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no text, a line of another form, or a colour that stands for two numbers.
    """
    found: dict[Colour, int] = {}
    number = r"(\d+)[\s,]+"
    form = re.compile(rf"{number}(?:{number}{number}(\d+)|#([0-9a-fA-F]{{6}}))(?=[\s,]|$)")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a text, a line for each colour") from None
    for i, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("//"):
            continue
        match = form.match(text)
        digits = match.groups() if match else ()
        if match and digits[4]:
            colour = tuple(int(digits[4][k : k + 2], 16) for k in (0, 2, 4))
        else:
            colour = tuple(map(int, digits[1:4])) if match else ()
        if not match or max(colour) > 255:
            raise ValueError(
                f"{path}, line {i}: expected a number and its colour, as in '3 128 64 0' or"
                f" '3 #804000', got {text!r}"
            )
        if found.setdefault(colour, int(digits[0])) != int(digits[0]):
            raise ValueError(
                f"{path}, line {i}: expected one number for the colour {colour}, got"
                f" {digits[0]} after {found[colour]}"
            )
    if not found:
        raise ValueError(f"{path}: expected a line for each colour, found none")
    return found


def read_numbers(
    path: Path,
    palette: Mapping[Colour, int] | None = None,
    *,
    customary: Mapping[Colour, int] | None = None,
) -> Image.Image:
    """A label map as a picture of numbers.

    A picture of three equal channels holds numbers, as one of a single channel does.

    Args:
        path: of numbers, or of colours.
        palette: the number of each colour, where the file holds colours for certain.
        customary: the data set's own palette, for a file that does not hold numbers.

    Raises:
        ValueError: it cannot be read, holds something else, or a colour is not in the palette.
    """
    if palette is None:
        picture = open_picture(path)
        if picture.mode not in ("RGB", "RGBA"):
            return LABELS.read(path)
        channels = np.asarray(picture)[..., :3]
        if (channels == channels[..., :1]).all():
            return Image.fromarray(channels[..., 0].astype(np.int32))
        if customary is None:
            raise UnreadableError(
                f"{path}: expected labels, one number for each pixel, got {picture.mode}; --palette"
                " FILE says which colour is which label"
            )
        palette = customary
    pixels = np.asarray(as_rgb(open_picture(path))).astype(np.int32)
    codes = (pixels[..., 0] << 16) + (pixels[..., 1] << 8) + pixels[..., 2]
    present, places = np.unique(codes, return_inverse=True)
    numbers = {(r << 16) + (g << 8) + b: number for (r, g, b), number in palette.items()}
    for i, code in enumerate(present.tolist()):
        if code not in numbers:
            y, x = divmod(int((places.ravel() == i).argmax()), pixels.shape[1])
            raise ValueError(
                f"{path}: expected colours of the palette, got #{code:06x} at row {y}, column {x}"
            )
    values = np.array([numbers[code] for code in present.tolist()], np.int32)
    return Image.fromarray(values[places.reshape(codes.shape)])


def check_labels(labels: Tensor, classes: int, name: str = "labels") -> Tensor:
    """The label map as int64 (N,1,H,W).

    Args:
        labels: (N,1,H,W) or (N,H,W), integers from 0 to classes - 1.
        classes: how many there are.
        name: of the map, for errors.

    Raises:
        TypeError: no integers.
        ValueError: another shape, or a number that is no label.
    """
    try:
        labels = check_label_map(labels)[:, None].long()
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {str(error).removeprefix('labels: ')}") from None
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.numel():
        raise ValueError(
            f"{name}: expected labels from 0 to {classes - 1}, got {int(wrong.flatten()[0])}"
        )
    return labels
