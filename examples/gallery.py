"""docs/gallery.md: every paper on a real photograph, by its example, and its network's time.

`python -m examples.gallery` (`make gallery`) runs the example of each paper, two minutes each, and
times each network at its published width, in the published form and in ours, in turns.
"""

from benchmarks.environment import restart_with_settled_heap

if __name__ == "__main__":
    restart_with_settled_heap()

import argparse
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import harness, networks, report
from torchext.models import papers
from torchext.models.files import whole_or_nothing

from . import (
    dagan_edit,
    deepfaceediting_edit,
    fe_gan_edit,
    maggan_edit,
    maskgan_edit,
    michigan_edit,
    semantic_photo_edit,
    train_and_edit,
)
from .sheets import Sheet, draw

SIZE = 256  # of the networks that are timed
ROUNDS = 5
INTRODUCTION = """# Gallery

Every paper on real photographs (scikit-image's), by its example and the command line of
[docs/models.md](models.md); `make gallery` makes this page anew. **No trained weights come with the
package**: what is called trained below was trained by the example itself, for less than two minutes
on two cores, with networks of reduced width. It shows that everything runs from files to a picture,
not what the papers reach; their published checkpoints load as they are.

Times: the paper's network at its published width, {size} x {size} pixels, one inference in float32;
published is the published operation sequence in pure PyTorch, on the same weights, in turns with
ours; medians. {machine}.
"""


@dataclass(frozen=True)
class Entry:
    """A paper's row.

    Attributes:
        make: its example.
        network: of `benchmarks.networks`, that is timed.
    """

    make: Callable[[Namespace], Sheet]
    network: str


ENTRIES = {
    "partial_convolutions": Entry(train_and_edit.make, "PConv U-Net L=7"),
    "region_normalization": Entry(train_and_edit.make, "RN generator"),
    "pd_gan": Entry(train_and_edit.make, "PD-GAN generator"),
    "dagan": Entry(dagan_edit.make, "DAGAN generator"),
    "maskgan": Entry(maskgan_edit.make, "MaskGAN generator"),
    "michigan": Entry(michigan_edit.make, "MichiGAN generator"),
    "fe_gan": Entry(fe_gan_edit.make, "FE-GAN inpainting"),
    "maggan": Entry(maggan_edit.make, "MagGAN generator"),
    "deepfaceediting": Entry(deepfaceediting_edit.make, "DeepFaceEditing part"),
    "semantic_photo_manipulation": Entry(semantic_photo_edit.make, "progressive generator"),
}


def section(name: str, sheet: Sheet, row: networks.Row, picture: str) -> str:
    """A paper's part of the page."""
    titles = "; ".join(sheet.cells[i][0] for i in sheet.gallery)
    cap = f", {row.cap:.2f}x if all but its convolutions took no time" if row.cap else ""
    return (
        f"## {papers.find(name).title}\n\n"
        f"![{titles}]({picture})\n\n"
        f"{' '.join(sheet.note.split())}\n\n"
        f"**{row.network}**: published {row.published_ms:.0f} ms, ours {row.ours_ms:.0f} ms,"
        f" **{row.ratio:.2f}x**{cap}.\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.gallery", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="for each example")
    parser.add_argument("--iterations", type=int, help="of training, instead of seconds")
    parser.add_argument("--papers", nargs="+", choices=ENTRIES, default=[*ENTRIES])
    parser.add_argument(
        "--output", type=Path, default=Path("docs"), help="folder of gallery.md and gallery/"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(harness.cores())
    machine = report.header(harness.machine("cpu"))
    measured = networks.measure(
        SIZE,
        torch.float32,
        ROUNDS,
        directions=networks.DIRECTIONS[:1],
        networks=[ENTRIES[name].network for name in options.papers],
    )
    rows = [measure() for measure in measured]
    pictures = options.output / "gallery"
    pictures.mkdir(parents=True, exist_ok=True)
    sections = []
    for name, row in zip(options.papers, rows, strict=True):
        print(row.line, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            given = Namespace(
                paper=name,
                output=Path(folder),
                seconds=options.seconds,
                iterations=options.iterations,
            )
            sheet = ENTRIES[name].make(given)
        picture = pictures / f"{name}.jpg"
        draw([sheet.cells[i] for i in sheet.gallery], "", picture)
        sections.append(section(name, sheet, row, f"gallery/{picture.name}"))
    page = options.output / "gallery.md"
    with whole_or_nothing(page) as partial:
        partial.write_text("\n".join([INTRODUCTION.format(size=SIZE, machine=machine), *sections]))
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
