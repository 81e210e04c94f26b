"""Partial convolution layers: arXiv 1804.07723 (irregular holes), arXiv 1811.11718 (padding)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import backend, reference
from ..ops.checks import check_feature_map
from ..ops.convolution import SPATIAL, Sizes, check_mask
from ..ops.partial_conv import EPS, Form, mask_window, partial_conv2d, partial_conv3d
from .plain import plain


class _PartialConvNd(nn.modules.conv._ConvNd):
    """What the published layers add to PyTorch's."""

    def __init__(
        self,
        *args: Any,
        multi_channel: bool = False,
        return_mask: bool = False,
        eps: float = EPS,
        published_cache: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.multi_channel = multi_channel
        self.return_mask = return_mask
        self.eps = eps
        self.published_cache = published_cache
        # With published_cache: the last input's shape, and its mask's window.
        self._cached: tuple[torch.Size, tuple[Tensor, Tensor]] | None = None

    def forward(
        self,
        input: Tensor,
        mask_in: Tensor | None = None,
        mask_channels: Sequence[int] | None = None,
    ) -> Any:
        check_feature_map("input", input, SPATIAL[len(self.kernel_size)])
        window = None
        if mask_channels is not None:
            if mask_in is None or not self.multi_channel:
                raise ValueError("mask_channels: expected mask_in and multi_channel=True with it")
        elif mask_in is not None:
            self._check_channels(mask_in)
        elif self.multi_channel:
            mask_channels = [self.in_channels]
        if self.published_cache:
            window = self._published_window(input, mask_in, mask_channels)
        if mask_in is not None and mask_channels is None and window is None:
            mask_in, mask_channels = _grouped(mask_in, input)
        function = partial_conv2d if len(self.kernel_size) == 2 else partial_conv3d
        y, updated = function(
            input,
            mask_in,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            eps=self.eps,
            mask_channels=mask_channels,
            padding_mode=self.padding_mode,
            window=window,
        )
        if not self.return_mask:
            return y
        if self.multi_channel:
            updated = updated.expand(input.shape[0], self.out_channels, *updated.shape[2:])
        return y, updated

    def _check_channels(self, mask: Tensor) -> None:
        expected = self.in_channels if self.multi_channel else 1
        if isinstance(mask, Tensor) and mask.dim() > 1 and mask.shape[1] != expected:
            raise ValueError(
                f"mask_in: expected {expected} channels with multi_channel={self.multi_channel},"
                f" got {mask.shape[1]}"
            )

    def _published_window(
        self, input: Tensor, mask: Tensor | None, mask_channels: Sequence[int] | None
    ) -> tuple[Tensor, Tensor]:
        """The last window, unless a mask is given or the input's shape has changed."""
        if mask is None and self._cached is not None and self._cached[0] == input.shape:
            scale, updated = self._cached[1]
            return scale.to(input.device), updated.to(input.device)
        if mask is None:
            mask = input.new_ones((1, 1, *input.shape[2:]))
        # A training step may use what an evaluation in inference mode has left here.
        with torch.inference_mode(False), torch.no_grad():
            window = mask_window(
                mask.to(input.dtype, copy=mask.is_inference()),
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                bias=self.bias is not None,
                eps=self.eps,
                mask_channels=mask_channels,
            )
        self._cached = (input.shape, window)
        return window

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, multi_channel={self.multi_channel},"
            f" return_mask={self.return_mask}"
        )


def _grouped(mask: Tensor, x: Tensor, most: int = 4) -> tuple[Tensor, list[int] | None]:
    """A mask of all channels as one channel for each run of equal ones, and the runs' lengths.

    Published networks carry such masks: a few different planes, each in many copies. Values are
    compared on the CPU in eager mode only: elsewhere it would wait for the device or break the
    graph. One that is expanded over all channels is known by its strides already.
    """
    if (
        not isinstance(mask, Tensor)
        or not backend.readable(mask)
        or mask.shape[1:] != x.shape[1:]
        or mask.shape[1] == 1
        or mask.dim() != 4
        or mask.stride(1) == 0
        or mask.numel() == 0
    ):
        return mask, None
    # Sums tell where runs may begin, at the cost of one read; then their planes are compared.
    sums = mask.sum(dim=(2, 3))
    begins = [0, *((sums[:, 1:] != sums[:, :-1]).any(dim=0).nonzero().flatten() + 1).tolist()]
    if len(begins) > most:
        return mask, None
    lengths = [b - a for a, b in zip(begins, [*begins[1:], mask.shape[1]], strict=True)]
    words = mask.contiguous()
    if mask.shape[3] * mask.element_size() % 8 == 0:  # fewer, longer words compare faster
        words = words.view(torch.int64)
    for run in words.split(lengths, dim=1):
        if not torch.equal(run[:, 1:], run[:, :-1]):
            return mask, None
    return mask[:, begins], lengths


