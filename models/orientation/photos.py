"""Angle maps of photographs as files, in bands of bounded memory, and their colours."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchext.ops.filter_banks import difference_of_gaussians_bank
from torchext.ops.gabor_orientation import (
    grey_image,
    orientation_angle,
)

from ..files import PictureError, is_same, open_picture, read_mask, whole_or_nothing
from .flow import BLUR_SIGMA, blur, blur_radius, orientation_code, reflected, weighted_flow
from .presets import BAND_PIXELS

MASK_THRESHOLD = 130  # of 8-bit masks


def photo_scale(picture: Any) -> tuple[float, float]:
    """The values of a picture that mean black and white."""
    if picture.mode.startswith("I"):
        return 0.0, 65535.0
    if picture.mode == "F":
        low, high = picture.getextrema()
        if not math.isfinite(low) or not math.isfinite(high):
            raise PictureError("holds values that are not finite")
        return low, high if high > low else low + 1
    return 0.0, 255.0


def photo_rows(
    picture: Any, top: int, bottom: int, scale: tuple[float, float], *, opaque: bool = False
) -> Tensor:
    """Some rows as (1,3,H,W) or (1,1,H,W), 0 to 255.

    Args:
        picture: Pillow's.
        scale: its black and white, of `photo_scale`.
        opaque: takes colours as if there were no alpha; else transparent places are white.
    """
    import numpy as np
    from PIL import Image

    part = picture.crop((0, top, picture.width, bottom))
    if part.mode.startswith(("I", "F")):
        values = torch.from_numpy(np.asarray(part).astype(np.float32))[None, None]
        black, white = scale
        return (values - black) * (255 / (white - black))
    if part.has_transparency_data:
        part = part.convert("RGBA")
        if not opaque:
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
        self.scale = photo_scale(picture)
        self.height, self.width = picture.height, picture.width
        self.radius = blur_radius(BLUR_SIGMA)
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
                photo_rows(self.picture, above, below, self.scale), "published", (0.0, 255.0)
            )
            mask = None if self.mask is None else self._mask_rows(above, below)
            flow = weighted_flow(values, mask, self.exact)[:, :, first - above : last - above]
            flow = reflected(flow, 2, self.radius - (top - first), self.radius - (last - bottom))
            flow = blur(flow, 2, BLUR_SIGMA)
            flow = blur(reflected(flow, 3, self.radius, self.radius), 3, BLUR_SIGMA)
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
        photo, mask: pictures of one size; see `files.read_mask`. None is hair everywhere.
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
    bands = named(photo, lambda: _Bands(picture, hair, exact, band_pixels))
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


def named(path: Path, function: Callable[[], Any]) -> Any:
    """Run a function whose complaints are about a file."""
    try:
        return function()
    except PictureError as error:
        named = str(path) in str(error)
        raise error if named else PictureError(f"{path}: {error}") from error
