"""Orientation maps for hair reconstruction: `python -m examples.hair_orientation [OUTPUT]`.

Writes the files of NeuralHaircut, GaussianHaircut and MonoHair for scikit-image's astronaut, reads
them as the projects do, and draws OUTPUT/hair-orientation.png: angles, confidence, and the strands
of which NeuralHaircut's weights are sure.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchext import orientation

TOP, BOTTOM, LEFT, RIGHT = 12, 172, 130, 330  # the head
STEP = 5  # pixels between lines
SURE = 0.35  # the largest variance of a line that is drawn


def main(arguments: list[str] | None = None) -> int:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import skimage.data
    from matplotlib.collections import LineCollection
    from PIL import Image

    given = sys.argv[1:] if arguments is None else arguments
    output = Path(given[0] if given else "results/hair-orientation")
    output.mkdir(parents=True, exist_ok=True)
    photo = output / "photo.png"
    Image.fromarray(skimage.data.astronaut()).save(photo)
    files = {}
    for preset in ("neuralhaircut", "gaussianhaircut", "monohair"):
        command = [str(photo), "-o", str(output / preset), "--preset", preset, "--overwrite"]
        print("$ python -m torchext.orientation", *command)
        if orientation.main(command):
            return 1
        paths = orientation.map_paths(photo, preset)
        files[preset] = {name: _read(output / preset / path) for name, path in paths.items()}

    angles = files["neuralhaircut"]["orientation_maps"]
    variance = files["neuralhaircut"]["confidence_maps"].astype(np.float32)
    crop = _read(photo)
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.3), layout="constrained")
    for axis, picture, title in zip(
        axes.flat,
        (
            crop,
            _hues(angles - 90.0),
            variance,
            files["gaussianhaircut"]["vis_imgs"],
            files["monohair"]["conf"],
            crop // 2 + 100,
        ),
        (
            "photo",
            "neuralhaircut orientation_maps, as hue",
            "neuralhaircut confidence_maps: variance, dark is sure",
            "gaussianhaircut vis_imgs",
            "monohair conf: bright is sure",
            f"directions whose variance is below {SURE}",
        ),
        strict=True,
    ):
        axis.imshow(picture, cmap="magma", vmin=0 if picture.ndim == 2 else None)
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    lines, hues = _lines(angles, variance)
    axes[1, 2].add_collection(LineCollection(lines, colors=hues, linewidths=1.6))
    axes[1, 2].set(xlim=(0, RIGHT - LEFT - 1), ylim=(BOTTOM - TOP - 1, 0))
    target = output / "hair-orientation.png"
    figure.savefig(target, dpi=60)
    plt.close(figure)
    print(f"wrote {target}")
    return 0


def _read(path: Path) -> np.ndarray:
    """The head's part of a file."""
    from PIL import Image

    values = np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))
    return values[TOP:BOTTOM, LEFT:RIGHT]


def _hues(degrees: np.ndarray) -> np.ndarray:
    """(H,W,3) of angles from the horizontal."""
    angle = torch.from_numpy(np.deg2rad(degrees % 180))[None, None]
    return orientation.colour_wheel(angle, torch.ones_like(angle))[0].permute(1, 2, 0).numpy()


def _lines(angles: np.ndarray, variance: np.ndarray) -> tuple[list[Any], list[Any]]:
    """A line for each cell, at its surest pixel, along (sin, cos) of its angle, and its colour."""
    lines, hues = [], []
    colours = _hues(angles - 90.0)
    for top in range(0, angles.shape[0] - STEP + 1, STEP):
        for left in range(0, angles.shape[1] - STEP + 1, STEP):
            cell = variance[top : top + STEP, left : left + STEP]
            row, column = np.unravel_index(cell.argmin(), cell.shape)
            if cell[row, column] < SURE:
                y, x = top + row, left + column
                turn = np.deg2rad(angles[y, x].astype(float))
                dx, dy = 0.6 * STEP * np.sin(turn), 0.6 * STEP * np.cos(turn)
                lines.append([(x - dx, y - dy), (x + dx, y + dy)])
                hues.append(colours[y, x])
    return lines, hues


if __name__ == "__main__":
    sys.exit(main())
