"""Picture sheets: what every example of a paper draws, and its command line around that."""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .commands import parse

Cell = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Sheet:
    """What an example shows.

    Attributes:
        cells: a title and a picture (H,W,3) each; as many in the second row as in the first, one
            row if there are fewer than six.
        note: how the pictures came about.
        gallery: the numbers of the cells that tell it shortest: input, condition, output.
    """

    cells: Sequence[Cell]
    note: str
    gallery: tuple[int, ...]


def stretched(picture: np.ndarray) -> np.ndarray:
    """Each channel from its first to its last hundredth over the whole range."""
    low, high = np.percentile(picture, (1, 99), axis=(0, 1))
    return ((picture - low) / np.maximum(high - low, 1)).clip(0, 1)


def draw(cells: Sequence[Cell], note: str, path: Path) -> None:
    """Pictures in one row or two, each under its title."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = 1 if len(cells) < 6 else 2
    columns = len(cells) // rows
    tallest = max(picture.shape[0] / picture.shape[1] for _, picture in cells)
    below = 0.2 * (1 + note.count("\n")) if note else 0
    size = (4 * columns, rows * (4 * min(tallest, 1.1) + 0.35) + 0.1 + below)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained")
    for axis, (title, picture) in zip(axes.flat, cells, strict=True):
        axis.set_title(title, fontsize=11, loc="left", fontweight="bold")
        axis.imshow(picture, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
    if note:
        figure.supxlabel(note, fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=80, facecolor="white")
    pyplot.close(figure)


def present(
    name: str,
    description: str | None,
    make: Callable[[Namespace], Sheet],
    arguments: Sequence[str] | None,
    papers: Sequence[str] = (),
) -> int:
    """Run an example by its command line: what `make` shows becomes sheet.png in the output.

    Args:
        name: of the example's file.
        description: for `--help`.
        make: what the example does.
        arguments: of the command line; those of this process by default.
        papers: to choose from, for an example of several.
    """
    options = parse(name, description, arguments, papers)
    begin = time.perf_counter()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.iterations is None:
        print(f"this takes about {options.seconds:.0f} s", flush=True)
    sheet = make(options)
    print(sheet.note)
    path = options.output / "sheet.png"
    draw(sheet.cells, sheet.note, path)
    print(f"wrote {path}, {time.perf_counter() - begin:.0f} s in all")
    return 0
