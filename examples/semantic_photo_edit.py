"""A photo edited by strokes on a generator's code: semantic photo manipulation's command line.

`python -m examples.semantic_photo_edit` takes scikit-image's photographs, and does two things with
`python -m torchext.models semantic_photo_manipulation`:

- `edit` with generator and encoder of the paper's size, 256 x 256 pixels and published width, a few
  steps of each fit. The weights are random, as none come with the package: it shows that the
  command runs and how long a step takes.
- `train` of the encoder's three stages with a sixteenth of the width, at 128 pixels, then `edit`
  of a photo that training never saw: a generator fitted to the edit, the interactive one, and the
  first pasted into the photo. The generator's weights are random, so that its units stand for no
  things, and all likeness to the photo is the fits': it shows the commands, not what the paper
  reaches.
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from torchext.models import papers

from .commands import run, train_stages
from .dagan_edit import EDITED, LEARNT, SIDE, photograph, write_tiles
from .sheets import Sheet, present

PAPER = "semantic_photo_manipulation"
STAGES = ("resnet", "layers", "joint")
BATCH = 4
# For networks this small and a run this short; `info` lists the published values.
SETTINGS = {
    "resolution": 128,
    "width": 32,
    "encoder_width": 8,
    "trunk_rate": 5e-3,
    "layers_rate": 5e-3,
    "joint_rate": 2e-3,
    "photo_weight": 1.0,
    "vgg_weight": 0,  # no file of VGG-16 is needed
}
FOR_TRAINING = 0.35  # of the seconds; the rest is for the fits and the large networks
UNITS = "0,3,5,8,11,17,21,30"
LARGE_STEPS = 2


def mask() -> np.ndarray:
    """uint8 (SIDE, SIDE): a disc in the upper left of the photo."""
    rows, columns = np.ogrid[:SIDE, :SIDE]
    disc = (rows - 0.3 * SIDE) ** 2 + (columns - 0.3 * SIDE) ** 2 < (0.12 * SIDE) ** 2
    return np.where(disc, 255, 0).astype(np.uint8)


def new_networks(path: Path, settings: dict[str, object]) -> None:
    """Random weights of generator and encoder.

    The generator's biases are 0, so that codes count, and its colours paler, as they would be cut
    off at many pixels and then have no gradient.
    """
    paper = papers.find(PAPER)
    config = papers.configure(paper.config, settings)
    torch.manual_seed(0)
    networks = paper.networks(config, ("generator", "encoder"))
    for name, parameter in networks["generator"].named_parameters():
        if name.endswith("wscale.b"):
            torch.nn.init.zeros_(parameter)
        elif name.startswith("output_"):
            torch.nn.init.normal_(parameter, std=0.6)
    papers.save(path, paper, config, networks)


def edit(folder: Path, checkpoint: Path, output: Path, *how: object) -> float:
    """The photo and mask in the folder; returns the seconds."""
    begin = time.perf_counter()
    run(
        *(PAPER, "edit", folder / "photo.png", folder / "mask.png", "-o", output),
        *("--checkpoint", checkpoint, "--units", UNITS, "--action", "add", *how),
    )
    return time.perf_counter() - begin


def train(photos: Path, folder: Path, iterations: int, *how: object) -> None:
    """Train until there have been so many iterations; continues what is in the folder."""
    run(
        *(PAPER, "train", photos, "-o", folder, *how, "--iterations", iterations),
        *("--batch", BATCH, "--workers", 0, "--log-every", 50, "--keep", 1, "--resume"),
        *(f"--set={name}={value}" for name, value in SETTINGS.items()),
    )


def make(options: Namespace) -> Sheet:
    output = options.output
    tiles = write_tiles(output)
    Image.fromarray(photograph(EDITED)).save(output / "photo.png")
    Image.fromarray(mask()).save(output / "mask.png")
    checkpoint = output / "networks.safetensors"
    with tempfile.TemporaryDirectory() as temporary:
        start = Path(temporary, "random.safetensors")
        new_networks(start, {"vgg_weight": 0})
        steps = ("--steps", LARGE_STEPS, "--refine-steps", LARGE_STEPS, "--samples", 4)
        large = edit(output, start, output / "random.png", *steps)
        new_networks(start, SETTINGS)
        iterations, _ = train_stages(
            options,
            dict.fromkeys(STAGES, FOR_TRAINING / len(STAGES)),
            lambda folder, count, how: train(output / "photos", folder, count, *how),
            checkpoint,
            start,
        )
    fitted = options.iterations
    if fitted is None:
        seconds = edit(
            output, checkpoint, output / "plain.png", "--variant", "image",
            *("--steps", 10, "--refine-steps", 10),
        )  # fmt: skip
        fitted = max(20, int(10 * 0.2 * options.seconds / seconds))
    how = ("--steps", fitted, "--refine-steps", fitted)
    edit(output, checkpoint, output / "plain.png", *how, "--variant", "none")
    edit(output, checkpoint, output / "edited.png", *how)
    edit(output, checkpoint, output / "interactive.png", *how, "--variant", "interactive")
    edit(output, checkpoint, output / "pasted.png", *how, "--paste")

    note = (
        f"Encoder trained for {', '.join(map(str, iterations))} iterations of its three stages on"
        f" {tiles} squares of {len(LEARNT)} photos and on images of a generator with random\n"
        f"weights, a sixteenth of the published width; {fitted} steps of each fit. The units stand"
        " for no things: this shows the commands, not what the paper reaches.\n"
        f"At the published size {LARGE_STEPS} steps of each fit and all else took {large:.1f} s."
    )
    made = {
        name: np.asarray(Image.open(output / f"{name}.png"))
        for name in ("plain", "edited", "interactive", "pasted", "random")
    }
    shown = np.where(mask()[..., None] > 0, 255, photograph(EDITED))
    cells = [
        ("unseen photo, and what is painted", shown),
        ("the generator's own picture", made["plain"]),
        ("a generator fitted to the edit", made["edited"]),
        ("interactive: fitted before the edit", made["interactive"]),
        ("fitted to the edit, pasted", made["pasted"]),
        ("published size, random weights", made["random"]),
    ]
    return Sheet(cells, note, gallery=(0, 1, 4))


def main(arguments: Sequence[str] | None = None) -> int:
    return present("semantic_photo_edit", __doc__, make, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
