"""Train an inpainting network for two minutes and fill a hole with it, by the command line.

`python -m examples.train_and_edit` cuts scikit-image's photographs into a folder of pictures, runs
`python -m torchext.models region_normalization train` on it, then `edit` with the checkpoint on a
photo that training never saw and a mask file, and draws a sheet. The network is a reduced width of
the paper's: a demonstration of the two commands, not of what the paper reaches.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from benchmarks.demo import Fill, measured
from torchext.models import pictures
from torchext.models.masks import irregular_hole

from .commands import parse, run, train_for

PAPER = "region_normalization"
SIDE = 256  # the longer one of each photo
LEARNT, EDITED = ("astronaut", "coffee", "rocket"), "chelsea"
TILE, STRIDE = 64, 16
BATCH = 4
# For a network this small and a run this short; `info` lists the published values.
SETTINGS = {
    "width": 16,
    "residual_blocks": 2,
    "scope": "instance",
    "size": TILE,
    "adversarial_weight": 0,
    "learning_rate": 2e-3,
    "beta1": 0.9,
    "beta2": 0.99,
    "decay": 0.85,
}
FOR_TRAINING = 0.85  # of the seconds; the rest is for the pictures and the sheet


def photograph(name: str) -> Image.Image:
    picture = Image.fromarray(getattr(skimage.data, name)())
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def write_tiles(folder: Path) -> int:
    """Cut the photographs to learn from into overlapping squares; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name in LEARNT:
        picture = photograph(name)
        for top in range(0, picture.height - TILE + 1, STRIDE):
            for left in range(0, picture.width - TILE + 1, STRIDE):
                tile = picture.crop((left, top, left + TILE, top + TILE))
                tile.save(folder / f"{name}-{top:03}-{left:03}.png")
                count += 1
    return count


def train(photos: Path, folder: Path, iterations: int) -> None:
    """Train until there have been so many iterations; continues what is in the folder."""
    run(
        *(PAPER, "train", photos, "-o", folder, "--iterations", iterations, "--batch", BATCH),
        *("--workers", 0, "--share", 0.1, 0.3, "--log-every", 50, "--keep", 1, "--resume"),
        *(f"--set={name}={value}" for name, value in SETTINGS.items()),
    )


def tensor(path: Path) -> Tensor:
    return pictures.to_tensor(pictures.read_image(path))[None]


def draw(image: Tensor, known: Tensor, fills: Sequence[Fill], note: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [("photo, not in the training", image, "")]
    cells += [(f.title, f.image, f"{f.psnr:.2f} dB, SSIM {f.ssim:.3f} in the hole") for f in fills]
    cells[1] = (cells[1][0], torch.where(known > 0, image, 1), cells[1][2])
    ratio = image.shape[2] / image.shape[3]
    figure, axes = pyplot.subplots(1, 3, figsize=(13.5, 1.3 + 4.5 * ratio), layout="constrained")
    for axis, (title, picture, score) in zip(axes, cells, strict=True):
        axis.set_title(title, fontsize=12, loc="left", fontweight="bold")
        axis.imshow(picture[0].permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(score, fontsize=10, loc="left")
    figure.supxlabel(note, fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=90, facecolor="white")
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse("train_and_edit", __doc__, arguments)
    begin = time.perf_counter()
    photos, checkpoint = options.output / "photos", options.output / "network.safetensors"
    tiles = write_tiles(photos)
    with tempfile.TemporaryDirectory() as runs:
        folder = Path(runs, "train")
        begin_training = time.perf_counter()
        iterations = options.iterations
        if iterations is None:
            print(f"this takes about {options.seconds:.0f} s", flush=True)
            iterations = train_for(
                FOR_TRAINING * options.seconds, lambda count: train(photos, folder, count)
            )
        else:
            train(photos, folder, iterations)
        seconds = time.perf_counter() - begin_training
        [newest] = folder.glob("*.safetensors")
        shutil.copyfile(newest, checkpoint)

    photo, mask, filled = (options.output / f"{name}.png" for name in ("photo", "mask", "filled"))
    picture = photograph(EDITED)
    picture.save(photo)
    hole = irregular_hole(picture.height, picture.width, share=0.2, seed=4)
    Image.fromarray(hole.astype(np.uint8) * 255).save(mask)  # white is the hole
    run(PAPER, "edit", photo, mask, "-o", filled, "--checkpoint", checkpoint)

    image, known = tensor(photo), torch.from_numpy(~hole)[None, None].float()
    mean = (image * known).sum((2, 3), keepdim=True) / known.sum()
    before = torch.where(known > 0, image, mean)
    note = (
        "A reduced network (region normalisation at a quarter of the paper's width, 2 of its 8"
        f" residual blocks), trained for {seconds:.0f} s: {iterations} iterations on {tiles}"
        f" squares of {len(LEARNT)} photos.\nThe published networks are trained for days: this"
        " shows `train` and `edit`, not what the paper reaches. Before: the mean colour of what is"
        " known in the hole."
    )
    fills = [
        measured("hole: before", before, image, known, ""),
        measured("fill: after", tensor(filled), image, known, ""),
    ]
    for fill in fills:
        print(f"{fill.title}: {fill.psnr:.2f} dB, SSIM {fill.ssim:.3f} in the hole")
    print(note)
    sheet = options.output / "sheet.png"
    draw(image, known, fills, note, sheet)
    print(f"wrote {sheet}, {time.perf_counter() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
