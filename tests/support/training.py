"""Small training runs of the papers: what tests and the processes that they spawn run."""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchext.models import papers
from torchext.models.data import MaskedImages, Place, Sample
from torchext.models.masks import GeneratedMasks, MaskSource
from torchext.models.training import Options, Trainer

# Reduced networks; what follows a paper's name tells its runs apart.
SMALL: dict[str, dict[str, Any]] = {
    "partial_convolutions": {
        "layers": 4, "width": 8, "size": 32, "learning_rate": 5e-3, "form": "ratio"
    },
    "region_normalization": {
        "width": 8, "residual_blocks": 1, "size": 32, "learning_rate": 2e-3, "threshold": 0.5
    },
    "pd_gan": {"width": 4, "size": 128, "noise": 16, "rate_2": 4e-3},
    "pd_gan stage 1": {"width": 4, "size": 128, "rate_1": 1e-2},
}  # fmt: skip


def centre_box(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """The same hole for all: losses that are divided by its share can be averaged."""
    known = np.ones((height, width), np.float32)
    known[height // 4 : -height // 4, width // 4 : -width // 4] = 0
    return known


class InDouble(Dataset):
    """Samples in float64, in which rounding does not hide what differs."""

    def __init__(self, samples: MaskedImages) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: Place) -> Sample:
        sample = self.samples[place]
        return {k: v.double() if isinstance(v, Tensor) else v for k, v in sample.items()}


def trainer(
    name: str,
    photos: Path,
    output: Path,
    *,
    vgg: Path | None = None,
    settings: dict[str, Any] | None = None,
    masks: MaskSource | None = None,
    double: bool = False,
    **options: Any,
) -> Trainer:
    """A trainer of a small network of a paper."""
    paper = papers.find(name.split()[0])
    stage = paper.stage(name.partition(" stage ")[2] or None)
    config = papers.configure(paper.config, {**SMALL[name], **(settings or {})})
    torch.manual_seed(0)
    pretrained = {} if vgg is None else {"vgg16": vgg}
    recipe = stage.recipe(paper.networks(config, stage.networks), config, pretrained=pretrained)
    source = masks or GeneratedMasks("boxes", (0.2, 0.2))
    given = argparse.Namespace(images=photos, masks=source, seed=0)
    dataset = paper.dataset(given, config, stage)
    if double:
        recipe, dataset = recipe.double(), InDouble(dataset)
    given = {"iterations": 4, "batch": 2, "quiet": True, "log_every": 1, **options}
    return Trainer(paper, config, stage, recipe, dataset, Options(output=output, **given))


def worker(rank: int, folder: str, name: str, arguments: dict[str, Any]) -> None:
    """One of two processes that train together; as `torchrun` starts it."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": arguments.pop("port"),
    }  # fmt: skip
    torch.set_num_threads(1)
    trainer(name, output=Path(folder), **arguments).run()
