"""Hair orientation of a real photo: `python -m examples.gabor_orientation [OUTPUT]` draws it.

scikit-image's astronaut; the head as it is, its angle map in colours, and the direction of the
strands as short lines over the photo.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

import torchext
from torchext import orientation

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "gabor-orientation.png"
TOP, BOTTOM, LEFT, RIGHT = 22, 172, 130, 320  # the head
STEP = 6  # pixels between lines


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import skimage.data
    from matplotlib.collections import LineCollection

    photo = skimage.data.astronaut()
    image = torch.from_numpy(photo).float().permute(2, 0, 1)[None]
    flow = orientation.orientation_flow(image, sigma=2.0, exact=True)
    part = (..., slice(TOP, BOTTOM), slice(LEFT, RIGHT))
    angle = torchext.orientation_angle(flow, "cos_sin")[part][0, 0]
    strength = flow.square().sum(1).sqrt()[part][0]
    brightness = 1 - torch.exp(-strength / 40)
    colours = orientation.colour_wheel(angle[None, None], brightness[None, None])[0]

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    crop = photo[TOP:BOTTOM, LEFT:RIGHT]
    for axis, picture, title in (
        (axes[0], crop, "photo"),
        (axes[1], colours.permute(1, 2, 0).numpy(), "angle as hue, strength as brightness"),
        (axes[2], crop // 2 + 100, "direction of the strands"),
    ):
        axis.imshow(picture)
        axis.set_title(title)
        axis.set_axis_off()
    lines, hues = _lines(angle, strength)
    axes[2].set(xlim=(0, RIGHT - LEFT - 1), ylim=(BOTTOM - TOP - 1, 0))
    axes[2].add_collection(LineCollection(lines, colors=hues, linewidths=1.6))
    inset = axes[1].inset_axes((0.78, 0.02, 0.2, 0.22))
    inset.imshow(_wheel().permute(1, 2, 0).numpy())
    inset.set_axis_off()
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    figure.savefig(target, dpi=80)
    print(f"wrote {target}")


def _lines(angle: Tensor, strength: Tensor) -> tuple[list, list]:
    """A line for each cell, at its strongest pixel; angles count counter-clockwise, rows down."""
    lines, hues = [], []
    for top in range(0, angle.shape[0] - STEP + 1, STEP):
        for left in range(0, angle.shape[1] - STEP + 1, STEP):
            cell = strength[top : top + STEP, left : left + STEP]
            if cell.max() < 12:
                continue
            row, column = divmod(int(cell.argmax()), STEP)
            o = angle[top + row, left + column]
            dx, dy = 0.55 * STEP * torch.stack((o.cos(), -o.sin()))
            x, y = left + column, top + row
            lines.append([(x - float(dx), y - float(dy)), (x + float(dx), y + float(dy))])
            one = torch.ones(1, 1, 1, 1)
            hues.append(orientation.colour_wheel(o * one, one).flatten().tolist())
    return lines, hues


def _wheel(size: int = 80) -> Tensor:
    offset = torch.arange(size) - (size - 1) / 2
    y, x = offset[:, None].expand(size, size), offset.expand(size, size)
    inside = (x.square() + y.square()).sqrt() <= size / 2
    angle = torch.atan2(-y, x) % torch.pi
    return orientation.colour_wheel(angle[None, None], inside[None, None].float())[0]


if __name__ == "__main__":
    main()
