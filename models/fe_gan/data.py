"""Photos with parsings and what a user might have drawn, for training. Masks: 1 hole, 0 known."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import inpainting
from ..data import PairedImages, Place, Sample
from ..geometry import Field, Preparation
from ..label_maps import Colour, add_palette, check_labels, read_palette
from ..masks import GeneratedMasks, MaskFolder, MaskSource
from ..paper import Stage
from .labels import ParsingField
from .networks import Config

SIGMA = 1.0  # of the sketch's edges
LINE = 0.25  # of full scale: where a scaled sketch has a line
RADIUS, SPREAD = 3, 20.0  # of the bilateral filter; the spread in pixels and in 8-bit values
STROKES = GeneratedMasks("strokes", (0.01, 0.1))


# --- sketches and colour maps ---------------------------------------------------------------------


def sketch_of(image: Tensor) -> Tensor:
    """The edges of a photo, by Canny's method with a Gaussian of deviation 1.

    Args:
        image: (3,H,W) in [0,1].

    Returns:
        float32 (1,H,W), 1 on edges, 0 elsewhere.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
    """
    try:
        from skimage.color import rgb2gray
        from skimage.feature import canny
    except ImportError:
        raise ModuleNotFoundError(
            "scikit-image: not installed, sketches of photos need it; `pip install scikit-image`,"
            " or give a folder of sketches"
        ) from None
    grey = rgb2gray(image.movedim(0, -1).double().cpu().numpy())
    return torch.from_numpy(canny(grey, sigma=SIGMA))[None].float()


def median_filtered(image: Tensor) -> Tensor:
    """The median of 3x3 pixels in each channel of (C,H,W), the border repeated."""
    windows = F.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    windows = windows.unfold(1, 3, 1).unfold(2, 3, 1).flatten(3)
    return windows.median(dim=3).values


def bilateral_filtered(image: Tensor) -> Tensor:
    """Neighbours within 3 pixels, weighted by nearness in place and in colour.

    Colours differ by the sum over channels; the border is reflected.

    Args:
        image: (C,H,W), values 0 to 255; H and W above 3.
    """
    H, W = image.shape[1:]
    padded = F.pad(image[None], (RADIUS,) * 4, mode="reflect")[0]
    total, weights = torch.zeros_like(image), torch.zeros_like(image[:1])
    for dy in range(-RADIUS, RADIUS + 1):
        for dx in range(-RADIUS, RADIUS + 1):
            squared = dy * dy + dx * dx
            if squared > RADIUS * RADIUS:
                continue
            other = padded[:, RADIUS + dy :, RADIUS + dx :][:, :H, :W]
            difference = (other - image).abs().sum(dim=0, keepdim=True)
            weight = (-(difference.square() + squared) / (2 * SPREAD**2)).exp()
            total += weight * other
            weights += weight
    return total / weights


def colour_map(image: Tensor, labels: Tensor) -> Tensor:
    """To each class of a parsing the mean colour of the smoothed photo; the background is black.

    Args:
        image: (3,H,W) in [0,1]; H and W above 3.
        labels: int64 (1,H,W), from 0 on.

    Returns:
        float32 (3,H,W) in [0,1], of 8 bits.
    """
    smooth = bilateral_filtered(median_filtered(image.float() * 255).round()).round()
    flat = labels.flatten()
    count = torch.bincount(flat).clamp(min=1)
    sums = smooth.new_zeros(len(count), 3, dtype=torch.float64)
    sums.index_add_(0, flat, smooth.flatten(1).T.double())
    means = (sums / count[:, None]).round()
    means[0] = 0
    return (means[flat].T.reshape(image.shape) / 255).float()


# --- training -------------------------------------------------------------------------------------


class FashionPhotos(PairedImages):
    """Photos with parsings, and in holes what a user might have drawn.

    A sample is {"image": (3,H,W) in [0,1], "labels": int64 (1,H,W), "sketch": (1,H,W), "colours":
    (3,H,W) in [0,1], "hole" and "strokes": (1,H,W), "noise": (1,H,W), "name": file}.

    Args:
        folders: of "image", "labels" and, where there are any, "sketch" (white lines) and
            "colours"; see `PairedImages`. Without them both are made of the photos.
        config: the paper's options.
        masks: of holes; as all sources, 1 known and 0 hole.
        strokes: where colours are given; 0 on strokes.
        palette: the number of each colour of parsings.
        seed: of everything random.

    Raises:
        ValueError: what `PairedImages` raises.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        config: Config,
        masks: MaskSource,
        strokes: MaskSource = STROKES,
        *,
        palette: Mapping[Colour, int] | None = None,
        seed: int = 0,
    ) -> None:
        fields = {
            "image": Field(resampling="bicubic"),
            "labels": ParsingField("labels", palette=palette),
            "sketch": Field("grey"),
            "colours": Field(),
        }
        preparation = Preparation(config.network.size, "square")
        super().__init__(folders, {name: fields[name] for name in folders}, preparation, seed=seed)
        self.classes = config.network.classes
        self.masks = masks
        self.strokes = strokes

    def __getitem__(self, place: Place) -> Sample:
        sample = super().__getitem__(place)
        epoch, position, _ = place
        # Of another sequence than the geometry's.
        random = np.random.default_rng((self.seed, epoch, position, 1))
        image, labels = sample["image"], sample["labels"]
        name = str(self.paths[Path(sample["name"])]["labels"])
        check_labels(labels[None], self.classes, name)
        given = sample.get("sketch")
        sample["sketch"] = sketch_of(image) if given is None else (given > LINE).float()
        if "colours" not in sample:
            sample["colours"] = colour_map(image, labels)
        H, W = image.shape[1:]
        for kind, source in (("hole", self.masks), ("strokes", self.strokes)):
            sample[kind] = 1 - torch.as_tensor(np.asarray(source(H, W, random)))[None].float()
        sample["noise"] = torch.from_numpy(random.standard_normal((1, H, W), np.float32))
        return sample


def train_arguments(parser: argparse.ArgumentParser) -> None:
    inpainting.add_train_arguments(parser)
    parser.add_argument(
        "--parsings",
        type=Path,
        required=True,
        help="a folder of human parsings, of the photos' names: pictures of numbers, or of colours",
    )
    add_palette(parser)
    parser.add_argument(
        "--sketches", type=Path, help="the same of sketches, white lines (without: edges of photos)"
    )
    parser.add_argument(
        "--colours",
        type=Path,
        help="the same of colour maps (without: each class's mean colour); `python -m"
        " torchext.models.fe_gan.prepare` writes both, once for all epochs",
    )
    parser.add_argument(
        "--strokes",
        type=Path,
        help="a folder of masks, black where colours are given (without: made up on the spot)",
    )


def dataset(options: argparse.Namespace, config: Config, stage: Stage) -> FashionPhotos:
    folders: dict[str, Any] = {"image": options.images, "labels": options.parsings}
    for name, folder in (("sketch", options.sketches), ("colours", options.colours)):
        if folder is not None:
            folders[name] = folder
    strokes: MaskSource = STROKES
    if options.strokes is not None:
        strokes = MaskFolder(options.strokes, white="known", threshold=options.threshold)
    return FashionPhotos(
        folders,
        config,
        inpainting.mask_source(options),
        strokes,
        palette=None if options.palette is None else read_palette(options.palette),
        seed=options.seed,
    )
