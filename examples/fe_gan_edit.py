"""A part of an astronaut's suit anew, by sketch and colours, by the command line of FE-GAN.

`python -m examples.fe_gan_edit` takes scikit-image's astronaut, whose parsing is drawn by hand, and
does two things with `python -m torchext.models fe_gan`:

- `edit` with the networks of the paper's size, 512 x 320 pixels and published width. Their weights
  are random, as none come with the package: it shows that the command runs and how long it takes.
- `train` of both stages with a quarter of the width on this photo alone, once with red and blue
  exchanged, so that the colours of the suit cannot be known from its form. Then `edit` with the
  checkpoint: nothing drawn, a sketch of a pocket, strokes of blue, both. It shows the commands, not
  what the paper reaches: in this time the hole takes the suit's colour, what is drawn changes it by
  little.
"""

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
from torchext.models.fe_gan import COLOURS, NAMES
from torchext.models.fe_gan.prepare import prepare

from .commands import run, train_stages
from .sheets import Sheet, present

PAPER = "fe_gan"
CUT = (40, 0, 360, 512)  # out of the picture: a photo of the paper's size
SIZE = (64, 48)  # height and width of the trained networks
BATCH = 2
# Polygons in the photo's pixels, later ones over earlier ones.
PARSING = (
    ("jumpsuit", ((0, 275), (40, 232), (80, 205), (270, 235), (305, 275), (320, 330), (320, 512))),
    ("glove", ((66, 512), (100, 490), (130, 492), (150, 512))),
    ("hat", ((320, 352), (290, 358), (262, 385), (244, 430), (240, 512), (320, 512))),
    ("scarf", ((80, 190), (90, 160), (120, 148), (215, 172), (255, 215), (264, 245), (245, 282))),
    ("hair", ((146, 40), (165, 22), (195, 15), (230, 30), (256, 65), (260, 90), (238, 128))),
    ("face", ((145, 80), (165, 76), (225, 92), (228, 130), (217, 160), (200, 188), (150, 180))),
)
MORE = {  # of those polygons, going on
    "jumpsuit": ((0, 512),),
    "scarf": ((210, 292), (165, 284), (110, 255), (88, 225)),
    "hair": ((225, 110), (220, 92), (165, 76), (145, 85), (138, 119), (120, 105), (114, 75)),
    "face": ((144, 160), (140, 130)),
}
HOLE = (60, 310, 195, 455)
POCKET = (  # lines of the sketch
    ((85, 345), (170, 345), (170, 430), (85, 430), (85, 345)),
    ((85, 370), (170, 370)),
)
BLUE = (40, 60, 200)
STROKES = (((100, 358), (155, 358)), ((95, 390), (160, 390)), ((95, 415), (160, 415)))
# For networks this small and a run this short; `info` lists the published values.
SETTINGS = {
    "size": f"{SIZE[0]},{SIZE[1]}",
    "width": 16,
    "parsing_blocks": 2,
    "inpainting_blocks": 2,
    "vgg_weight": 0,  # no file of VGG-19 is needed
    "style_weight": 0,
    "mask_weight": 20,
    "foreground_weight": 5,
    "face_weight": 5,
    "variation_weight": 1,
    "beta1": 0.5,
    "rate": 4e-3,
}
FOR_PARSING, FOR_PAINTING = 0.15, 0.55  # of the seconds; the rest is for the large networks


