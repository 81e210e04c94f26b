"""Partial convolution layers: arXiv 1804.07723 (irregular holes), arXiv 1811.11718 (padding)."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import backend
from ..ops.partial_conv import EPS, Sizes, mask_window, partial_conv2d, partial_conv3d


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

    def forward(self, input: Tensor, mask_in: Tensor | None = None) -> Any:
        mask_channels = None
        if mask_in is not None:
            self._check_channels(mask_in)
        elif self.multi_channel:
            mask_channels = [self.in_channels]
        window = self._published_window(input, mask_in) if self.published_cache else None
        if mask_in is not None and window is None:
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

    def _published_window(self, input: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The last window, unless a mask is given or the input's shape has changed."""
        if mask is None and self._cached is not None and self._cached[0] == input.shape:
            return self._cached[1]
        mask_channels = None
        if mask is None:
            mask = input.new_ones((1, 1, *input.shape[2:]))
            mask_channels = [self.in_channels] if self.multi_channel else None
        window = mask_window(
            mask.to(input.dtype),
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

    Shape: x (N,Ci,H,W), mask (N or 1,1,H,W), or with multi_channel (N,Ci,H,W) -> y (N,Co,Ho,Wo)
    and, with return_mask, the mask: (N or 1,1,Ho,Wo) as the mask given (1 without), or with
    multi_channel (N,Co,Ho,Wo), a view of one channel.

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
        in_channels, out_channels, kernel_size, stride, padding, bias: of the convolution.

    Parameters: those of `input_conv`; `mask_conv.weight`, frozen ones, is there for the published
    state_dict (its file holds it) and is not used. Loading anything but ones is an error.

    Shape: x (N,Ci,H,W), mask (N or 1,Ci,H,W) or (N or 1,1,H,W) for all channels alike -> y and
    the updated mask, (N,Co,Ho,Wo) both, the mask a view of one channel.

    Raises: what `torchext.partial_conv2d` raises.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        shape = (in_channels, out_channels, kernel_size, stride, padding)
        self.input_conv = nn.Conv2d(*shape, bias=bias)
        self.mask_conv = nn.Conv2d(*shape, bias=False)
        nn.init.kaiming_normal_(self.input_conv.weight, a=0, mode="fan_in")
        if bias:
            nn.init.zeros_(self.input_conv.bias)
        nn.init.ones_(self.mask_conv.weight)
        self.mask_conv.weight.requires_grad_(False)

    def forward(self, input: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        conv = self.input_conv
        mask, mask_channels = _grouped(mask, input)
        y, updated = partial_conv2d(
            input,
            mask,
            conv.weight,
            conv.bias,
            conv.stride,
            conv.padding,
            form="sum",
            mask_channels=mask_channels,
        )
        return y, updated.expand(input.shape[0], conv.out_channels, *updated.shape[2:])

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        ones, error_messages = state_dict.get(f"{prefix}mask_conv.weight"), args[-1]
        if ones is not None and not (ones == 1).all():
            error_messages.append(f"{prefix}mask_conv.weight: expected only ones")
