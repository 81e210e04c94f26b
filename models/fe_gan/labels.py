"""Human parsings: the 20 classes of LIP (Look into Person), in its order and its colours."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..geometry import Field
from ..label_maps import Colour, read_numbers

NAMES = (
    *("background", "hat", "hair", "glove", "sunglasses", "upper_clothes", "dress", "coat"),
    *("socks", "pants", "jumpsuit", "scarf", "skirt", "face", "left_arm", "right_arm"),
    *("left_leg", "right_leg", "left_shoe", "right_shoe"),
)
COLOURS = (
    *((0, 0, 0), (128, 0, 0), (255, 0, 0), (0, 85, 0), (170, 0, 51), (255, 85, 0), (0, 0, 85)),
    *((0, 119, 221), (85, 85, 0), (0, 85, 85), (85, 51, 0), (52, 86, 128), (0, 128, 0)),
    *((0, 0, 255), (51, 170, 221), (0, 255, 255), (85, 255, 170), (170, 255, 85), (255, 255, 0)),
    (255, 170, 0),
)
CUSTOMARY: dict[Colour, int] = {colour: number for number, colour in enumerate(COLOURS)}


def read_parsing(path: Path, palette: Mapping[Colour, int] | None = None) -> Image.Image:
    """A parsing as a picture of numbers; see `label_maps.read_numbers`.

    Args:
        path: of numbers, or of colours: those of `COLOURS`, or of the palette.
        palette: the number of each colour.

    Raises:
        PictureError: it cannot be read, or holds something else.
        ValueError: a colour is not in the palette.
    """
    return read_numbers(path, palette, customary=CUSTOMARY)


@dataclass(frozen=True)
class ParsingField(Field):
    """A file that `read_parsing` reads."""

    palette: Mapping[Colour, int] | None = field(default=None)

    def read(self, path: Path) -> Image.Image:
        return read_parsing(path, self.palette)


def coloured(labels: Tensor) -> Tensor:
    """Parsings (N,1,H,W) as colours, float32 (N,3,H,W) in [0,1]; classes beyond 20 begin anew."""
    colours = torch.tensor(COLOURS, dtype=torch.float32, device=labels.device) / 255
    return colours[labels[:, 0] % len(COLOURS)].movedim(-1, 1)


def picture_of(labels: Tensor) -> Image.Image:
    """A picture of the numbers in a parsing (1,H,W), whose palette shows them in colours."""
    picture = Image.fromarray(labels[0].to(torch.uint8).cpu().numpy()).convert("L")
    picture.putpalette([value for colour in COLOURS for value in colour])
    return picture
