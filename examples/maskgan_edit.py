"""A photo changed by strokes on its label map, by the command line of MaskGAN.

`python -m examples.maskgan_edit` takes scikit-image's photographs and label maps made by
segmentation (those of `examples.dagan_edit`), and does two things with
`python -m torchext.models maskgan`:

- `edit` with the generator of the paper's size, 512 x 512 pixels and published width. Its weights
  are random, as none come with the package: it shows that the command runs and how long it takes.
  What it paints is grey; the contrast is stretched.
- `train` of stage 1 with a quarter of the width, then `edit --strokes` with its checkpoint on a
  photo that training never saw: the whole photo anew, and with `--paste` only around the strokes.
  There are no faces and no label maps of faces here: it shows the commands, not what the paper
  reaches.
"""

import json
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from torchext.models import papers
from torchext.models.maskgan import paint, read_strokes

from .commands import run, train_stages
from .dagan_edit import (
    CLASSES,
    EDITED,
    LEARNT,
    SIDE,
    class_colours,
    label_map,
    photograph,
    write_tiles,
)
from .sheets import Sheet, present, stretched

PAPER = "maskgan"
SIZE = 128  # of the trained networks
BATCH = 2
# For networks this small and a run this short; `info` lists the published values.
SETTINGS = {
    "size": SIZE,
    "labels": CLASSES,
    "width": 16,
    "downsamplings": 3,
    "residual_blocks": 2,
    "discriminator_width": 16,
    "blender_width": 8,
    "vae_width": 1,
    "code": 16,
    "vgg_weight": 0,  # no file of VGG-19 is needed
    "rate": 2e-3,
}
FOR_TRAINING = 0.7  # of the seconds; the rest is for the pictures and the large network


def strokes(size: int) -> list[dict[str, object]]:
    """An arc of the brightest class over the photo's upper part."""
    angles = np.linspace(np.pi, 2 * np.pi, 9)
    points = np.stack((0.5 + 0.35 * np.cos(angles), 0.5 + 0.35 * np.sin(angles)), axis=1) * size
    brightest = int(class_colours().sum(axis=1).argmax())
    return [
        {"label": brightest, "points": points.astype(int).tolist(), "thickness": max(1, size // 10)}
    ]


def edit(folder: Path, checkpoint: Path, output: Path, *how: object) -> None:
    """The photo in the folder; `how` is its map after painting, or strokes."""
    files = {name: folder / f"{name}.png" for name in ("photo", "map")}
    run(
        *(PAPER, "edit", files["photo"], *how, "--labels", files["map"]),
        *("-o", output, "--checkpoint", checkpoint),
    )


def train(tiles: Path, folder: Path, iterations: int, *how: object) -> None:
    """Train until there have been so many iterations; continues what is in the folder."""
    run(
        *(PAPER, "train", tiles / "photos", "--labels", tiles / "labels", "-o", folder),
        *(*how, "--iterations", iterations, "--batch", BATCH, "--workers", 0),
        *("--log-every", 50, "--keep", 1, "--resume"),
        *(f"--set={name}={value}" for name, value in SETTINGS.items()),
    )


def edit_at_full_size(folder: Path, output: Path) -> float:
    """Random weights of the published generator; returns the seconds of `edit`."""
    paper = papers.find(PAPER)
    config = paper.config()
    torch.manual_seed(0)
    checkpoint, file = folder / "random.safetensors", folder / "strokes-512.json"
    papers.save(checkpoint, paper, config, paper.networks(config, ["generator"]))
    file.write_text(json.dumps(strokes(config.network.size)))
    begin = time.perf_counter()
    edit(folder, checkpoint, output, "--strokes", file)
    seconds = time.perf_counter() - begin
    checkpoint.unlink()
    return seconds


def make(options: Namespace) -> Sheet:
    output = options.output
    tiles = write_tiles(output)
    Image.fromarray(photograph(EDITED)).save(output / "photo.png")
    Image.fromarray(label_map(EDITED)).save(output / "map.png")
    painted_by = output / "strokes.json"
    painted_by.write_text(json.dumps(strokes(SIZE)))
    large = edit_at_full_size(output, output / "random.png")
    checkpoint = output / "networks.safetensors"
    [iterations], seconds = train_stages(
        options,
        {"1": FOR_TRAINING},
        lambda folder, count, how: train(output, folder, count, *how),
        checkpoint,
    )
    edit(output, checkpoint, output / "edited.png", "--strokes", painted_by)
    edit(output, checkpoint, output / "pasted.png", "--strokes", painted_by, "--paste")
    edit(output, checkpoint, output / "again.png", output / "map.png")

    note = (
        f"Trained for {seconds:.0f} s: {iterations} iterations of a quarter of the paper's width on"
        f" {tiles} squares of {len(LEARNT)} photos, scaled to {SIZE} x {SIZE} pixels, without the"
        " loss of VGG-19;\nclasses are the colours of segments, not parts of faces. This shows"
        " `train` and `edit`, not what the paper reaches.\nRandom: the published generator,"
        f" 512 x 512 pixels, without trained weights; `edit` took {large:.1f} s and painted almost"
        " grey: the contrast is stretched."
    )
    colours = class_colours().round().astype(np.uint8)
    small = Image.fromarray(label_map(EDITED)).resize((SIZE, SIZE), Image.Resampling.NEAREST)
    labels = torch.from_numpy(np.asarray(small).copy())[None, None]
    painted = paint(labels, read_strokes(painted_by))[0, 0].numpy()
    made = {name: np.asarray(Image.open(output / f"{name}.png")) for name in ("again", "edited")}
    made |= {name: np.asarray(Image.open(output / f"{name}.png")) for name in ("pasted", "random")}
    cells = [
        (f"photo, not in the training, {SIDE} x {SIDE}", photograph(EDITED)),
        ("its label map, painted over", colours[painted]),
        ("trained: photo of its own map", made["again"]),
        ("published size, random weights", stretched(made["random"])),
        ("trained: photo of the painted map", made["edited"]),
        ("the same, pasted into the photo", made["pasted"]),
    ]
    return Sheet(cells, note, gallery=(0, 1, 4))


def main(arguments: Sequence[str] | None = None) -> int:
    return present("maskgan_edit", __doc__, make, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
