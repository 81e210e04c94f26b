"""Another colour of hair on a face, by the command line of MagGAN.

`python -m examples.maggan_edit` takes the face of scikit-image's astronaut with a label map of its
parts, drawn by hand, and does two things with `python -m torchext.models maggan`:

- `edit` with the generator of the paper's size, 1024 x 1024 pixels and published width. Its weights
  are random, as none come with the package: it shows that the command runs and how long it takes.
  What it paints means nothing; the contrast is stretched.
- `train`, the face parser and then the generator, with a quarter of the width and a sixteenth of
  the size, on windows of this photo alone, whose hair was made blond or black in a part of them.
  `edit` then asks for these colours, with the parts that the trained parser finds. It has learnt
  from the same face: it shows the commands, not what the paper reaches.
"""

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFilter

from torchext.models import papers
from torchext.models.face_labels import BISENET_NAMES
from torchext.models.maggan import CELEBA, overlay

from .commands import run, train_stages
from .sheets import Sheet, present, stretched

PAPER = "maggan"
FACE = (112, 0, 336, 224)  # where it is cut out
SIDE = FACE[2] - FACE[0]
SIZE = 64  # of the trained networks
BATCH = {"parser": 4, "editing": 8}
WINDOWS = 12  # of each colour of hair
COLOURS = ("Black_Hair", "Blond_Hair", "Brown_Hair")
# Parts of the face, a later one over an earlier one; corners in the pixels of the cut.
PARTS = (
    ("cloth", ((0, 224), (10, 190), (25, 165), (50, 150), (75, 148), (143, 175), (170, 190),
               (190, 224))),
    ("neck", ((72, 150), (76, 178), (90, 185), (122, 190), (142, 184), (148, 150))),
    ("hair", ((42, 62), (50, 48), (78, 35), (95, 20), (120, 15), (150, 24), (172, 40), (184, 60),
              (190, 85), (182, 108), (165, 128), (110, 90), (66, 118), (55, 110), (43, 95))),
    ("r_ear", ((60, 112), (70, 112), (71, 130), (64, 130))),
    ("l_ear", ((157, 118), (167, 122), (164, 135), (156, 136))),
    ("skin", ((72, 75), (98, 80), (130, 84), (155, 90), (158, 120), (150, 150), (138, 170),
              (112, 180), (85, 170), (72, 150), (69, 120))),
    ("r_brow", ((75, 90), (88, 86), (103, 89), (88, 89), (76, 93))),
    ("l_brow", ((119, 90), (132, 88), (146, 92), (132, 92))),
    ("r_eye", ((81, 101), (90, 96), (99, 101), (90, 106))),
    ("l_eye", ((126, 103), (135, 98), (144, 103), (135, 108))),
    ("nose", ((105, 95), (114, 95), (126, 128), (113, 134), (98, 128))),
    ("u_lip", ((91, 138), (112, 138), (133, 138), (112, 143))),
    ("mouth", ((95, 140), (112, 143), (130, 140), (120, 150), (105, 150))),
    ("l_lip", ((98, 147), (105, 150), (120, 150), (127, 147), (118, 156), (106, 156))),
)  # fmt: skip
# For networks this small and a run this short; `info` lists the published values.
SETTINGS = {
    "attributes": ",".join(COLOURS),
    "size": SIZE,
    "base_size": 32,
    "width": 16,
    "discriminator_width": 16,
    "fc_width": 64,
    "discriminator_layers": 4,
    "patch_width": 16,
    "patch_layers": 2,
    "discriminator_steps": 1,
    "rate": 1e-3,
    "momentum": 0.1,  # of a run this short
    "parser_width": 16,
    "parser_size": SIZE,
    "parser_crop": SIZE,
    "parser_iterations": 400,
    "warm_up": 20,
}
SHARES = {"parser": 0.15, "editing": 0.55}  # of the seconds; the rest is for the large network


def photo_of_face() -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()).crop(FACE)


def parts_of_face() -> Image.Image:
    """The label map, by the numbers of face parsers."""
    labels = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(labels)
    for name, corners in PARTS:
        pen.polygon(corners, BISENET_NAMES.index(name))
    return labels


def coloured(photo: Image.Image, labels: Image.Image, colour: str) -> Image.Image:
    """The photo with its hair, which is brown, in another colour."""
    if colour == "Brown_Hair":
        return photo
    hair = labels.point(lambda label: 255 * (label == BISENET_NAMES.index("hair")))
    values = np.asarray(photo).astype(float)
    grey = values.mean(axis=2, keepdims=True)
    if colour == "Black_Hair":
        made = 0.3 * grey * np.ones(3)
    else:
        made = (60 + 0.85 * grey) * np.array((1.15, 1.0, 0.65))
    made = Image.fromarray(made.clip(0, 255).astype(np.uint8))
    return Image.composite(made, photo, hair.filter(ImageFilter.GaussianBlur(1.5)))


