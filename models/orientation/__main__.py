"""`python -m torchext.orientation PHOTO -o OUT.png`: 8-bit angle maps; `--help` says more."""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..files import SUFFIXES, PictureError, is_hidden, is_same
from .photos import MASK_THRESHOLD, convert_photo
from .preset_files import map_paths, write_maps
from .presets import PRESETS, Filters, check_filters, uses_mask

MICHIGAN = "michigan"
FILTERS_HELP = {
    "num_filters": "neuralhaircut: how many angles",
    "sigma_x": "neuralhaircut: across the line, in pixels",
    "sigma_y": "neuralhaircut: along the line, in pixels",
    "freq": "neuralhaircut: of the cosine, per pixel",
    "num_sigmas_x": "gaussianhaircut: more than one tries 1, 2, 4, .. pixels across the line",
    "num_sigmas_y": "gaussianhaircut: the same along the line",
    "num_frequencies": "gaussianhaircut: more than one tries 1, 1/2, 1/4, .. per pixel",
    "num_offsets": "gaussianhaircut: phases of the cosine, so many in half a turn",
}


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
        description="Write the orientation maps of photographs: MichiGAN's 8-bit map, 0 horizontal,"
        " counted counter-clockwise, 255 is pi, 0 outside the mask; or with --preset the files that"
        " a project of hair reconstruction reads.",
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
        "-o",
        "--output",
        type=Path,
        required=True,
        help="a PNG file, or a folder for a folder; with another preset than michigan a folder, in"
        " which the project's own folders are made",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default=MICHIGAN,
        help="whose files to write (default: %(default)s)",
    )
    parser.add_argument(
        "--clean",
        action="store_true",
        help="sane values where the published ones are not: no NaN, no seam, no JPEG, angles as"
        " meant, and no hair outside the mask",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write again what is there; otherwise a photograph whose files are all there is left"
        " out (michigan always writes)",
    )
    parser.add_argument(
        "--show",
        action="store_true",
        help="michigan: also write NAME.show.png: direction as hue, strength as brightness, and a"
        " legend",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="michigan: angles as measured; the published tool's are too large by up to 3 percent",
    )
    parser.add_argument(
        "--threshold",
        type=int,
        default=MASK_THRESHOLD,
        help=f"hair is above this, of 255, for michigan and --clean (default: {MASK_THRESHOLD})",
    )
    group = parser.add_argument_group("filters, as in the published scripts")
    for field in dataclasses.fields(Filters):
        name = field.name
        spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
        group.add_argument(
            *spellings,
            type=type(field.default),
            default=field.default,
            help=f"{FILTERS_HELP[name]} (default: %(default)s)",
        )
    options = parser.parse_args(arguments)
    if not 0 <= options.threshold <= 254:
        parser.error(f"--threshold: expected 0 to 254, got {options.threshold}")
    try:
        given = {f.name: getattr(options, f.name) for f in dataclasses.fields(Filters)}
        options.filters = Filters(**given)
        check_filters(options.preset, options.filters)
    except ValueError as error:
        name, text = str(error).split(":", 1)
        parser.error(f"--{name.replace('_', '-')}:{text}")
    folder, published = options.photo.is_dir(), options.preset != MICHIGAN
    for name in ("show", "exact"):
        if published and getattr(options, name):
            parser.error(f"--{name}: expected preset {MICHIGAN}, got {options.preset}")
    if options.mask is not None and options.mask.exists() and options.mask.is_dir() != folder:
        parser.error("--mask: expected a folder for a folder, a file for a file")
    if folder and options.mask is not None and not options.mask.is_dir():
        parser.error(f"--mask: there is no folder {options.mask}")
    if folder and options.output.exists() and not options.output.is_dir():
        parser.error(f"--output: expected a folder for a folder, {options.output} is a file")
    if published and options.output.exists() and not options.output.is_dir():
        parser.error(f"--output: expected a folder, {options.output} is a file")
    if published and options.output.suffix.lower() in SUFFIXES and not options.output.exists():
        parser.error(f"--output: expected a folder, {options.output} is a picture's name")
    if not folder and not published and options.output.suffix.lower() != ".png":
        parser.error(f"--output: expected a name that ends in .png, got {options.output}")
    for name in ("photo", "mask"):
        given = getattr(options, name)
        if given is not None and is_same(options.output, given):
            parser.error(f"--output: {options.output} is the {name} itself; choose another name")
    options.jobs = _jobs(options)
    if published and (clash := _clash(options)):
        parser.error(clash)
    return options


