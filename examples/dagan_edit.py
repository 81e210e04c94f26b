"""A photo from a label map, by the command line of DAGAN.

`python -m examples.dagan_edit` segments scikit-image's photographs into label maps and does two
things with `python -m torchext.models dagan`:

- `edit` with the network of the paper's size, 256 x 256 pixels and published width, on the map of
  a real photograph. Its weights are random, as none come with the package: it shows that the
  command runs and how long it takes. What it paints is grey; with the contrast stretched the map
  can be made out, and nothing else is to be expected.
- `train` of a network of a quarter of the width for two minutes, then `edit` with its checkpoint on
  the map of a photo that training never saw, and on the same map with a region painted over. Each
  class gets its colour, smoothly and without detail: more is not learnt in this time.
"""

import functools
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from scipy.cluster.vq import kmeans2, vq
from skimage.segmentation import felzenszwalb

from torchext.models import papers
from torchext.models.blocks import iterated

from .commands import run, train_stages
from .sheets import Sheet, present, stretched

PAPER = "dagan"
LEARNT, EDITED = ("astronaut", "coffee", "rocket"), "chelsea"
SIDE = 256  # of the photos, cut to squares
CLASSES = 12
SIZE, MARGIN, STRIDE = 96, 16, 16
BATCH = 2
# For a network this small and a run this short; `info` lists the published values.
SETTINGS = {
    "width": 16,
    "labels": CLASSES,
    "first_label": 0,
    "dont_care": False,
    "size": SIZE,
    "margin": MARGIN,
    "vgg_weight": 0,  # no file of VGG-19 is needed
    "rate": 4e-3,
}
FOR_TRAINING = 0.75  # of the seconds; the rest is for the pictures and the large network


# --- photos and their label maps ------------------------------------------------------------------


@functools.cache
def photograph(name: str) -> np.ndarray:
    """uint8 (SIDE, SIDE, 3): the middle square."""
    picture = Image.fromarray(getattr(skimage.data, name)())
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


@functools.cache
def segments(name: str) -> np.ndarray:
    """(SIDE, SIDE): the number of each pixel's segment."""
    return felzenszwalb(photograph(name), scale=60, sigma=0.6, min_size=40)


def mean_colours(name: str) -> np.ndarray:
    """(segments, 3): of the photo in each segment."""
    found, pixels = segments(name).ravel(), photograph(name).reshape(-1, 3)
    sums = [np.bincount(found, pixels[:, channel]) for channel in range(3)]
    return np.stack(sums, axis=1) / np.bincount(found)[:, None]


@functools.cache
def class_colours() -> np.ndarray:
    """(CLASSES, 3): what the classes are, colours of the segments that are learnt from."""
    colours = np.concatenate([mean_colours(name) for name in LEARNT])
    return kmeans2(colours, CLASSES, minit="++", seed=0)[0]


def label_map(name: str) -> np.ndarray:
    """uint8 (SIDE, SIDE): to each segment the class whose colour is nearest to its own."""
    return vq(mean_colours(name), class_colours())[0].astype(np.uint8)[segments(name)]


def painted_over(labels: np.ndarray) -> np.ndarray:
    """The label map with a disc of the brightest class in its upper left corner."""
    rows, columns = np.ogrid[:SIDE, :SIDE]
    disc = (rows - 0.22 * SIDE) ** 2 + (columns - 0.22 * SIDE) ** 2 < (0.16 * SIDE) ** 2
    return np.where(disc, class_colours().sum(axis=1).argmax(), labels).astype(np.uint8)


def write_tiles(folder: Path) -> int:
    """Cut the photographs to learn from, and their maps, into squares; returns how many."""
    count, side = 0, SIZE + MARGIN
    for kind, of in (("photos", photograph), ("labels", label_map)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name in LEARNT:
            values = of(name)
            for top in range(0, SIDE - side + 1, STRIDE):
                for left in range(0, SIDE - side + 1, STRIDE):
                    tile = Image.fromarray(values[top : top + side, left : left + side])
                    tile.save(folder / kind / f"{name}-{top:03}-{left:03}.png")
                    count += kind == "photos"
    return count


# --- networks -------------------------------------------------------------------------------------


def train(tiles: Path, folder: Path, iterations: int) -> None:
    """Train until there have been so many iterations; continues what is in the folder."""
    run(
        *(PAPER, "train", tiles / "photos", "--labels", tiles / "labels", "-o", folder),
        *("--iterations", iterations, "--batch", BATCH, "--workers", 0, "--log-every", 50),
        *("--keep", 1, "--resume", *(f"--set={name}={value}" for name, value in SETTINGS.items())),
    )


def edit_at_full_size(labels: np.ndarray, folder: Path, output: Path) -> float:
    """Random weights of the published network, used on a map; returns the seconds of `edit`."""
    paper = papers.find(PAPER)
    config = paper.config()
    torch.manual_seed(0)
    checkpoint, file = folder / "random.safetensors", folder / "map.png"
    networks = paper.networks(config, ["generator"])
    iterated(networks["generator"])
    papers.save(checkpoint, paper, config, networks)
    numbers = labels % config.network.labels + config.network.first_label
    Image.fromarray(numbers.astype(np.uint8)).save(file)
    begin = time.perf_counter()
    run(PAPER, "edit", file, "-o", output, "--checkpoint", checkpoint)
    return time.perf_counter() - begin


# --- the sheet ------------------------------------------------------------------------------------


def make(options: Namespace) -> Sheet:
    output = options.output
    tiles = write_tiles(output)
    labels = label_map(EDITED)
    maps = {"map": labels, "changed": painted_over(labels)}
    for name, values in maps.items():
        Image.fromarray(values).save(output / f"{name}.png")
    with tempfile.TemporaryDirectory() as temporary:
        large = edit_at_full_size(segments(EDITED), Path(temporary), output / "random.png")
    checkpoint = output / "network.safetensors"
    [iterations], seconds = train_stages(
        options,
        {"": FOR_TRAINING},
        lambda folder, count, how: train(output, folder, count),
        checkpoint,
    )
    for name in maps:
        made = output / f"photo-of-{name}.png"
        run(PAPER, "edit", output / f"{name}.png", "-o", made, "--checkpoint", checkpoint)

    note = (
        f"Trained for {seconds:.0f} s: {iterations} iterations of a quarter of the paper's width on"
        f" {tiles} squares of {len(LEARNT)} photos, {SIZE} x {SIZE} pixels, without the loss of"
        " VGG-19;\nclasses are the colours of segments. The published networks are trained for"
        " days: this shows `train` and `edit`, not what the paper reaches.\nRandom: the published"
        f" network, 256 x 256 pixels, without trained weights; `edit` took {large:.1f} s and"
        " painted almost grey: the contrast is stretched."
    )
    colours = class_colours().round().astype(np.uint8)
    made = {
        path: np.asarray(Image.open(output / f"{path}.png"))
        for path in ("photo-of-map", "photo-of-changed", "random")
    }
    cells = [
        ("photo, not in the training", photograph(EDITED)),
        ("its label map", colours[maps["map"]]),
        ("trained: photo of the map", made["photo-of-map"]),
        ("published size, random weights", stretched(made["random"])),
        ("the label map, painted over", colours[maps["changed"]]),
        ("trained: photo of that map", made["photo-of-changed"]),
    ]
    return Sheet(cells, note, gallery=(0, 1, 2))


def main(arguments: Sequence[str] | None = None) -> int:
    return present("dagan_edit", __doc__, make, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
