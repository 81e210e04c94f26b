"""Banks of oriented filters, and the band pass that goes before some of them."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import (
    check_choice,
    check_feature_map,
    check_integer,
    check_number,
    check_positive,
    check_tensor,
)

MAX_SIZE = 63
MAX_COUNT = 1024

Definition = Literal["scikit-image", "monohair"]


def gabor_bank(
    count: int = 32,
    size: int = 17,
    *,
    sigma_x: float = 2.0,
    sigma_y: float = 3.0,
    wavelength: float = 4.0,
    phase: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Gabor filters at the angles pi * i / count; angle 0 answers to horizontal lines.

    exp(-(a^2 / sigma_x^2 + b^2 / sigma_y^2) / 2) * cos(2 pi a / wavelength + phase), with
    a = u cos + v sin and b = -u sin + v cos of the row offset u and the column offset v. The mean
    is not subtracted and nothing is normalised, as published.

    Args:
        count: 1 to 1024.
        size: odd, at most 63.
        sigma_x, sigma_y: across and along the line.
        wavelength: of the cosine, in pixels.
        phase: in radians; a bank of another phase than 0 is not symmetric, and so slower.
        dtype: float32 or float64.

    Returns:
        (count,size,size).

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
    """
    check_positive("sigma_x", sigma_x)
    check_positive("sigma_y", sigma_y)
    check_positive("wavelength", wavelength)
    a, b = _rotated_grid(count, size, dtype, device)
    envelope = torch.exp(-0.5 * (a.square() / sigma_x**2 + b.square() / sigma_y**2))
    return (envelope * torch.cos(2 * math.pi / wavelength * a + phase)).to(dtype)


