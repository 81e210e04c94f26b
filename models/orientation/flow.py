"""The direction of hair in a photograph, as MichiGAN's file tool finds it. Masks: 1 hair, 0 not."""

import math

import torch
from torch import Tensor

from torchext.ops.checks import check_mask_values, check_positive, check_tensor
from torchext.ops.filter_banks import difference_of_gaussians_bank
from torchext.ops.gabor_orientation import (
    grey_image,
    orientation_angle,
    orientation_map,
    oriented_filter_max,
)

BLUR_SIGMA = 4.0


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
    radius = blur_radius(sigma)
    if min(values.shape[2:]) <= radius:
        raise ValueError(
            f"image: expected a height and width above {radius}, got {tuple(image.shape)}"
        )
    flow = weighted_flow(values, mask, exact)
    for dim in (2, 3):
        flow = blur(reflected(flow, dim, radius, radius), dim, sigma)
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


def weighted_flow(values: Tensor, mask: Tensor | None, exact: bool) -> Tensor:
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


def blur_radius(sigma: float) -> int:
    """OpenCV's, for floating-point pictures: 33 taps for a sigma of 4."""
    return (round(8 * sigma + 1) | 1) // 2


def reflected(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    """x with so many rows (columns) added on both sides, mirrored without repeating the edge."""
    size = x.shape[dim]
    places = torch.arange(-before, size + after, device=x.device).abs()
    return x.index_select(dim, torch.where(places < size, places, 2 * (size - 1) - places))


def blur(x: Tensor, dim: int, sigma: float) -> Tensor:
    """The rows (columns) that have all their neighbours, blurred: the same wherever they lie."""
    radius = blur_radius(sigma)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(radius + 1)]
    total = 2 * sum(weights) - weights[0]
    size = x.shape[dim] - 2 * radius
    result = x.narrow(dim, radius, size) * (weights[0] / total)
    for offset in range(1, radius + 1):
        pair = x.narrow(dim, radius - offset, size) + x.narrow(dim, radius + offset, size)
        result.add_(pair, alpha=weights[offset] / total)
    return result
