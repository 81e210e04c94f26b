"""Orientation maps of photographs, and guidance maps of drawn strokes. Masks: 1 hair, 0 not.

`python -m torchext.orientation PHOTO -o OUT.png` writes the 8-bit angle map that MichiGAN
("Multi-Input-Conditioned Hair Image Generation", SIGGRAPH 2020) trains on; `--help` says more.
"""

import argparse
import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .files import (
    SUFFIXES,
    PictureError,
    is_hidden,
    is_same,
    open_picture,
    read_mask,
    whole_or_nothing,
)
from .ops.checks import check_integer, check_mask_values, check_positive, check_tensor
from .ops.gabor_orientation import (
    difference_of_gaussians_bank,
    grey_image,
    orientation_angle,
    orientation_map,
    oriented_filter_max,
)

BLUR_SIGMA = 4.0
MASK_THRESHOLD = 130  # of 8-bit masks
STROKE_THICKNESS = 6.0
HOLE_DIAMETER = 50

# --- photographs --------------------------------------------------------------------------------


def orientation_flow(
    image: Tensor,
    mask: Tensor | None = None,
    *,
    sigma: float = BLUR_SIGMA,
    exact: bool = False,
    value_range: tuple[float, float] = (0.0, 255.0),
) -> Tensor:
    """The doubled direction of the strands, weighted by strength and smoothed. Mask: 1 hair.

    Oriented differences of Gaussians, (cos, sin) of the doubled angle times the strength and the
    mask, blurred by a Gaussian (reflected at the border).

    Args:
        image: (N,3,H,W) or (N,1,H,W), floating point.
        mask: (N,1,H,W), or None for hair everywhere.
        sigma: of the blur, in pixels.
        exact: doubled angle 2 pi i / 32 of filter i. The published tool divides by 31, so that its
            angles are too large by up to 3 percent.
        value_range: the image's black and white.

    Returns:
        (N,2,H,W), cosine first; float32 (float64 for a float64 image).

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape or value does not fit; H or W is too small for the blur to reflect.
    """
    check_positive("sigma", sigma)
    values = grey_image(image, "published", value_range)
    radius = _blur_radius(sigma)
    if min(values.shape[2:]) <= radius:
        raise ValueError(
            f"image: expected a height and width above {radius}, got {tuple(image.shape)}"
        )
    flow = _weighted_flow(values, mask, exact)
    for dim in (2, 3):
        flow = _blur(_reflected(flow, dim, radius, radius), dim, sigma)
    return flow


def orientation_code(flow: Tensor, mask: Tensor | None = None) -> Tensor:
    """The 8-bit code of a flow's angle: 0..pi as 0..255, truncated. Mask: 1 hair, 0 not.

    Args:
        flow: (N,2,H,W), as `orientation_flow` gives it.
        mask: (N,1,H,W), or None for hair everywhere; the code is 0 elsewhere.

    Returns:
        uint8 (N,1,H,W).

    Raises:
        TypeError, ValueError: flow or mask does not fit.
    """
    code = orientation_angle(flow, "cos_sin") * (255 / math.pi)
    if mask is not None:
        code = code * _mask_like(mask, code)
    return code.to(torch.uint8)


def _weighted_flow(values: Tensor, mask: Tensor | None, exact: bool) -> Tensor:
    bank = difference_of_gaussians_bank(dtype=values.dtype, device=values.device)
    index, strength = oriented_filter_max(values, bank)
    steps = len(bank) if exact else len(bank) - 1
    angle = index.to(values.dtype) * (math.pi / steps)
    if mask is not None:
        strength = strength * _mask_like(mask, strength)
    return orientation_map(angle, strength, "cos_sin")


def _mask_like(mask: Tensor, like: Tensor) -> Tensor:
    check_tensor("mask", mask)
    if mask.shape != like.shape:
        raise ValueError(f"mask: expected the shape {tuple(like.shape)}, got {tuple(mask.shape)}")
    if mask.device != like.device:
        raise ValueError(f"mask: expected the device of image, {like.device}, got {mask.device}")
    check_mask_values("mask", mask)
    return mask.to(like.dtype)


def _blur_radius(sigma: float) -> int:
    """OpenCV's, for floating-point pictures: 33 taps for a sigma of 4."""
    return (round(8 * sigma + 1) | 1) // 2


