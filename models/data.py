"""Pictures with masks for training: deterministic in epoch and place, whoever reads them.

What a sample is depends only on the seed, the epoch and its place in the epoch's order: not on the
number of workers or processes, nor on where a run was resumed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from torchext.ops.checks import check_mask_values

from .masks import MaskSource, centre_square
from .pictures import Files, find_images, read_image, to_tensor

Place = tuple[int, int, int]  # epoch, position in it, index of the file
Sample = dict[str, Any]


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes a training image.

    Attributes:
        size: height and width of the result.
        fit: "stretch" ignores the aspect; "square" cuts the largest square from the middle and
            scales it; "crop" scales the shorter side and cuts a random square (the middle one if
            `random_crop` is off).
        random_crop: for "crop".
        flip: probability of a mirror image.
        flip_mask: "with" mirrors the mask with its image; "apart" mirrors it left-right and
            upside-down at random, on its own; "never" leaves it.
    """

    size: int = 256
    fit: Literal["stretch", "square", "crop"] = "square"
    random_crop: bool = True
    flip: float = 0.0
    flip_mask: Literal["with", "apart", "never"] = "with"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected at least 1, got {self.size}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip: expected a probability from 0 to 1, got {self.flip}")
        if self.fit not in ("stretch", "square", "crop"):
            raise ValueError(f"fit: expected 'stretch', 'square' or 'crop', got {self.fit!r}")
        if self.flip_mask not in ("with", "apart", "never"):
            raise ValueError(
                f"flip_mask: expected 'with', 'apart' or 'never', got {self.flip_mask!r}"
            )

    def image(self, picture: Image.Image, random: np.random.Generator) -> Image.Image:
        size = (self.size, self.size)
        if self.fit == "stretch":
            return picture.resize(size, Image.Resampling.BILINEAR)
        if self.fit == "square":
            return centre_square(picture).resize(size, Image.Resampling.BILINEAR)
        scale = self.size / min(picture.size)
        scaled = [max(self.size, round(side * scale)) for side in picture.size]
        picture = picture.resize(scaled, Image.Resampling.BILINEAR)
        if not self.random_crop:
            return centre_square(picture)
        left, top = (int(random.integers(side - self.size + 1)) for side in scaled)
        return picture.crop((left, top, left + self.size, top + self.size))


class MaskedImages(Dataset):
    """A folder of pictures, each with a mask.

    A sample is {"image": (3,H,W) in [0,1], "known": (1,H,W), 1 known and 0 hole, "name": file} and,
    where wanted, "noise": standard normal. A broken file is named in a warning once and the next
    one is taken in its place.

    Args:
        folder: see `find_images`.
        masks: a source of masks; None leaves "known" out.
        preparation: of the pictures.
        noise: shape of the noise, () for none.
        seed: of everything random.

    Raises:
        ValueError: a folder without pictures.
    """

    def __init__(
        self,
        folder: Path,
        masks: MaskSource | None,
        preparation: Preparation,
        *,
        noise: tuple[int, ...] = (),
        seed: int = 0,
    ) -> None:
        self.files = Files(find_images(folder))
        self.masks = masks
        self.preparation = preparation
        self.noise = noise
        self.seed = seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: Place) -> Sample:
        epoch, position, index = place
        random = np.random.default_rng((self.seed, epoch, position))
        path, picture = self.files.read(index, read_image)
        image = to_tensor(self.preparation.image(picture, random))
        sample: Sample = {"image": image, "name": str(path)}
        mirrored = random.random() < self.preparation.flip
        if mirrored:
            sample["image"] = image.flip(-1)
        if self.masks is not None:
            known = self._known(*image.shape[1:], random)
            if self.preparation.flip_mask == "apart":
                axes = [axis for axis in (-2, -1) if random.random() < 0.5]
            else:
                axes = [-1] if mirrored and self.preparation.flip_mask == "with" else []
            sample["known"] = known.flip(axes)
        if self.noise:
            sample["noise"] = torch.from_numpy(random.standard_normal(self.noise, np.float32))
        return sample

    def _known(self, height: int, width: int, random: np.random.Generator) -> Tensor:
        """A mask (1,H,W) of the source, whoever wrote it."""
        known = torch.as_tensor(np.asarray(self.masks(height, width, random)))
        if known.shape != (height, width):
            raise ValueError(
                f"masks: expected an array of the shape ({height}, {width}) from the source,"
                f" got {tuple(known.shape)}"
            )
        check_mask_values("masks", known)
        return known[None].float()


class EpochBatches(Sampler):
    """Batches of places from shuffled epochs, without end, starting at any iteration.

    A global batch is split over the processes in order, so that together they see what one process
    with the joined batch sees. A last partial batch is dropped; a folder smaller than one batch is
    gone through several times.

    Args:
        length: files.
        batch: of this process.
        seed: of the order.
        start: the first iteration.
        rank, world: of the processes.
    """

    def __init__(
        self, length: int, batch: int, *, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}")
        self.length = length
        self.batch = batch
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world = world
        self.per_epoch = max(1, length // (batch * world))

    def __iter__(self) -> Iterator[list[Place]]:
        iteration = self.start
        while True:
            epoch, step = divmod(iteration, self.per_epoch)
            if iteration == self.start or step == 0:
                random = np.random.default_rng((self.seed, epoch))
                count = max(1, -(-self.batch * self.world // self.length))
                order = np.concatenate([random.permutation(self.length) for _ in range(count)])
            first = (step * self.world + self.rank) * self.batch
            yield [(epoch, i, int(order[i])) for i in range(first, first + self.batch)]
            iteration += 1


def loader(dataset: Dataset, batches: EpochBatches, *, workers: int = 0) -> DataLoader:
    """Batches as dictionaries of tensors, and lists of names."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
