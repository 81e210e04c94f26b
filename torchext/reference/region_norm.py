"""Region normalisation: "Region Normalization for Image Inpainting" (AAAI 2020), section 3."""

from collections.abc import Callable

import torch
from torch import Tensor


def region_labels(mask: Tensor, height: int, width: int, num_regions: int = 2) -> Tensor:
    """Nearest resize, source index floor(i * in / out), to uint8 labels."""
    rows = torch.arange(height, device=mask.device) * mask.shape[2] // height
    columns = torch.arange(width, device=mask.device) * mask.shape[3] // width
    resized = mask[:, :, rows][:, :, :, columns]
    if mask.dtype == torch.bool or mask.is_floating_point():
        return (resized != 0).to(torch.uint8)
    return resized.clamp(0, num_regions - 1).to(torch.uint8)


def _identity(value: Tensor) -> Tensor:
    return value


def _region_moments(
    x: Tensor, labels: Tensor, region: int, dims: tuple[int, ...], all_reduce: Callable
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel count, mean and biased variance of one region, broadcastable to x."""
    inside = (labels == region).expand(x.shape[0], -1, -1, -1)
    count = all_reduce(inside.sum(dims, keepdim=True).to(x.dtype))
    size = count.clamp(min=1)
    mean = all_reduce(torch.where(inside, x, 0).sum(dims, keepdim=True)) / size
    squares = torch.where(inside, x - mean, 0).square()
    return count, mean, all_reduce(squares.sum(dims, keepdim=True)) / size


def region_statistics(
    x: Tensor,
    labels: Tensor,
    *,
    num_regions: int = 2,
    per_instance: bool = False,
    ignore_holes: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel count (R,K), mean and biased variance (R,K,C) of every region."""
    dims = (2, 3) if per_instance else (0, 2, 3)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    parts = []
    for region in range(num_regions):
        count, mean, variance = _region_moments(x, labels, region, dims, _identity)
        if ignore_holes and region == 0:
            mean, variance = torch.zeros_like(mean), torch.zeros_like(variance)
        parts.append((count[:, 0, 0, 0].long(), mean[:, :, 0, 0], variance[:, :, 0, 0]))
    count, mean, variance = (torch.stack(part, dim=1) for part in zip(*parts, strict=True))
    return count, mean, variance


def region_norm(
    x: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    spatial_weight: Tensor | None = None,
    spatial_bias: Tensor | None = None,
    *,
    num_regions: int = 2,
    per_instance: bool = False,
    eps: float = 1e-5,
    scale_eps: bool = True,
    ignore_holes: bool = False,
    all_reduce: Callable[[Tensor], Tensor] = _identity,
) -> Tensor:
    """y = (x - mean_k) / sqrt(variance_k + eps_k) * weight_k + bias_k for the pixels of region k.

    eps_k = eps * M / S_k with M pixels in all and S_k in region k (`scale_eps`), or eps. The region
    0 is left at zero with `ignore_holes`. `all_reduce` sums a tensor over processes.
    """
    dtype = x.dtype
    x = x.to(torch.promote_types(dtype, torch.float32))
    dims = (2, 3) if per_instance else (0, 2, 3)
    pixels = x.shape[2] * x.shape[3] * (1 if per_instance else x.shape[0])
    total = all_reduce(x.new_full((), pixels))
    y = torch.zeros_like(x)
    for region in range(1 if ignore_holes else 0, num_regions):
        count, mean, variance = _region_moments(x, labels, region, dims, all_reduce)
        region_eps = eps * total / count.clamp(min=1) if scale_eps else eps
        inside = labels == region
        normal = torch.where(inside, x - mean, 0) * torch.rsqrt(variance + region_eps)
        if weight is not None:
            normal = normal * weight[region, :, None, None] + bias[region, :, None, None]
        elif spatial_weight is not None:
            normal = normal * spatial_weight + spatial_bias
        y = torch.where(inside, normal, y)
    return y.to(dtype)
