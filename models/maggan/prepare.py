"""`python -m torchext.models.maggan.prepare`: label maps to train on, and TensorFlow's checkpoints.

parse: label maps of photos, by the face parser. convert: STGAN's checkpoint of TensorFlow as one of
ours. initialise: a MagGAN generator whose encoder and transfer units are those of an STGAN.
"""

import argparse
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import checkpoint, papers, pictures
from ..paper import Networks, configure
from . import PAPER
from .checkpoint import is_tensorflow, load_published, options
from .config import STGAN, Config
from .networks import networks
from .parser import SIZE, BiSeNet, parse
from .tensorflow import prefix_of, read_variables


def parse_folder(
    parser: BiSeNet, photos: Path, output: Path, *, size: int = SIZE, device: str = "cpu"
) -> int:
    """Write the label map of every photo of a folder, `NAME.png`, in the same subfolder.

    Args:
        parser: trained.
        photos: a folder; a file that cannot be read is an error.
        output: a folder to write to.
        size: see `parser.parse`.
        device: to compute on.

    Returns:
        How many were written.

    Raises:
        ValueError: no photos, or one that cannot be read.
    """
    parser = parser.to(device).eval()
    found = pictures.find_images(photos)
    for path in found:
        photo = pictures.to_tensor(pictures.read_image(path))[None].to(device)
        labels = parse(parser, photo, size=size)
        picture = Image.fromarray(labels[0, 0].cpu().numpy().astype(np.uint8))
        pictures.write(picture, Path(output) / path.relative_to(photos).with_suffix(".png"))
    return len(found)


def read_tensorflow(path: Path) -> dict[str, Any]:
    """STGAN's or its classifier's variables: of a checkpoint, or arrays by name in an .npz.

    Args:
        path: one of a checkpoint's files (`X.index`, ...) or what their names begin with, an .npz,
            or another file of arrays or tensors by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, or holds none of these variables.
    """
    prefix = prefix_of(path)
    variables: Mapping[str, Any]
    if prefix is not None:
        variables = read_variables(prefix)
    elif Path(path).suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as archive:
                variables = {name: archive[name] for name in archive.files}
        except (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: cut off, or no archive of arrays ({error})") from None
    else:
        variables = checkpoint.load_published(path)
    if not is_tensorflow(variables):
        shown = ", ".join([*variables][:3]) or "nothing"
        raise ValueError(
            f"{path}: expected variables of STGAN such as Genc/Conv/weights, found {shown}"
        )
    return {name: torch.as_tensor(value) for name, value in variables.items()}


def from_tensorflow(
    variables: Mapping[str, Any], source: object, changes: Mapping[str, Any] | None = None
) -> tuple[Networks, Config]:
    """Networks of STGAN from variables of TensorFlow, and their configuration.

    Args:
        variables: see `read_tensorflow`.
        source: named in errors.
        changes: options that shapes do not tell, such as stu_state.

    Raises:
        ValueError: they do not fit.
    """
    told = STGAN | options(variables) | dict(changes or {})
    config = configure(Config, told)
    return load_published(variables, config, source), config


def initialised(
    found: Networks, config: Config, changes: Mapping[str, Any], source: object
) -> tuple[Networks, Config]:
    """A new MagGAN generator with the encoder and the transfer units of an STGAN generator.

    Args:
        found: of the STGAN.
        config: its options, of which those of the generator stay.
        changes: other options of MagGAN, such as the size.
        source: named in errors.

    Raises:
        ValueError: there is no generator, or it has no transfer units.
    """
    given = config.network
    if "generator" not in found or not given.use_stu or given.model != "stgan":
        raise ValueError(f"{source}: expected an STGAN generator with transfer units")
    same = ("attributes", "width", "layers", "stu_inject_layers", "shortcut_layers")
    same += ("inject_layers", "stu_kernel", "stu_norm", "stu_state")
    kept = {name: getattr(given, name) for name in same}
    whole = configure(Config, {**kept, **changes, "model": "maggan"})
    built = networks(whole, ["generator"])
    built["generator"].load_stgan(found["generator"])
    return built, whole


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torchext.models.maggan.prepare",
        description="label maps to train on, and checkpoints of TensorFlow",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("parse", help="label maps of photos, by the face parser")
    action.add_argument("photos", type=Path, help="a folder of photos of faces")
    action.add_argument("--checkpoint", type=Path, required=True, help="79999_iter.pth, or ours")
    action.add_argument("--size", type=int, help="of what it sees (default: it was trained on)")
    action.add_argument("--device", default="cpu")
    action.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    texts = {
        "convert": "STGAN's checkpoint of TensorFlow, or its classifier's, as one of ours",
        "initialise": "a MagGAN generator with an STGAN's encoder and transfer units",
    }
    for name, text in texts.items():
        action = actions.add_parser(name, help=text)
        action.add_argument(
            "file",
            type=Path,
            help="one of the checkpoint's files (X.index, ...), or its variables in an .npz"
            + ("" if name == "convert" else ", or a converted one"),
        )
        action.add_argument("-o", "--output", type=Path, required=True, help="a file to write")
        action.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="options that the file does not tell, such as stu_state",
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        if given.action == "parse":
            found, config = papers.load(given.checkpoint, PAPER)
            if "parser" not in found:
                raise ValueError(f"{given.checkpoint}: expected a face parser, found {[*found]}")
            size = config.schedule.parser_size if given.size is None else given.size
            how = {"size": size, "device": given.device}
            count = parse_folder(found["parser"], given.photos, given.output, **how)
            print(f"{count} label maps")
            return 0
        changes = {}
        for setting in given.set:
            name, separator, value = setting.partition("=")
            if not separator:
                raise ValueError(f"--set: expected NAME=VALUE, got {setting!r}")
            changes[name] = value
        if given.output.suffix != ".safetensors":
            raise ValueError(
                f"--output: expected a name such as stgan.safetensors, got {given.output}"
            )
        ours = given.action == "initialise" and prefix_of(given.file) is None
        if ours and given.file.suffix == ".safetensors" and checkpoint.is_ours(given.file):
            found, config = papers.load(given.file, PAPER)
        else:
            of_file = changes if given.action == "convert" else {}
            found, config = from_tensorflow(read_tensorflow(given.file), given.file, of_file)
        if given.action == "initialise":
            found, config = initialised(found, config, changes, given.file)
        papers.save(given.output, PAPER, config, found)
        print(f"wrote {given.output}: {', '.join(found)}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
