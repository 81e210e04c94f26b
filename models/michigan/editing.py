"""Hair of a photo in another shape, structure or look. Masks: **1 hair, 0 not**."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .. import pictures
from ..blocks import folded
from ..checks import check_images, check_mask
from ..files import read_mask
from ..orientation import (
    STROKE_THICKNESS,
    StrokeGuidance,
    draw_strokes,
    stroke_hole,
    stroke_orientation,
)
from .data import add_threshold, check_threshold, orientation_of
from .hair import complete_orientation, draw_noise
from .inpainting import OrientationInpainter, colour_code, two_channel
from .networks import DOUBLINGS, Config, HairGenerator, Network


class Hair(NamedTuple):
    """A photo and where its hair is.

    Attributes:
        photo: (1,3,H,W) in [0,1].
        mask: (1,1,H,W), values 0 and 1.
    """

    photo: Tensor
    mask: Tensor


class HairEditor:
    """Edits photos: any of shape, structure, appearance and background, the rest as it is.

    Spectral norms are folded into copies of the weights once.

    Args:
        generator: trained.
        orientation: fills the orientation where the hair is new. Without it an edit must leave
            nothing to be filled.
        strokes: fills it around strokes; needed for these alone.
        size: height and width at which both work.
    """

    def __init__(
        self,
        generator: HairGenerator,
        orientation: OrientationInpainter | None = None,
        strokes: OrientationInpainter | None = None,
        *,
        size: int = 256,
    ) -> None:
        self.generator = folded(generator)
        self.orientation = None if orientation is None else folded(orientation)
        self.strokes = None if strokes is None else folded(strokes)
        self.size = size

    @torch.no_grad()
    def __call__(
        self,
        target: Hair,
        *,
        shape: Tensor | None = None,
        structure: Hair | None = None,
        orientation: Tensor | None = None,
        strokes: Tensor | None = None,
        appearance: Hair | None = None,
        background: Tensor | None = None,
        seed: int = 0,
    ) -> Tensor:
        """The edited photo.

        Args:
            target: the photo to edit. Of what is not given its own is taken.
            shape: (1,1,H,W), where hair is wanted.
            structure: another photo, whose strands are followed.
            orientation: uint8 (1,1,H,W), in its place a map of angles, 0..255 for 0..pi, right
                where the structure's hair is (the target's without one).
            strokes: (1,1,H,W), 1 on strokes; the strands around them are to follow them.
            appearance: another photo, whose hair's look is taken.
            background: (1,3,H,W) in [0,1], the photo without hair, or with what comes to light
                where hair is taken away; without it the old hair is seen there.
            seed: of the noise.

        Returns:
            (1,3,H,W) in [0,1]. All of it is generated, the background too, as published; see
            `edited` for what to keep.

        Raises:
            TypeError, ValueError: an argument does not fit, or a network is missing.
        """
        photo, hair = target
        size = tuple(photo.shape[2:])
        source, look = structure or target, appearance or target
        shape = hair if shape is None else shape
        for name, pair in (("target", target), ("structure", source), ("appearance", look)):
            _check(name, *pair, size)
        seen = photo if background is None else background
        _check("background", seen, shape, size, "shape")
        shape = shape.to(photo)
        noise = draw_noise(*size, np.random.default_rng(seed)).to(photo)[None]
        directions = self._directions(source, shape, orientation, strokes, noise)
        y = self.generator(
            look.photo * 2 - 1, look.mask.to(photo), seen * 2 - 1, shape, directions, noise
        )
        return (y + 1) / 2

    def _directions(
        self,
        source: Hair,
        shape: Tensor,
        orientation: Tensor | None,
        strokes: Tensor | None,
        noise: Tensor,
    ) -> Tensor:
        """(1,2,H,W): sine and cosine in the wanted shape."""
        known = source.mask.to(shape) * shape
        if orientation is None:
            orientation = orientation_of(source.photo, source.mask.to(shape))
        elif orientation.shape != shape.shape or orientation.dtype != torch.uint8:
            raise ValueError(
                f"orientation: expected uint8 of the shape {tuple(shape.shape)}, got"
                f" {orientation.dtype} of {tuple(orientation.shape)}"
            )
        guidance = None
        if strokes is not None:
            check_mask("strokes", strokes, shape)
            guidance = guidance_of(strokes.to(shape), shape)
        if self.orientation is None and (shape * (1 - known)).any():
            raise ValueError(
                "shape: expected hair only where the structure has some, as there is no network"
                " that fills orientations"
            )
        if self.strokes is None and guidance is not None:
            raise ValueError("strokes: expected none, as there is no network that fills them in")
        rgb = colour_code(orientation).to(shape) * known
        rgb = complete_orientation(
            rgb,
            known,
            shape,
            noise,
            self.orientation,
            guidance=guidance,
            strokes_network=self.strokes,
            size=self.size,
        )
        return two_channel(rgb, shape)


def guidance_of(strokes: Tensor, hair: Tensor) -> StrokeGuidance:
    """`torchext.orientation.stroke_guidance` of strokes that are drawn already, (1,1,H,W)."""
    return StrokeGuidance(
        strokes * hair, stroke_orientation(strokes) * hair, stroke_hole(strokes) * hair
    )


def edited(hair: Tensor, shape: Tensor, margin: int = 0) -> Tensor:
    """(1,1,H,W): 1 where hair was or is, and so many pixels around it; 0 elsewhere."""
    if margin < 0:
        raise ValueError(f"margin: expected at least 0, got {margin}")
    side = 2 * margin + 1
    either = torch.maximum(hair, shape)
    for kernel, padding in (((side, 1), (margin, 0)), ((1, side), (0, margin))):
        either = F.max_pool2d(either, kernel, stride=1, padding=padding)
    return either


def _check(
    name: str, photo: Tensor, mask: Tensor, size: tuple[int, ...], mask_name: str = ""
) -> None:
    check_images(name, photo, 3)
    if len(photo) != 1 or tuple(photo.shape[2:]) != size:
        raise ValueError(
            f"{name}: expected one photo of the target's height and width {size}, got the shape"
            f" {tuple(photo.shape)}"
        )
    check_mask(mask_name or f"{name}'s mask", mask, photo)


# --- files ----------------------------------------------------------------------------------------


def working_size(source: tuple[int, int], network: Network) -> tuple[int, int]:
    """Height and width in which a picture of another width and height is edited.

    The width is the network's, the height follows in whole steps of its halvings. The published
    script makes everything square.
    """
    step = 2 ** DOUBLINGS[network.upsampling]
    padded = network.size * source[1] / source[0] + 2 * network.padding
    height = max(round(padded / step), 1) * step - 2 * network.padding
    while height < step // 2:
        height += step
    return height, network.size


def read_strokes(path: Path, source: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Strokes (1,1,H,W) from a file: a picture of them, or JSON.

    Args:
        path: a mask file, see `files.read_mask`; or a text such as
            [{"points": [[x, y], ...], "thickness": 6}, [[x, y], ...], ...].
        source: width and height of the photo, in whose pixels strokes are given; the thickness, 6
            where none is given, counts at the networks' size.
        size: (H,W).

    Raises:
        PictureError: a picture that cannot be read, or has another size.
        ValueError: a text that holds something else.
    """
    if path.suffix.lower() != ".json":
        return _resized_mask(_mask(path, 127, source, drawn=True), size)
    try:
        content = json.loads(path.read_text())
        strokes = [given if isinstance(given, dict) else {"points": given} for given in content]
        scale = (size[1] / source[0], size[0] / source[1])
        lines = [
            (
                [(float(x) * scale[0], float(y) * scale[1]) for x, y in stroke["points"]],
                float(stroke.get("thickness", STROKE_THICKNESS)),
            )
            for stroke in strokes
        ]
        drawn = [draw_strokes([points], *size, thickness=width) for points, width in lines]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected strokes as [{{'points': [[x, y], ...], 'thickness': 6}}, ...]"
            f" ({error})"
        ) from None
    if not drawn:
        raise ValueError(f"{path}: expected at least one stroke, got none")
    return torch.stack(drawn).amax(dim=0)


