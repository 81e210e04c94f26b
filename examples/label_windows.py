"""Windows of a label map, drawn: `python -m examples.label_windows [OUTPUT]`.

A photograph of scikit-image, its segments as labels, the pixels at which a 5x5 window is met for
the first time (all that SPADE is computed for), and their share by size for four photographs.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import torchext
from benchmarks.label_maps import PHOTOGRAPHS, segmented

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "label-windows.png"
SHOWN, SIDE, CLASSES = "coffee", 256, 35
SIZES = (32, 64, 128, 256, 512)


def windows_of(photograph: str, side: int) -> torchext.LabelWindows:
    labels = torch.from_numpy(segmented(side, side, CLASSES, photograph))
    return torchext.label_windows(labels[None])


def first_pixels(index: Tensor) -> np.ndarray:
    """Where each number of an index (1,H,W) stands for the first time."""
    flat = index.flatten().numpy()
    first = np.zeros(flat.shape, bool)
    first[np.unique(flat, return_index=True)[1]] = True
    return first.reshape(index.shape[1:])


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import skimage.data
    from PIL import Image

    photo = Image.fromarray(getattr(skimage.data, SHOWN)()).resize((SIDE, SIDE))
    shown = windows_of(SHOWN, SIDE)
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.9), layout="constrained")
    for axis, picture, title, colours in (
        (axes[0], photo, "photo", None),
        (axes[1], segmented(SIDE, SIDE, CLASSES, SHOWN), "label map", "tab20"),
        (
            axes[2],
            ~first_pixels(shown.index),
            f"SPADE is computed at the black pixels: {shown.share:.0%}",
            "gray",
        ),
    ):
        axis.imshow(picture, cmap=colours, interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    for photograph in PHOTOGRAPHS:
        shares = [100 * windows_of(photograph, side).share for side in SIZES]
        axes[3].plot(SIZES, shares, marker="o", label=photograph)
    axes[3].set_xscale("log", base=2, nonpositive="clip")
    axes[3].set_xticks(SIZES, [f"{side}²" for side in SIZES])
    axes[3].set(ylim=(0, 100), title="distinct 5x5 windows, % of the pixels")
    axes[3].grid(alpha=0.3)
    axes[3].legend()
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    figure.savefig(target, dpi=80)
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
