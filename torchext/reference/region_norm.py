"""Region normalisation: "Region Normalization for Image Inpainting" (AAAI 2020), section 3."""

import torch
from torch import Tensor


def region_labels(
    mask: Tensor, height: int, width: int, num_regions: int, check_values: bool
) -> Tensor:
    """Nearest resize, source index floor(i * in / out), to uint8 labels."""
    binary = mask.dtype == torch.bool or mask.is_floating_point()
    if check_values:
        allowed = (mask == 0) | (mask == 1) if binary else (mask >= 0) & (mask < num_regions)
        if not allowed.all():
            wrong = mask[~allowed][0].item()
            expected = (
                "only the values 0 and 1" if binary else f"labels from 0 to {num_regions - 1}"
            )
            shown = f"{wrong:f}" if binary else str(wrong)
            raise ValueError(f"mask: expected {expected}, got {shown}")
    rows = torch.arange(height, device=mask.device) * mask.shape[2] // height
    columns = torch.arange(width, device=mask.device) * mask.shape[3] // width
    resized = mask[:, :, rows][:, :, :, columns]
    if binary:
        return (resized != 0).to(torch.uint8)
    return resized.clamp(0, num_regions - 1).to(torch.uint8)


def _maps(value: Tensor, region: int) -> Tensor:
    """Of statistics (R,K,C), those of a region, as (R,C,1,1)."""
    return value[:, region, :, None, None]


def region_statistics(
    x: Tensor, labels: Tensor, num_regions: int, per_instance: bool, ignore_holes: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel count (R,K), mean and biased variance (R,K,C) of every region."""
    dims = (2, 3) if per_instance else (0, 2, 3)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    parts = []
    for region in range(num_regions):
        inside = (labels == region).expand(x.shape[0], -1, -1, -1)
        count = inside.sum(dims, keepdim=True)
        size = count.clamp(min=1).to(x.dtype)
        mean = torch.where(inside, x, 0).sum(dims, keepdim=True) / size
        variance = torch.where(inside, x - mean, 0).square().sum(dims, keepdim=True) / size
        if ignore_holes and region == 0:
            mean, variance = torch.zeros_like(mean), torch.zeros_like(variance)
        parts.append((count[:, 0, 0, 0], mean[:, :, 0, 0], variance[:, :, 0, 0]))
    count, mean, variance = (torch.stack(part, dim=1) for part in zip(*parts, strict=True))
    return count, mean, variance


def region_norm(
    x: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    spatial_weight: Tensor | None,
    spatial_bias: Tensor | None,
    num_regions: int,
    per_instance: bool,
    eps: float,
    scale_eps: bool,
    ignore_holes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y = (x - mean_k) / sqrt(variance_k + eps_k) * weight_k + bias_k for the pixels of region k.

    eps_k = eps * M / S_k with M pixels in all and S_k in region k (`scale_eps`), or eps. The region
    0 is left at zero with `ignore_holes`. Also the regions' pixel counts, means and
    1 / sqrt(variance_k + eps_k).
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count, mean, variance = region_statistics(wide, labels, num_regions, per_instance, ignore_holes)
    size = count.clamp(min=1).to(mean.dtype).unsqueeze(-1)
    pixels = x.shape[2] * x.shape[3] * (1 if per_instance else x.shape[0])
    rstd = torch.rsqrt(variance + (eps * pixels / size if scale_eps else eps))
    affine = (weight, bias, spatial_weight, spatial_bias)
    options = (num_regions, per_instance, ignore_holes)
    y = region_norm_apply(wide, labels, mean, rstd, *affine, *options)
    return y.to(x.dtype), count, mean, rstd


def region_norm_apply(
    x: Tensor,
    labels: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    spatial_weight: Tensor | None,
    spatial_bias: Tensor | None,
    num_regions: int,
    per_instance: bool,
    ignore_holes: bool,
) -> Tensor:
    """`region_norm` with statistics that are given."""
    dtype = x.dtype
    x = x.to(mean.dtype)
    y = torch.zeros_like(x)
    for region in range(int(ignore_holes), num_regions):
        inside = labels == region
        normal = torch.where(inside, x - _maps(mean, region), 0) * _maps(rstd, region)
        if weight is not None and bias is not None:
            normal = normal * weight[region, :, None, None] + bias[region, :, None, None]
        elif spatial_weight is not None:
            normal = normal * spatial_weight + spatial_bias
        y = torch.where(inside, normal, y)
    return y.to(dtype)


def region_norm_backward_sums(
    grad: Tensor,
    x: Tensor,
    labels: Tensor,
    mean: Tensor,
    rstd: Tensor,
    spatial_weight: Tensor | None,
    num_regions: int,
    per_instance: bool,
    ignore_holes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums (2,R,K,C) of g and of g * xn over every region, and the gradients of the spatial affine.

    xn is the normalised x, and g = grad * spatial_weight the gradient of an xn * spatial_weight.
    """
    dims = (2, 3) if per_instance else (0, 2, 3)
    options = (num_regions, per_instance, ignore_holes)
    normal = region_norm_apply(
        x.to(mean.dtype), labels, mean, rstd, None, None, None, None, *options
    )
    grad = grad.to(mean.dtype)
    scaled = grad if spatial_weight is None else grad * spatial_weight
    sums = mean.new_zeros((2, *mean.shape))
    known = torch.zeros_like(normal, dtype=torch.bool)
    for region in range(int(ignore_holes), num_regions):
        inside = labels == region
        known = known | inside
        for i, value in enumerate((scaled, scaled * normal)):
            sums[i, :, region] = torch.where(inside, value, 0).sum(dims, keepdim=True)[:, :, 0, 0]
    if spatial_weight is None:
        return sums, mean.new_empty(0), mean.new_empty(0)
    known_grad = torch.where(known, grad, 0)
    return (
        sums,
        (known_grad * normal).sum(dim=1, keepdim=True),
        known_grad.sum(dim=1, keepdim=True),
    )


def region_norm_backward_apply(
    grad: Tensor,
    x: Tensor,
    labels: Tensor,
    count: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    weight: Tensor | None,
    spatial_weight: Tensor | None,
    pooled_gradient: Tensor | None,
    argmax: Tensor | None,
    num_regions: int,
    per_instance: bool,
    ignore_holes: bool,
) -> Tensor:
    """x's gradient: weight_k * rstd_k * (g - (sum g + xn * sum g xn) / S_k), g and sums as above.

    Added to it, where it is given, is the gradient of x's mean and maximum over channels.
    """
    options = (num_regions, per_instance, ignore_holes)
    wide = x.to(mean.dtype)
    normal = region_norm_apply(wide, labels, mean, rstd, None, None, None, None, *options)
    scaled = grad.to(mean.dtype) if spatial_weight is None else grad * spatial_weight
    result = torch.zeros_like(wide)
    size = count.clamp(min=1).to(mean.dtype).unsqueeze(-1)
    first, second = sums / size
    for region in range(int(ignore_holes), num_regions):
        centred = scaled - _maps(first, region) - normal * _maps(second, region)
        gradient = centred * _maps(rstd, region)
        if weight is not None:
            gradient = gradient * weight[region, :, None, None]
        result = torch.where(labels == region, gradient, result)
    if pooled_gradient is not None and argmax is not None:
        C = x.shape[1]
        channel = torch.arange(C, device=x.device).view(1, -1, 1, 1)
        result = result + pooled_gradient[:, :1] / C
        result = result + torch.where(argmax == channel, pooled_gradient[:, 1:], 0)
    return result.to(x.dtype)