def difference_of_gaussians_bank(
    count: int = 32,
    size: int = 17,
    *,
    sigma_high: float = 1.0,
    sigma_low: float = 2.0,
    sigma_y: float = 2.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Oriented differences of Gaussians at the angles pi * i / count; 0 is a horizontal line.

    (g(sigma_high) / sigma_high - g(sigma_low) / sigma_low) / (1 / sigma_high - 1 / sigma_low) with
    g(sigma) = exp(-(a^2 / sigma^2 + b^2 / sigma_y^2) / 2), a and b as in `gabor_bank`.

    Args:
        count: 1 to 1024.
        size: odd, at most 63.
        sigma_high, sigma_low: across the line, of the narrow and of the wide Gaussian.
        sigma_y: along the line.
        dtype: float32 or float64.

    Returns:
        (count,size,size).

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
    """
    check_positive("sigma_high", sigma_high)
    check_positive("sigma_low", sigma_low)
    check_positive("sigma_y", sigma_y)
    if sigma_high == sigma_low:
        raise ValueError(f"sigma_low: expected another value than sigma_high, got {sigma_low}")
    a, b = _rotated_grid(count, size, dtype, device)

    def gaussian(sigma: float) -> Tensor:
        return torch.exp(-0.5 * (a.square() / sigma**2 + b.square() / sigma_y**2)) / sigma

    scale = 1 / sigma_high - 1 / sigma_low
    return ((gaussian(sigma_high) - gaussian(sigma_low)) / scale).to(dtype)


def _rotated_grid(
    count: int, size: int, dtype: torch.dtype, device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """Across and along each angle's line, in float64: rounded once, a bank stays symmetric."""
    count = check_integer("count", count, 1, MAX_COUNT)
    size = _check_size(size)
    _check_dtype(dtype)
    kind = {"dtype": torch.float64, "device": device}
    angle = (torch.arange(count, **kind) * (math.pi / count))[:, None, None]
    offset = torch.arange(size, **kind) - size // 2
    u, v = offset[:, None], offset
    return u * angle.cos() + v * angle.sin(), v * angle.cos() - u * angle.sin()


BANKS = {"gabor": gabor_bank, "dog": difference_of_gaussians_bank}


# --- as today's reconstruction projects define them ---------------------------------------------


def gabor_kernel_bank(
    count: int = 180,
    *,
    definition: Definition = "scikit-image",
    frequency: float | None = None,
    sigma_x: float | None = 1.8,
    sigma_y: float | None = 2.4,
    phase: float = 0.0,
    bandwidth: float = 1.0,
    stds: float = 3.0,
    size: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """The Gabor filters by which NeuralHaircut, GaussianHaircut, Im2Haircut and MonoHair see hair.

    The mean is not subtracted and nothing is normalised, as published.

    Args:
        count: 1 to 1024.
        definition: "scikit-image" is its `gabor_kernel`'s real part at theta = pi - pi * i / count
            (NeuralHaircut, GaussianHaircut, Im2Haircut): filter 0 answers to **vertical** lines,
            filter i to the direction (x right, y down) = (sin, cos) of pi * i / count; each filter
            is 0 outside a rectangle of its own. "monohair": filter 0 answers to **horizontal**
            lines, angles count counter-clockwise; the grid lies half a pixel off the centre.
        frequency: of the cosine, per pixel; None for the published .23, or .25 of "monohair".
        sigma_x, sigma_y: across and along the line; None for scikit-image's value of `bandwidth`.
        phase: in radians, scikit-image's `offset`.
        bandwidth: in octaves, looked at where a sigma is None.
        stds: scikit-image's `n_stds`: how many sigmas the rectangle reaches. "monohair" has none.
        size: of the array, odd and at most 63; None for the least that holds all rectangles, or
            the published 17 of "monohair". Filters are centred, with zeros around them; one that
            does not fit is an error.
        dtype: float32 or float64. Computed in float64 and rounded once.

    Returns:
        (count,size,size), rows and columns as `torchext.oriented_filter_statistics` correlates.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
    """
    count = check_integer("count", count, 1, MAX_COUNT)
    check_choice("definition", definition, ("scikit-image", "monohair"))
    if size is not None:
        _check_size(size)
    _check_dtype(dtype)
    turn = torch.arange(count, dtype=torch.float64, device=device) * (math.pi / count)
    if definition == "monohair":
        frequency = 0.25 if frequency is None else frequency
        sigmas = _sigmas(frequency, sigma_x, sigma_y, bandwidth)
        check_number("phase", phase)
        size = 17 if size is None else size
        offset = torch.arange(size, dtype=torch.float64, device=device) - size / 2
        c, s = turn.cos()[:, None, None], turn.sin()[:, None, None]
        u, v = offset[:, None] * c + offset * s, offset * c - offset[:, None] * s
        return _gabor(u, v, frequency, *sigmas, phase).to(dtype)
    frequency = 0.23 if frequency is None else frequency
    kernels = gabor_kernels(math.pi - turn, frequency, sigma_x, sigma_y, phase, bandwidth, stds)
    least = kernels.shape[-1]
    if size is None:
        if least > MAX_SIZE:
            raise ValueError(
                f"sigma_x, sigma_y: expected filters of at most {MAX_SIZE}, got {least}"
            )
        size = least
    if size < least:
        raise ValueError(f"size: expected at least {least}, which the filters take, got {size}")
    return F.pad(kernels, [(size - least) // 2] * 4).to(dtype)


def gabor_kernels(
    theta: Tensor,
    frequency: float,
    sigma_x: float | None = None,
    sigma_y: float | None = None,
    phase: float = 0.0,
    bandwidth: float = 1.0,
    stds: float = 3.0,
) -> Tensor:
    """The real parts of scikit-image's `gabor_kernel` at angles (K,): (K,k,k), centred, float64.

    exp(-(u^2 / sigma_x^2 + v^2 / sigma_y^2) / 2) cos(2 pi f u + phase) / (2 pi sigma_x sigma_y)
    with u = x cos + y sin and v = y cos - x sin of columns x and rows y, and 0 beyond
    ceil(max(stds sigma_x |cos|, stds sigma_y |sin|, 1)) columns or the same with both exchanged
    rows. The imaginary part is that of another phase: phase - pi / 2.
    """
    sigma_x, sigma_y = _sigmas(frequency, sigma_x, sigma_y, bandwidth)
    check_number("phase", phase)
    check_positive("stds", stds)
    c, s = theta.double().cos()[:, None], theta.double().sin()[:, None]
    across, along = stds * sigma_x, stds * sigma_y
    columns = torch.maximum((across * c).abs(), (along * s).abs()).clamp(min=1).ceil()
    rows = torch.maximum((along * c).abs(), (across * s).abs()).clamp(min=1).ceil()
    half = int(torch.maximum(rows, columns).max())
    offset = torch.arange(-half, half + 1, dtype=torch.float64, device=theta.device)
    inside = (offset.abs() <= rows)[:, :, None] & (offset.abs() <= columns)[:, None, :]
    x, y, c, s = offset, offset[:, None], c[:, None], s[:, None]
    kernels = _gabor(x * c + y * s, y * c - x * s, frequency, sigma_x, sigma_y, phase)
    return torch.where(inside, kernels / (2 * math.pi * sigma_x * sigma_y), 0)


def _gabor(
    u: Tensor, v: Tensor, frequency: float, sigma_x: float, sigma_y: float, phase: float
) -> Tensor:
    envelope = torch.exp(-0.5 * (u.square() / sigma_x**2 + v.square() / sigma_y**2))
    return envelope * torch.cos(2 * math.pi * frequency * u + phase)


def _sigmas(
    frequency: float, sigma_x: float | None, sigma_y: float | None, bandwidth: float
) -> tuple[float, float]:
    check_positive("frequency", frequency)
    check_positive("bandwidth", bandwidth)
    octaves = 2.0**bandwidth
    default = math.sqrt(math.log(2) / 2) / math.pi * (octaves + 1) / (octaves - 1) / frequency
    pair = []
    for name, sigma in (("sigma_x", sigma_x), ("sigma_y", sigma_y)):
        if sigma is not None:
            check_positive(name, sigma)
        pair.append(default if sigma is None else sigma)
    return pair[0], pair[1]


def difference_of_gaussians(image: Tensor, low: float = 0.4, high: float = 10.0) -> Tensor:
    """A band pass, scikit-image's `difference_of_gaussians`: blurred by `low` minus by `high`.

    Gaussians reach 4 sigma; the border repeats the edge. Computed in float64 and rounded to the
    image's dtype after each axis, as there; no scaling but that of uint8.

    Args:
        image: (N,C,H,W), floating point, whose scale is kept; or uint8, which is divided by 255.
        low, high: sigmas in pixels; high the larger.

    Returns:
        (N,C,H,W), in the image's dtype, float64 for uint8. Differentiable.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape or sigma does not fit.
    """
    check_tensor("image", image)
    if image.dtype == torch.uint8:
        image = image.double() / 255
    check_feature_map("image", image)
    check_positive("low", low)
    check_positive("high", high)
    if high < low:
        raise ValueError(f"high: expected at least low, {low}, got {high}")
    return _blurred(image, low) - _blurred(image, high)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """The columns, then the rows, as products of a banded matrix with some of their pixels each."""
    radius = int(4 * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64, device=image.device)
    weights = torch.exp(-0.5 * offset.square() / sigma**2)
    weights = weights / weights.sum()
    block = 2 * radius + 32
    matrix = weights.new_zeros(block + 2 * radius, block)
    place = torch.arange(block, device=image.device)
    taps = torch.arange(2 * radius + 1, device=image.device)[:, None]
    matrix[place + taps, place] = weights[:, None].expand(-1, block)
    for dim, border in ((-2, (0, 0, radius, radius)), (-1, (radius, radius, 0, 0))):
        size = image.shape[dim]
        lines = F.pad(image.double(), border, mode="replicate")
        parts = []
        for begin in range(0, size, block):
            count = min(block, size - begin)
            band = matrix[: count + 2 * radius, :count]
            part = lines.narrow(dim, begin, count + 2 * radius)
            part = part @ band if dim == -1 else band.t() @ part
            parts.append(part.to(image.dtype))
        image = torch.cat(parts, dim)
    return image


# --- checks -------------------------------------------------------------------------------------


def _check_size(size: int) -> int:
    size = check_integer("size", size, 1, MAX_SIZE)
    if size % 2 == 0:
        raise ValueError(f"size: expected an odd number, got {size}")
    return size


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
