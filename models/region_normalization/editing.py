"""Filling holes with a trained generator."""

import argparse

import torch
from torch import Tensor, nn

from .. import inpainting, pictures
from ..checks import check_image_and_mask
from .networks import Config, G_Net


@torch.no_grad()
def fill(generator: G_Net, image: Tensor, known: Tensor) -> Tensor:
    """Fill the holes of images of any size. Mask: 1 known, 0 hole.

    Images are padded to multiples of 4 (12 at least) by repeating their borders, and cut back.
    Statistics run over the batch where the generator's do: one image at a time is reproducible.

    Args:
        generator: trained.
        image: (N,3,H,W) in [0,1]; what the holes hold is not read.
        known: (N or 1,1,H,W).

    Returns:
        (N,3,H,W): the image where it is known, the prediction in the holes.

    Raises:
        TypeError: an image that is not floating point.
        ValueError: a shape that does not fit, or a value outside 0 to 1.
    """
    check_image_and_mask(image, known)
    H, W = image.shape[2:]
    hole = (known < 1).to(image.dtype).expand(len(image), -1, -1, -1)
    padded, padded_hole = (pictures.pad_to_multiple(x, 4, least=12) for x in (image, hole))
    filled = generator(padded, padded_hole)[..., :H, :W]
    return pictures.composite(image, 1 - hole, filled)


def edit(networks: dict[str, nn.Module], config: Config, options: argparse.Namespace) -> None:
    inpainting.edit(options, lambda image, known: [fill(networks["generator"], image, known)])