def write_files(folder: Path) -> None:
    """The photo, its label map, and what is learnt from: windows of all colours of hair."""
    photo, labels = photo_of_face(), parts_of_face()
    photo.save(folder / "photo.png")
    labels.save(folder / "labels.png")
    for kind in ("photos", "labels"):
        (folder / "windows" / kind).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lines = [" ".join(CELEBA)]
    for colour in COLOURS:
        whole = coloured(photo, labels, colour)
        for i in range(WINDOWS):
            side = int(random.integers(200, SIDE + 1)) if i else SIDE
            left, top = (int(random.integers(SIDE - side + 1)) for _ in range(2))
            box, name = (left, top, left + side, top + side), f"{colour}-{i}"
            whole.crop(box).save(folder / "windows" / "photos" / f"{name}.png")
            labels.crop(box).save(folder / "windows" / "labels" / f"{name}.png")
            lines.append(" ".join([f"{name}.png", *("1" if c == colour else "-1" for c in CELEBA)]))
    (folder / "attributes.txt").write_text("\n".join(lines))


def train(folder: Path, output: Path, iterations: int, *how: object) -> None:
    """Train until there have been so many iterations; continues what is in the output's folder."""
    windows = folder / "windows"
    batch = BATCH["parser" if "parser" in how else "editing"]
    run(
        *(PAPER, "train", windows / "photos", "--labels", windows / "labels"),
        *("--attributes", folder / "attributes.txt", "-o", output, *how),
        *("--iterations", iterations, "--batch", batch, "--workers", 0),
        *("--log-every", 50, "--keep", 1, "--resume"),
        *(f"--set={name}={value}" for name, value in SETTINGS.items()),
    )


def edit(folder: Path, checkpoint: Path, output: str, *how: object) -> np.ndarray:
    """The face's picture; `how` says what is to change."""
    path = folder / f"{output}.png"
    run(
        *(PAPER, "edit", folder / "photo.png", *how, "--have", "Brown_Hair", "-o", path),
        *("--checkpoint", checkpoint),
    )
    return np.asarray(Image.open(path))


def edit_at_full_size(folder: Path) -> tuple[np.ndarray, float]:
    """Random weights of the published width; returns the picture and the seconds of `edit`."""
    paper = papers.find(PAPER)
    config = paper.config()
    torch.manual_seed(0)
    checkpoint = folder / "random.safetensors"
    papers.save(checkpoint, paper, config, paper.networks(config, ["generator"]))
    begin = time.perf_counter()
    how = ("Blond_Hair", "--labels", folder / "labels.png")
    made = edit(folder, checkpoint, "random", *how)
    seconds = time.perf_counter() - begin
    checkpoint.unlink()
    return made, seconds


def make(options: Namespace) -> Sheet:
    folder = options.output
    write_files(folder)
    large, seconds_large = edit_at_full_size(folder)
    checkpoints = {stage: folder / f"{stage}.safetensors" for stage in SHARES}
    counts, seconds = [], 0.0
    for stage, share in SHARES.items():
        [count], spent = train_stages(
            options,
            {stage: share},
            lambda output, count, how: train(folder, output, count, *how),
            checkpoints[stage],
        )
        counts.append(count)
        seconds += spent
    found = ("--parser", checkpoints["parser"])
    trained = checkpoints["editing"]
    made = {
        "blond": edit(folder, trained, "blond", "Blond_Hair", *found, "--write-parsing"),
        "black": edit(folder, trained, "black", "Black_Hair", *found),
        "stronger": edit(folder, trained, "stronger", "Black_Hair=2", *found),
        "pasted": edit(
            folder, trained, "pasted", "Blond_Hair", *found, "--paste", "--feather", "1"
        ),
    }
    note = (
        f"Trained for {seconds:.0f} s: {counts[0]} iterations of the parser and {counts[1]} of the"
        f" generator, a quarter of the paper's width, {SIZE} x {SIZE} pixels, on windows of this"
        " photo alone,\nin which its hair was made blond or black beforehand. This shows `train`"
        " and `edit`, not what the paper reaches. Random: the paper's generator, 1024 x 1024"
        f" pixels,\nwithout trained weights; `edit` took {seconds_large:.0f} s. What it paints"
        " means nothing: the contrast is stretched."
    )
    photo, labels = photo_of_face(), parts_of_face()
    tensors = [torch.from_numpy(np.array(x)) for x in (photo, labels)]
    drawn = overlay(tensors[0].movedim(-1, 0)[None] / 255, tensors[1].long()[None, None])
    cells = [
        (f"photo, {SIDE} x {SIDE}", np.asarray(photo)),
        ("its parts, drawn by hand", drawn[0].movedim(0, -1).numpy()),
        (
            "trained: parts as the parser finds them",
            np.asarray(Image.open(folder / "blond-parsing.png")),
        ),
        ("paper's size, random weights", stretched(large)),
        ("trained: blond", made["blond"]),
        ("trained: black", made["black"]),
        ("trained: black, twice the intensity", made["stronger"]),
        ("trained: blond, pasted into the photo", made["pasted"]),
    ]
    return Sheet(cells, note, gallery=(0, 2, 7))


def main(arguments: Sequence[str] | None = None) -> int:
    return present("maggan_edit", __doc__, make, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
