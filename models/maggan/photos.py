"""Photos as STGAN's published networks see them: CelebA's crop and TensorFlow's bicubic."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..geometry import Box, Field, Geometry, Preparation

CELEBA_SIZE = (178, 218)  # width and height of the aligned photos
_CROPS: dict[int, Box] = {64: (15, 40, 163, 188)}
_CROP: Box = (3, 26, 173, 196)  # of all other sizes
_A = -0.75
_STEPS = 1024  # in which TensorFlow counts the place between two pixels


def celeba_crop(size: int) -> Box:
    """What is cut of CelebA's aligned photos, left, top, right and bottom, as published."""
    return _CROPS.get(size, _CROP)


def _weights(length: int, wanted: int) -> Tensor:
    """(wanted,length): each new pixel's share of the old ones, in one direction."""
    scale = np.float32(length) / np.float32(wanted)
    place = np.arange(wanted, dtype=np.float32) * scale
    first = np.floor(place).astype(np.int64)
    fraction = np.rint((place - first.astype(np.float32)) * _STEPS) / _STEPS
    matrix = np.zeros((wanted, length))
    for tap in range(-1, 3):
        d = np.abs(fraction - tap)
        near = ((_A + 2) * d - (_A + 3)) * d * d + 1
        far = ((_A * d - 5 * _A) * d + 8 * _A) * d - 4 * _A
        column = np.clip(first + tap, 0, length - 1)
        np.add.at(matrix, (np.arange(wanted), column), np.where(d <= 1, near, far))
    return torch.from_numpy(matrix)


def resize_bicubic(image: Tensor, height: int, width: int) -> Tensor:
    """Images (...,h,w) of another size as TensorFlow 1 resizes them.

    Without half a pixel's shift and without antialiasing; the border is repeated.
    """
    rows = _weights(image.shape[-2], height).to(image)
    columns = _weights(image.shape[-1], width).to(image)
    return rows @ image @ columns.T


def stgan_input(image: Tensor, size: int, crop: Box | None = None) -> Tensor:
    """What STGAN's networks see: float32 (N,3,size,size) in [-1,1].

    Args:
        image: (N,3,H,W), values 0 to 255.
        size: of the result.
        crop: left, top, right and bottom, before the resize; see `celeba_crop`.
    """
    if crop is not None:
        left, top, right, bottom = crop
        image = image[..., top:bottom, left:right]
    return resize_bicubic(image, size, size).clamp(0, 255) / 127.5 - 1


@dataclass(frozen=True)
class CelebACrop(Preparation):
    """The published crop of CelebA's aligned photos.

    A photo of another size is an error: it is not aligned as they are.
    """

    def draw(self, source: tuple[int, int], random: np.random.Generator) -> Geometry:
        if source != CELEBA_SIZE:
            raise ValueError(
                "crop: expected aligned photos of CelebA, 178 x 218 pixels, got"
                f" {source[0]} x {source[1]}; --set crop=square takes others"
            )
        height, width = self.height_and_width
        cut = celeba_crop(height)
        return Geometry(source, cut, (width, height), None, bool(random.random() < self.flip))


@dataclass(frozen=True)
class TensorFlowPhoto(Field):
    """A photo that is scaled by TensorFlow's bicubic."""

    def tensor(self, picture: Image.Image, geometry: Geometry) -> Tensor:
        if geometry.cut is not None:
            picture = picture.crop(geometry.cut)
        width, height = geometry.scaled
        image = torch.from_numpy(np.array(picture, np.float32)).movedim(-1, 0)
        values = resize_bicubic(image, height, width).clamp(0, 255) / 255
        if geometry.window is not None:
            left, top, right, bottom = geometry.window
            values = values[:, top:bottom, left:right]
        return values.flip(-1) if geometry.mirrored else values