def _reflected(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    """x with so many rows (columns) added on both sides, mirrored without repeating the edge."""
    size = x.shape[dim]
    places = torch.arange(-before, size + after, device=x.device).abs()
    return x.index_select(dim, torch.where(places < size, places, 2 * (size - 1) - places))


def _blur(x: Tensor, dim: int, sigma: float) -> Tensor:
    """The rows (columns) that have all their neighbours, blurred: the same wherever they lie."""
    radius = _blur_radius(sigma)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(radius + 1)]
    total = 2 * sum(weights) - weights[0]
    size = x.shape[dim] - 2 * radius
    result = x.narrow(dim, radius, size) * (weights[0] / total)
    for offset in range(1, radius + 1):
        pair = x.narrow(dim, radius - offset, size) + x.narrow(dim, radius + offset, size)
        result.add_(pair, alpha=weights[offset] / total)
    return result


# --- strokes ------------------------------------------------------------------------------------


class StrokeGuidance(NamedTuple):
    """What the stroke-inpainting network reads; see `stroke_guidance`."""

    stroke: Tensor
    rgb: Tensor
    hole: Tensor


def draw_strokes(
    strokes: Sequence[Any],
    height: int,
    width: int,
    *,
    thickness: float = STROKE_THICKNESS,
) -> Tensor:
    """Polylines as a mask: 1 on a stroke, 0 elsewhere.

    Args:
        strokes: polylines, each a sequence (or tensor) of points (x, y) in pixels, x to the right
            and y down; a single point is a dot. They may leave the picture.
        height, width: of the mask.
        thickness: in pixels; ends are round.

    Returns:
        float32 (1,1,H,W).

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
    """
    check_integer("height", height, 1, 1 << 20)
    check_integer("width", width, 1, 1 << 20)
    check_positive("thickness", thickness)
    mask = torch.zeros(1, 1, height, width)
    for number, stroke in enumerate(strokes):
        points = _points(number, stroke)
        for begin, end in zip(points, [*points[1:], points[-1]], strict=True):
            _draw_segment(mask[0, 0], begin, end, thickness / 2)
    return mask


def _points(number: int, stroke: Any) -> list[tuple[float, float]]:
    try:
        points = torch.as_tensor(stroke, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"strokes[{number}]: expected a sequence of points (x, y)") from error
    if points.dim() != 2 or points.shape[1] != 2 or not len(points) or not points.isfinite().all():
        raise ValueError(
            f"strokes[{number}]: expected finite points of the shape (P, 2) with P at least 1, got"
            f" {tuple(points.shape)}"
        )
    return [(x, y) for x, y in points.tolist()]


def _draw_segment(
    mask: Tensor, begin: tuple[float, float], end: tuple[float, float], radius: float
) -> None:
    """Sets what lies within the radius of a segment to 1, looking at its bounding box only."""
    (x0, y0), (x1, y1) = begin, end
    H, W = mask.shape
    top = min(max(math.floor(min(y0, y1) - radius), 0), H)
    left = min(max(math.floor(min(x0, x1) - radius), 0), W)
    box = mask[top : max(math.ceil(max(y0, y1) + radius) + 1, 0)]
    box = box[:, left : max(math.ceil(max(x0, x1) + radius) + 1, 0)]
    y = torch.arange(box.shape[0], dtype=torch.float64)[:, None] + top
    x = torch.arange(box.shape[1], dtype=torch.float64) + left
    dx, dy = x1 - x0, y1 - y0
    length = dx * dx + dy * dy
    share = (((x - x0) * dx + (y - y0) * dy) / (length or 1)).clamp(0, 1)
    squared = (x - x0 - share * dx).square() + (y - y0 - share * dy).square()
    box[squared <= radius * radius] = 1


def stroke_orientation(stroke: Tensor) -> Tensor:
    """The colour code of drawn strokes' orientation, dense inside them. Mask: 1 stroke, 0 not.

    The published tool: oriented differences of Gaussians on the mask itself. Inside broad strokes
    filters nearly tie.

    Args:
        stroke: (N,1,H,W), values 0 and 1.

    Returns:
        (N,3,H,W): ((cos 2o + 1) / 2, (sin 2o + 1) / 2, .5) inside the strokes, 0 elsewhere; float32
        (float64 for float64).

    Raises:
        TypeError, ValueError: what `torchext.oriented_filter_max` raises.
    """
    check_tensor("stroke", stroke)
    check_mask_values("stroke", stroke)
    if not stroke.is_floating_point():
        stroke = stroke.float()
    dtype = torch.float64 if stroke.dtype == torch.float64 else torch.float32
    bank = difference_of_gaussians_bank(dtype=dtype, device=stroke.device)
    index, _ = oriented_filter_max(stroke, bank)
    two_channel = orientation_map(index.to(dtype) * (math.pi / len(bank)), order="cos_sin")
    half = torch.full_like(two_channel[:, :1], 0.5)
    return torch.cat(((two_channel + 1) / 2, half), dim=1) * stroke


