"""Hair of a portrait in another look, shape and direction, by the command line of MichiGAN.

`python -m examples.michigan_edit` takes scikit-image's astronaut, with a hair mask drawn by hand,
and its cat, whose fur is the other look, and does two things with
`python -m torchext.models michigan`:

- `edit` with the networks of the paper's size, 512 x 512 pixels and published width. Their weights
  are random, as none come with the package: it shows that the command runs and how long it takes.
  What they paint is grey; the contrast is stretched.
- `train` of both stages with a quarter of the width on these two photos alone, then `edit` with the
  checkpoint: the fur's look, a longer shape, strokes, and all of them. It shows the commands, not
  what the paper reaches.
"""

import json
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw

from torchext.models import papers
from torchext.models.blocks import iterated

from .commands import run, train_stages
from .sheets import Sheet, present, stretched

PAPER = "michigan"
SIDE = 256  # of the photos
HEAD, FUR = (100, 0, 356, 256), (100, 20, 356, 276)  # where they are cut out of the pictures
SIZE = 96  # of the trained networks
BATCH = 2
# In pixels of the whole picture.
HAIR = (
    *((153, 75), (156, 60), (170, 45), (188, 38), (195, 28), (210, 20), (232, 16), (250, 20)),
    *((275, 32), (290, 48), (297, 60), (301, 80), (299, 95), (296, 108), (285, 118), (273, 129)),
    *((270, 125), (270, 105), (268, 90), (262, 88), (250, 83), (235, 80), (215, 80), (200, 80)),
    *((190, 75), (186, 80), (182, 92), (179, 108), (177, 120), (170, 117), (160, 108), (154, 95)),
)
LONGER = (  # what is added on both sides
    ((154, 90), (180, 100), (176, 125), (174, 165), (150, 170), (142, 130)),
    ((270, 100), (300, 90), (312, 130), (304, 170), (276, 165), (272, 128)),
)
STROKES = (
    ((200, 70), (210, 50), (220, 30)),
    ((245, 75), (250, 50), (255, 30)),
    ((285, 110), (285, 85), (278, 55)),
)
# For networks this small and a run this short; `info` lists the published values.
SETTINGS = {
    "size": SIZE,
    "width": 16,
    "upsampling": "normal",
    "padding": 16,
    "inpainting_width": 16,
    "inpainting_blocks": 2,
    "inpainting_size": SIZE,
    "margin": 0.25,
    "vgg_weight": 0,  # no file of VGG-19 is needed
    "rgb_weight": 10,
    "bank": "dog",  # which has gradients everywhere
    "rate": 2e-3,
}
FOR_ORIENTATION, FOR_TRAINING = 0.15, 0.5  # of the seconds; the rest is for the large networks


