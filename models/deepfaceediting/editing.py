"""Faces edited part by part: geometry from sketches or photos, appearance from photos."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import inpainting, pictures
from ..checks import check_images
from ..geometry import Field
from .config import Config
from .data import preparation
from .drawing import NEIGHBOURS, project, read_bank
from .networks import canvas
from .parts import PARTS, Box

Source = Literal["photo", "sketch"]
GENDERS = ("female", "man")
BRANCH = {  # networks of each branch, by what they do
    "fine": ("generator", "fusion"),
    "coarse": ("coarse_generator", "coarse_fusion"),
}


class Geometry(NamedTuple):
    """What a part's geometry is taken from.

    Attributes:
        picture: (N,3,S,S) in [0,1], the whole picture.
        source: a "photo" or a "sketch".
    """

    picture: Tensor
    source: Source = "photo"


class FaceEditor:
    """Makes photos of parts' geometries and appearances.

    Networks that an edit needs and that are missing are named by an error.

    Args:
        networks: by the names of a configuration.
        places: the parts' boxes; see `parts.boxes`.
        size: S, of photos and sketches.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], places: Mapping[str, Box], size: int
    ) -> None:
        self.networks = dict(networks)
        self.places = dict(places)
        self.size = size

    def _network(self, name: str) -> nn.Module:
        if name not in self.networks:
            raise ValueError(
                f"networks: expected {name} for this edit, found {', '.join(self.networks)}"
            )
        return self.networks[name]

    def _crop(self, name: str, picture: Tensor, part: str) -> Tensor:
        """A part of a picture in [-1,1]."""
        check_images(name, picture, 3)
        if picture.shape[2:] != (self.size, self.size):
            raise ValueError(
                f"{name}: expected a height and width of {self.size}, got"
                f" {tuple(picture.shape[2:])}"
            )
        return self.places[part].crop(picture * 2 - 1).contiguous()

    def geometry(self, part: str, given: Geometry) -> Tensor:
        """The features of a part's geometry."""
        if given.source not in ("photo", "sketch"):
            raise ValueError(f"source: expected 'photo' or 'sketch', got {given.source!r}")
        kind = "image_encoder" if given.source == "photo" else "sketch_encoder"
        crop = self._crop("geometry", given.picture, part)
        return self._network(f"{kind}_{part}")(crop)

    @torch.no_grad()
    def code(self, part: str, sketch: Tensor) -> Tensor:
        """The codes (N,K) of a part of sketches; those of many real sketches make a bank."""
        crop = self._crop("sketch", sketch, part)[:, :1]
        return self._network(f"drawing_encoder_{part}")(crop)

    def coarse_geometry(
        self, part: str, sketch: Tensor, bank: Tensor | None, amount: float
    ) -> Tensor:
        """The same of a coarse sketch, whose code is projected onto those of a bank."""
        code = self.code(part, sketch)
        if amount:
            if bank is None:
                raise ValueError(f"banks: expected one for {part}, as its amount is {amount:g}")
            code = project(code, bank.to(code), amount)
        drawn = self._network(f"drawing_decoder_{part}")(code)
        return self._network(f"coarse_encoder_{part}")(drawn)

    @torch.no_grad()
    def __call__(
        self, geometry: Mapping[str, Geometry], appearance: Mapping[str, Tensor]
    ) -> Tensor:
        """A photo of these geometries in these appearances.

        Args:
            geometry: of each part.
            appearance: for each part a photo (N or 1,3,S,S) in [0,1], of which its box counts.

        Returns:
            (N,3,S,S) in [0,1]. All of it is generated.

        Raises:
            TypeError, ValueError: a picture does not fit, or a part or network is missing.
        """
        _check_parts("geometry", geometry)
        return self._made("fine", lambda part: self.geometry(part, geometry[part]), appearance)

    @torch.no_grad()
    def of_coarse_sketch(
        self,
        sketch: Tensor,
        appearance: Mapping[str, Tensor],
        *,
        banks: Mapping[str, Tensor] | None = None,
        amount: float | Mapping[str, float] = 1.0,
    ) -> Tensor:
        """A photo of a coarse sketch, refined towards what faces look like.

        Args:
            sketch: (N,3,S,S) in [0,1], of which the first channel counts.
            appearance: as above.
            banks: codes of real sketches for each part; see `drawing.read_bank`.
            amount: of the refinement, 0 (the sketch as it is) to 1, of all or each of the parts.

        Returns:
            (N,3,S,S) in [0,1].

        Raises:
            TypeError, ValueError: as above, or an amount outside.
        """
        amounts = dict.fromkeys(PARTS, amount) if not isinstance(amount, Mapping) else dict(amount)
        _check_parts("amount", amounts)
        banks = banks or {}
        return self._made(
            "coarse",
            lambda part: self.coarse_geometry(part, sketch, banks.get(part), amounts[part]),
            appearance,
        )

    def _made(self, branch: str, geometry: Any, appearance: Mapping[str, Tensor]) -> Tensor:
        _check_parts("appearance", appearance)
        kind, fusion = BRANCH[branch]
        network = self._network(fusion)
        generators: dict[str, Any] = {part: self._network(f"{kind}_{part}") for part in PARTS}
        fused = canvas(
            generators,
            self.places,
            geometry,
            lambda part: generators[part].appearance(
                self._crop("appearance", appearance[part], part)
            ),
        )
        return (network(fused) + 1) / 2

    @torch.no_grad()
    def extract(self, photo: Tensor) -> Tensor:
        """The sketch (N,3,S,S) in [0,1] of a photo (N,3,S,S) in [0,1]."""
        network = self._network("extractor")
        return (network(self._crop("photo", photo, "bg")) + 1) / 2


