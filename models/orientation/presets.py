"""Orientation maps with confidence, as projects of hair reconstruction store them. Mask: 1 hair.

NeuralHaircut (ICCV 2023), GaussianHaircut (ECCV 2024), MonoHair (CVPR 2024) and Im2Haircut
(ICCV 2025): a band pass, 180 filters one degree apart, the first of largest absolute response, and
a confidence from all responses. What each stores differs; so do borders, angles and oddities.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import product
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from torchext.ops.checks import (
    FLOATING,
    check_choice,
    check_integer,
    check_mask_values,
    check_positive,
    check_tensor,
)
from torchext.ops.filter_banks import MAX_SIZE, difference_of_gaussians, gabor_kernel_bank
from torchext.ops.gabor_orientation import Border, oriented_filter_statistics

from .flow import orientation_code, orientation_flow

Preset = Literal["michigan", "neuralhaircut", "gaussianhaircut", "monohair", "im2haircut"]
Progress = Callable[[int, int], None]

PRESETS = get_args(Preset)
BAND_PIXELS = 1 << 20  # filtered at a time, whatever the size of the picture
UNSURE = math.pi**2 / 4  # the largest variance: all responses at right angles to the best one
# A response below this share of what black and white could give is rounding, not hair.
FAINT = 1e-5
_LOW, _HIGH = 0.4, 10.0  # sigmas of the band pass
_REACH = int(4 * _HIGH + 0.5)  # of its wider Gaussian
_LEAST_ROWS = 64  # of a band, more than any filter reaches
_DEGREES = 180
_LARGEST_SIGMA = MAX_SIZE // 2 / 3  # filters reach three of them


@dataclass(frozen=True)
class Filters:
    """The filters' options, with the names of the published scripts.

    Attributes:
        num_filters: 1 to 256, their angles i * pi / num_filters; of NeuralHaircut.
        sigma_x, sigma_y: across and along the line, in pixels, at most 10.3; of NeuralHaircut.
        freq: of the cosine, per pixel; of NeuralHaircut.
        num_sigmas_x, num_sigmas_y: more than one tries sigmas of 1, 2, 4, .. instead of 1.8 and
            2.4; up to 4. GaussianHaircut's, as those below.
        num_frequencies: more than one tries frequencies of 1, 1/2, 1/4, .. instead of .23.
        num_offsets: phases pi * k / num_offsets of the cosine.

    All combinations are tried, and each pixel keeps the one of smallest variance.
    """

    num_filters: int = _DEGREES
    sigma_x: float = 1.8
    sigma_y: float = 2.4
    freq: float = 0.23
    num_sigmas_x: int = 1
    num_sigmas_y: int = 1
    num_frequencies: int = 1
    num_offsets: int = 1

    def __post_init__(self) -> None:
        check_integer("num_filters", self.num_filters, 1, 256)
        for name in ("sigma_x", "sigma_y", "freq"):
            check_positive(name, getattr(self, name))
        for name in ("sigma_x", "sigma_y"):
            if (sigma := getattr(self, name)) > _LARGEST_SIGMA:
                raise ValueError(f"{name}: expected at most {_LARGEST_SIGMA:.3g}, got {sigma}")
        check_integer("num_sigmas_x", self.num_sigmas_x, 1, 4)
        check_integer("num_sigmas_y", self.num_sigmas_y, 1, 4)
        check_integer("num_frequencies", self.num_frequencies, 1, 16)
        check_integer("num_offsets", self.num_offsets, 1, 180)


_OPTIONS: dict[str, tuple[str, ...]] = {
    "neuralhaircut": ("num_filters", "sigma_x", "sigma_y", "freq"),
    "gaussianhaircut": ("num_sigmas_x", "num_sigmas_y", "num_frequencies", "num_offsets"),
}


class Rows(NamedTuple):
    """A photograph that is read some rows at a time.

    Attributes:
        read: of the first row and the one after the last, gives (1,3,rows,W) or (1,1,rows,W), 0
            black and 255 white, floating point.
        height, width: in pixels.
    """

    read: Callable[[int, int], Tensor]
    height: int
    width: int


def orientation_maps(
    image: Tensor,
    mask: Tensor | None = None,
    *,
    preset: Preset,
    clean: bool = False,
    filters: Filters | None = None,
    band_pixels: int = BAND_PIXELS,
) -> dict[str, Tensor]:
    """The arrays that a project's script writes for a photograph. Mask: 1 hair, 0 not.

    Angles are degrees of a half turn, counted counter-clockwise: "from the horizontal", so that 0
    is a horizontal line, or "from the vertical", so that 0 is a vertical line and the direction (x
    right, y down) is (sin, cos).

    | preset | maps |
    |---|---|
    | michigan | map: uint8, angle from the horizontal, 255 is 180 degrees; 0 outside the mask |
    | neuralhaircut | orientation_maps: uint8, angle from the vertical; confidence_maps: float16,
      variance |
    | gaussianhaircut | angles, vars: the same; filtered_imgs: uint8, the band pass from its least
      to its largest value; vis_imgs: uint8 (H,W,3), the angle in colours times the mask |
    | monohair | best_ori: uint8, angle from the horizontal; conf: uint8 (H,W,3), 255 is sure;
      Ori: uint8 (H,W,3), 1, (sin + 1) / 2 and (cos + 1) / 2 of the angle, times 255 |
    | im2haircut | orientation_maps: uint8, angle from the vertical, 255 is 180 degrees, times the
      mask; confidence_maps: float16, variance |

    The variance is the mean squared distance of all responses from the best angle, in radians^2:
    small is sure. Everything is as published unless `clean`:

    - neuralhaircut: the border wraps round; angles of float16 in the variance, which is NaN where
      nothing answers (black farther than 48 pixels from anything else).
    - gaussianhaircut: zeros beyond the border; a variance of 0, its surest, where nothing answers.
    - monohair: a confidence relative to the surest pixel of the photograph.
    - im2haircut: as neuralhaircut where nothing answers, zeros beyond the border, and the variance
      measured from the 8-bit code taken for degrees, right for a vertical line alone.

    Args:
        image: (3,H,W), or grey (1,H,W); uint8, or floating point, 0 to 255. On any device.
        mask: (1,H,W), bool or from 0 to 1, or None for hair everywhere. As published, neuralhaircut
            and monohair do not look at it, gaussianhaircut shows it, im2haircut multiplies by it.
        preset: whose maps.
        clean: sane values instead. Zeros beyond the border; the angles meant; and an angle of 0
            with the least confidence, a variance of pi^2 / 4, where responses are but rounding
            (black, flat grey) and, whatever the preset, where the mask is below 1/2. For michigan:
            angles without their error of up to 3 percent.
        filters: see `Filters`; None for the published ones. NeuralHaircut and GaussianHaircut
            alone have any, each its own.
        band_pixels: filtered at a time. Memory beyond the image is about 20 bytes for each of its
            pixels, and 150 for each of these. Michigan takes the image as a whole.

    Returns:
        The maps by name, on the CPU: (H,W), or (H,W,3) of R, G and B.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape, value or choice does not fit; for michigan, H or W is below 17.
    """
    check_tensor("image", image)
    if image.dtype != torch.uint8 and image.dtype not in FLOATING:
        raise TypeError(f"image: expected uint8 or floating point, got {image.dtype}")
    if image.dim() != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise ValueError(
            f"image: expected the shape (3, H, W) or (1, H, W), got {tuple(image.shape)}"
        )
    low, high = (float(value) for value in image.aminmax())
    if not (low >= 0 and high <= 255):
        raise ValueError(f"image: expected values from 0 to 255, got {low:g} to {high:g}")
    height, width = image.shape[1:]
    if mask is not None:
        check_tensor("mask", mask)
        if mask.shape != (1, height, width):
            raise ValueError(
                f"mask: expected the shape (1, {height}, {width}), got {tuple(mask.shape)}"
            )
        check_mask_values("mask", mask)
        mask = mask.float()
    check_filters(preset, filters)
    if preset == "michigan":
        hair = None if mask is None else (mask[None] > 0.5).to(image.device)
        photo = image[None].float()
        flow = orientation_flow(photo, hair, exact=clean)
        return {"map": orientation_code(flow, hair)[0, 0].cpu()}

    def read(top: int, bottom: int) -> Tensor:
        part = image[None, :, top:bottom]
        return part if part.dtype == torch.float64 else part.float()

    return maps_of_rows(
        Rows(read, height, width), mask, preset, clean=clean, filters=filters,
        band_pixels=band_pixels,
    )  # fmt: skip


def check_filters(preset: str, filters: Filters | None) -> None:
    """That a preset has the options that differ from the published ones."""
    check_choice("preset", preset, PRESETS)
    if filters is None:
        return
    if not isinstance(filters, Filters):
        raise TypeError(f"filters: expected Filters, got {type(filters).__name__}")
    for field in fields(filters):
        given = getattr(filters, field.name)
        if given != field.default and field.name not in _OPTIONS.get(preset, ()):
            raise ValueError(
                f"{field.name}: expected {field.default}, as preset {preset} has no such option,"
                f" got {given}"
            )


def uses_mask(preset: str, clean: bool) -> bool:
    """Whether any file of a preset depends on the mask."""
    return clean or preset not in ("neuralhaircut", "monohair")


def maps_of_rows(
    photo: Rows,
    mask: Tensor | None,
    preset: str,
    *,
    clean: bool = False,
    filters: Filters | None = None,
    band_pixels: int = BAND_PIXELS,
    progress: Progress = lambda _done, _all: None,
) -> dict[str, Tensor]:
    """`orientation_maps` of checked arguments, of all but michigan.

    Args:
        photo: read some rows at a time, and those around them.
        mask: float32 (1,H,W), or None.
        progress: called with the steps that are done, and all.
    """
    job = _Job(photo, mask, clean, filters or Filters(), band_pixels, progress)
    return _MAPS[preset](job)


# --- in bands -----------------------------------------------------------------------------------


class _Job:
    """One photograph's work; bands of rows meet without a seam."""

    def __init__(
        self,
        photo: Rows,
        mask: Tensor | None,
        clean: bool,
        filters: Filters,
        band_pixels: int,
        progress: Progress,
    ) -> None:
        self.photo, self.clean, self.filters, self.progress = photo, clean, filters, progress
        self.size = (photo.height, photo.width)
        # What is not hair loses its values where the files are clean, and fades where published.
        self.shade = torch.ones(self.size) if mask is None else mask[0].cpu()
        self.hair = None if mask is None or not clean else self.shade >= 0.5
        rows = max(band_pixels // photo.width, _LEAST_ROWS)
        tops = range(0, photo.height, rows)
        self.bands = [slice(top, min(top + rows, photo.height)) for top in tops]
        self.done = 0

    def _step(self) -> None:
        self.done += 1
        self.progress(self.done, 2 * len(self.bands))

    def new(self, dtype: torch.dtype, *channels: int) -> Tensor:
        return torch.empty(*self.size, *channels, dtype=dtype)

    def band_pass(self, grey: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        """(1,1,H,W), the band pass of the grey picture, rounded to a dtype at its end."""
        image = None
        for band in self.bands:
            first = max(band.start - _REACH, 0)
            last = min(band.stop + _REACH, self.photo.height)
            part = difference_of_gaussians(grey(self.photo.read(first, last)), _LOW, _HIGH)
            if image is None:
                image = part.new_empty((1, 1, *self.size), dtype=dtype)
            image[:, :, band] = part[:, :, band.start - first : band.stop - first]
            self._step()
        return image

    def statistics(
        self,
        image: Tensor,
        banks: list[Tensor],
        border: Border,
        scale: float,
        **options: object,
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Each band's rows, index and confidence (rows,W), on the CPU.

        Of several banks, the one of smallest variance at each pixel, the first among equals.
        Where clean, index 0 and no confidence, that is infinity, where nothing answers.
        """
        border = "zero" if self.clean else border  # beside hair, of least error at the edge
        for band in self.bands:
            chosen = None
            for bank in banks:
                half = bank.shape[-1] // 2 if len(self.bands) > 1 else 0
                found = oriented_filter_statistics(
                    _reached(image, band, half, border), bank, border=border, **options
                )
                begin = min(half, band.start) if border == "zero" else half
                rows = slice(begin, begin + band.stop - band.start)
                index, strength, measure = (value[0, 0, rows] for value in found)
                if self.clean:
                    limit = FAINT * scale * bank.abs().sum((1, 2)).max()
                    nothing = strength <= limit
                    index = torch.where(nothing, 0, index)
                    measure = torch.where(nothing, math.inf, measure)
                if chosen is not None:
                    better = measure < chosen[1]
                    index = torch.where(better, index, chosen[0])
                    measure = torch.where(better, measure, chosen[1])
                chosen = index, measure
            index, measure = (value.cpu() for value in chosen)
            if self.hair is not None:
                index = torch.where(self.hair[band], index, 0)
                measure = torch.where(self.hair[band], measure, math.inf)
            self._step()
            yield band, index, measure

    def angles_and_variances(
        self, image: Tensor, banks: list[Tensor], border: Border, scale: float, **options: object
    ) -> tuple[Tensor, Tensor]:
        """uint8 and float16 (H,W)."""
        angles, variances = self.new(torch.uint8), self.new(torch.float16)
        for band, index, variance in self.statistics(image, banks, border, scale, **options):
            angles[band] = index.to(torch.uint8)
            if self.clean:
                variance = variance.clamp(max=UNSURE)
            variances[band] = _half(variance)
        return angles, variances


def _reached(image: Tensor, band: slice, half: int, border: Border) -> Tensor:
    """A band's rows and those that its filters reach; beyond the border, what wraps round."""
    height = image.shape[2]
    top, bottom = band.start - half, band.stop + half
    if border == "zero" or half == 0:  # zeros are there without being made
        return image[:, :, max(top, 0) : min(bottom, height)]
    return image.index_select(2, torch.arange(top, bottom, device=image.device) % height)


def _half(values: Tensor) -> Tensor:
    """Rounded once to float16; PyTorch rounds float64 to float32 before."""
    import numpy as np

    return torch.from_numpy(values.numpy().astype(np.float16))


# --- presets ------------------------------------------------------------------------------------


def _colours(photo: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    red, green, blue = photo.expand(-1, 3, -1, -1).split(1, dim=1)
    return red, green, blue


def _grey(photo: Tensor) -> Tensor:
    """The weights that all but MonoHair take, in the photograph's dtype; their sum is .9999."""
    red, green, blue = _colours(photo)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _grey_of_8_bits(photo: Tensor) -> Tensor:
    """Pillow's conversion to "L", uint8: MonoHair's."""
    red, green, blue = (colour.round().clamp(0, 255).int() for colour in _colours(photo))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(torch.uint8)


def _neuralhaircut(job: _Job) -> dict[str, Tensor]:
    filters, count = job.filters, job.filters.num_filters
    image = job.band_pass(lambda photo: _grey(photo.double()), torch.float64)
    bank = gabor_kernel_bank(
        count, frequency=filters.freq, sigma_x=filters.sigma_x, sigma_y=filters.sigma_y,
        dtype=torch.float64, device=image.device,
    )  # fmt: skip
    share = _half(torch.arange(count, dtype=torch.float64) / count)
    published = (share * torch.tensor(math.pi).half()).to(image.device)
    angles, variances = job.angles_and_variances(
        image, [bank], "wrap", 255, angles=None if job.clean else published
    )
    return {"orientation_maps": angles, "confidence_maps": variances}


def _gaussianhaircut(job: _Job) -> dict[str, Tensor]:
    image = job.band_pass(lambda photo: _grey(photo.double()), torch.float32)
    angles, variances = job.angles_and_variances(
        image, _gaussianhaircut_banks(job.filters, image.device), "zero", 255, eps=1e-12
    )
    filtered, shown = job.new(torch.uint8), job.new(torch.uint8, 3)
    low, high = (float(value) for value in image.aminmax())
    for band in job.bands:
        values = image[0, 0, band].double().cpu() - low
        filtered[band] = (values / max(high - low, 1e-300) * 255).to(torch.uint8)
        shown[band] = _gaussianhaircut_colours(angles[band], job.shade[band])
    return {"angles": angles, "vars": variances, "filtered_imgs": filtered, "vis_imgs": shown}


def _gaussianhaircut_banks(filters: Filters, device: torch.device) -> list[Tensor]:
    """The bank of each combination, sigma_x the slowest to change, the frequency the fastest."""

    def several(number: int, one: float, base: float) -> list[float]:
        return [one] if number == 1 else [base**i for i in range(number)]

    return [
        gabor_kernel_bank(
            _DEGREES, sigma_x=sigma_x, sigma_y=sigma_y, phase=phase, frequency=frequency,
            device=device,
        )
        for sigma_x, sigma_y, phase, frequency in product(
            several(filters.num_sigmas_x, filters.sigma_x, 2.0),
            several(filters.num_sigmas_y, filters.sigma_y, 2.0),
            [math.pi * k / filters.num_offsets for k in range(filters.num_offsets)],
            several(filters.num_frequencies, filters.freq, 0.5),
        )
    ]  # fmt: skip


def _gaussianhaircut_colours(angles: Tensor, shade: Tensor) -> Tensor:
    """uint8 (rows,W,3): red at 0 (vertical), magenta at 45, green at 90, cyan at 135."""
    turn = torch.arange(_DEGREES, dtype=torch.float64)

    def near(angle: float) -> Tensor:
        return (1 - (turn - angle).abs() / 45).clamp(0, 1)

    red, green, blue = near(0) + near(180) + near(45), near(90) + near(135), near(45) + near(135)
    colours = torch.stack((red, green, blue), dim=-1).clamp(0, 1)[angles.int()]
    of_mask = (255 * shade).round().double()[..., None] / 255  # as an 8-bit file holds it
    return colours.mul_(of_mask).mul_(255).to(torch.uint8)


def _monohair(job: _Job) -> dict[str, Tensor]:
    image = job.band_pass(_grey_of_8_bits, torch.float32)
    bank = gabor_kernel_bank(_DEGREES, definition="monohair", device=image.device)
    best, spread = job.new(torch.uint8), job.new(torch.float32)
    for band, index, measure in job.statistics(image, [bank], "zero", 1, confidence="spread"):
        measure = torch.where(measure.isinf(), 0, measure)
        best[band] = torch.where(measure > 0, index, 0).to(torch.uint8)
        spread[band] = measure
    largest = spread.max()
    surest = 0.2  # of the largest spread, and above
    confidence, colours = job.new(torch.uint8, 3), job.new(torch.uint8, 3)
    angle = torch.deg2rad(torch.arange(_DEGREES).float())  # float64 would give 128 at 90 degrees
    code = torch.stack((torch.ones_like(angle), (angle.sin() + 1) / 2, (angle.cos() + 1) / 2), -1)
    code = (255 * code).round().to(torch.uint8)
    for band in job.bands:
        share = (spread[band] / largest).clamp(0, surest) / surest
        share = share.nan_to_num(0)  # black all over: as its NaN is stored
        confidence[band] = (255 * share + 0.5).to(torch.uint8)[..., None]
        colours[band] = code[best[band].int()]
    return {"best_ori": best, "conf": confidence, "Ori": colours}


def _im2haircut(job: _Job) -> dict[str, Tensor]:
    image = job.band_pass(lambda photo: _grey(photo.float() / 255), torch.float32)
    bank = gabor_kernel_bank(_DEGREES, device=image.device)
    wrong = torch.deg2rad(torch.arange(_DEGREES, dtype=torch.float64) * (255 / _DEGREES))
    angles, variances = job.angles_and_variances(
        image, [bank], "zero", 1, angles=None if job.clean else wrong.to(image.device)
    )
    code = job.new(torch.uint8)
    for band in job.bands:
        shade = job.shade[band] if job.hair is None else job.hair[band].float()
        value = (angles[band].float() / _DEGREES) * 255
        code[band] = (shade * value).round().to(torch.uint8)
    return {"orientation_maps": code, "confidence_maps": variances}


_MAPS = {
    "neuralhaircut": _neuralhaircut,
    "gaussianhaircut": _gaussianhaircut,
    "monohair": _monohair,
    "im2haircut": _im2haircut,
}
