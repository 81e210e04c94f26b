"""docs/gallery.md: every paper on a real photograph, by its example, and its network's times.

`python -m examples.gallery` (`make gallery`) runs the example of each paper, two minutes each. What
they tell is kept in results/gallery.json, times come from results/networks.json (`python -m
benchmarks.networks`); `--papers` without a name writes the page of these two anew.
"""

import argparse
import json
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import networks
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

INTRODUCTION = """# Gallery

Every paper on real photographs (scikit-image's), by its example and the command line of
[docs/models.md](models.md); `make gallery` makes this page anew. **No trained weights come with the
package**: what is called trained below was trained by the example itself, for a minute or a few
on two cores, with networks of reduced width. It shows that everything runs from files to a picture,
not what the papers reach; their published checkpoints load as they are.

Times: the paper's network at its published width, one photo in float32, its size behind the name;
published is the published operation sequence in pure PyTorch, on the same weights, in turns with
ours; medians ({machine}).
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


@dataclass(frozen=True)
class Shown:
    """What an example told: the titles of its row's pictures, and its note."""

    titles: list[str]
    note: str


def run(name: str, options: Namespace, picture: Path) -> Shown:
    """The example of a paper; its row becomes a picture."""
    with tempfile.TemporaryDirectory() as folder:
        given = Namespace(**{**vars(options), "paper": name, "output": Path(folder)})
        sheet = ENTRIES[name].make(given)
    cells = [sheet.cells[i] for i in sheet.gallery]
    draw(cells, "", picture)
    return Shown([title for title, _ in cells], " ".join(sheet.note.split()))


def section(name: str, shown: Shown, rows: Sequence[networks.Row]) -> str:
    """A paper's part of the page."""
    lines = [
        f"## {papers.find(name).title}",
        f"![{'; '.join(shown.titles)}](gallery/{name}.jpg)",
        shown.note,
    ]
    network = ENTRIES[name].network
    lines += [
        f"**{row.network}, {row.direction}**: published {row.published_ms:.0f} ms, ours"
        f" {row.ours_ms:.0f} ms, **{row.ratio:.2f}x**."
        for row in rows
        if row.network.startswith(network) and row.dtype == "float32"
    ]
    return "\n\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.gallery", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="for each example")
    parser.add_argument("--iterations", type=int, help="of training, instead of seconds")
    parser.add_argument("--papers", nargs="*", choices=ENTRIES, default=[*ENTRIES])
    parser.add_argument(
        "--output", type=Path, default=Path("docs"), help="folder of gallery.md and gallery/"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of what is measured and told"
    )
    options = parser.parse_args(arguments)
    pictures, told = options.output / "gallery", options.results / "gallery.json"
    pictures.mkdir(parents=True, exist_ok=True)
    known = json.loads(told.read_text()) if told.is_file() else {}
    for name in options.papers:
        known[name] = asdict(run(name, options, pictures / f"{name}.jpg"))
        with whole_or_nothing(told) as partial:
            partial.write_text(json.dumps(known, indent=1) + "\n")
    rows, machine = networks.read(options.results / "networks.json")
    sections = [section(name, Shown(**known[name]), rows) for name in ENTRIES if name in known]
    page = options.output / "gallery.md"
    with whole_or_nothing(page) as partial:
        partial.write_text("\n".join([INTRODUCTION.format(machine=machine), *sections]))
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
