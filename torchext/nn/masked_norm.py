"""Norms over what is visible: SparK (ICLR 2023), nnssl, ConvNeXt V2 (CVPR 2023); and of the known.

The statistics of the visible positions are those of one region of region normalisation, whose
kernels run here and do not read the others. Published code gathers the visible positions in a list,
for whose length a GPU has to wait, normalises that, and writes it back.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..ops.checks import (
    FLOATING,
    accumulate_dtype,
    check_choice,
    check_device,
    check_feature_map,
    check_mask_values,
    check_tensor,
    native,
)
from ..ops.convolution import SPATIAL
from ..ops.distributed import merged_moments
from ..ops.labels import region_labels
from ..ops.modulated_norm import modulated_norm
from ..ops.region_norm import REGION_NORM, region_norm, region_statistics
from .modulated_norm import counted_momentum
from .visible import as_floats, visible_at


def _check_features(x: Tensor, channels: int, dimensions: Sequence[int] = (2, 3)) -> None:
    check_tensor("x", x)
    check_feature_map("x", x, SPATIAL[x.dim() - 2 if x.dim() - 2 in dimensions else dimensions[0]])
    if x.shape[1] != channels:
        raise ValueError(f"x: expected {channels} channels, got {tuple(x.shape)}")


def _images(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Features and mask, of volumes too, as images; a mask of ones where there is none."""
    if mask is None:
        mask = torch.ones((1, 1, *x.shape[2:]), dtype=torch.bool, device=x.device)
    return (x.flatten(2, 3), mask.flatten(2, 3)) if x.dim() == 5 else (x, mask)


def _of_visible(value: Tensor | None, x: Tensor) -> Tensor | None:
    """(C,) of an affine for both regions of a mask; that of the hidden one is not used."""
    if value is None:
        return None
    return value.to(accumulate_dtype(x.dtype)).expand(2, -1).contiguous()


def sparse_batch_norm(
    norm: Any, x: Tensor, mask: Tensor | None, group: "dist.ProcessGroup | None" = None
) -> Tensor:
    """Batch norm of the visible positions with a norm's parameters, buffers and mode; 0 elsewhere.

    Args:
        norm: has what `torch.nn.BatchNorm2d` has.
        x, mask: (N,C,H,W) or (N,C,D,H,W); of x's size, or None for all.
        group: the processes whose statistics are taken together in training.
    """
    images, seen = _images(x, mask)
    momentum = counted_momentum(norm)
    running = norm.running_mean is not None
    if running and not norm.training:
        N = x.shape[0]
        affine = (norm.weight, norm.bias)
        if norm.weight is None:
            affine = (torch.ones_like(norm.running_mean), torch.zeros_like(norm.running_mean))
        y = modulated_norm(
            images,
            *(value.expand(N, -1) for value in affine),
            weight=as_floats(seen, x).expand(N, -1, -1, -1),
            statistics="batch",
            gain="plain",
            eps=norm.eps,
            running_mean=norm.running_mean,
            running_var=norm.running_var,
            training=False,
        )
        return y.view(x.shape)
    affine = (_of_visible(norm.weight, x), _of_visible(norm.bias, x))
    if group is None:
        labels = region_labels(images, seen, 2)
        options = (None, None, 2, False, float(norm.eps), False, True)
        y, count, mean, rstd = REGION_NORM(native(images), labels, *affine, *options)
        count, mean, rstd = count[:, 1:].double(), mean[:, 1], rstd[:, 1]
    else:
        y = region_norm(
            images, seen, *affine, eps=norm.eps, eps_form="plain", ignore_holes=True,
            process_group=group,
        )  # fmt: skip
        local = region_statistics(images, seen, ignore_holes=True)
        mean, rstd, count = merged_moments(*(value[:, 1:] for value in local), norm.eps, group)
    if running and norm.track_running_stats:
        _update_running(norm, count, mean, rstd, momentum)
    return y.view(x.shape)


def _update_running(norm: Any, count: Tensor, mean: Tensor, rstd: Tensor, momentum: float) -> None:
    """In place, the variance unbiased; where nothing was visible they stay."""
    with torch.no_grad():
        variance = (rstd.double().pow(-2) - norm.eps).clamp(min=0)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        share = (count > 0).double().flatten() * momentum
        for old, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
            old.lerp_(new.flatten().to(old.dtype), share.to(old.dtype))