def stroke_hole(stroke: Tensor, diameter: int = HOLE_DIAMETER) -> Tensor:
    """The surroundings of strokes that are to be painted anew: the strokes grown by a disc.

    Args:
        stroke: (N,1,H,W), 1 on strokes.
        diameter: of OpenCV's elliptic structuring element. Of an even diameter d, pixels grow by
            d / 2 to the lower right and d / 2 - 1 to the upper left.

    Returns:
        (N,1,H,W), 0 and 1, in the stroke's dtype.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
    """
    check_tensor("stroke", stroke)
    if stroke.dim() != 4 or stroke.shape[1] != 1:
        raise ValueError(f"stroke: expected the shape (N, 1, H, W), got {tuple(stroke.shape)}")
    check_mask_values("stroke", stroke)
    check_integer("diameter", diameter, 1, 4096)
    H, W = stroke.shape[2:]
    radius = diameter // 2
    # strokes to the left of each column, so that a row of the disc is one difference
    counts = F.pad((stroke != 0).to(torch.int32), (radius + 1, radius, radius, radius))
    counts = counts.cumsum(dim=3, dtype=torch.int32)
    found = torch.zeros(stroke.shape, dtype=torch.bool, device=stroke.device)
    for row in range(diameter):
        reach = round(radius * math.sqrt(1 - ((row - radius) / radius) ** 2)) if radius else 0
        first, last = max(radius - reach, 0), min(radius + reach, diameter - 1)
        rows = counts[:, :, row : row + H]
        found |= rows[..., last + 1 : last + 1 + W] > rows[..., first : first + W]
    return found.to(stroke.dtype)


def stroke_guidance(
    strokes: Sequence[Any],
    hair: Tensor,
    *,
    thickness: float = STROKE_THICKNESS,
    diameter: int = HOLE_DIAMETER,
) -> StrokeGuidance:
    """A user's strokes as the stroke-inpainting network reads them. Mask: 1 hair, 0 not.

    Args:
        strokes, thickness: as for `draw_strokes`.
        hair: (1,1,H,W); all results are confined to it.
        diameter: as for `stroke_hole`.

    Returns:
        stroke (1,1,H,W): 1 on strokes. rgb (1,3,H,W): their colour code, as of
        `stroke_orientation`. hole (1,1,H,W): 1 where the orientation is to be painted anew.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
    """
    check_tensor("hair", hair)
    if hair.dim() != 4 or hair.shape[:2] != (1, 1):
        raise ValueError(f"hair: expected the shape (1, 1, H, W), got {tuple(hair.shape)}")
    check_mask_values("hair", hair)
    if not hair.is_floating_point():
        hair = hair.float()
    drawn = draw_strokes(strokes, *hair.shape[2:], thickness=thickness).to(hair)
    return StrokeGuidance(
        drawn * hair, stroke_orientation(drawn) * hair, stroke_hole(drawn, diameter) * hair
    )


# --- pictures -----------------------------------------------------------------------------------

BAND_PIXELS = 1 << 20  # filtered at a time, whatever the size of the picture


def _scale(picture: Any) -> tuple[float, float]:
    """The values of a picture that mean black and white."""
    if picture.mode.startswith("I"):
        return 0.0, 65535.0
    if picture.mode == "F":
        low, high = picture.getextrema()
        if not math.isfinite(low) or not math.isfinite(high):
            raise PictureError("holds values that are not finite")
        return low, high if high > low else low + 1
    return 0.0, 255.0


