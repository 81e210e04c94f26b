"""Train an inpainting network for two minutes and fill a hole with it, by the command line.

`python -m examples.train_and_edit` cuts scikit-image's photographs into a folder of pictures, runs
`python -m torchext.models region_normalization train` on it, then `edit` with the checkpoint on a
photo that training never saw and a mask file, and draws a sheet; `--paper pd_gan` or
`--paper partial_convolutions` does the same with that paper. The network is a reduced width of the
paper's: a demonstration of the two commands, not of what the paper reaches.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from examples.inpaint_one_photo import measured
from torchext.models import pictures
from torchext.models.masks import irregular_hole

from .commands import run, train_stages
from .sheets import Sheet, present

SIDE = 256  # the longer one of each photo
LEARNT, EDITED = ("astronaut", "coffee", "rocket"), "chelsea"


@dataclass(frozen=True)
class Example:
    """A paper's networks, as small as the run is short.

    Attributes:
        title: of the network.
        stages: of the training, with their shares of the seconds; the rest is for the pictures.
        settings: options of the paper; `info` lists the published values.
        batch: images.
        tile: side of the squares to learn from.
    """

    title: str
    stages: Mapping[str, float]
    settings: Mapping[str, object]
    batch: int = 4
    tile: int = 64


EXAMPLES = {
    "region_normalization": Example(
        "region normalisation at a quarter of the paper's width, 2 of its 8 residual blocks",
        {"": 0.85},
        {
            "width": 16,
            "residual_blocks": 2,
            "scope": "instance",
            "size": 64,
            "adversarial_weight": 0,
            "learning_rate": 2e-3,
            "beta1": 0.9,
            "beta2": 0.99,
            "decay": 0.85,
        },
    ),
    "partial_convolutions": Example(
        "a U-Net of partial convolutions at a quarter of the paper's width, 4 of its 7 levels",
        {"": 0.85},
        {
            "width": 16,
            "layers": 4,
            "form": "ratio",
            "size": 64,
            "perceptual_weight": 0,  # no file of VGG-16 is needed
            "style_weight": 0,
            "learning_rate": 2e-3,
        },
    ),
    "pd_gan": Example(
        "PD-GAN at an eighth of the paper's width",
        {"1": 0.4, "2": 0.4},
        {
            "width": 8,
            "noise": 32,
            "size": 128,
            "prior_perceptual_weight": 0,  # no file of VGG-16 is needed
            "style_weight": 0,
            "perceptual_weight": 0,
            "diversity_weight": 0,
        },
        batch=2,
        tile=128,
    ),
}
STRIDE = 16


def photograph(name: str) -> Image.Image:
    picture = Image.fromarray(getattr(skimage.data, name)())
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def write_tiles(folder: Path, tile: int = 64) -> int:
    """Cut the photographs to learn from into overlapping squares; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name in LEARNT:
        picture = photograph(name)
        for top in range(0, picture.height - tile + 1, STRIDE):
            for left in range(0, picture.width - tile + 1, STRIDE):
                square = picture.crop((left, top, left + tile, top + tile))
                square.save(folder / f"{name}-{top:03}-{left:03}.png")
                count += 1
    return count


def train(paper: str, photos: Path, folder: Path, iterations: int, *how: object) -> None:
    """Train until there have been so many iterations; continues what is in the folder."""
    example = EXAMPLES[paper]
    run(
        *(paper, "train", photos, "-o", folder, *how, "--iterations", iterations),
        *("--batch", example.batch, "--workers", 0, "--share", 0.1, 0.3, "--log-every", 50),
        *("--keep", 1, "--resume"),
        *(f"--set={name}={value}" for name, value in example.settings.items()),
    )


def tensor(path: Path) -> Tensor:
    return pictures.to_tensor(pictures.read_image(path))[None]


def shown(image: Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).numpy()


def make(options: Namespace) -> Sheet:
    output, example = options.output, EXAMPLES[options.paper]
    photos, checkpoint = output / "photos", output / "network.safetensors"
    tiles = write_tiles(photos, example.tile)
    counts, seconds = train_stages(
        options,
        example.stages,
        lambda folder, count, how: train(options.paper, photos, folder, count, *how),
        checkpoint,
    )
    photo, mask, filled = (output / f"{name}.png" for name in ("photo", "mask", "filled"))
    picture = photograph(EDITED)
    picture.save(photo)
    hole = irregular_hole(picture.height, picture.width, share=0.2, seed=4)
    Image.fromarray(hole.astype(np.uint8) * 255).save(mask)  # white is the hole
    run(options.paper, "edit", photo, mask, "-o", filled, "--checkpoint", checkpoint)

    image, known = tensor(photo), torch.from_numpy(~hole)[None, None].float()
    mean = (image * known).sum((2, 3), keepdim=True) / known.sum()
    before = measured("hole", torch.where(known > 0, image, mean), image, known, "")
    after = measured("fill", tensor(filled), image, known, "")
    iterations = " and ".join(map(str, counts))
    note = (
        f"A reduced network ({example.title}),\ntrained for {seconds:.0f} s: {iterations}"
        f" iterations on {tiles} squares of {len(LEARNT)} photos. The published networks are"
        " trained for days:\nthis shows `train` and `edit`, not what the paper reaches. In the hole"
        f" {after.score}; its mean colour {before.score}."
    )
    cells = [
        ("photo, not in the training", shown(image)),
        ("hole", shown(torch.where(known > 0, image, 1))),
        ("fill", shown(after.image)),
    ]
    return Sheet(cells, note, gallery=(0, 1, 2))


def main(arguments: Sequence[str] | None = None) -> int:
    return present("train_and_edit", __doc__, make, arguments, [*EXAMPLES])


if __name__ == "__main__":
    raise SystemExit(main())
