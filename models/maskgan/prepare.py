"""`python -m torchext.models.maskgan.prepare`: label maps to train on, from CelebAMask-HQ's files.

merge: one label map of each photo's masks of parts. split: photos or label maps into training,
validation and test. decode: the masks of stage 2, by MaskVAE, once for all epochs.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .. import papers, pictures
from ..geometry import Preparation
from . import PAPER
from .labels import LabelledFaces, merge_files
from .mask_vae import MaskVAE
from .training import interpolated

# From which place in CelebA on a photo belongs to the validation and to the test.
VALIDATION, TEST = 162_771, 182_638
SPLITS = ("train", "validation", "test")


def merge_data_set(annotations: Path, output: Path) -> int:
    """Write the label map of every photo, `NUMBER.png` with the numbers of `face_labels.NAMES`.

    Args:
        annotations: the folder of part masks, `CelebAMask-HQ-mask-anno`.
        output: a folder to write to.

    Returns:
        How many were written.

    Raises:
        ValueError: no part masks are there, or one cannot be read or used.
    """
    stems = {path.stem for path in Path(annotations).glob("*/[0-9]*_*.png")}
    numbers = sorted({int(stem.partition("_")[0]) for stem in stems if stem[:5].isdigit()})
    if not numbers:
        raise ValueError(
            f"{annotations}: expected folders 0, 1, ... with masks such as 00000_skin.png"
        )
    for number in numbers:
        merged = Image.fromarray(merge_files(annotations, number))
        pictures.write(merged, Path(output) / f"{number}.png")
    return len(numbers)


def split(mapping: Path) -> dict[str, list[int]]:
    """The photos of CelebA-HQ for training, validation and test, by their places in CelebA.

    Args:
        mapping: `CelebA-HQ-to-CelebA-mapping.txt`: a title, then a line for each photo, its number
            and its place in CelebA first.

    Returns:
        Numbers by the names in `SPLITS`, in the file's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line of another form.
    """
    found: dict[str, list[int]] = {name: [] for name in SPLITS}
    for i, line in enumerate(Path(mapping).read_text().splitlines(), start=1):
        words = line.split()
        if i == 1 or not words:
            continue
        if len(words) < 2 or not (words[0].isdigit() and words[1].isdigit()):
            raise ValueError(
                f"{mapping}, line {i}: expected a photo's number and its place, got {line!r}"
            )
        place = int(words[1])
        found[SPLITS[(place >= VALIDATION) + (place >= TEST)]].append(int(words[0]))
    return found


def distribute(folder: Path, numbers: dict[str, list[int]], output: Path) -> dict[str, int]:
    """Copy files `NUMBER.*` into a folder for each part, numbered from 0 in it, as published.

    Args:
        folder: of photos or label maps.
        numbers: by part; see `split`. One without a file is left out.
        output: a folder to write to. Photos and label maps that have the same numbers keep the same
            names.

    Returns:
        How many files each part got.

    Raises:
        ValueError: the folder holds none of them, or two files of one number.
    """
    files: dict[int, Path] = {}
    for path in pictures.find_images(folder):
        if path.stem.isdigit() and files.setdefault(int(path.stem), path) != path:
            raise ValueError(f"{folder}: expected one file of each number, got {path.name} twice")
    if not files.keys() & {number for part in numbers.values() for number in part}:
        raise ValueError(f"{folder}: expected files such as 0.png of the photos in the mapping")
    counts = {}
    for name, part in numbers.items():
        (Path(output) / name).mkdir(parents=True, exist_ok=True)
        found = [files[number] for number in part if number in files]
        for i, path in enumerate(found):
            shutil.copy2(path, Path(output) / name / f"{i}{path.suffix}")
        counts[name] = len(found)
    return counts


def decode(
    mask_vae: MaskVAE,
    folder: Path,
    output: Path,
    *,
    lambda_inter: float = 2.5,
    seed: int = 0,
    device: str = "cpu",
) -> int:
    """Write the masks between each label map and another one, and beyond: `inter/`, `outer/`.

    Args:
        mask_vae: trained.
        folder: of label maps.
        output: a folder to write to; `train --stage 2` takes its two by --inter and --outer.
        lambda_inter: see `training.interpolated`.
        seed: of the other one.
        device: to compute on.

    Returns:
        How many label maps there are.

    Raises:
        ValueError: no label maps, or a number that is no label.
    """
    mask_vae = mask_vae.to(device).eval()
    data = LabelledFaces(
        {"labels": folder},
        mask_vae.nc,
        Preparation(mask_vae.size, "stretch"),
        references=True,
        seed=seed,
    )
    for i in range(len(data)):
        sample = data[0, i, i]
        given = (sample[name][None].to(device) for name in ("labels", "reference"))
        masks = interpolated(mask_vae, *given, lambda_inter)
        name = Path(sample["name"]).relative_to(folder).with_suffix(".png")
        for part, mask in zip(("inter", "outer"), masks, strict=True):
            picture = Image.fromarray(mask[0, 0].cpu().numpy().astype(np.uint8))
            pictures.write(picture, Path(output) / part / name)
    return len(data)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torchext.models.maskgan.prepare",
        description="label maps to train on, from CelebAMask-HQ's files",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("merge", help="one label map of each photo's masks of parts")
    action.add_argument("annotations", type=Path, help="CelebAMask-HQ-mask-anno")
    action = actions.add_parser("split", help="copy files into train, validation and test")
    action.add_argument("mapping", type=Path, help="CelebA-HQ-to-CelebA-mapping.txt")
    action.add_argument("folder", type=Path, help="of photos, or of label maps")
    action = actions.add_parser("decode", help="the masks of stage 2, once for all epochs")
    action.add_argument("folder", type=Path, help="of label maps")
    action.add_argument("--checkpoint", type=Path, required=True, help="with a trained MaskVAE")
    action.add_argument("--seed", type=int, default=0, help="of the other masks")
    action.add_argument("--device", default="cpu")
    for action in actions.choices.values():
        action.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.action == "merge":
            print(f"{merge_data_set(options.annotations, options.output)} label maps")
        elif options.action == "split":
            counts = distribute(options.folder, split(options.mapping), options.output)
            print(", ".join(f"{name}: {count}" for name, count in counts.items()))
        else:
            networks, config = papers.load(options.checkpoint, PAPER)
            if "mask_vae" not in networks:
                raise ValueError(f"{options.checkpoint}: expected a MaskVAE, found {[*networks]}")
            count = decode(
                networks["mask_vae"],
                options.folder,
                options.output,
                lambda_inter=config.loss.lambda_inter,
                seed=options.seed,
                device=options.device,
            )
            print(f"{count} label maps")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
