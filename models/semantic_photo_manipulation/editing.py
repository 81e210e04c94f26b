"""A photo under edits: strokes in Python, and files on the command line."""

import argparse
import contextlib
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from .. import pictures
from ..files import read_mask
from ..geometry import Field, Geometry
from ..inpainting import check_not_read
from ..vgg import VGGFeatures
from .fitting import (
    VGG_TAP,
    ImageSpecificGenerator,
    Progress,
    adapt,
    frozen,
    refine,
    tune,
)
from .networks import CODE_LAYER, Config, HybridLayerNormEncoder, ProgressiveGenerator
from .ranking import QUANTILE, read_classes, unit_quantiles
from .strokes import (
    INTENSITIES,
    UNITS,
    Stroke,
    add,
    edit_region,
    edited,
    keep_mask,
    remove,
    restyle,
    style_values,
    without,
)
from .training import preparation

Variant = Literal["image", "interactive", "none"]
VARIANTS = ("image", "interactive", "none")
ACTIONS = ("add", "remove", "restyle")


class PhotoEditor:
    """One photo: its code, found once, and strokes that are added and taken back.

    Args:
        generator, encoder: trained.
        photo: (1,3,H,H) in [0,1], of the generator's resolution.
        config: of the paper (default: the published values).
        vgg: VGG-16 with the tap relu4_2; needed unless the option vgg_weight is 0.
        code: (1,C,8,8), found earlier; without it the photo is encoded and refined here.
        refine_steps: instead of the option.
        progress: called after each step of a fit with its number and its losses.

    Attributes:
        photo: in [-1,1].
        code: r_4 of the photo.
        strokes: in their order.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    def __init__(
        self,
        generator: ProgressiveGenerator,
        encoder: HybridLayerNormEncoder | None,
        photo: Tensor,
        config: Config | None = None,
        *,
        vgg: VGGFeatures | None = None,
        code: Tensor | None = None,
        refine_steps: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        if (encoder is None) == (code is None):
            raise ValueError("encoder, code: expected one of them")
        self.generator = frozen(generator)
        self.config = config or Config()
        self.vgg = vgg
        side = generator.resolution
        if tuple(photo.shape) != (1, 3, side, side):
            raise ValueError(
                f"photo: expected the shape (1, 3, {side}, {side}), got {tuple(photo.shape)}"
            )
        pictures.check_image_and_mask(photo, torch.ones_like(photo[:, :1]))
        self.photo = photo * 2 - 1
        if code is None:
            how = {"vgg": vgg, "steps": refine_steps, "progress": progress}
            code = refine(self.generator, encoder, self.photo, self.config, **how)
        elif tuple(code.shape) != (1, *generator.shape(CODE_LAYER)):
            raise ValueError(
                f"code: expected the shape {(1, *generator.shape(CODE_LAYER))}, got"
                f" {tuple(code.shape)}"
            )
        self.code = code
        self.strokes: list[Stroke] = []
        self.tuned: ImageSpecificGenerator | None = None

    def paint(self, stroke: Stroke) -> None:
        """Add a stroke; a later one covers an earlier one.

        Raises:
            ValueError: it is not of the photo's size, or names a unit that the code has not.
        """
        if stroke.region.shape[2:] != self.photo.shape[2:]:
            raise ValueError(
                f"region: expected the photo's size {tuple(self.photo.shape[2:])}, got"
                f" {tuple(stroke.region.shape[2:])}"
            )
        stroke.maps(self.code.shape[1])
        self.strokes.append(stroke)

    def undo(self) -> Stroke:
        """Take the last stroke back; returns it.

        Raises:
            IndexError: there is none.
        """
        return self.strokes.pop()

    @property
    def edited_code(self) -> Tensor:
        """z_e, (1,C,8,8)."""
        return edited(self.code, self.strokes)

    @property
    def keep(self) -> Tensor:
        """(1,1,H,H) in [0,1], 1 outside the strokes; all 1 without any."""
        if not self.strokes:
            return torch.ones_like(self.photo[:, :1])
        given = self.config.loss
        return keep_mask(edit_region(self.strokes), given.dilation, given.sigma).to(self.photo)

    @torch.no_grad()
    def preview(self) -> Tensor:
        """What the generator itself makes of the edited code, (1,3,H,H) in [0,1]; no fit."""
        return (self.generator.run(self.edited_code, CODE_LAYER + 1) + 1) / 2

    def render(
        self,
        *,
        layers: Sequence[int] | None = None,
        additive: bool = False,
        steps: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Tensor:
        """The final picture (section 6), (1,3,H,H) in [0,1]: a generator fitted to this edit.

        Args: those of `fitting.adapt`.
        """
        code, keep = self.edited_code, self.keep
        how = {"layers": layers, "additive": additive, "steps": steps, "seed": seed}
        specific = adapt(
            self.generator, code, self.photo, keep, self.config, progress=progress, **how
        )
        with torch.no_grad():
            return (specific(code) + 1) / 2

    def prepare(self, *, steps: int | None = None, progress: Progress | None = None) -> None:
        """Fit the interactive generator (6.1), which needs no edit; `show` is then one forward."""
        how = {"vgg": self.vgg, "steps": steps, "progress": progress}
        self.tuned = tune(self.generator, self.code, self.photo, self.config, **how)

    @torch.no_grad()
    def show(self, *, masked: Collection[int] | None = None) -> Tensor:
        """The interactive picture, (1,3,H,H) in [0,1].

        Args:
            masked: see `fitting.ImageSpecificGenerator`.

        Raises:
            ValueError: `prepare` was not called.
        """
        if self.tuned is None:
            raise ValueError("show: expected a call of prepare before")
        mask = edit_region(self.strokes).to(self.photo) if self.strokes else None
        return (self.tuned(self.edited_code, mask, masked=masked) + 1) / 2

    def composite(self, picture: Tensor) -> Tensor:
        """A picture of this photo in [0,1], with the photo's own pixels outside the strokes."""
        return pictures.composite((self.photo + 1) / 2, self.keep, picture)


