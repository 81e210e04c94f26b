"""Label maps of faces by CelebAMask-HQ's classes: names, colours, files, two orders of numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .label_maps import Colour, check_labels, read_numbers

Numbering = Literal["celebamask", "bisenet"]
NAMES = (
    *("background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear"),
    *("r_ear", "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"),
)
COLOURS = (
    *((0, 0, 0), (204, 0, 0), (76, 153, 0), (204, 204, 0), (51, 51, 255), (204, 0, 204)),
    *((0, 255, 255), (51, 255, 255), (102, 51, 0), (255, 0, 0), (102, 204, 0), (255, 255, 0)),
    *((0, 0, 153), (0, 0, 204), (255, 51, 153), (0, 204, 204), (0, 51, 0), (255, 153, 51)),
    (0, 204, 0),
)
# How face parsers trained as BiSeNets on this data set number the same classes.
BISENET_NAMES = (
    *("background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear"),
    *("ear_r", "nose", "mouth", "u_lip", "l_lip", "neck", "neck_l", "cloth", "hair", "hat"),
)
_NAMES: Mapping[str, tuple[str, ...]] = {"celebamask": NAMES, "bisenet": BISENET_NAMES}


def sides(names: tuple[str, ...]) -> dict[int, int]:
    """The numbers that change places in a mirror image, left and right."""
    return {names.index(f"l_{part}"): names.index(f"r_{part}") for part in ("eye", "brow", "ear")}


def coloured(labels: Tensor) -> Tensor:
    """Label maps (N,1,H,W) or (N,H,W) of `NAMES` as colours, float32 (N,3,H,W) in [0,1].

    Raises:
        TypeError, ValueError: what `check_labels` raises.
    """
    labels = check_labels(labels, len(COLOURS))
    colours = torch.tensor(COLOURS, dtype=torch.float32, device=labels.device) / 255
    return colours[labels[:, 0]].movedim(-1, 1)


def renumbered(
    labels: Tensor, numbering: Numbering, wanted: Numbering, name: str = "labels"
) -> Tensor:
    """The same classes by other numbers. int64 (N,1,H,W).

    Args:
        labels: (N,1,H,W) or (N,H,W), integers.
        numbering, wanted: "celebamask", `NAMES`, or "bisenet", `BISENET_NAMES`.
        name: of the map, for errors.

    Raises:
        TypeError, ValueError: what `check_labels` raises.
    """
    before, after = _NAMES[numbering], _NAMES[wanted]
    labels = check_labels(labels, len(before), name)
    numbers = [after.index(name) for name in before]
    return torch.tensor(numbers, device=labels.device)[labels]


def from_bisenet(labels: Tensor, name: str = "labels") -> Tensor:
    """CelebAMask-HQ's numbers, from those of `BISENET_NAMES`. int64 (N,1,H,W).

    Raises:
        TypeError, ValueError: what `check_labels` raises.
    """
    return renumbered(labels, "bisenet", "celebamask", name)


def read_labels(
    path: Path,
    palette: Mapping[Colour, int] | None = None,
    numbering: Numbering = "celebamask",
    wanted: Numbering = "celebamask",
) -> Image.Image:
    """A label map as a picture of numbers.

    Args:
        path: of numbers, of one channel or three equal ones as MaskGAN's demo reads, or of
            `COLOURS`.
        palette: the number of each colour, in place of `COLOURS`.
        numbering: what the file's or the palette's numbers mean: `NAMES` or `BISENET_NAMES`.
        wanted: the same of the result.

    Raises:
        UnreadableError: it cannot be read, or holds something else.
        ValueError: a colour is not in the palette, or, where they are to be others, a number is no
            label.
    """
    names = _NAMES[numbering]
    customary = {colour: names.index(NAMES[number]) for number, colour in enumerate(COLOURS)}
    picture = read_numbers(path, palette, customary=customary)
    if numbering == wanted:
        return picture
    labels = torch.from_numpy(np.array(picture))[None]
    found = renumbered(labels, numbering, wanted, str(path))
    return Image.fromarray(found[0, 0].numpy().astype(np.int32))
