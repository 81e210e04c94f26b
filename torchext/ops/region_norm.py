"""Region normalisation: "Region Normalization for Image Inpainting" (AAAI 2020)."""

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .. import backend, schema
from .checks import (
    MAX_REGIONS,
    accumulate_dtype,
    check_choice,
    check_feature_map,
    check_integer,
    check_parameter,
    check_positive,
    memory_format,
    native,
    parameter_in,
)
from .labels import check_mask, region_labels
from .op import Gradients, Op

Scope = Literal["batch", "instance"]
EpsForm = Literal["published", "plain"]


def region_norm(
    x: Tensor,
    mask: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    num_regions: int = 2,
    scope: Scope = "batch",
    eps: float = 1e-5,
    eps_form: EpsForm = "published",
    spatial_weight: Tensor | None = None,
    spatial_bias: Tensor | None = None,
    ignore_holes: bool = False,
    resize_mask: bool = False,
    process_group: "dist.ProcessGroup | None" = None,
) -> Tensor:
    """Normalise every region of a feature map by its own mean and variance. Mask: 1 known, 0 hole.

    For a pixel of region k: y = (x - mean_k) / sqrt(variance_k + eps_k) * weight_k + bias_k, with
    the biased statistics of that region's pixels, per channel ("Region Normalization for Image
    Inpainting", AAAI 2020, section 3). An empty region contributes nothing; a region of one pixel
    gives `bias` and no gradient.

    Args:
        x: (N,C,H,W), float32, float64, float16 or bfloat16; contiguous or channels_last (other
            strides are copied). Statistics of the halves are taken in float32.
        mask: (N or 1,1,H,W) on x's device. A bool or floating-point mask is binary and its value is
            the region: 0 the hole, 1 the known pixels. An integer mask holds labels 0..K-1. Gets no
            gradient.
        weight, bias: (K,C), both or none: an affine per region and channel.
        num_regions: K, 1 to 64.
        scope: "batch" takes statistics over (N,H,W), in training and evaluation alike: what the
            published code and checkpoint do. "instance" takes them per image: what the paper says.
        eps: added to the variance, positive.
        eps_form: "published" uses eps_k = eps * M / S_k, with M pixels in all and S_k in region k,
            the form that the published code amounts to; "plain" uses eps_k = eps.
        spatial_weight, spatial_bias: (N,1,H,W), both or none, instead of weight and bias: one
            affine per pixel, shared by all channels.
        ignore_holes: never read the pixels of region 0 (they may hold NaN); y and the gradient are
            exactly 0 there.
        resize_mask: take a mask of any height and width and resize it to x's, by nearest neighbour
            at index floor(i * in / out), as the published layer does.
        process_group: take the statistics over all processes of the group, each holding part of
            the batch; scope "batch" only. Gradients of weight and bias stay local, for DDP to
            average. Differentiable once.

    Returns:
        y, with x's shape, dtype and memory format.

    Memory beyond the result: one byte per pixel for the labels and (R,K,C) statistics; x, the
    labels and the statistics are kept for backward.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape, device or choice does not fit, or, in eager mode on the CPU (elsewhere
            with `torchext.backend.check_values`), a mask holds other values than allowed.
    """
    check_feature_map("x", x)
    num_regions = check_integer("num_regions", num_regions, 1, MAX_REGIONS)
    check_choice("scope", scope, ("batch", "instance"))
    check_choice("eps_form", eps_form, ("published", "plain"))
    check_positive("eps", eps)
    mask = check_mask(x, mask, num_regions, resize_mask)
    N, C, H, W = x.shape
    _check_pair("weight", weight, "bias", bias, (num_regions, C), x)
    _check_pair("spatial_weight", spatial_weight, "spatial_bias", spatial_bias, (N, 1, H, W), x)
    if weight is not None and spatial_weight is not None:
        raise ValueError("weight, spatial_weight: expected at most one of the two, got both")
    if process_group is not None and scope != "batch":
        raise ValueError(f"process_group: expected scope 'batch' with it, got {scope!r}")

    accumulate = accumulate_dtype(x.dtype)
    affine = [
        None if value is None else parameter_in(value, accumulate)
        for value in (weight, bias, spatial_weight, spatial_bias)
    ]
    labels = region_labels(x, mask, num_regions)
    options = (num_regions, scope == "instance", float(eps), eps_form == "published", ignore_holes)
    if process_group is not None:
        ops = backend.choose("region_norm", x).ops
        return _Synchronised.apply(ops, process_group, native(x), labels, *affine, *options)
    return REGION_NORM(native(x), labels, *affine, *options)[0]