# --- files ----------------------------------------------------------------------------------------

_FILES = ("mask", "reference", "reference_mask")
STROKE_KEYS = {*_FILES, "action", "units", "class", "count", "strength", "alpha", "pooling"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", type=Path, help="a picture of any size; its middle square is used")
    parser.add_argument(
        "mask", type=Path, nargs="?", help="a picture of that size; white = painted"
    )
    parser.add_argument(
        "--strokes",
        type=Path,
        help='a JSON file of several strokes, in their order: [{"mask": FILE, "action": "add",'
        ' "units": [5, 9], ...}, ...]; keys are the options below, files beside the JSON file',
    )
    # `action` is what the command line calls train, edit and info.
    parser.add_argument(
        "--action", dest="does", choices=ACTIONS, default="remove", help="(default: remove)"
    )
    parser.add_argument("--units", help="of the code, such as 5,9,120")
    parser.add_argument("--class", dest="class_", metavar="NAME", help="of --classes, for --units")
    parser.add_argument(
        "--classes", type=Path, help="a JSON file of classes: their units and values"
    )
    parser.add_argument(
        "--count",
        type=int,
        help=f"of a class's units, the strongest (default: {UNITS}); the published demo has"
        f" {INTENSITIES['low']}, {INTENSITIES['medium']} and {INTENSITIES['high']}",
    )
    parser.add_argument(
        "--exclude", default="", metavar="UNITS", help="never edit these (churches: 418)"
    )
    parser.add_argument("--strength", type=float, default=1.0, help="of what is added (default: 1)")
    parser.add_argument("--alpha", type=float, default=1.0, help="less than 1 blends (default: 1)")
    parser.add_argument(
        "--pooling",
        choices=("max", "average"),
        default="max",
        help="of the mask to the code's cells (default: max, any painted pixel counts)",
    )
    parser.add_argument("--reference", type=Path, help="a photo whose style restyle takes")
    parser.add_argument("--reference-mask", type=Path, help="where in it; white = there")
    parser.add_argument(
        "--variant",
        choices=VARIANTS,
        default="image",
        help="a generator fitted to this edit, one fitted before it, or none (default: image)",
    )
    parser.add_argument("--steps", type=int, help="of each fit of the generator (default: 1000)")
    parser.add_argument("--refine-steps", type=int, help="of the photo's code (default: 3000)")
    parser.add_argument("--samples", type=int, default=200, help="of which --action add without"
                        " --classes takes the units' 0.99 quantiles (default: 200)")  # fmt: skip
    parser.add_argument("--vgg", type=Path, help="torchvision's VGG-16 (default: PyTorch's cache)")
    parser.add_argument(
        "--without-vgg", action="store_true", help="fit by pixels alone; no VGG-16 is needed"
    )
    parser.add_argument(
        "--paste",
        action="store_true",
        help="write the photo at its own size, changed around the strokes alone",
    )
    parser.add_argument(
        "--perturbed",
        choices=("second", "all"),
        default="second",
        help="layers behind the code: every second one from 8 on, as published, or all from 5 on,"
        " the paper's (default: second)",
    )
    parser.add_argument("--additive", action="store_true", help="perturbations are added")
    parser.add_argument("--seed", type=int, default=0, help="of the fit")


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for bad values of `add_arguments`."""
    if not hasattr(options, "strokes"):  # of train
        return
    if (options.mask is None) == (options.strokes is None):
        raise ValueError("mask: expected a mask or --strokes, one of them")
    for name, least in (("count", 1), ("steps", 0), ("refine_steps", 0), ("samples", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            shown = name.replace("_", "-")
            raise ValueError(f"--{shown}: expected at least {least}, got {value}")
    if options.seed < 0:
        raise ValueError(f"--seed: expected at least 0, got {options.seed}")
    _numbers("--exclude", options.exclude)
    if options.mask is not None:
        _check_stroke(_given(options), "stroke")


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(",") if word)
    except ValueError:
        raise ValueError(f"{name}: expected numbers such as 5,9,120, got {text!r}") from None


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The stroke that the options tell of, as one of a JSON file."""
    stroke = {
        "mask": options.mask,
        "action": options.does,
        "class": options.class_,
        "count": options.count,
        "strength": options.strength,
        "alpha": options.alpha,
        "pooling": options.pooling,
        "reference": options.reference,
        "reference_mask": options.reference_mask,
    }
    if options.units is not None:
        stroke["units"] = list(_numbers("--units", options.units))
    return {name: value for name, value in stroke.items() if value is not None}


def read_strokes(path: Path) -> list[dict[str, Any]]:
    """Strokes of a JSON file; names of files are taken from its folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    try:
        content = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON ({error})") from None
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: expected a list of strokes, at least one")
    strokes = []
    for i, given in enumerate(content):
        if not isinstance(given, dict):
            raise ValueError(f"{path}, stroke {i}: expected an object, got {given!r}")
        stroke = dict(given)
        for name in _FILES:
            if name in stroke:
                stroke[name] = Path(path).parent / str(stroke[name])
        _check_stroke(stroke, f"{path}, stroke {i}")
        strokes.append(stroke)
    return strokes


def _check_stroke(stroke: Mapping[str, Any], where: str) -> None:
    if unknown := stroke.keys() - STROKE_KEYS:
        raise ValueError(f"{where}: expected the keys {sorted(STROKE_KEYS)}, got {min(unknown)!r}")
    if "mask" not in stroke:
        raise ValueError(f"{where}: expected a mask")
    if stroke.get("action", "remove") not in ACTIONS:
        raise ValueError(f"{where}: action: expected one of {ACTIONS}, got {stroke['action']!r}")
    if ("units" in stroke) == ("class" in stroke):
        raise ValueError(f"{where}: units, class: expected one of them")
    if "units" in stroke:
        units = stroke["units"]
        plain = isinstance(units, list) and all(type(unit) is int for unit in units)
        if not plain or not units or min(units) < 0:
            raise ValueError(f"{where}: units: expected numbers from 0 on, got {units!r}")
    for name, kinds in (("count", (int,)), ("strength", (int, float)), ("alpha", (int, float))):
        value = stroke.get(name, 1)
        if type(value) not in kinds or value < 0:
            raise ValueError(f"{where}: {name}: expected a number from 0 on, got {value!r}")
    restyles = stroke.get("action") == "restyle"
    for name in _FILES[1:]:
        if (name in stroke) != restyles:
            wanted = "expected one, for restyle" if restyles else "expected none but for restyle"
            raise ValueError(f"{where}: {name.replace('_', ' ')}: {wanted}")


def window(source: tuple[int, int], config: Config) -> Geometry:
    """What of a picture of some width and height is edited: the middle square, scaled."""
    return preparation(config).draw(source, np.random.default_rng(0))


def read_region(path: Path, source: tuple[int, int], config: Config) -> Tensor:
    """A mask (1,1,H,H), 0 or 1, of a picture of some width and height.

    Raises:
        ValueError: it cannot be read, is of another size, or paints nothing that is edited.
    """
    values = read_mask(path).white
    if values.shape[::-1] != source:
        raise ValueError(
            f"{path}: expected the photo's size, {source[0]} x {source[1]} pixels, got"
            f" {values.shape[1]} x {values.shape[0]}"
        )
    picture = Image.fromarray((values * 255).astype(np.uint8))
    region = Field("grey").tensor(picture, window(source, config))[None]
    # Thin strokes on large photos: any painted pixel is enough.
    region = (region > 0).to(region)
    if not region.any():
        raise ValueError(f"{path}: expected something painted in the photo's middle square")
    return region


def edit(networks: dict[str, nn.Module], config: Config, options: argparse.Namespace) -> None:
    """Write an edited photo."""
    for name in ("generator", "encoder"):
        if name not in networks:
            raise ValueError(
                f"{options.checkpoint}: expected generator and encoder, found {[*networks]}; a"
                " folder of both published files will do"
            )
    generator, encoder = networks["generator"], networks["encoder"]
    given = [_given(options)] if options.strokes is None else read_strokes(options.strokes)
    for path in (stroke[name] for stroke in given for name in stroke.keys() & {*_FILES}):
        check_not_read(options.output, argparse.Namespace(stroke=path))
    units = _units(given, options, generator.channels(CODE_LAYER))
    vgg = None
    if options.without_vgg or not config.loss.vgg_weight:
        config = replace(config, loss=replace(config.loss, vgg_weight=0.0))
    else:
        vgg = VGGFeatures(16, (VGG_TAP,)).load(options.vgg).to(options.device)
    source = pictures.read_photo(options.photo)
    geometry = window(source.size, config)
    photo = Field().tensor(pictures.to_picture(source.tensor()), geometry)[None]
    photo = photo.to(options.device)
    regions = [read_region(stroke["mask"], source.size, config).to(photo) for stroke in given]
    values = _values(given, units, networks, config, vgg, options)
    with _bar(f"code of {options.photo.name}") as progress:
        how = {"vgg": vgg, "refine_steps": options.refine_steps, "progress": progress}
        editor = PhotoEditor(generator, encoder, photo, config, **how)
    for stroke, region, (chosen, _), value in zip(given, regions, units, values, strict=True):
        how = {name: stroke[name] for name in ("alpha", "pooling") if name in stroke}
        action = stroke.get("action", "remove")
        if action == "remove":
            editor.paint(remove(region, chosen, **how))
        elif action == "restyle":
            editor.paint(restyle(region, chosen, value, **how))
        else:
            how["strength"] = stroke.get("strength", 1.0)
            editor.paint(add(region, chosen, value, **how))
    result = _rendered(editor, options)
    outside = ((result - photo).abs() * editor.keep).sum() / (3 * editor.keep.sum()).clamp(min=1)
    print(f"mean difference outside the strokes: {outside:.4f} of 1")
    if options.paste:
        pasted = paste(source, geometry, result, editor.keep)
        for note in pictures.write_photo(pasted, options.output):
            print(f"warning: {note}", file=sys.stderr)
    else:
        pictures.write(pictures.to_picture(result[0]), options.output)
    print(f"wrote {options.output}")


def _units(
    strokes: Sequence[Mapping[str, Any]], options: argparse.Namespace, channels: int
) -> list[tuple[tuple[int, ...], Tensor | None]]:
    """Of each stroke its units, and the values of its class, if it names one."""
    classes = {} if options.classes is None else read_classes(options.classes)
    excluded = _numbers("--exclude", options.exclude)
    found = []
    for stroke in strokes:
        if "units" in stroke:
            units, values = without(stroke["units"], excluded), None
        elif stroke["class"] in classes:
            units, values = classes[stroke["class"]]
            units = without(units, excluded)[: stroke.get("count", UNITS)]
        else:
            raise ValueError(
                f"--class: expected one of {sorted(classes)} in --classes, got {stroke['class']!r}"
            )
        if not units or max(units) >= channels:
            raise ValueError(
                f"units: expected some from 0 to {channels - 1} that are not excluded, got {units}"
            )
        found.append((units, values))
    return found


def _values(
    strokes: Sequence[Mapping[str, Any]],
    units: Sequence[tuple[tuple[int, ...], Tensor | None]],
    networks: Mapping[str, nn.Module],
    config: Config,
    vgg: VGGFeatures | None,
    options: argparse.Namespace,
) -> list[Tensor | None]:
    """Of each stroke the values (C,) that units take: of the class, a style, or quantiles."""
    generator = networks["generator"]
    codes: dict[Path, tuple[Tensor, tuple[int, int]]] = {}
    quantiles: Tensor | None = None
    found: list[Tensor | None] = []
    for stroke, (chosen, values) in zip(strokes, units, strict=True):
        action = stroke.get("action", "remove")
        if action == "restyle":
            path = stroke["reference"]
            if path not in codes:
                picture = pictures.read_image(path)
                photo = Field().tensor(picture, window(picture.size, config))[None]
                photo = photo.to(options.device) * 2 - 1
                with _bar(f"code of {path.name}") as progress:
                    how = {"vgg": vgg, "steps": options.refine_steps, "progress": progress}
                    code = refine(generator, networks["encoder"], photo, config, **how)
                codes[path] = code, picture.size
            code, size = codes[path]
            region = read_region(stroke["reference_mask"], size, config).to(code)
            values = style_values(code, region, chosen)
        elif action == "add" and values is None:
            if quantiles is None:
                quantiles = unit_quantiles(generator, samples=options.samples)
                print(f"units take their {QUANTILE} quantile over {options.samples} samples")
            values = quantiles
        found.append(values)
    return found


def _rendered(editor: PhotoEditor, options: argparse.Namespace) -> Tensor:
    if options.variant == "none":
        return editor.preview()
    if options.variant == "interactive":
        with _bar("generator of the photo") as progress:
            editor.prepare(steps=options.steps, progress=progress)
        return editor.show()
    layers = range(CODE_LAYER + 1, editor.generator.layers + 1)
    how = {"additive": options.additive, "steps": options.steps, "seed": options.seed}
    how["layers"] = layers if options.perturbed == "all" else None
    with _bar("generator of the edit") as progress:
        return editor.render(progress=progress, **how)


@contextlib.contextmanager
def _bar(text: str) -> Iterator[Progress]:
    """A progress bar of a fit; gives what the fit calls after each step."""
    with tqdm(desc=text, disable=None, leave=False) as bar:

        def progress(step: int, losses: Mapping[str, float]) -> None:
            bar.update()
            shown = {name: f"{value:.3g}" for name, value in losses.items()}
            bar.set_postfix(shown, refresh=False)

        yield progress


def paste(
    source: pictures.Photo, geometry: Geometry, picture: Tensor, keep: Tensor
) -> pictures.Photo:
    """A photo at its own size with an edited picture of its middle square in it.

    Args:
        source: the photo.
        geometry: of its middle square.
        picture: (1,3,H,H) in [0,1].
        keep: (1,1,H,H) in [0,1]; where it is 1 the photo's own values stay, bit for bit.
    """
    width, height = source.size
    left, top, right, bottom = geometry.window
    across, down = width / geometry.scaled[0], height / geometry.scaled[1]
    left, right = round(left * across), round(right * across)
    top, bottom = round(top * down), round(bottom * down)
    size = (bottom - top, right - left)
    how = {"size": size, "antialias": True, "align_corners": False}
    large = F.interpolate(picture.float().cpu(), mode="bicubic", **how)
    kept = F.interpolate(keep.float().cpu(), mode="bilinear", **how)
    # Interpolation rounds: what was kept as a whole stays so.
    kept = torch.where(kept > 1 - 1e-4, 1.0, kept.clamp(0, 1))
    around = (left, width - right, top, height - bottom)
    whole, known = F.pad(large, around), F.pad(kept, around, value=1)
    mixed = known * source.tensor()[None] + (1 - known) * whole
    return source.with_fill(mixed[0], known[0])