def _rows(picture: Any, top: int, bottom: int, scale: tuple[float, float]) -> Tensor:
    """Some rows as (1,3,H,W) or (1,1,H,W), 0 to 255; transparent places over white."""
    import numpy as np
    from PIL import Image

    part = picture.crop((0, top, picture.width, bottom))
    if part.mode.startswith(("I", "F")):
        values = torch.from_numpy(np.asarray(part).astype(np.float32))[None, None]
        black, white = scale
        return (values - black) * (255 / (white - black))
    if part.has_transparency_data:
        part = part.convert("RGBA")
        part = Image.alpha_composite(Image.new("RGBA", part.size, "white"), part)
    values = np.array(part.convert("L" if part.mode in ("1", "L") else "RGB"))
    pixels = torch.from_numpy(values).float()
    return pixels[None, None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)[None]


def _hair(path: Path, threshold: int, warn: Callable[[str], object]) -> Any:
    """A mask file as an 8-bit picture, 1 hair. What is left of a photo that was cut out is hair.

    Raises:
        PictureError: it cannot be read, or has no hair.
    """
    from PIL import Image

    mask = read_mask(path, threshold=threshold, erased="black")
    if not mask.white.any():
        raise PictureError(
            f"{path}: expected hair in white, got a mask without any above {threshold} of 255;"
            " --threshold moves the limit"
        )
    if text := mask.warning(path, threshold):
        warn(text)
    return Image.fromarray(mask.white.astype("uint8"))