def moved(points: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """From the whole picture into the cut-out."""
    return [(x - HEAD[0], y - HEAD[1]) for x, y in points]


def write_files(folder: Path) -> None:
    """The photos and masks, and what the edits ask for."""
    for kind in ("photos", "hair"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    photo = Image.fromarray(skimage.data.astronaut()).crop(HEAD)
    fur = Image.fromarray(skimage.data.chelsea()).crop(FUR)
    hair, of_fur = (Image.new("L", (SIDE, SIDE)) for _ in range(2))
    ImageDraw.Draw(hair).polygon(moved(HAIR), 255)
    ImageDraw.Draw(of_fur).ellipse((10, 10, SIDE - 10, SIDE - 60), 255)
    longer = hair.copy()
    for part in LONGER:
        ImageDraw.Draw(longer).polygon(moved(part), 255)
    longer.save(folder / "longer.png")
    for name, picture, mask in (("head", photo, hair), ("fur", fur, of_fur)):
        picture.save(folder / "photos" / f"{name}.png")
        mask.save(folder / "hair" / f"{name}.png")
    strokes = [{"points": moved(points), "thickness": 3} for points in STROKES]
    (folder / "strokes.json").write_text(json.dumps(strokes))


def edit(folder: Path, checkpoint: Path, output: Path, *how: object) -> np.ndarray:
    """The head's picture; `how` says what is to change."""
    run(
        *(PAPER, "edit", folder / "photos" / "head.png", folder / "hair" / "head.png", *how),
        *("-o", output, "--checkpoint", checkpoint),
    )
    return np.asarray(Image.open(output))


def train(folder: Path, output: Path, iterations: int, *how: object) -> None:
    """Train until there have been so many iterations; continues what is in the output's folder."""
    run(
        *(PAPER, "train", folder / "photos", "--hair", folder / "hair", "-o", output, *how),
        *("--iterations", iterations, "--batch", BATCH, "--workers", 0),
        *("--log-every", 50, "--keep", 1, "--resume"),
        *(f"--set={name}={value}" for name, value in SETTINGS.items()),
    )


def edit_at_full_size(folder: Path, output: Path, *how: object) -> tuple[np.ndarray, float]:
    """By random weights of the published networks; also returns the seconds of `edit`."""
    paper = papers.find(PAPER)
    config = paper.config()
    torch.manual_seed(0)
    networks = paper.networks(config, ("generator", "orientation", "strokes"))
    checkpoint = folder / "random.safetensors"
    networks = {name: iterated(network, 1) for name, network in networks.items()}
    papers.save(checkpoint, paper, config, networks)
    begin = time.perf_counter()
    made = edit(folder, checkpoint, output, *how)
    seconds = time.perf_counter() - begin
    checkpoint.unlink()
    return made, seconds


def make(options: Namespace) -> Sheet:
    folder = options.output
    write_files(folder)
    look = ("--appearance", folder / "photos" / "fur.png")
    look += ("--appearance-hair", folder / "hair" / "fur.png")
    shape, strokes = ("--shape", folder / "longer.png"), ("--strokes", folder / "strokes.json")
    large, seconds_large = edit_at_full_size(folder, folder / "random.png", *look, *shape, *strokes)
    checkpoint = folder / "networks.safetensors"
    counts, seconds = train_stages(
        options,
        {"orientation": FOR_ORIENTATION, "hair": FOR_TRAINING},
        lambda output, count, how: train(folder, output, count, *how),
        checkpoint,
    )
    edits = {"again": (), "look": look, "shape": shape, "strokes": strokes}
    edits["all"] = (*look, *shape, *strokes, "--paste", "--margin", 1)
    made = {n: edit(folder, checkpoint, folder / f"{n}.png", *how) for n, how in edits.items()}

    note = (
        f"Trained for {seconds:.0f} s: {counts[0]} iterations of the networks that fill"
        f" orientations, {counts[1]} of the generator, a quarter of the paper's width,"
        f" {SIZE} x {SIZE} pixels, on these two photos alone,\nwith L1 in place of VGG-19. This"
        " shows `train` and `edit`, not what the paper reaches. Random: the published networks,"
        f" 512 x 512 pixels, without trained weights;\n`edit` took {seconds_large:.1f} s and"
        " painted almost grey: the contrast is stretched."
    )
    photo, fur = (np.asarray(Image.open(folder / "photos" / f"{n}.png")) for n in ("head", "fur"))
    masks = [np.asarray(Image.open(folder / f"{n}.png")) > 0 for n in ("hair/head", "longer")]
    shown = photo // 2 + np.stack((masks[0], masks[1], masks[0]), axis=2).astype(np.uint8) * 127
    cells = [
        ("photo; hair in white, longer in green", shown),
        ("the other look", fur),
        ("published size, random weights", stretched(large)),
        ("trained: as it was", made["again"]),
        ("trained: the other look", made["look"]),
        ("trained: longer", made["shape"]),
        ("trained: strokes", made["strokes"]),
        ("trained: all three, pasted", made["all"]),
    ]
    return Sheet(cells, note, gallery=(0, 1, 7))


def main(arguments: Sequence[str] | None = None) -> int:
    return present("michigan_edit", __doc__, make, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
