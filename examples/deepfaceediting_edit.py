"""A face in another look and with a redrawn mouth, by the command line of DeepFaceEditing.

`python -m examples.deepfaceediting_edit` takes the face of scikit-image's astronaut, with its edges
for a sketch, and its cat for another look, and does two things:

- one edit with the networks of the paper's size, 512 x 512 pixels and published width, from Python.
  Their weights are random, as none come with the package: it shows what an edit costs. What they
  paint means nothing; the contrast is stretched.
- `python -m torchext.models deepfaceediting train`, four stages with an eighth of the width and a
  quarter of the size on these two pictures alone, then `edit` with the checkpoint: the cat's look,
  a mouth from a sketch with another line in it, and both. It shows the commands, not what the
  paper reaches.
"""

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from torchext.models import papers
from torchext.models.deepfaceediting import PARTS, FaceEditor, Geometry
from torchext.models.deepfaceediting.editing import read_picture

from .commands import run, train_stages
from .sheets import Sheet, present, stretched

PAPER = "deepfaceediting"
FACE, CAT = (150, 36, 292, 178), (92, 0, 392, 300)  # where they are cut out, aligned
SIDE = 256  # of the pictures' files
SIZE = 128  # of the trained networks
BATCH = 2
MOUTH = ((88, 178), (108, 196), (132, 200), (156, 196), (176, 178))  # a line, in the files' pixels
# For networks this small and a run this short; `info` lists the published values.
SETTINGS = {
    "size": SIZE,
    "width": 8,
    "downsamplings": 3,
    "image_blocks": 1,
    "generator_blocks": 2,
    "fusion_blocks": 2,
    "drawing_downsamplings": 3,
    "discriminators": 2,
    "discriminator_width": 8,
    "vgg_weight": 0,  # no file of VGG-19 is needed
    "rate": 2e-3,
    "discriminator_rate": 2e-4,
}
# Of the seconds; the rest is for the large networks.
STAGES = {"sketch": 0.08, "image": 0.1, "appearance": 0.32, "fusion": 0.15}


def edges(picture: Image.Image) -> Image.Image:
    """Dark lines on white where brightness changes."""
    smooth = picture.convert("L").filter(ImageFilter.GaussianBlur(1))
    found = ImageOps.autocontrast(smooth.filter(ImageFilter.FIND_EDGES), cutoff=2)
    return ImageOps.invert(found)


def write_files(folder: Path) -> None:
    """The photos, their sketches, and the redrawn one."""
    for kind in ("photos", "sketches"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name, box in (("face", FACE), ("cat", CAT)):
        whole = skimage.data.astronaut() if name == "face" else skimage.data.chelsea()
        photo = Image.fromarray(whole).crop(box).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        photo.save(folder / "photos" / f"{name}.png")
        edges(photo).save(folder / "sketches" / f"{name}.png")
    redrawn = Image.open(folder / "sketches" / "face.png").convert("L")
    pen = ImageDraw.Draw(redrawn)
    pen.rectangle((86, 160, 180, 215), 255)
    pen.line(MOUTH, 0, 3, joint="curve")
    redrawn.save(folder / "redrawn.png")


def edit(folder: Path, checkpoint: Path, output: Path, *how: object) -> np.ndarray:
    """The face's picture; `how` says what is to change."""
    photo = folder / "photos" / "face.png"
    run(PAPER, "edit", photo, *how, "-o", output, "--checkpoint", checkpoint)
    return np.asarray(Image.open(output))


def train(folder: Path, output: Path, iterations: int, *how: object) -> None:
    """Train until there have been so many iterations; continues what is in the output's folder."""
    run(
        *(PAPER, "train", folder / "photos", "--sketches", folder / "sketches", "-o", output, *how),
        *("--iterations", iterations, "--batch", BATCH, "--workers", 0),
        *("--log-every", 50, "--keep", 1, "--resume"),
        *(f"--set={name}={value}" for name, value in SETTINGS.items()),
    )


def edit_at_full_size(folder: Path, output: Path) -> tuple[np.ndarray, float]:
    """A sketch in the cat's look by random weights of the published networks; and the seconds."""
    paper = papers.find(PAPER)
    config = paper.config()
    torch.manual_seed(0)
    needed = [f"{kind}_{part}" for kind in ("sketch_encoder", "generator") for part in PARTS]
    networks = {n: x.eval() for n, x in paper.networks(config, [*needed, "fusion"]).items()}
    editor = FaceEditor(networks, config.network.boxes, config.network.size)
    sketch, cat = (read_picture(folder / n, config) for n in ("redrawn.png", "photos/cat.png"))
    begin = time.perf_counter()
    made = editor(dict.fromkeys(PARTS, Geometry(sketch, "sketch")), dict.fromkeys(PARTS, cat))
    seconds = time.perf_counter() - begin
    values = (made[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    Image.fromarray(values).save(output)
    return values, seconds


def make(options: Namespace) -> Sheet:
    folder = options.output
    write_files(folder)
    large, seconds_large = edit_at_full_size(folder, folder / "random.png")
    checkpoint = folder / "networks.safetensors"
    counts, seconds = train_stages(
        options,
        STAGES,
        lambda output, count, how: train(folder, output, count, *how),
        checkpoint,
    )
    look = ("--appearance", folder / "photos" / "cat.png")
    mouth = ("--sketch", f"mouth={folder / 'redrawn.png'}")
    edits = {"again": (), "look": look, "mouth": mouth, "both": (*look, *mouth)}
    made = {n: edit(folder, checkpoint, folder / f"{n}.png", *how) for n, how in edits.items()}

    shown = ", ".join(f"{n} of {stage}" for n, stage in zip(counts, STAGES, strict=True))
    note = (
        f"Trained for {seconds:.0f} s, iterations: {shown}; an eighth of the paper's width,"
        f" {SIZE} x {SIZE} pixels, on these two pictures alone,\nwithout VGG-19. This shows `train`"
        " and `edit`, not what the paper reaches. Random: the published networks, 512 x 512 pixels,"
        f" without trained weights;\nan edit took {seconds_large:.1f} s. What they paint means"
        " nothing: the contrast is stretched."
    )
    photo, cat, redrawn = (
        np.asarray(Image.open(folder / name).convert("RGB"))
        for name in ("photos/face.png", "photos/cat.png", "redrawn.png")
    )
    cells = [
        ("photo", photo),
        ("the other look", cat),
        ("sketch with another mouth", redrawn),
        ("published size, random weights", stretched(large)),
        ("trained: as it was", made["again"]),
        ("trained: the other look", made["look"]),
        ("trained: the drawn mouth", made["mouth"]),
        ("trained: both", made["both"]),
    ]
    return Sheet(cells, note, gallery=(0, 1, 5))


def main(arguments: Sequence[str] | None = None) -> int:
    return present("deepfaceediting_edit", __doc__, make, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