def write_files(folder: Path) -> None:
    """The photo, with red and blue exchanged too, parsings, and what the edits ask for."""
    photo = Image.fromarray(skimage.data.astronaut()).crop(CUT)
    parsing, hole, sketch = (Image.new("L", photo.size) for _ in range(3))
    for name, points in PARSING:
        ImageDraw.Draw(parsing).polygon((*points, *MORE.get(name, ())), NAMES.index(name))
    ImageDraw.Draw(hole).ellipse(HOLE, 255)
    for points in POCKET:
        ImageDraw.Draw(sketch).line(points, 255, 2)
    colours = Image.new("RGBA", photo.size)
    for points in STROKES:
        ImageDraw.Draw(colours).line(points, BLUE, 8)
    for kind in ("photos", "parsings"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    values = np.asarray(photo)
    for name, channels in (("rgb", values), ("bgr", values[..., ::-1])):
        Image.fromarray(channels.copy()).save(folder / "photos" / f"{name}.png")
        parsing.save(folder / "parsings" / f"{name}.png")
    for name, picture in (("hole", hole), ("sketch", sketch), ("blue", colours)):
        picture.save(folder / f"{name}.png")


def edit(folder: Path, checkpoint: Path, output: Path, *how: object) -> np.ndarray:
    """The photo with another suit; `how` says what is drawn."""
    given = (folder / "photos" / "rgb.png", folder / "hole.png", folder / "parsings" / "rgb.png")
    run(PAPER, "edit", *given, *how, "-o", output, "--checkpoint", checkpoint)
    return np.asarray(Image.open(output))


def train(folder: Path, output: Path, iterations: int, *how: object) -> None:
    """Train until there have been so many iterations; continues what is in the output's folder."""
    run(
        *(PAPER, "train", folder / "photos", "--parsings", folder / "parsings", "-o", output),
        *("--sketches", folder / "sketches", "--colours", folder / "colours", *how),
        *("--iterations", iterations, "--batch", BATCH, "--workers", 0),
        *("--share", 0.2, 0.5, "--log-every", 50, "--keep", 1, "--resume"),
        *(f"--set={name}={value}" for name, value in SETTINGS.items()),
    )


def edit_at_full_size(folder: Path, output: Path, *how: object) -> tuple[np.ndarray, float]:
    """By random weights of the published networks; also returns the seconds of `edit`."""
    paper = papers.find(PAPER)
    config = paper.config()
    torch.manual_seed(0)
    networks = paper.networks(config, ("parsing", "generator"))
    checkpoint = folder / "random.safetensors"
    papers.save(checkpoint, paper, config, {n: iterated(net) for n, net in networks.items()})
    begin = time.perf_counter()
    made = edit(folder, checkpoint, output, *how)
    seconds = time.perf_counter() - begin
    checkpoint.unlink()
    return made, seconds


def coloured(parsing: Path) -> np.ndarray:
    return np.array(COLOURS, np.uint8)[np.asarray(Image.open(parsing))]


def make(options: Namespace) -> Sheet:
    folder = options.output
    write_files(folder)
    prepare(folder / "photos", folder / "parsings", folder)
    sketch = ("--sketch", folder / "sketch.png")
    blue = ("--colours", folder / "blue.png")
    large, seconds_large = edit_at_full_size(folder, folder / "random.png", *sketch, *blue)
    checkpoint = folder / "networks.safetensors"
    counts, seconds = train_stages(
        options,
        {"parsing": FOR_PARSING, "inpainting": FOR_PAINTING},
        lambda output, count, how: train(folder, output, count, *how),
        checkpoint,
    )
    edits = {"plain": (), "lines": sketch, "strokes": blue}
    edits["both"] = (*sketch, *blue, "--write-parsing")
    made = {n: edit(folder, checkpoint, folder / f"{n}.png", *how) for n, how in edits.items()}

    note = (
        f"Trained for {seconds:.0f} s: {counts[0]} iterations of the parsing network, {counts[1]}"
        f" of the inpainting network, a quarter of the paper's width, {SIZE[0]} x {SIZE[1]} pixels,"
        " on this photo alone, also with\nred and blue exchanged, without losses of VGG-19. This"
        " shows `train` and `edit`, not what the paper reaches. Random: the published networks, 512"
        f" x 320 pixels, without trained weights;\n`edit` took {seconds_large:.1f} s."
    )
    photo = np.asarray(Image.open(folder / "photos" / "rgb.png"))
    hole = np.asarray(Image.open(folder / "hole.png")) > 0
    guide = np.where(hole[..., None], 40, photo).astype(np.uint8)
    layer = np.asarray(Image.open(folder / "blue.png"))
    guide[layer[..., 3] > 0] = BLUE
    guide[np.asarray(Image.open(folder / "sketch.png")) > 0] = 255
    cells = [
        ("photo", photo),
        ("its parsing, drawn by hand", coloured(folder / "parsings" / "rgb.png")),
        ("the hole, and what is drawn", guide),
        ("published size, random weights", large),
        ("trained: nothing drawn", made["plain"]),
        ("trained: the sketch", made["lines"]),
        ("trained: the colours", made["strokes"]),
        ("trained: both", made["both"]),
    ]
    return Sheet(cells, note, gallery=(0, 2, 7))


def main(arguments: Sequence[str] | None = None) -> int:
    return present("fe_gan_edit", __doc__, make, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
