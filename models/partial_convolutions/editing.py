"""Filling holes with a trained U-Net."""

import argparse

import torch
from torch import Tensor, nn

from .. import inpainting, pictures
from ..checks import check_image_and_mask
from ..vgg import imagenet_normalised, imagenet_restored
from .networks import Config, PConvUNet


@torch.no_grad()
def fill(generator: PConvUNet, image: Tensor, known: Tensor) -> Tensor:
    """Fill the holes of images of any size. Mask: 1 known, 0 hole, or between.

    Images are padded with hole pixels, which partial convolutions ignore, to multiples of 2^L, and
    cut back.

    Args:
        generator: trained, in evaluation mode.
        image: (N,3,H,W) in [0,1]; what the holes hold is not read.
        known: (N or 1,1,H,W). The released checkpoint was trained on masks with fractions.

    Returns:
        (N,3,H,W): the image where it is known, the prediction in the holes.

    Raises:
        TypeError: an image that is not floating point.
        ValueError: a shape that does not fit, or a value outside 0 to 1.
    """
    check_image_and_mask(image, known)
    H, W = image.shape[2:]
    known = known.to(image.dtype)
    image = torch.where(known > 0, image, 0)
    masked = imagenet_normalised(image) * known
    multiple = 2**generator.layer_size
    padded, mask = (pictures.pad_to_multiple(x, multiple, mode="constant") for x in (masked, known))
    filled = imagenet_restored(generator(padded, mask)[0][..., :H, :W]).clamp(0, 1)
    return pictures.composite(image, known, filled)


def edit(networks: dict[str, nn.Module], config: Config, options: argparse.Namespace) -> None:
    inpainting.edit(options, lambda image, known: [fill(networks["generator"], image, known)])
