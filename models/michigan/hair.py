"""Noise, holes and orientation: what the networks see beside photos. Masks: **1 hair, 0 not**."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..orientation import StrokeGuidance
from .inpainting import OrientationInpainter, fill_orientation, fill_strokes

SMALLEST = 8  # height and width of the coarsest noise
HOLE = (0.5, 1.2)  # of the hair that a hole's circle takes, at least and at most


def draw_noise(height: int, width: int, random: np.random.Generator) -> Tensor:
    """float32 (3,H,W), in about [0,1]: the mean of normal noise at halved sizes down to 8.

    As published: mean 1/2, and a deviation of 1/4 at each size.
    """
    levels, k = [], 0
    while k == 0 or min(height, width) // 2**k >= SMALLEST:
        shape = (3, height // 2**k, width // 2**k)
        values = 0.5 + 0.25 * random.standard_normal(shape, np.float32)
        levels.append(torch.from_numpy(values))
        k += 1
    return mean_of_levels(levels, (height, width))


def mean_of_levels(levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The mean (3,H,W) of maps (3,h,w), each resized linearly."""
    resized = [
        F.interpolate(level[None], size, mode="bilinear", align_corners=False)[0]
        for level in levels
    ]
    return torch.stack(resized).mean(dim=0)


def round_hole(hair: Tensor, known: Tensor, share: float, centre: int) -> Tensor:
    """(H,W): where an orientation is taken away, and where there is none.

    Args:
        hair: (H,W).
        known: (H,W), where the hair's orientation is known. What lies outside the hair is left out;
            the published script lets it wrap around to 255.
        share: of the known pixels' number, the circle's area.
        centre: which of the known pixels, by rows, is the circle's.
    """
    rows, columns = known.nonzero(as_tuple=True)
    if not len(rows):
        return hair
    H, W = known.shape
    y = torch.arange(H, device=hair.device)[:, None] - rows[centre]
    x = torch.arange(W, device=hair.device) - columns[centre]
    circle = y.square() + x.square() < int(int(share * len(rows)) / math.pi)
    return (known * circle + hair - known).clamp(0, 1)


def draw_hole(hair: Tensor, known: Tensor, random: np.random.Generator) -> Tensor:
    """`round_hole` of a random size and place."""
    count = int(known.sum())
    share = random.uniform(*HOLE)
    return round_hole(hair, known, share, int(random.integers(count)) if count else 0)


def complete_orientation(
    rgb: Tensor,
    known: Tensor,
    hair: Tensor,
    noise: Tensor,
    network: OrientationInpainter,
    *,
    guidance: StrokeGuidance | None = None,
    strokes_network: OrientationInpainter | None = None,
    size: int = 256,
) -> Tensor:
    """The colours of an orientation, everywhere in the hair, along strokes where there are any.

    Args:
        rgb: (N,3,H,W), see `inpainting.colour_code`.
        known: (N,1,H,W), where those colours are right.
        hair: (N,1,H,W).
        noise: (N,3,H,W).
        network: fills what is not known; not needed where all is.
        guidance: see `torchext.orientation.stroke_guidance`.
        strokes_network: fills around strokes.
        size: at which both work.

    Returns:
        (N,3,H,W).
    """
    hole = hair * (1 - known)
    if hole.any():
        rgb = fill_orientation(network, hole, rgb, noise, size)
    if guidance is None:
        return rgb
    return fill_strokes(
        strokes_network, guidance.hole, rgb, noise, guidance.stroke, guidance.rgb, size
    )
