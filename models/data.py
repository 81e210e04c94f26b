"""Pictures with masks for training: deterministic in epoch and place, whoever reads them.

What a sample is depends only on the seed, the epoch and its place in the epoch's order: not on the
number of workers or processes, nor on where a run was resumed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from torchext.ops.checks import check_mask_values

from .geometry import Field, Preparation
from .masks import MaskSource
from .pictures import Files, UnreadableError, find_images, read_image

Place = tuple[int, int, int]  # epoch, position in it, index of the file
Sample = dict[str, Any]


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
        self.field = Field()
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
        geometry = self.preparation.draw(picture.size, random)
        image = self.field.tensor(picture, geometry)
        sample: Sample = {"image": image, "name": str(path)}
        if self.masks is not None:
            known = self._known(*image.shape[1:], random)
            if self.preparation.flip_mask == "apart":
                axes = [axis for axis in (-2, -1) if random.random() < 0.5]
            else:
                axes = [-1] if geometry.mirrored and self.preparation.flip_mask == "with" else []
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


class PairedImages(Dataset):
    """Pictures with what belongs to them: label maps, sketches, orientation maps.

    A sample is {field: its tensor, ..., "name": file of the first field} and, where wanted,
    "noise". All fields of a sample have one geometry. A sample of which a file is broken is named
    in a warning once and the next one is taken in its place.

    Args:
        folders: of each field. Files of one sample have the same name, up to the suffix, and lie in
            the same subfolder; the first field's files are the samples.
        fields: what the files hold, by name, in the order of `folders`.
        preparation: of all fields.
        noise: shape of the noise, () for none.
        seed: of everything random.

    Raises:
        ValueError: a folder without pictures, or a sample of which a field's file is missing.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        fields: Mapping[str, Field],
        preparation: Preparation,
        *,
        noise: tuple[int, ...] = (),
        seed: int = 0,
    ) -> None:
        if folders.keys() != fields.keys():
            raise ValueError(f"folders: expected one for each of {list(fields)}, got {[*folders]}")
        by_stem = {
            name: {path.relative_to(folder).with_suffix(""): path for path in find_images(folder)}
            for name, folder in folders.items()
        }
        first = next(iter(by_stem.values()))
        for name, files in by_stem.items():
            for stem, path in first.items():
                if stem not in files:
                    raise ValueError(
                        f"{name}: expected a file {stem}.* in {folders[name]} beside {path}"
                    )
        self.files = Files(list(first.values()))
        self.paths = {
            path: {name: files[stem] for name, files in by_stem.items()}
            for stem, path in first.items()
        }
        self.fields = dict(fields)
        self.preparation = preparation
        self.noise = noise
        self.seed = seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: Place) -> Sample:
        epoch, position, index = place
        random = np.random.default_rng((self.seed, epoch, position))
        path, pictures = self.files.read(index, self._read)
        geometry = self.preparation.draw(next(iter(pictures.values())).size, random)
        sample: Sample = {
            name: field.tensor(pictures[name], geometry) for name, field in self.fields.items()
        }
        sample["name"] = str(path)
        if self.noise:
            sample["noise"] = torch.from_numpy(random.standard_normal(self.noise, np.float32))
        return sample

    def _read(self, path: Path) -> dict[str, Image.Image]:
        paths = self.paths[path]
        pictures = {name: self.fields[name].read(file) for name, file in paths.items()}
        size = next(iter(pictures.values())).size
        for name, picture in pictures.items():
            if picture.size != size:
                raise UnreadableError(
                    f"{paths[name]}: expected the size of {path}, {size[0]} x {size[1]} pixels, got"
                    f" {picture.size[0]} x {picture.size[1]}"
                )
        return pictures


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