def _mask(path: Path, threshold: int, size: tuple[int, int], *, drawn: bool = False) -> Image.Image:
    """A mask file of a photo's width and height, as 8-bit 0 and 255."""
    mask = read_mask(path, threshold=threshold, erased="white" if drawn else "black")
    if text := mask.warning(path, threshold):
        print(f"warning: {text}", file=sys.stderr)
    if mask.white.shape[::-1] != size:
        raise ValueError(
            f"{path}: expected the photo's size, {size[0]} x {size[1]} pixels, got"
            f" {mask.white.shape[1]} x {mask.white.shape[0]}"
        )
    return Image.fromarray((mask.white * 255).astype(np.uint8))


def _resized_mask(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """(1,1,H,W) of 0 and 1, by nearest neighbour."""
    resized = picture.resize(size[::-1], Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(resized) > 127)[None, None].float()


def _photo(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """(1,3,H,W) in [0,1], bicubic, as published."""
    return pictures.to_tensor(picture.resize(size[::-1], Image.Resampling.BICUBIC))[None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", type=Path, help="a portrait, aligned as in FFHQ")
    parser.add_argument(
        "hair", type=Path, help="its hair mask: a picture of that size; white = hair"
    )
    parser.add_argument("--shape", type=Path, help="the mask after the edit: where hair is wanted")
    parser.add_argument("--structure", type=Path, help="another photo, whose strands are followed")
    parser.add_argument("--structure-hair", type=Path, help="its hair mask")
    parser.add_argument(
        "--orientation",
        type=Path,
        help="the 8-bit orientation map of --structure (without: of the photo), as `python -m"
        " torchext.orientation` writes it (without: found in the photo)",
    )
    parser.add_argument(
        "--strokes",
        type=Path,
        help="strokes along which hair is to lie: a picture of the photo's size, or JSON,"
        ' [{"points": [[x, y], ...], "thickness": 6}, ...] in the photo\'s pixels',
    )
    parser.add_argument("--appearance", type=Path, help="another photo, whose hair's look is taken")
    parser.add_argument("--appearance-hair", type=Path, help="its hair mask")
    parser.add_argument(
        "--background",
        type=Path,
        help="the photo with what comes to light where hair is taken away",
    )
    parser.add_argument(
        "--paste", action="store_true", help="keep the photo's own pixels away from the hair"
    )
    parser.add_argument(
        "--margin",
        type=int,
        default=5,
        help="with --paste: pixels around the hair, at the network's size, that are new, too"
        " (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    add_threshold(parser)


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for bad values of `add_arguments`."""
    check_threshold(options)
    if getattr(options, "margin", 0) < 0:
        raise ValueError(f"--margin: expected at least 0, got {options.margin}")
    for name in ("structure", "appearance"):
        photo, mask = getattr(options, name, None), getattr(options, f"{name}_hair", None)
        if (photo is None) != (mask is None):
            raise ValueError(f"--{name}, --{name}-hair: expected both or none")


def edit(networks: dict[str, nn.Module], config: Config, options: argparse.Namespace) -> None:
    """Write the photo with its hair edited."""
    given, device = config.network, options.device
    if "generator" not in networks:
        raise ValueError(f"{options.checkpoint}: expected a generator, found {[*networks]}")
    source = pictures.read_photo(options.photo)
    size = working_size(source.size, given)

    def read(photo: Path, mask: Path) -> tuple[Hair, Image.Image]:
        """At the network's size, and the mask as it lies in its file."""
        picture = pictures.read_image(photo)
        drawn = _mask(mask, options.threshold, picture.size)
        hair = _resized_mask(drawn, size)
        if not hair.any():
            raise ValueError(
                f"{mask}: expected hair in white, got a mask without any above"
                f" {options.threshold} of 255; --threshold moves the limit"
            )
        return Hair(_photo(picture, size).to(device), hair.to(device)), drawn

    target, before = read(options.photo, options.hair)
    after = before
    changes: dict[str, Any] = {"seed": options.seed}
    for name in ("structure", "appearance"):
        if getattr(options, name) is not None:
            changes[name], _ = read(getattr(options, name), getattr(options, f"{name}_hair"))
    shape = target.mask
    if options.shape is not None:
        after = _mask(options.shape, options.threshold, source.size)
        changes["shape"] = shape = _resized_mask(after, size).to(device)
    if options.orientation is not None:
        changes["orientation"] = _read_orientation(options.orientation, size).to(device)
    if options.strokes is not None:
        changes["strokes"] = read_strokes(options.strokes, source.size, size).to(device)
    if options.background is not None:
        picture = pictures.read_image(options.background)
        changes["background"] = _photo(picture, size).to(device)
    elif (target.mask * (1 - shape)).any():
        print(
            "warning: --shape takes hair away; without --background the old hair stays visible"
            " there",
            file=sys.stderr,
        )
    editor = HairEditor(
        networks["generator"],
        networks.get("orientation"),
        networks.get("strokes"),
        size=given.inpainting_size,
    )
    result = editor(target, **changes)
    if not options.paste:
        pictures.write(pictures.to_picture(result[0]), options.output)
    else:
        margin = round(options.margin * source.size[0] / size[1])
        whole = (_resized_mask(mask, source.size[::-1]) for mask in (before, after))
        _write_pasted(source, result, edited(*whole, margin), options.output)
    print(f"wrote {options.output}")


def _read_orientation(path: Path, size: tuple[int, int]) -> Tensor:
    picture = pictures.open_picture(path)
    if picture.mode not in ("L", "P"):
        raise ValueError(f"{path}: expected an 8-bit orientation map, got {picture.mode}")
    resized = picture.resize(size[::-1], Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(resized))[None, None]


def _write_pasted(source: pictures.Photo, result: Tensor, new: Tensor, output: Path) -> None:
    size = source.size[::-1]
    filled = F.interpolate(result, size, mode="bicubic", antialias=True, align_corners=False)
    for note in pictures.write_photo(source.with_fill(filled[0].cpu(), 1 - new[0]), output):
        print(f"warning: {note}", file=sys.stderr)
