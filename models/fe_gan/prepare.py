"""`python -m torchext.models.fe_gan.prepare`: sketches and colour maps of photos, to train on.

Training makes both anew for every sample where no folders of them are given; this makes them once.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import pictures
from ..data import PairedImages
from ..geometry import Field, Preparation
from ..label_maps import Colour, add_palette, check_labels, read_palette
from .data import colour_map, sketch_of
from .labels import NAMES, ParsingField


def prepare(
    photos: Path,
    parsings: Path,
    output: Path,
    palette: Mapping[Colour, int] | None = None,
    *,
    classes: int = len(NAMES),
) -> int:
    """Write `sketches/` and `colours/`: PNGs of the photos' names and sizes.

    Args:
        photos: a folder, searched at any depth.
        parsings: another, of the same names.
        output: a folder to write to.
        palette: the number of each colour of parsings.
        classes: of the parsings.

    Returns:
        How many photos there are.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
        ValueError: a folder without pictures, a photo without a parsing, one of another size, a
            file that cannot be read, or a number that is no class.
    """
    fields = {"image": Field(), "labels": ParsingField("labels", palette=palette)}
    data = PairedImages({"image": photos, "labels": parsings}, fields, Preparation())
    for path, files in data.paths.items():
        image = pictures.to_tensor(fields["image"].read(path))
        labels = torch.from_numpy(np.array(fields["labels"].read(files["labels"])))[None].long()
        if labels.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"{files['labels']}: expected the size of {path}, {image.shape[2]} x"
                f" {image.shape[1]} pixels, got {labels.shape[2]} x {labels.shape[1]}"
            )
        check_labels(labels, classes, str(files["labels"]))
        name = path.relative_to(photos).with_suffix(".png")
        lines = (255 * sketch_of(image)[0]).to(torch.uint8).numpy()
        pictures.write(Image.fromarray(lines), output / "sketches" / name)
        colours = pictures.to_picture(colour_map(image, labels))
        pictures.write(colours, output / "colours" / name)
    return len(data)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torchext.models.fe_gan.prepare",
        description="sketches and colour maps of photos, to train on",
    )
    parser.add_argument("photos", type=Path, help="a folder")
    parser.add_argument("--parsings", type=Path, required=True, help="a folder of the same names")
    add_palette(parser)
    parser.add_argument("--classes", type=int, default=len(NAMES), help="(default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder to write to")
    options = parser.parse_args(arguments)
    try:
        palette = None if options.palette is None else read_palette(options.palette)
        count = prepare(
            options.photos, options.parsings, options.output, palette, classes=options.classes
        )
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} sketches and colour maps in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
