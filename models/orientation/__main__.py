"""`python -m torchext.orientation PHOTO -o OUT.png`: 8-bit angle maps; `--help` says more."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..files import SUFFIXES, PictureError, is_hidden, is_same
from .photos import MASK_THRESHOLD, convert_photo


def _pictures(folder: Path) -> list[Path]:
    """The pictures in a folder, hidden files left out."""
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not is_hidden(path, folder)
    ]


def _jobs(options: argparse.Namespace) -> list[tuple[Path, Path | None, Path]]:
    """Photographs, their masks and their targets."""
    if not options.photo.is_dir():
        return [(options.photo, options.mask, options.output)]
    photos = sorted(_pictures(options.photo))
    stems = [photo.stem for photo in photos]
    masks: dict[str, Path] = {}
    if options.mask is not None:
        masks = {p.stem: p for p in _pictures(options.mask)}
    return [
        (
            photo,
            # a mask that is missing is reported with its photograph
            None if options.mask is None else masks.get(photo.stem, options.mask / photo.name),
            options.output / f"{photo.stem if stems.count(photo.stem) == 1 else photo.name}.png",
        )
        for photo in photos
    ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m torchext.orientation",
        description="Write the 8-bit orientation maps of photographs: 0 horizontal, counted"
        " counter-clockwise, 255 is pi; 0 outside the mask.",
    )
    parser.add_argument("photo", type=Path, help="a photograph, or a folder of them")
    parser.add_argument(
        "--mask",
        type=Path,
        help="the hair: a picture of the photograph's size, or a folder of pictures of the"
        " photographs' names; hair is white, or the brighter of two values, or drawn on"
        " transparency, or what is left of a photo whose background is transparent",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="a PNG file, or a folder for a folder"
    )
    parser.add_argument(
        "--show",
        action="store_true",
        help="also write NAME.show.png: direction as hue, strength as brightness, and a legend",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="angles as measured; the published tool's are too large by up to 3 percent",
    )
    parser.add_argument(
        "--threshold",
        type=int,
        default=MASK_THRESHOLD,
        help=f"hair is above this, of 255 (default: {MASK_THRESHOLD})",
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.threshold <= 254:
        parser.error(f"--threshold: expected 0 to 254, got {options.threshold}")
    folder = options.photo.is_dir()
    if options.mask is not None and options.mask.exists() and options.mask.is_dir() != folder:
        parser.error("--mask: expected a folder for a folder, a file for a file")
    if folder and options.mask is not None and not options.mask.is_dir():
        parser.error(f"--mask: there is no folder {options.mask}")
    if folder and options.output.exists() and not options.output.is_dir():
        parser.error(f"--output: expected a folder for a folder, {options.output} is a file")
    if not folder and options.output.suffix.lower() != ".png":
        parser.error(f"--output: expected a name that ends in .png, got {options.output}")
    for name in ("photo", "mask"):
        given = getattr(options, name)
        if given is not None and is_same(options.output, given):
            parser.error(f"--output: {options.output} is the {name} itself; choose another name")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if all went well, 1 if a file was skipped."""
    from tqdm import tqdm

    options = _parse(arguments)
    jobs = _jobs(options)
    if not jobs:
        print(f"{options.photo}: no pictures", file=sys.stderr)
        return 1
    (options.output if options.photo.is_dir() else options.output.parent).mkdir(
        parents=True, exist_ok=True
    )
    failed = 0
    with tqdm(total=len(jobs), unit="photo", disable=None) as bar:
        for photo, mask, target in jobs:
            bar.set_postfix_str(photo.name)
            try:
                convert_photo(
                    photo,
                    target,
                    mask,
                    show=options.show,
                    exact=options.exact,
                    threshold=options.threshold,
                    warn=lambda text: bar.write(f"warning: {text}", file=sys.stderr),
                    progress=lambda done, all_, name=photo.name: bar.set_postfix_str(
                        f"{name} {100 * done // all_}%"
                    ),
                )
            except PictureError as error:
                failed += 1
                bar.write(f"skipped {error}", file=sys.stderr)
            bar.update()
    if failed and len(jobs) > 1:
        print(f"{failed} of {len(jobs)} pictures were skipped", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