def _check_parts(name: str, given: Mapping[str, Any]) -> None:
    if given.keys() != set(PARTS):
        raise ValueError(f"{name}: expected one for each of {PARTS}, got {tuple(given)}")


# --- files ----------------------------------------------------------------------------------------


class OfParts(NamedTuple):
    """An option's value for all parts, or for one."""

    parts: tuple[str, ...]
    value: str


def of_parts(text: str) -> OfParts:
    """VALUE, or PART=VALUE."""
    part, separator, value = text.partition("=")
    return OfParts((part,), value) if separator and part in PARTS else OfParts(PARTS, text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photo",
        type=Path,
        help="an aligned photo, of which the middle square is taken: geometry and appearance of"
        " all parts that are not given otherwise",
    )
    options = {
        "sketch": "geometry from a sketch, dark lines on white",
        "geometry": "geometry from another photo",
        "appearance": "appearance from another photo",
    }
    for name, meaning in options.items():
        parser.add_argument(
            f"--{name}",
            type=of_parts,
            action="append",
            default=[],
            metavar="PART=FILE",
            help=f"{meaning}: FILE for all parts, or for one of {', '.join(PARTS)}; may be given"
            " several times, the last one counts",
        )
    parser.add_argument(
        "--coarse", type=Path, help="geometry of all parts from a coarse sketch, refined"
    )
    parser.add_argument(
        "--banks",
        type=Path,
        help="with --coarse: the folder of files such as man_mouth_feature, codes of real sketches",
    )
    parser.add_argument(
        "--gender",
        choices=GENDERS,
        default=GENDERS[0],
        help="which of the banks (default: %(default)s)",
    )
    parser.add_argument(
        "--refine",
        type=of_parts,
        action="append",
        default=[],
        metavar="PART=AMOUNT",
        help="with --coarse: how much all parts or one are refined, 0 to 1 (default: 1)",
    )
    parser.add_argument(
        "--extract", action="store_true", help="write the photo's sketch instead of an edit"
    )


def amounts(options: argparse.Namespace) -> dict[str, float]:
    """Of the refinement, by part.

    Raises:
        ValueError: no number from 0 to 1.
    """
    found = dict.fromkeys(PARTS, 1.0)
    for parts, text in options.refine:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise ValueError(f"--refine: expected a number from 0 to 1, got {text!r}")
        found |= dict.fromkeys(parts, value)
    return found


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for bad values of `add_arguments`."""
    if not hasattr(options, "coarse"):  # of training
        return
    given = [n for n in ("sketch", "geometry") if getattr(options, n)]
    if options.coarse is not None and given:
        raise ValueError(f"--coarse: expected it without --{given[0]}: all parts come from it")
    if options.coarse is None and (options.refine or options.banks is not None):
        name = "--refine" if options.refine else "--banks"
        raise ValueError(f"{name}: expected it with --coarse alone")
    if options.extract and (given or options.coarse is not None or options.appearance):
        raise ValueError("--extract: expected a photo alone, without anything to edit")
    refined = amounts(options)
    if options.coarse is not None and options.banks is None and any(refined.values()):
        raise ValueError("--banks: expected a folder, as --refine is above 0")
    for name in ("sketch", "geometry", "appearance"):
        for _, file in getattr(options, name):
            read = argparse.Namespace(**{name: Path(file)})
            inpainting.check_not_read(options.output, read)


def read_picture(path: Path, config: Config) -> Tensor:
    """(1,3,S,S) in [0,1]: the shorter side scaled to the size, and the middle square of that."""
    field = Field()
    picture = field.read(path)
    geometry = preparation(config).draw(picture.size, np.random.default_rng(0))
    return field.tensor(picture, geometry)[None]


def read_banks(folder: Path, gender: str, length: int, parts: Any) -> dict[str, Tensor]:
    """The banks of parts, from files as published.

    Raises:
        FileNotFoundError, ValueError: what `drawing.read_bank` raises, or too few rows.
    """
    banks = {}
    for part in parts:
        path = folder / f"{gender}_{part}_feature"
        banks[part] = read_bank(path, length)
        if len(banks[part]) < NEIGHBOURS:
            raise ValueError(f"{path}: expected at least {NEIGHBOURS} rows, got {len(banks[part])}")
    return banks


def edit(networks: dict[str, nn.Module], config: Config, options: argparse.Namespace) -> None:
    """Write the edited photo, or the photo's sketch."""
    given, device = config.network, options.device
    editor = FaceEditor(networks, given.boxes, given.size)

    def read(path: Path | str) -> Tensor:
        return read_picture(Path(path), config).to(device)

    photo = read(options.photo)
    appearance = dict.fromkeys(PARTS, photo)
    for parts, file in options.appearance:
        appearance |= dict.fromkeys(parts, read(file))
    if options.extract:
        result = editor.extract(photo)
    elif options.coarse is not None:
        refined = amounts(options)
        wanted = [part for part, amount in refined.items() if amount]
        banks = read_banks(options.banks, options.gender, given.code, wanted) if wanted else None
        result = editor.of_coarse_sketch(
            read(options.coarse), appearance, banks=banks, amount=refined
        )
    else:
        geometry = dict.fromkeys(PARTS, Geometry(photo))
        for name, source in (("geometry", "photo"), ("sketch", "sketch")):
            for parts, file in getattr(options, name):
                geometry |= dict.fromkeys(parts, Geometry(read(file), source))
        result = editor(geometry, appearance)
    # Whole shades, cut off and not rounded, as published.
    shades = (result[0].clamp(0, 1) * 255).floor() / 255
    pictures.write(pictures.to_picture(shades), options.output)
    print(f"wrote {options.output}")
