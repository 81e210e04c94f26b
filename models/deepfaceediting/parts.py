"""Where the parts of a face lie in an aligned photo, and how their maps become one."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

SIZE = 512  # at which the boxes are given
PARTS = ("bg", "eye1", "eye2", "nose", "mouth")
PASTED = ("mouth", "nose", "eye1", "eye2")  # onto the background, a later one over an earlier one


class Box(NamedTuple):
    """Where a part lies in an aligned photo: a square, of which the first rows are pasted."""

    x: int
    y: int
    side: int
    rows: int

    def crop(self, image: Tensor) -> Tensor:
        """(...,H,W) -> (...,side,side), a view."""
        return image[..., self.y : self.y + self.side, self.x : self.x + self.side]

    def paste(self, canvas: Tensor, part: Tensor) -> None:
        """Write the first rows of (...,side,side) into (...,H,W), in place."""
        self.crop(canvas)[..., : self.rows, :] = part[..., : self.rows, :]


# At 512 pixels. The nose leaves out the rows that lie over the lips.
BOXES = {
    "bg": Box(0, 0, 512, 512),
    "eye1": Box(108, 156, 128, 128),
    "eye2": Box(255, 156, 128, 128),
    "nose": Box(182, 232, 160, 124),
    "mouth": Box(169, 301, 192, 192),
}


def boxes(size: int = SIZE, step: int = 1) -> dict[str, Box]:
    """The parts' boxes in photos of a size, sides rounded up to multiples of `step`."""

    def scaled(box: Box) -> Box:
        factor = size / SIZE
        side = min(size, -(-round(box.side * factor) // step) * step)
        shift = (round(box.side * factor) - side) // 2
        x, y = (min(max(round(place * factor) + shift, 0), size - side) for place in (box.x, box.y))
        left_out = round((box.side - box.rows) * factor)
        return Box(x, y, side, side - left_out)

    return {part: scaled(box) for part, box in BOXES.items()}


def pasted(
    maps: Callable[[str], Tensor],
    places: Mapping[str, Box],
    order: Iterable[str] = PASTED,
) -> Tensor:
    """The background's map with those of the parts over it, by hard replacement.

    Each part is written into the background's map itself, one after the other: no two parts' maps
    are held at a time. Where gradients are wanted, the background's is copied once. The writing is
    one pass over the parts' maps, 3.5 ms of an edit of seconds (512 pixels, one thread); to have
    the norms before it write there themselves, by plain operations, takes 45 ms in place of 6.

    Args:
        maps: gives a part's map (N,C,side,side).
        places: see `boxes`.
        order: a later part over an earlier one.

    Returns:
        (N,C,size,size).
    """
    canvas = maps("bg")
    if canvas.requires_grad:
        canvas = canvas.clone()
    for part in order:
        places[part].paste(canvas, maps(part))
    return canvas
