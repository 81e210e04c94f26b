"""Label maps: from numbers or colours in files to what the networks see."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import PairedImages, Place, Sample
from ..geometry import Field, Geometry, Preparation
from ..label_maps import LABELS
from ..paper import Stage
from .networks import Config, Network

UNKNOWN = 255  # in files
FIELDS = {"image": Field(resampling="bicubic"), "labels": LABELS, "instances": LABELS}


# --- what the networks see ------------------------------------------------------------------------


def classes(numbers: Tensor, network: Network, name: str = "labels") -> Tensor:
    """Classes from 0 on, from the numbers in files; unknown ones become the class `network.labels`.

    Args:
        numbers: integers.
        network: which numbers there are.
        name: of the map, for errors.

    Raises:
        TypeError: no integers.
        ValueError: a number that is no label, or an unknown pixel where there is no class for it.
    """
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {numbers.dtype}")
    first, count = network.first_label, network.labels
    numbers = numbers.long()
    unknown = (numbers == UNKNOWN) | ((numbers >= 0) & (numbers < first))
    wrong = numbers[~unknown & ((numbers < 0) | (numbers >= first + count))]
    if wrong.numel():
        expected = f"labels from {first} to {first + count - 1}"
        also = f", or {UNKNOWN} for unknown" if network.dont_care else ""
        raise ValueError(f"{name}: expected {expected}{also}, got {wrong[0].item()}")
    if not network.dont_care and unknown.any():
        raise ValueError(
            f"{name}: expected a label at every pixel, as the option dont_care is off, got"
            f" {numbers[unknown][0].item()}, which means unknown"
        )
    return torch.where(unknown, count, numbers - first)


def instance_edges(instances: Tensor) -> Tensor:
    """Where a pixel's left, right, upper or lower neighbour belongs to another instance.

    The image's border alone is no edge.

    Args:
        instances: (N,1,H,W), integers.

    Returns:
        bool (N,1,H,W).
    """
    edges = torch.zeros_like(instances, dtype=torch.bool)
    beside = instances[..., 1:] != instances[..., :-1]
    edges[..., 1:] |= beside
    edges[..., :-1] |= beside
    below = instances[..., 1:, :] != instances[..., :-1, :]
    edges[..., 1:, :] |= below
    edges[..., :-1, :] |= below
    return edges


def one_hot(labels: Tensor, network: Network, instances: Tensor | None = None) -> Tensor:
    """float32 (N,network.channels,H,W): a channel for each class, then the edges of instances.

    Args:
        labels: (N,1,H,W), classes.
        instances: (N,1,H,W), integers; where the networks see edges, and only there.

    Raises:
        ValueError: instances are missing, or given in vain.
    """
    check_instances(network, instances is not None)
    channels = F.one_hot(labels[:, 0], network.classes).movedim(-1, 1).float()
    if instances is None:
        return channels
    return torch.cat((channels, instance_edges(instances).float()), dim=1)


def check_instances(network: Network, given: bool) -> None:
    """Raise ValueError where a map of instances is missing, or given in vain."""
    if network.instances and not given:
        raise ValueError("instances: expected a map of them, as the option instances is on")
    if given and not network.instances:
        raise ValueError("instances: expected none, as the option instances is off")


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows(Preparation):
    """Photos stretched to a size, then a random window of the images' size.

    Attributes:
        stretched: (height, width), at least the size.
    """

    stretched: tuple[int, int] = (256, 256)

    def draw(self, source: tuple[int, int], random: np.random.Generator) -> Geometry:
        height, width = self.height_and_width
        tall, wide = self.stretched
        left, top = int(random.integers(wide - width + 1)), int(random.integers(tall - height + 1))
        window = (left, top, left + width, top + height)
        return Geometry(source, None, (wide, tall), window, bool(random.random() < self.flip))


class LabelledPhotos(PairedImages):
    """Photos with their label maps: "image" (3,H,W) in [0,1], "labels" (1,H,W) classes.

    And "instances" (1,H,W) where the networks see their edges.

    Args:
        folders: of "image", "labels" and, where needed, "instances"; see `PairedImages`.
        network: which labels there are.
        preparation: of all fields.
        seed: of everything random.

    Raises:
        ValueError: what `PairedImages` raises; a map of instances is missing, or given in vain. In
            a sample: what `classes` raises, with the file's name.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        network: Network,
        preparation: Preparation,
        *,
        seed: int = 0,
    ) -> None:
        check_instances(network, "instances" in folders)
        fields = {name: FIELDS[name] for name in folders}
        super().__init__(folders, fields, preparation, seed=seed)
        self.network = network

    def __getitem__(self, place: Place) -> Sample:
        sample = super().__getitem__(place)
        path = self.paths[Path(sample["name"])]["labels"]
        sample["labels"] = classes(sample["labels"], self.network, str(path))
        return sample


def train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, help="a folder of photos, searched at any depth")
    parser.add_argument(
        "--labels", type=Path, required=True, help="a folder of their label maps, of the same names"
    )
    parser.add_argument("--instances", type=Path, help="the same of instances' numbers")


def dataset(options: argparse.Namespace, config: Config, stage: Stage) -> LabelledPhotos:
    folders = {"image": options.images, "labels": options.labels}
    if options.instances is not None:
        folders["instances"] = options.instances
    height, width = size = config.network.height_and_width
    wide = width + config.schedule.margin
    stretched = (round(wide * height / width), wide)
    preparation = Windows(size, flip=config.schedule.flip, stretched=stretched)
    return LabelledPhotos(folders, config.network, preparation, seed=options.seed)
