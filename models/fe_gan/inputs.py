"""What the networks see, put together. Masks: **1 hole, which is edited, 0 known**, (N,1,H,W).

Photos and colours come in [0,1], parsings as classes, int64 (N,1,H,W), 0 the background. The
networks see -1 where nothing is.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Guidance(NamedTuple):
    """What is drawn in the hole, as the networks see it; -1 outside of it.

    Attributes:
        mask: (N,1,H,W), 1 in the hole.
        sketch: (N,1,H,W), 1 on lines.
        noise: (N,1,H,W), standard normal.
        colour: (N,3,H,W) in [-1,1] on strokes.
    """

    mask: Tensor
    sketch: Tensor
    noise: Tensor
    colour: Tensor


def guidance(
    hole: Tensor, sketch: Tensor, colours: Tensor, strokes: Tensor, noise: Tensor
) -> Guidance:
    """Lines, colours and noise as far as they lie in the hole.

    Args:
        hole: see above.
        sketch: (N,1,H,W), 1 on lines, 0 elsewhere.
        colours: (N,3,H,W) in [0,1].
        strokes: (N,1,H,W), 1 where a colour is given.
        noise: (N,1,H,W).
    """
    return Guidance(
        mask=2 * hole - 1,
        sketch=2 * sketch * hole - 1,
        noise=torch.where(hole > 0, noise, -1.0),
        colour=torch.where(hole * strokes > 0, 2 * colours - 1, -1.0),
    )


def one_hot(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    """(N,classes,H,W) of 0 and 1, in another tensor's dtype."""
    return F.one_hot(labels[:, 0], classes).movedim(-1, 1).to(like.dtype)


def erased_labels(labels: Tensor, hole: Tensor) -> Tensor:
    """The parsing with the hole as background."""
    return labels.masked_fill(hole > 0, 0)


def erased(image: Tensor, hole: Tensor, value: float = -1.0) -> Tensor:
    """The photo in [-1,1], with a value in the hole; what the hole held is not read."""
    return torch.where(hole > 0, value, 2 * image - 1)


def composed_mask(labels: Tensor, hole: Tensor) -> Tensor:
    """(N,1,H,W): 1 where a person is known, 0 in the hole and the background."""
    return (1 - hole) * (labels != 0)


def face_mask(labels: Tensor, face: int, like: Tensor) -> Tensor:
    """(N,1,H,W): 1 on the face, in another tensor's dtype."""
    return (labels == face).to(like.dtype)


def parsing_input(labels: Tensor, given: Guidance, classes: int) -> Tensor:
    """What stage one sees, (N,classes + 6,H,W).

    Args:
        labels: the parsing; what it has in the hole is not read.
        given: what is drawn.
        classes: how many there are.
    """
    mask, sketch, noise, colour = given
    known = one_hot(erased_labels(labels, mask), classes, mask)
    return torch.cat((known, mask, sketch, noise, colour), dim=1)


def inpainting_input(labels: Tensor, image: Tensor, given: Guidance, classes: int) -> Tensor:
    """What stage two sees, (N,classes + 9,H,W).

    Args:
        labels: the whole parsing: the true one in training, stage one's in an edit.
        image: the photo; what it has in the hole is not read.
        given: what is drawn.
        classes: how many there are.
    """
    mask, sketch, noise, colour = given
    hole = (mask > 0).to(mask)
    parts = (one_hot(labels, classes, mask), erased(image, hole), composed_mask(labels, hole))
    return torch.cat((*parts, noise, colour, sketch), dim=1)