def region_statistics(
    x: Tensor,
    mask: Tensor,
    *,
    num_regions: int = 2,
    scope: Scope = "batch",
    ignore_holes: bool = False,
    resize_mask: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel count, mean and biased variance of every region. Mask: 1 known, 0 hole.

    Args: as for `region_norm`. Gets no gradient.

    Returns:
        count: int64 (R,K); R is N for scope "instance", 1 for "batch".
        mean, variance: (R,K,C), float32 (float64 for a float64 x); 0 for an empty region, and for
            region 0 with `ignore_holes`.

    Raises: as `region_norm`.
    """
    check_feature_map("x", x)
    num_regions = check_integer("num_regions", num_regions, 1, MAX_REGIONS)
    check_choice("scope", scope, ("batch", "instance"))
    mask = check_mask(x, mask, num_regions, resize_mask)
    labels = region_labels(x, mask, num_regions)
    options = (num_regions, scope == "instance", ignore_holes)
    return REGION_STATISTICS(native(x.detach()), labels, *options)


def _check_pair(
    first_name: str,
    first: Tensor | None,
    second_name: str,
    second: Tensor | None,
    shape: tuple[int, ...],
    x: Tensor,
) -> None:
    if (first is None) != (second is None):
        missing = first_name if first is None else second_name
        raise ValueError(f"{missing}: expected both {first_name} and {second_name}, or none")
    for name, value in ((first_name, first), (second_name, second)):
        if value is not None:
            check_parameter(name, value, shape, x)


# --- statistics over processes ------------------------------------------------------------------


class _Synchronised(torch.autograd.Function):
    """Region normalisation with the statistics of all processes of a group.

    Two small all-reduces forward (counts with sums, then squared deviations from the common mean,
    so that a large mean costs no accuracy), one backward (the gradient's region sums).
    """

    @staticmethod
    def forward(
        ctx: Any,
        ops: Any,
        group: dist.ProcessGroup,
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
    ) -> Tensor:
        tail = (num_regions, per_instance, ignore_holes)
        count, mean, variance = ops.region_statistics(x, labels, *tail)
        local = count.double().unsqueeze(-1)
        totals = torch.cat((local, local * mean), dim=-1)
        dist.all_reduce(totals, group=group)
        size = totals[..., :1].clamp(min=1)
        common = totals[..., 1:] / size
        squares = local * (variance + (mean - common).square())
        dist.all_reduce(squares, group=group)
        count = totals[..., 0].long()
        region_eps = eps * count.sum() / size if scale_eps else eps
        rstd = torch.rsqrt(squares / size + region_eps).to(mean.dtype)
        mean = common.to(mean.dtype)
        ctx.save_for_backward(x, labels, count, mean, rstd, weight, spatial_weight)
        ctx.ops, ctx.group, ctx.tail = ops, group, tail
        return ops.region_norm_apply(
            x, labels, mean, rstd, weight, bias, spatial_weight, spatial_bias, *tail
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, labels, count, mean, rstd, weight, spatial_weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=memory_format(x))
        sums, grad_spatial_weight, grad_spatial_bias = ctx.ops.region_norm_backward_sums(
            grad, x, labels, mean, rstd, spatial_weight, *ctx.tail
        )
        grad_weight, grad_bias = _affine_gradients(sums, weight)
        total = sums.clone()
        dist.all_reduce(total, group=ctx.group)
        grad_x = ctx.ops.region_norm_backward_apply(
            grad, x, labels, count, mean, rstd, total, weight, spatial_weight, None, None, *ctx.tail
        )
        if spatial_weight is None:
            grad_spatial_weight = grad_spatial_bias = None
        gradients = (grad_weight, grad_bias, grad_spatial_weight, grad_spatial_bias)
        return None, None, grad_x, None, *gradients, None, None, None, None, None


# --- ops ----------------------------------------------------------------------------------------


def _affine_gradients(sums: Tensor, weight: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weight and bias (K,C) from the region sums (2,R,K,C)."""
    if weight is None:
        return None, None
    total = sums.squeeze(1) if sums.shape[1] == 1 else sums.sum(dim=1)
    bias, scale = total.unbind()
    return scale, bias


def _fake_statistics(
    x: Tensor, labels: Tensor, num_regions: int, per_instance: bool, ignore_holes: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[0] if per_instance else 1, num_regions, x.shape[1])
    dtype = accumulate_dtype(x.dtype)
    count = x.new_empty(shape[:2], dtype=torch.int64)
    return count, x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)


def _fake(
    x: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    spatial_weight: Tensor | None,
    spatial_bias: Tensor | None,
    num_regions: int,
    per_instance: bool,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), *_fake_statistics(x, labels, num_regions, per_instance, False)


def _fake_sums(
    grad: Tensor,
    x: Tensor,
    labels: Tensor,
    mean: Tensor,
    rstd: Tensor,
    spatial_weight: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    N, _, H, W = x.shape
    pixels = (0,) if spatial_weight is None else (N, 1, H, W)
    return mean.new_empty((2, *mean.shape)), mean.new_empty(pixels), mean.new_empty(pixels)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    labels: Tensor,
    count: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    spatial_weight: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), *_fake_sums(grad, x, labels, mean, rstd, spatial_weight)


def _backward(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    x, sums, spatial_weight, spatial_bias = ops.region_norm_backward(
        grad,
        kept.x,
        kept.labels,
        kept.count,
        kept.mean,
        kept.rstd,
        kept.weight,
        kept.spatial_weight,
        kept.num_regions,
        kept.per_instance,
        kept.ignore_holes,
    )
    weight, bias = _affine_gradients(sums, kept.weight)
    gradients: Gradients = {"x": x, "weight": weight, "bias": bias}
    if kept.spatial_weight is not None:
        gradients |= {"spatial_weight": spatial_weight, "spatial_bias": spatial_bias}
    return gradients


REGION_STATISTICS = Op(name="region_statistics", fake=_fake_statistics)
REGION_NORM = Op(
    name="region_norm",
    fake=_fake,
    keep=(*schema.arguments("region_norm"), "count", "mean", "rstd"),
    backward=_backward,
)
REGION_NORM_APPLY = Op(name="region_norm_apply", fake=lambda x, *_: torch.empty_like(x))
REGION_NORM_BACKWARD = Op(name="region_norm_backward", fake=_fake_backward)
REGION_NORM_BACKWARD_SUMS = Op(name="region_norm_backward_sums", fake=_fake_sums)
REGION_NORM_BACKWARD_APPLY = Op(
    name="region_norm_backward_apply", fake=lambda grad, x, *_: torch.empty_like(x)
)