class PartialConv2d(_PartialConvNd, nn.Conv2d):
    """The published partial convolution layer. Mask: **1 known, 0 hole**, or between.

    `torch.nn.Conv2d` with a second, optional argument of `forward`; see `torchext.partial_conv2d`
    (form "ratio"). Without a mask all is known, and the ratio corrects the zero padding at the
    border (partial-convolution padding, arXiv 1811.11718).

    Args:
        *args, **kwargs: those of `torch.nn.Conv2d`; parameters and state keys are the same.
        multi_channel: the mask has x's channels, not one.
        return_mask: `forward` returns (y, updated mask).
        eps: added to the mask's sum; the published 1e-8 serves float16 too.
        published_cache: as published, a call without mask whose input has the last call's shape
            reuses that call's window, although x is then not masked. State is written in
            `forward` with this option only.

    Shape: x (N,Ci,H,W), mask (N or 1,1,H,W), or with multi_channel (N,Ci,H,W), or with that and
    mask_channels a channel for each of those numbers -> y (N,Co,Ho,Wo) and, with return_mask, the
    mask: (N or 1,1,Ho,Wo) as the mask given (1 without), or with multi_channel (N,Co,Ho,Wo), a view
    of one channel.

    Raises: what `torchext.partial_conv2d` raises; ValueError: the mask has other channels.
    """


class PartialConv3d(_PartialConvNd, nn.Conv3d):
    """`PartialConv2d` over volumes: x (N,Ci,D,H,W). Mask: **1 known, 0 hole**, or between.

    Arguments are those of `torch.nn.Conv3d`, and as for `PartialConv2d`.
    """


class PartialConv(nn.Module):
    """The partial convolution of the widely used U-Net. Mask: **1 known, 0 hole**, or between.

    y = conv(x * mask) / s + bias where s, the mask's sum over window and channels, is not 0, else
    0 (`torchext.partial_conv2d`, form "sum": the paper's window factor is missing). The updated
    mask is binary.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: of the
            convolution. A bool in dilation's place is the bias, which has no default: the U-Net's
            layer has one unless told otherwise, PD-GAN's has none.

    Parameters: those of `input_conv`. The published state has `mask_conv.weight` too, frozen ones:
    it is written, and loading anything else is an error.

    Shape: x (N,Ci,H,W), mask (N or 1,Ci,H,W) or (N or 1,1,H,W) for all channels alike -> y and
    the updated mask, (N,Co,Ho,Wo) both, the mask a view of one channel (of one for each group,
    where there are groups). With mask_channels, a number for each channel of the mask, and another
    form, as for `torchext.partial_conv2d`.

    Raises: ValueError: no bias is given; what `torchext.partial_conv2d` raises.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        dilation: Sizes | bool = 1,
        groups: int = 1,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        if isinstance(dilation, bool):
            dilation, bias = 1, dilation
        if not isinstance(bias, bool):
            raise ValueError(
                f"bias: expected True or False, got {bias!r}: published layers of this name differ"
                " in its default"
            )
        shape = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self.input_conv = _InputConv2d(*shape, bias=bias)
        self.mask_conv = _Ones(self.input_conv)

    def is_plain(self) -> bool:
        """Whether the weights say all that a call does."""
        return plain(self.input_conv, nn.Conv2d, _InputConv2d)

    def forward(
        self,
        input: Tensor,
        mask: Tensor,
        mask_channels: Sequence[int] | None = None,
        form: Form = "sum",
    ) -> tuple[Tensor, Tensor]:
        check_feature_map("input", input)
        conv, geometry = self.input_conv, self.mask_conv
        sizes = (geometry.stride, geometry.padding, geometry.dilation)
        groups = geometry.groups
        if mask_channels is None:
            mask, mask_channels = _grouped(mask, input)
        if self.is_plain() and groups == 1:
            options = {"form": form, "mask_channels": mask_channels}
            y, updated = partial_conv2d(input, mask, conv.weight, conv.bias, *sizes, **options)
            return y, updated.expand(input.shape[0], conv.out_channels, *updated.shape[2:])
        mask, channels = check_mask("mask", mask, input, mask_channels)
        known = reference.mask_product(torch.ones_like(input), mask, channels)
        windows = [
            mask_window(part, geometry.kernel_size, *sizes, form=form, bias=conv.bias is not None)
            for part in known.chunk(groups, dim=1)
        ]
        scale, updated = (
            torch.cat(maps, dim=1).to(input.dtype) for maps in zip(*windows, strict=True)
        )
        raw = conv(reference.mask_product(input, mask, channels))
        scale, updated = (
            maps.repeat_interleave(raw.shape[1] // groups, dim=1) for maps in (scale, updated)
        )
        bias = conv.bias
        if bias is None:
            return raw * scale, updated.expand_as(raw)
        bias = bias.view(1, -1, 1, 1)
        return (raw - bias) * scale + bias * updated, updated.expand_as(raw)


class _InputConv2d(nn.Conv2d):
    """Initialised as published."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, a=0, mode="fan_in")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class _Ones(nn.Module):
    """Where and how a mask's windows lie; in the state a kernel of ones, which it does not hold.

    A published initialiser that runs over all convolutions cannot change it.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.kernel_size = conv.kernel_size
        self.stride = conv.stride
        self.padding = conv.padding
        self.dilation = conv.dilation
        self.groups = conv.groups
        self.shape = conv.weight.shape
        self.register_buffer("like", conv.weight.new_empty(0), persistent=False)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[f"{prefix}weight"] = self.like.new_ones(self.shape)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_messages: list[str],
    ) -> None:
        key = f"{prefix}weight"
        weight = state_dict.get(key)
        if weight is None:
            missing_keys.append(key)
        elif weight.shape != self.shape:
            error_messages.append(
                f"{key}: expected the shape {tuple(self.shape)}, got {tuple(weight.shape)}"
            )
        elif not weight.is_meta and not (weight == 1).all():
            error_messages.append(f"{key}: expected only ones")

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, ones"