def _paths(options: argparse.Namespace, photo: Path, mask: Path | None) -> list[Path]:
    """The files of a photograph, of another preset than michigan."""
    paths = map_paths(photo, options.preset, mask=mask, clean=options.clean)
    return [options.output / path for path in paths.values()]


def _clash(options: argparse.Namespace) -> str:
    """What to say of two photographs that would get the same file; "" if there are none."""
    owners: dict[Path, Path] = {}
    for photo, mask, _ in options.jobs:
        for path in _paths(options, photo, mask):
            if path in owners:
                return (
                    f"{owners[path].name} and {photo.name} would both be written to {path};"
                    " rename one of them"
                )
            owners[path] = photo
    return ""


def _notes(options: argparse.Namespace) -> Iterator[str]:
    """What is to be said of a preset before its files are written."""
    preset = options.preset
    if options.mask is not None and not uses_mask(preset, options.clean):
        yield f"{preset}'s files do not depend on masks; with --clean they do"
    photos = [photo for photo, _, _ in options.jobs]
    lossy = any(photo.suffix.lower() in (".jpg", ".jpeg") for photo in photos)
    if lossy and not options.clean and preset in ("monohair", "im2haircut"):
        yield (
            f"{preset} stores the maps of JPEGs as JPEGs, whose angles are not exact; --clean"
            " stores PNGs"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if all went well, 1 if a file was skipped, 130 if interrupted."""
    from tqdm import tqdm

    options = _parse(arguments)
    jobs = options.jobs
    if not jobs:
        print(f"{options.photo}: no pictures", file=sys.stderr)
        return 1
    published = options.preset != MICHIGAN
    whole_folder = published or options.photo.is_dir()
    (options.output if whole_folder else options.output.parent).mkdir(parents=True, exist_ok=True)
    if published:
        for note in _notes(options):
            print(f"note: {note}", file=sys.stderr)
        if not options.overwrite:
            jobs = [
                job for job in jobs if not all(p.exists() for p in _paths(options, job[0], job[1]))
            ]
        if there := len(options.jobs) - len(jobs):
            print(
                f"{there} of {len(options.jobs)} photos have their files already and are left as"
                " they are; --overwrite writes them again",
                file=sys.stderr,
            )
    failed = 0
    with tqdm(total=len(jobs), unit="photo", disable=None) as bar:
        for number, (photo, mask, target) in enumerate(jobs):
            bar.set_postfix_str(photo.name)
            try:
                _convert(options, photo, mask, target, bar)
            except PictureError as error:
                failed += 1
                bar.write(f"skipped {error}", file=sys.stderr)
            except KeyboardInterrupt:
                done = f"{number} of {len(jobs)} photos"
                again = "; the same command goes on from there" if published else ""
                bar.write(f"interrupted after {done}{again}", file=sys.stderr)
                return 130
            bar.update()
    if failed and len(jobs) > 1:
        print(f"{failed} of {len(jobs)} pictures were skipped", file=sys.stderr)
    return int(failed > 0)


def _convert(
    options: argparse.Namespace, photo: Path, mask: Path | None, target: Path, bar: Any
) -> None:
    """Write what is wanted of one photograph."""
    reports: dict[str, Any] = {
        "warn": lambda text: bar.write(f"warning: {text}", file=sys.stderr),
        "progress": lambda done, all_: bar.set_postfix_str(f"{photo.name} {100 * done // all_}%"),
        "threshold": options.threshold,
    }
    if options.preset == MICHIGAN:
        exact = options.exact or options.clean
        convert_photo(photo, target, mask, show=options.show, exact=exact, **reports)
    else:
        chosen = {"preset": options.preset, "clean": options.clean, "filters": options.filters}
        write_maps(photo, options.output, mask, **chosen, **reports)


if __name__ == "__main__":
    sys.exit(main())