def sparse_instance_norm(norm: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """Each image's visible positions normalised on their own; 0 elsewhere. As `sparse_batch_norm`.

    Args:
        norm: has what `torch.nn.InstanceNorm2d` has, without running statistics.
        x, mask: as there.
    """
    images, seen = _images(x, mask)
    affine = (_of_visible(norm.weight, x), _of_visible(norm.bias, x))
    options = {"scope": "instance", "eps_form": "plain", "ignore_holes": True}
    return region_norm(images, seen, *affine, eps=norm.eps, **options).view(x.shape)


def sparse_layer_norm(norm: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """Each visible position normalised over its channels; 0 elsewhere. As `sparse_batch_norm`.

    Args:
        norm: has what `torch.nn.LayerNorm` has, with weight and bias.
        x, mask: as there, but no volumes.
    """
    N = len(x)
    return modulated_norm(
        x,
        norm.weight.expand(N, -1),
        norm.bias.expand(N, -1),
        weight=None if mask is None else as_floats(mask, x).expand(N, -1, -1, -1),
        statistics="position",
        gain="plain",
        eps=norm.eps,
    )


class SparseBatchNorm2d(nn.BatchNorm2d):
    """SparK's batch norm of the visible positions. Mask: **1 visible, 0 hidden**.

    In training, mean and biased variance are those of the batch's visible positions, and the
    running statistics follow them with the unbiased variance; in evaluation the running ones are
    used. Hidden positions are 0 in both, whatever x holds there in training. Where nothing is
    visible, the running statistics stay.

    Stands on the kernels of `torchext.region_norm` in training, `torchext.modulated_norm` in
    evaluation: two passes over x and one.

    Args: those of `torch.nn.BatchNorm2d`; parameters, buffers and state keys are the same.

    Shape: x (N,C,H,W) or (N,C,D,H,W); mask as for `torchext.nn.visible`, or None for the mask of
    that block -> x's.

    Raises:
        TypeError, ValueError: x or mask do not fit, or there is no mask.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        _check_features(x, self.num_features)
        return sparse_batch_norm(self, x, visible_at(mask, x, x.shape[2:]), self._group())

    def _group(self) -> "dist.ProcessGroup | None":
        return None


class SparseSyncBatchNorm2d(SparseBatchNorm2d):
    """`SparseBatchNorm2d` whose statistics in training are those of all processes together.

    Once torch.distributed is initialised, over all of its processes, or those of process_group.
    Mask: **1 visible, 0 hidden**. Gradients of weight and bias stay local, for DDP to average.

    Args: those of `torch.nn.SyncBatchNorm`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: "dist.ProcessGroup | None" = None,
        **factory: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **factory)
        self.process_group = process_group

    def _group(self) -> "dist.ProcessGroup | None":
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return None
        return self.process_group or dist.group.WORLD


class _SparseInstanceNorm(nn.modules.instancenorm._InstanceNorm):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.track_running_stats:
            raise ValueError("track_running_stats: expected False, got True")
        _check_features(x, self.num_features)
        return sparse_instance_norm(self, x, visible_at(mask, x, x.shape[2:]))


class SparseInstanceNorm2d(_SparseInstanceNorm, nn.InstanceNorm2d):
    """`SparseInstanceNorm3d` over images: x (N,C,H,W)."""


class SparseInstanceNorm3d(_SparseInstanceNorm, nn.InstanceNorm3d):
    """nnssl's instance norm of the visible positions. Mask: **1 visible, 0 hidden**.

    Each image and channel is normalised by mean and biased variance of its visible positions, in
    training and evaluation alike; hidden ones are 0, whatever x holds there. As published equally
    many are visible in every image; here any number.

    Stands on `torchext.region_norm`: two passes over x.

    Args: those of `torch.nn.InstanceNorm3d`, track_running_stats False (nnssl has an affine).

    Shape: x (N,C,D,H,W), mask as for `torchext.nn.visible`, or None for the mask of that block
    -> x's.

    Raises:
        TypeError, ValueError: x or mask do not fit, or there is no mask.
    """


class SparseConvNeXtLayerNorm(nn.LayerNorm):
    """SparK's layer norm over channels, of the visible positions. Mask: **1 visible, 0 hidden**.

    Every position is normalised over its channels, times weight, plus bias; hidden ones are 0 (x
    is read there too). Stands on `torchext.modulated_norm`: one pass.

    Args:
        normalized_shape: C.
        eps: added to the variance.
        data_format: "channels_last", x (N,H,W,C), or "channels_first", x (N,C,H,W).
        sparse: False for the norm of all positions, without a mask.

    Shape: x as data_format says, mask as for `torchext.nn.visible`, or None for the mask of that
    block -> x's.

    Raises:
        ValueError: data_format is none of these.
        TypeError, ValueError: x or mask do not fit, or there is no mask.
    """

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-6,
        data_format: Literal["channels_last", "channels_first"] = "channels_last",
        sparse: bool = True,
    ) -> None:
        check_choice("data_format", data_format, ("channels_last", "channels_first"))
        super().__init__(normalized_shape, eps)
        self.data_format = data_format
        self.sparse = sparse

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        last = self.data_format == "channels_last"
        check_tensor("x", x)
        if x.dim() != 4:
            raise ValueError(f"x: expected four dimensions, got {tuple(x.shape)}")
        x = x.permute(0, 3, 1, 2) if last else x
        _check_features(x, self.normalized_shape[0], (2,))
        seen = visible_at(mask, x, x.shape[2:]) if self.sparse else None
        y = sparse_layer_norm(self, x, seen)
        return y.permute(0, 2, 3, 1) if last else y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, data_format={self.data_format!r}, sparse={self.sparse}"


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """climatereconstructionAI's batch norm by the statistics of the known. Mask: **1 known**.

    In training mean = sum(x) / n and variance = sum((x - mean)^2 * mask) / n for each channel, n
    its known positions: x is 0 in the holes, as behind a partial convolution. **All positions** are
    normalised, so holes are not 0 behind it, and the running statistics take the variance biased.
    Where a channel has no known position, mean and variance are 0 and its running statistics stay
    (as published they become NaN).

    Plain PyTorch: the holes share the statistics of the known, which no kernel here has.

    Args: those of `torch.nn.BatchNorm2d`; parameters, buffers and state keys are the same.

    Shape: x (N,C,H,W), mask (N or 1,1,H,W) or (N,C,H,W) -> x's.

    Raises:
        TypeError, ValueError: x or mask do not fit.
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        _check_features(x, self.num_features, (2,))
        self._check_mask(x, mask)
        momentum = counted_momentum(self)
        if self.training or self.running_mean is None:
            mean, variance = self._moments(x, mask, momentum)
        else:
            mean, variance = self.running_mean, self.running_var
        wide = accumulate_dtype(x.dtype)
        scale = torch.rsqrt(variance.to(wide) + self.eps)
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean.to(wide) * scale
        shift = shift if self.bias is None else shift + self.bias
        return (x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).to(x.dtype)

    def _check_mask(self, x: Tensor, mask: Tensor) -> None:
        check_tensor("mask", mask)
        check_device("mask", mask, x)
        N, C, H, W = x.shape
        if tuple(mask.shape) not in ((N, C, H, W), (N, 1, H, W), (1, 1, H, W)):
            raise ValueError(
                f"mask: expected ({N} or 1, 1, {H}, {W}) or {(N, C, H, W)}, got {tuple(mask.shape)}"
            )
        check_mask_values("mask", mask)

    def _moments(self, x: Tensor, mask: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
        """(C,) each; updates the running ones."""
        dims = (0, 2, 3)
        wide = x.to(accumulate_dtype(x.dtype))
        known = mask.detach().to(wide.dtype)
        count = known.expand(len(x), -1, -1, -1).sum(dims)
        size = torch.where(count > 0, count, 1)
        mean = wide.sum(dims) / size
        variance = ((wide - mean.view(1, -1, 1, 1)).square() * known).sum(dims) / size
        if self.training and self.track_running_stats:
            with torch.no_grad():
                share = ((count > 0).double() * momentum).expand(mean.shape)
                for old, new in ((self.running_mean, mean), (self.running_var, variance)):
                    old.lerp_(new.to(old.dtype), share.to(old.dtype))
        return mean, variance


class MinkowskiGRN(nn.Module):
    """ConvNeXt V2's global response norm of a list of points.

    y = f * (1 + gamma * R) + beta, R = g / (mean over channels of g + 1e-6), g the L2 norm of a
    channel over **all points of the batch**, as published; the paper's, and that of the dense
    layer, is each image's. Plain PyTorch: two passes.

    Args:
        dim: C.

    Parameters, (1,C), initialised to 0: gamma, beta.

    Shape: features (P,C) of all active points of all images -> (P,C); or what holds them as `F`,
    as MinkowskiEngine's sparse tensors -> a new one of its class, at the same coordinates.

    Raises:
        TypeError: points is neither.
        ValueError: the features are not (P,C).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(1, dim))
        self.beta = nn.Parameter(torch.empty(1, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gamma)
        nn.init.zeros_(self.beta)

    def forward(self, points: Any) -> Any:
        features = points if isinstance(points, Tensor) else getattr(points, "F", None)
        if not isinstance(features, Tensor) or features.dtype not in FLOATING:
            raise TypeError(
                "points: expected a floating-point tensor or what holds one as F, got"
                f" {type(points).__name__}"
            )
        channels = self.gamma.shape[1]
        if features.dim() != 2 or features.shape[1] != channels:
            raise ValueError(
                f"points: expected features (P, {channels}), got {tuple(features.shape)}"
            )
        norms = torch.linalg.vector_norm(
            features, dim=0, keepdim=True, dtype=accumulate_dtype(features.dtype)
        )
        response = norms / (norms.mean(dim=1, keepdim=True) + 1e-6)
        scale = 1 + self.gamma * response
        y = torch.addcmul(self.beta, features, scale).to(features.dtype)
        if isinstance(points, Tensor):
            return y
        place = {"coordinate_map_key": points.coordinate_map_key}
        place["coordinate_manager"] = points.coordinate_manager
        return type(points)(y, **place)

    def extra_repr(self) -> str:
        return str(self.gamma.shape[1])