class _Bands:
    """A picture's orientation, a band of rows at a time; the bands meet without a seam."""

    def __init__(self, picture: Any, mask: Any | None, exact: bool, band_pixels: int) -> None:
        self.picture, self.mask, self.exact = picture, mask, exact
        self.scale = _scale(picture)
        self.height, self.width = picture.height, picture.width
        self.radius = _blur_radius(BLUR_SIGMA)
        if min(self.height, self.width) <= self.radius:
            raise PictureError(
                f"{self.width} x {self.height} pixels, expected more than {self.radius} each way"
            )
        self.rows = max(band_pixels // self.width, 32)

    def __len__(self) -> int:
        return -(-self.height // self.rows)

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """First row, flow (1,2,rows,W) and mask (1,1,rows,W) of each band."""
        half = len(difference_of_gaussians_bank()[0]) // 2
        for top in range(0, self.height, self.rows):
            bottom = min(top + self.rows, self.height)
            # rows that the blur reads, as far as there are any, and those that their filters read
            first, last = max(top - self.radius, 0), min(bottom + self.radius, self.height)
            above, below = max(first - half, 0), min(last + half, self.height)
            values = grey_image(
                _rows(self.picture, above, below, self.scale), "published", (0.0, 255.0)
            )
            mask = None if self.mask is None else self._mask_rows(above, below)
            flow = _weighted_flow(values, mask, self.exact)[:, :, first - above : last - above]
            flow = _reflected(flow, 2, self.radius - (top - first), self.radius - (last - bottom))
            flow = _blur(flow, 2, BLUR_SIGMA)
            flow = _blur(_reflected(flow, 3, self.radius, self.radius), 3, BLUR_SIGMA)
            if mask is not None:
                mask = mask[:, :, top - above : bottom - above]
            yield top, flow, mask

    def _mask_rows(self, top: int, bottom: int) -> Tensor:
        import numpy as np

        rows = np.array(self.mask.crop((0, top, self.width, bottom)))
        return torch.from_numpy(rows).float()[None, None]


def colour_wheel(angle: Tensor, brightness: Tensor) -> Tensor:
    """Directions as hues: 0 red, pi / 3 green, 2 pi / 3 blue. No mask.

    Args:
        angle: (N,1,H,W), radians.
        brightness: (N,1,H,W), 0 to 1.

    Returns:
        (N,3,H,W), 0 to 1.
    """
    sector = angle * (6 / math.pi)
    shifted = [(sector + shift) % 6 for shift in (0.0, 4.0, 2.0)]
    return torch.cat([brightness * ((hue - 3).abs() - 1).clamp(0, 1) for hue in shifted], dim=1)


def _shown(flow: Tensor) -> Tensor:
    """A flow as 8-bit colours (H,W,3)."""
    strength = flow.square().sum(dim=1, keepdim=True).sqrt()
    brightness = 1 - torch.exp(-strength / 60)  # about the strength of a clear strand
    colours = colour_wheel(orientation_angle(flow, "cos_sin"), brightness)
    return (255 * colours[0]).round().to(torch.uint8).permute(1, 2, 0)


def _legend(width: int) -> Any:
    """A strip that explains the colours: the wheel of directions, and the strength."""
    from PIL import Image, ImageDraw, ImageFont

    size = min(max(width // 5, 48), 240)
    margin = size // 8
    strip = Image.new("RGB", (width, size + 2 * margin), "white")
    y, x = (torch.arange(size) - (size - 1) / 2 for _ in range(2))
    radius = (y[:, None].square() + x.square()).sqrt() / (size / 2)
    angle = torch.atan2(-y[:, None].expand(size, size), x.expand(size, size)) % math.pi
    colours = colour_wheel(angle[None, None], radius.clamp(max=1)[None, None])
    colours = torch.where(radius <= 1, colours, 1)[0]
    wheel = (255 * colours).to(torch.uint8).permute(1, 2, 0).contiguous()
    strip.paste(Image.fromarray(wheel.numpy()), (margin, margin))
    text = "hue: direction of the strand,\nas that diameter of the wheel;\nbrightness: strength"
    draw, height = ImageDraw.Draw(strip), float(max(size // 7, 6))
    while True:  # the largest letters that fit
        font = ImageFont.load_default(height)
        box = draw.multiline_textbbox((size + 2 * margin, margin), text, font=font)
        if box[2] <= width - margin or height <= 6:
            break
        height -= 1
    draw.multiline_text((size + 2 * margin, margin), text, fill="black", font=font)
    return strip


# --- command line -------------------------------------------------------------------------------


def shown_path(target: Path) -> Path:
    """Where the colour-wheel picture of an angle map goes."""
    return target.with_name(f"{target.stem}.show.png")


def convert_photo(
    photo: Path,
    target: Path,
    mask: Path | None = None,
    *,
    show: bool = False,
    exact: bool = False,
    threshold: int = MASK_THRESHOLD,
    band_pixels: int = BAND_PIXELS,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
    warn: Callable[[str], object] = warnings.warn,
) -> None:
    """Write a photograph's 8-bit angle map, and its colour-wheel picture beside it.

    Memory beyond the decoded pictures does not grow with the photograph. The map lies as the
    photograph is seen; it is data, so the photograph's colour profile and EXIF do not go with it.

    Args:
        photo, mask: pictures of one size; see `torchext.files.read_mask`. None is hair everywhere.
        target: of the map, neither of these two.
        show, exact, threshold: as on the command line.
        band_pixels: filtered at a time.
        progress: called with the bands that are done, and all.
        warn: called with the text where a mask is not black and white.

    Raises:
        PictureError: a file cannot be read, written, or does not fit; nothing was written.
    """
    from PIL import Image

    for path in (target, shown_path(target)) if show else (target,):
        if is_same(path, photo) or (mask is not None and is_same(path, mask)):
            raise PictureError(f"{path}: is read too, and is not overwritten; choose another name")
    picture = open_picture(photo)
    hair = None
    if mask is not None:
        hair = _hair(mask, threshold, warn)
        if hair.size != picture.size:
            raise PictureError(
                f"{mask}: {hair.width} x {hair.height} pixels, but {photo} has"
                f" {picture.width} x {picture.height}"
            )
    bands = _named(photo, lambda: _Bands(picture, hair, exact, band_pixels))
    code = Image.new("L", picture.size)
    legend = _legend(picture.width) if show else None
    shown = None
    if legend is not None:
        shown = Image.new("RGB", (picture.width, picture.height + legend.height))
        shown.paste(legend, (0, picture.height))
    for number, (top, flow, rows) in enumerate(bands):
        code.paste(Image.fromarray(orientation_code(flow, rows)[0, 0].numpy()), (0, top))
        if shown is not None:
            shown.paste(Image.fromarray(_shown(flow).contiguous().numpy()), (0, top))
        progress(number + 1, len(bands))
    try:
        with contextlib.ExitStack() as stack:
            if shown is not None:
                shown.save(stack.enter_context(whole_or_nothing(shown_path(target))), "PNG")
            code.save(stack.enter_context(whole_or_nothing(target)), "PNG")
    except OSError as error:
        raise PictureError(f"{target}: {error.strerror or error}") from error


def _named(path: Path, function: Callable[[], Any]) -> Any:
    """Run a function whose complaints are about a file."""
    try:
        return function()
    except PictureError as error:
        named = str(path) in str(error)
        raise error if named else PictureError(f"{path}: {error}") from error


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
