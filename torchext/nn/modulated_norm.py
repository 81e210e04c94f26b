"""Layers that normalise, then modulate: SPADE, SPDNorm, attention normalisation, AdaIN, pixel norm.

Convolutions make the maps; what follows is `torchext.modulated_norm`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.checks import check_feature_map, memory_format
from ..ops.diversity_map import diversity_map, soft_diversity_map
from ..ops.label_conv2d import label_conv2d
from ..ops.label_windows import LabelWindows
from ..ops.modulated_norm import Statistics, modulated_norm
from ..ops.spade_modulation_table import spade_modulation_table
from ..ops.winograd_conv import conv2d
from .label_windows import Capacity, Shared, tell, windows_of
from .plain import plain
from .resize import nearest
from .winograd_conv import Conv2d

_HIDDEN = 128  # channels between the condition and its maps, in all published layers
_SLOPE = 0.2


class _ParameterFreeNorm(nn.Module):
    """The statistics of a modulated layer where they are each image's or each pixel's.

    Args:
        num_features: C.
        statistics: as for `torchext.modulated_norm`, but "batch".
    """

    def __init__(self, num_features: int, statistics: Statistics) -> None:
        super().__init__()
        self.num_features = num_features
        self.statistics: Statistics = statistics
        self.eps = 1e-5
        self.momentum = 0.1  # has no effect, as in `torch.nn.InstanceNorm2d`

    def forward(
        self, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, **options: Any
    ) -> Tensor:
        unbiased = self.statistics == "position"
        options |= {"statistics": self.statistics, "unbiased": unbiased, "eps": self.eps}
        return modulated_norm(x, gamma, beta, **options)

    def extra_repr(self) -> str:
        return f"{self.num_features}, statistics={self.statistics!r}, eps={self.eps}"


def counted_momentum(norm: Any) -> float:
    """The momentum of a batch norm's running statistics in this call, which is counted."""
    momentum = 0.0 if norm.momentum is None else norm.momentum
    count = norm._buffers.get("num_batches_tracked")
    if norm.training and norm.track_running_stats and count is not None:
        count.add_(1)
        if norm.momentum is None:  # a cumulative average
            momentum = 1.0 / float(count)
    return momentum


class _ParameterFreeBatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` without an affine, which also modulates.

    Whatever handles batch norms finds it by its class: conversion to synchronised ones, updates of
    the statistics of averaged weights, initialisers.

    Args:
        num_features: C.
        synchronised: take the batch's statistics over all processes in training, once
            torch.distributed is initialised.
    """

    def __init__(self, num_features: int, *, synchronised: bool = False) -> None:
        super().__init__(num_features, affine=False)
        self.synchronised = synchronised

    def forward(
        self, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, **options: Any
    ) -> Tensor:
        momentum = counted_momentum(self)
        running = (self.running_mean, self.running_var)
        of_batch = self.training or self.running_mean is None
        if self.training and not self.track_running_stats:
            running = (None, None)
        group = None
        if self.training and self.synchronised and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        return modulated_norm(
            x,
            gamma,
            beta,
            statistics="batch",
            eps=self.eps,
            running_mean=running[0],
            running_var=running[1],
            training=of_batch,
            momentum=momentum,
            process_group=group,
            **options,
        )


def parameter_free_norm(
    num_features: int,
    statistics: Literal["instance", "batch", "position"],
    *,
    synchronised: bool = False,
) -> nn.Module:
    if statistics == "batch":
        return _ParameterFreeBatchNorm(num_features, synchronised=synchronised)
    return _ParameterFreeNorm(num_features, statistics)


def _identity(x: Tensor) -> Tensor:
    return x


def _modulate(
    norm: Callable[..., Tensor], x: Tensor, gamma: Tensor, beta: Tensor, **options: Any
) -> Tensor:
    """Normalise and modulate in one; one after the other where the norm was replaced."""
    if plain(norm, _ParameterFreeNorm, _ParameterFreeBatchNorm):
        return norm(x, gamma, beta, **options)
    # eps has no part in it, but a default is a graph's dynamic input, which branches do not share.
    return modulated_norm(norm(x), gamma, beta, statistics="none", eps=1.0, **options)


def _convolution(
    in_channels: int, out_channels: int, kernel_size: int = 3, dilation: int = 1
) -> nn.Conv2d:
    """That keeps the size."""
    padding = dilation * (kernel_size // 2)
    return Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation)


def _is_convolution(layer: nn.Module) -> bool:
    """Whether the layer's weight may be read instead of calling it."""
    return plain(layer, nn.Conv2d, Conv2d)


def _is_convolution_with(layers: nn.Module, activation: type[nn.Module]) -> bool:
    """The same of a sequence of a convolution and an activation."""
    return (
        plain(layers, nn.Sequential)
        and len(layers) == 2
        and _is_convolution(layers[0])
        and plain(layers[1], activation)
    )


def _option(options: str | object, name: str) -> str:
    """A text, or that of an options object or dictionary of published code."""
    if isinstance(options, str):
        return options
    found = options.get(name) if isinstance(options, Mapping) else getattr(options, name, None)
    if not isinstance(found, str):
        raise TypeError(
            f"{name}: expected a text, or options with a text {name!r}, got {options!r}"
        )
    return found


def _condition_channels(options: object) -> int:
    """Of the label map, from an options object of published code."""
    values = options if isinstance(options, Mapping) else vars(options)
    if isinstance(values.get("orient_nc"), int) and isinstance(values.get("label_nc"), int):
        return values["label_nc"] + values["orient_nc"]
    if not isinstance(values.get("semantic_nc"), int):
        raise TypeError(
            f"norm_G: expected options with semantic_nc, or label_nc and orient_nc, got {options!r}"
        )
    return values["semantic_nc"]


def _spectral(norm_G: str) -> Callable[[nn.Conv2d], nn.Conv2d]:
    return nn.utils.spectral_norm if "spectral" in norm_G else lambda layer: layer


def _reset_spectral(layer: nn.Conv2d) -> None:
    """Weight and singular vectors of a spectrally normalised convolution, which resets neither."""
    if "weight_orig" not in layer._parameters:
        return
    nn.init.kaiming_uniform_(layer.weight_orig, a=math.sqrt(5))
    for name in ("weight_u", "weight_v"):
        vector = torch.randn_like(layer._buffers[name])
        layer._buffers[name].copy_(F.normalize(vector, dim=0))


def _side_by_side(first: nn.Module, second: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of two convolutions of one input as one."""
    return torch.cat((first.weight, second.weight)), torch.cat((first.bias, second.bias))


def _pair(
    first: nn.Module, second: nn.Module, x: Tensor, both: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Two convolutions of one input as one, which is faster than two.

    Args:
        both: what `_side_by_side` made of them.
    """
    if not (_is_convolution(first) and _is_convolution(second)):
        return first(x), second(x)
    weight, bias = both or _side_by_side(first, second)
    y = conv2d(x, weight, bias, first.stride, first.padding, first.dilation)
    return tuple(y.split((first.out_channels, second.out_channels), dim=1))


class SPDNorm(nn.Module):
    """PD-GAN's spatially probabilistic diversity norm (CVPR 2021). Weight: 1 trusts the prior.

    y = xn * (1 + gamma * weight) + beta * weight, gamma and beta from convolutions of the prior.

    Args:
        norm_channel: C.
        norm_type: "position", which the published generator passes: mean and unbiased variance over
            channels at each pixel; "instance"; or "batch". Without a default, so that a published
            call which relies on one is not taken for another norm.
        form: "published", or "paper", y = weight * (gamma * xn + beta).

    Shape: x (N,C,H,W), prior (N,3,h,w), resized by nearest neighbour, weight (N,1,H,W) or (N,C,H,W)
    -> (N,C,H,W).

    Raises:
        ValueError: norm_type or form is none of these; what `torchext.modulated_norm` raises.
    """

    def __init__(
        self,
        norm_channel: int,
        norm_type: Literal["position", "instance", "batch"] | None = None,
        *,
        form: Literal["published", "paper"] = "published",
    ) -> None:
        super().__init__()
        if norm_type not in ("position", "instance", "batch"):
            raise ValueError(
                f"norm_type: expected 'position', 'instance' or 'batch', got {norm_type!r}"
            )
        if form not in ("published", "paper"):
            raise ValueError(f"form: expected 'published' or 'paper', got {form!r}")
        self.form = form
        self.param_free_norm = parameter_free_norm(norm_channel, norm_type)
        self.mlp_activate = nn.Sequential(_convolution(3, _HIDDEN), nn.ReLU())
        self.mlp_gamma = _convolution(_HIDDEN, norm_channel)
        self.mlp_beta = _convolution(_HIDDEN, norm_channel)

    def forward(
        self, x: Tensor, prior: Tensor, weight: Tensor, activation: float | None = None
    ) -> Tensor:
        check_feature_map("x", x)
        check_feature_map("prior", prior)
        return self.modulate(x, self.maps(nearest(prior, x)), weight, activation)

    def maps(self, prior: Tensor) -> tuple[Tensor, Tensor]:
        """gamma and beta, (N,C,h,w), of a prior (N,3,h,w)."""
        return _pair(self.mlp_gamma, self.mlp_beta, self.mlp_activate(prior))

    def modulate(
        self,
        x: Tensor,
        maps: tuple[Tensor, Tensor],
        weight: Tensor,
        activation: float | None = None,
    ) -> Tensor:
        """`forward` with the maps known."""
        gain = "one_plus" if self.form == "published" else "plain"
        options = {"weight": weight, "gain": gain, "activation": activation}
        return _modulate(self.param_free_norm, x, *maps, **options)

    def extra_repr(self) -> str:
        return f"form={self.form!r}"


class _HardMap(nn.Module):
    """The hard diversity map, with the published state entry: a box, whose size alone counts."""

    def __init__(self, steps: int, window: int, base: float) -> None:
        super().__init__()
        self.steps = steps
        self.window = window
        self.base = base
        self.mask_conv = nn.Conv2d(1, 1, window, padding=window // 2, bias=False)
        nn.init.constant_(self.mask_conv.weight, 1.0)
        self.mask_conv.weight.requires_grad_(False)

    def forward(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        return diversity_map(mask, self.steps, self.window, self.base, size=size)


class SPDNormConditions(NamedTuple):
    """What a residual block derives from prior and mask alone, at its own size."""

    norm_0: tuple[Tensor, ...]  # gamma and beta; the prior alone for a norm that is not `plain`
    norm_1: tuple[Tensor, ...]
    norm_s: tuple[Tensor, ...]
    features: Tensor  # of the prior, for the soft map; or their share of its logits
    hard: Tensor
    mask: Tensor
    shared: bool  # whether features are logits

    def repeated(self, times: int) -> "SPDNormConditions":
        """For a batch that repeats the images."""

        def repeat(value: Tensor) -> Tensor:
            return value.repeat(times, 1, 1, 1)

        pairs = (tuple(map(repeat, pair)) for pair in self[:3])
        return SPDNormConditions(*pairs, *map(repeat, self[3:6]), self.shared)


class SPDNormResnetBlock(nn.Module):
    """PD-GAN's residual block (CVPR 2021). Mask: 1 known, 0 hole (as inside its networks).

    The hard map weights the two norms of the main path, the soft map the shortcut's.

    Args:
        fin, fout: channels in and out.
        mask_number, mask_ks: dilations of the hard map and their window.
        norm_G: spectral normalisation of the convolutions where it contains "spectral"; or the
            published options object, whose norm_G is taken.
        norm_type, form: of the norms, see `SPDNorm`.
        base: of the hard map: e in the published code, 4 in the paper.

    Shape: x (N,fin,H,W), prior (N,3,h,w), mask (N,1 or more,h',w'), whose channel 0 counts
    -> (N,fout,H,W). In their place `conditions`, derived from them once for several x.

    Raises: what `torchext.modulated_norm` and `torchext.diversity_map` raise.
    """

    def __init__(
        self,
        fin: int,
        fout: int,
        mask_number: int,
        mask_ks: int,
        norm_G: str | object = "spectral",
        *,
        norm_type: Literal["position", "instance", "batch"] = "position",
        form: Literal["published", "paper"] = "published",
        base: float = math.e,
    ) -> None:
        super().__init__()
        middle = min(fin, fout)
        spectral = _spectral(_option(norm_G, "norm_G"))
        # Never used, but in every published state. Frozen, since DistributedDataParallel stops
        # where a parameter gets no gradient.
        self.v = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.conv_0 = spectral(_convolution(fin, middle))
        self.conv_1 = spectral(_convolution(middle, fout))
        self.conv_s = spectral(nn.Conv2d(fin, fout, 1, bias=False))
        self.norm_0 = SPDNorm(fin, norm_type, form=form)
        self.norm_1 = SPDNorm(middle, norm_type, form=form)
        self.norm_s = SPDNorm(fin, norm_type, form=form)
        self.mask_conv = _HardMap(mask_number, mask_ks, base)
        self.conv_to_f = nn.Sequential(
            _convolution(3, _HIDDEN),
            nn.InstanceNorm2d(_HIDDEN),
            nn.ReLU(),
            _convolution(_HIDDEN, fin),
        )
        self.attention = nn.Sequential(_convolution(2 * fin, fin), nn.Sigmoid())

    def reset_parameters(self) -> None:
        """Initialise what no child initialises: after `torch.nn.Module.to_empty`, say."""
        nn.init.zeros_(self.v)
        for layer in (self.conv_0, self.conv_1, self.conv_s):
            _reset_spectral(layer)

    def conditions(
        self,
        prior: Tensor,
        mask: Tensor,
        size: tuple[int, int],
        hard: Tensor | None = None,
        *,
        shared: bool = True,
    ) -> SPDNormConditions:
        """What depends on prior and mask alone, for x of a size: samples of an image share it.

        Args:
            prior, mask, size: as in `forward`; (H,W).
            hard: the hard map, if it is known.
            shared: for several x. For a single one it is faster not to divide the convolution that
                makes the soft map.
        """
        prior = F.interpolate(prior, size=size, mode="nearest")
        mask = mask[:, :1]
        features = self.conv_to_f(prior)
        shared = shared and self._attention_is_plain()
        if shared:
            layer = self.attention[0]
            # The convolution is linear in its concatenated input, the prior's features come first.
            weight = layer.weight[:, : features.shape[1]]
            features = conv2d(features, weight, layer.bias, layer.stride, (1, 1), layer.dilation)
        return SPDNormConditions(
            *(_maps(norm, prior) for norm in (self.norm_0, self.norm_1, self.norm_s)),
            features,
            self.mask_conv(mask, size) if hard is None else hard,
            mask,
            shared,
        )

    def soft_map(self, x: Tensor, conditions: SPDNormConditions) -> Tensor:
        """(N,fin,H,W)."""
        if not self._attention_is_plain():
            weight = self.attention(torch.cat((conditions.features, x), dim=1))
            known = nearest(conditions.mask, x).to(x.dtype)
            return weight * (1 - known) + known
        layer = self.attention[0]
        if conditions.shared:
            weight = layer.weight[:, -x.shape[1] :]
            logits = conv2d(x, weight, None, layer.stride, (1, 1), layer.dilation)
            logits = logits + conditions.features
        else:
            logits = layer(torch.cat((conditions.features, x), dim=1))
        return soft_diversity_map(logits, conditions.mask, resize_mask=True)

    def _attention_is_plain(self) -> bool:
        return _is_convolution_with(self.attention, nn.Sigmoid)

    def maps(self, x: Tensor, prior: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The soft map (N,fin,H,W) and the hard map (N,1,H,W) of a block."""
        conditions = self.conditions(prior, mask, tuple(x.shape[2:]), shared=False)
        return self.soft_map(x, conditions), conditions.hard

    def forward(
        self,
        x: Tensor,
        prior: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        conditions: SPDNormConditions | None = None,
    ) -> Tensor:
        check_feature_map("x", x)
        if conditions is None:
            check_feature_map("prior", prior)
            conditions = self.conditions(prior, mask, tuple(x.shape[2:]), shared=False)
        soft, hard = self.soft_map(x, conditions), conditions.hard
        shortcut = self.conv_s(_normalised(self.norm_s, x, conditions.norm_s, soft, None))
        main = self.conv_0(_normalised(self.norm_0, x, conditions.norm_0, hard, _SLOPE))
        main = self.conv_1(_normalised(self.norm_1, main, conditions.norm_1, hard, _SLOPE))
        return shortcut + main


def _maps(norm: nn.Module, prior: Tensor) -> tuple[Tensor, ...]:
    return norm.maps(prior) if plain(norm, SPDNorm) else (prior,)


def _normalised(
    norm: nn.Module, x: Tensor, maps: tuple[Tensor, ...], weight: Tensor, slope: float | None
) -> Tensor:
    if len(maps) == 2:
        return norm.modulate(x, maps, weight, slope)
    y = norm(x, *maps, weight)
    return y if slope is None else F.leaky_relu(y, slope)


class SPADE(nn.Module):
    """Spatially adaptive normalisation (CVPR 2019), as DAGAN and others use it.

    y = xn * (1 + gamma) + beta, gamma and beta from convolutions of a label map.

    Args:
        config_text: "spade", then "batch", "syncbatch" or "instance", then the kernel size, 3x3
            where it is missing, as in "spadesyncbatch3x3". "syncbatch" takes the batch's statistics
            over all processes in training, once torch.distributed is initialised.
        norm_nc: C.
        label_nc: channels of the label map, or classes.

    Shape: x (N,C,H,W); segmap (N,label_nc,h,w), one-hot in any dtype, or floating-point features;
    or an integer map (N,1,h,w) or (N,h,w) of classes, which gives the same as its one-hot form and
    takes much less time. It is resized by nearest neighbour. -> (N,C,H,W).

    A convolution depends on the labels under its window alone. Where few windows of the map differ,
    as on painted maps and photographs' segmentations, gamma and beta are computed once for each of
    them and looked up (`torchext.label_windows`): equal to rounding. All layers that are given the
    same segmap share its windows. By itself in eager mode on the CPU, which may look at the map;
    `torchext.backend.explain_windows` tells each layer's choice.

    Attributes:
        capacity: for graphs and other devices: the most windows that differ in a batch's maps, or
            one number for 3x3 and one for 5x5 windows. None, as at first, convolves there. Where
            more differ the layer convolves too: in a graph the device chooses (`torch.cond`); in
            eager mode it is waited for, once for each map and size.

    Layers of one graph that are given the same segmap at one size find its windows once where their
    calls have the same empty dict as `shared`.

    Raises:
        ValueError: config_text has another form; what `torchext.modulated_norm` and, for classes,
            `torchext.label_conv2d` raise.
    """

    capacity: Capacity = None

    def __init__(self, config_text: str, norm_nc: int, label_nc: int) -> None:
        super().__init__()
        if not isinstance(config_text, str):
            raise TypeError(
                "config_text: expected a text such as 'spadeinstance3x3' in front of norm_nc and"
                f" label_nc, got {config_text!r}; published layers without it differ in the norm"
                " and in the order of the two numbers"
            )
        found = re.fullmatch(r"spade(syncbatch|batch|instance)(?:(\d+)x\2)?", config_text)
        if found is None:
            raise ValueError(
                "config_text: expected 'spade', 'batch', 'syncbatch' or 'instance', and a kernel"
                f" size, as in 'spadesyncbatch3x3', got {config_text!r}"
            )
        kind, kernel_size = found.group(1), int(found.group(2) or 3)
        self.param_free_norm = parameter_free_norm(
            norm_nc,
            "instance" if kind == "instance" else "batch",
            synchronised=kind == "syncbatch",
        )
        self.label_nc = label_nc
        self.mlp_shared = nn.Sequential(_convolution(label_nc, _HIDDEN, kernel_size), nn.ReLU())
        self.mlp_gamma = _convolution(_HIDDEN, norm_nc, kernel_size)
        self.mlp_beta = _convolution(_HIDDEN, norm_nc, kernel_size)

    def forward(
        self,
        x: Tensor,
        segmap: Tensor,
        activation: float | None = None,
        shared: Shared | None = None,
    ) -> Tensor:
        check_feature_map("x", x)
        windows = self._windows(x, segmap, shared)
        if windows is None:
            maps = _pair(self.mlp_gamma, self.mlp_beta, self._hidden(x, segmap))
            return _modulate(self.param_free_norm, x, *maps, activation=activation)
        weights = (
            *(self.mlp_shared[0].weight, self.mlp_shared[0].bias),
            *_side_by_side(self.mlp_gamma, self.mlp_beta),
        )
        if not windows.counts:
            return self._looked_up(self.param_free_norm, x, windows, weights, activation)
        return self._by_branches(x, segmap, windows, weights, activation)

    def _by_branches(
        self,
        x: Tensor,
        segmap: Tensor,
        windows: LabelWindows,
        weights: tuple[Tensor, ...],
        activation: float | None,
    ) -> Tensor:
        """In a graph: by the table where the windows fit, else by the convolutions.

        Branches may not write running statistics and share no number that is a dynamic input, so
        norm and activation are outside. What they are given is flat, since Inductor turns maps in
        front of a branch to channels_last unasked (torch 2.14), and so that gradients of both have
        one layout.
        """
        xn = self.param_free_norm(x)
        last = memory_format(xn) != torch.contiguous_format
        channels, kernel, beside = xn.shape[1], weights[0].shape[2:], 2 if last else 0

        def whole(xn: Tensor, *weights: Tensor) -> tuple[Tensor, list[Tensor]]:
            xn = xn.unflatten(beside, (-1, channels))
            xn = xn.permute(0, 3, 1, 2) if last else xn
            return xn, [w.unflatten(1, (-1, *kernel)) if w.dim() > 1 else w for w in weights]

        def looked_up(*flat: Tensor) -> Tensor:
            xn, weights = whole(*flat)
            return self._looked_up(_identity, xn, windows, weights, None)

        def convolved(*flat: Tensor) -> Tensor:
            xn, weights = whole(*flat)
            hidden = self._hidden(xn, segmap, weights[:2])
            maps = _pair(self.mlp_gamma, self.mlp_beta, hidden, weights[2:])
            return _modulate(_identity, xn, *maps)

        xn = (xn.permute(0, 2, 3, 1) if last else xn).flatten(beside, beside + 1)
        flat = (xn, *(w.flatten(1) if w.dim() > 1 else w for w in weights))
        y = torch.cond(windows.fits, looked_up, convolved, flat)
        if activation is None:
            return y
        return F.relu(y) if activation == "relu" else F.leaky_relu(y, activation)

    def _looked_up(
        self,
        norm: Callable[..., Tensor],
        x: Tensor,
        windows: LabelWindows,
        weights: Sequence[Tensor],
        activation: float | None,
    ) -> Tensor:
        table = spade_modulation_table(windows, *weights)
        if memory_format(x) == torch.contiguous_format:
            # As `modulated_norm` reads it; the whole table is turned five times faster than halves.
            table = table.t().contiguous().t()
        gamma, beta = table.chunk(2, dim=1)
        return _modulate(norm, x, gamma, beta, index=windows.index, activation=activation)

    def _windows(
        self, x: Tensor, segmap: Tensor, shared: Shared | None = None
    ) -> LabelWindows | None:
        """Those of the segmap at x's size where a table of them pays, else None."""
        layers = (self.mlp_shared[0], self.mlp_gamma, self.mlp_beta)
        if not (
            _is_convolution_with(self.mlp_shared, nn.ReLU)
            and _is_convolution(self.mlp_gamma)
            and _is_convolution(self.mlp_beta)
            and plain(self.param_free_norm, _ParameterFreeNorm, _ParameterFreeBatchNorm)
            and all(layer.bias is not None for layer in layers)
        ):
            tell(self, x, "its layers were replaced, have hooks or no bias")
            return None
        weights = (layers[0].weight, layers[1].weight)
        return windows_of(self, segmap, x, *weights, self.capacity, shared)

    def _hidden(self, x: Tensor, segmap: Tensor, first: Sequence[Tensor] | None = None) -> Tensor:
        """Of the segmap at x's size; `first`: weight and bias in place of the layer's."""
        classes = not segmap.is_floating_point() and (segmap.dim() == 3 or segmap.shape[1] == 1)
        if not classes:
            segmap = segmap if segmap.is_floating_point() else segmap.to(x.dtype)
            check_feature_map("segmap", segmap)
            resized = nearest(segmap, x)
            if first is None:
                return self.mlp_shared(resized)
            layer = self.mlp_shared[0]
            options = (layer.stride, layer.padding, layer.dilation)
            return conv2d(resized, *first, *options).relu()
        labels = nearest(segmap[:, None] if segmap.dim() == 3 else segmap, x)[:, 0]
        if _is_convolution_with(self.mlp_shared, nn.ReLU):
            first = first or (self.mlp_shared[0].weight, self.mlp_shared[0].bias)
            return label_conv2d(labels, *first).relu()
        one_hot = F.one_hot(labels.long(), self.label_nc).movedim(-1, 1)
        return self.mlp_shared(one_hot.to(x.dtype))


class SPADEResnetBlock(nn.Module):
    """The residual block of SPADE generators (CVPR 2019), as in DAGAN.

    Args:
        fin, fout: channels in and out; the shortcut has a convolution where they differ.
        norm_G: the `config_text` of `SPADE`, with "spectral" in it for spectral normalisation of
            the convolutions, as in "spectralspadesyncbatch3x3"; or the published options object,
            whose norm_G and semantic_nc (or label_nc and orient_nc, which add up) are taken.
        semantic_nc: channels of the label map, or classes; not with an options object.
        use_se: False, as in every published network.
        dilation: of the two 3x3 convolutions.

    Shape: x (N,fin,H,W), segmap as for `SPADE` -> (N,fout,H,W).

    Raises: what `SPADE` raises.
    """

    def __init__(
        self,
        fin: int,
        fout: int,
        norm_G: str | object,
        semantic_nc: int | None = None,
        use_se: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        if use_se:
            raise ValueError("use_se: expected False, got True: no published network has it")
        if not isinstance(norm_G, str):
            if semantic_nc is not None:
                raise ValueError("semantic_nc: expected nothing beside an options object")
            semantic_nc = _condition_channels(norm_G)
        norm_G = _option(norm_G, "norm_G")
        if semantic_nc is None:
            raise ValueError("semantic_nc: expected the channels of the label map, got None")
        middle = min(fin, fout)
        spectral = _spectral(norm_G)
        config_text = norm_G.replace("spectral", "")
        self.learned_shortcut = fin != fout
        self.conv_0 = spectral(_convolution(fin, middle, dilation=dilation))
        self.conv_1 = spectral(_convolution(middle, fout, dilation=dilation))
        self.norm_0 = SPADE(config_text, fin, semantic_nc)
        self.norm_1 = SPADE(config_text, middle, semantic_nc)
        if self.learned_shortcut:
            self.conv_s = spectral(nn.Conv2d(fin, fout, 1, bias=False))
            self.norm_s = SPADE(config_text, fin, semantic_nc)

    def reset_parameters(self) -> None:
        """Initialise what no child initialises: after `torch.nn.Module.to_empty`, say."""
        for layer in (self.conv_0, self.conv_1, *([self.conv_s] if self.learned_shortcut else [])):
            _reset_spectral(layer)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        shared: Shared = {}
        main = self.conv_0(_activated(self.norm_0, x, segmap, _SLOPE, shared))
        main = self.conv_1(_activated(self.norm_1, main, segmap, _SLOPE, shared))
        if not self.learned_shortcut:
            return x + main
        return self.conv_s(_activated(self.norm_s, x, segmap, None, shared)) + main


def _activated(
    norm: nn.Module, x: Tensor, segmap: Tensor, slope: float | None, shared: Shared
) -> Tensor:
    if plain(norm, SPADE):
        return norm(x, segmap, slope, shared)
    y = norm(x, segmap)
    return y if slope is None else F.leaky_relu(y, slope)


class ANLs(nn.Module):
    """FE-GAN's attention normalisation layer (CVPR 2020).

    y = x + conv(leaky(n * (1 + alpha) + beta, 0.2)), n the batch norm of x without an affine, alpha
    a sigmoid; alpha and beta from convolutions of the condition.

    Args:
        norm_nc: C.
        label_nc: channels of the condition (noise, colour and sketch: 5).
        one_plus: False for the paper's n * alpha + beta.

    Shape: x (N,C,H,W), condition (N,label_nc,h,w), resized by nearest neighbour -> (N,C,H,W).

    Raises: what `torchext.modulated_norm` raises.
    """

    def __init__(self, norm_nc: int, label_nc: int, *, one_plus: bool = True) -> None:
        super().__init__()
        self.one_plus = one_plus
        self.batch_norm = parameter_free_norm(norm_nc, "batch")
        self.conv = nn.utils.spectral_norm(_convolution(norm_nc, norm_nc))
        self.shared = nn.Sequential(_convolution(label_nc, _HIDDEN), nn.ReLU())
        self.gamma = _convolution(_HIDDEN, norm_nc)
        self.beta = _convolution(_HIDDEN, norm_nc)

    def reset_parameters(self) -> None:
        """Initialise what no child initialises: after `torch.nn.Module.to_empty`, say."""
        _reset_spectral(self.conv)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        check_feature_map("x", x)
        check_feature_map("condition", condition)
        gamma, beta = _pair(self.gamma, self.beta, self.shared(nearest(condition, x)))
        if not self.one_plus:
            gamma = torch.sigmoid(gamma)
        gain = "sigmoid" if self.one_plus else "plain"
        y = _modulate(self.batch_norm, x, gamma, beta, gain=gain, activation=_SLOPE)
        return x + self.conv(y)

    def extra_repr(self) -> str:
        return f"one_plus={self.one_plus}"


class AdaptiveInstanceNorm2d(nn.Module):
    """AdaIN: y = instance norm of x * scale + shift, scale and shift of each image and channel.

    Args:
        num_features: C.

    Shape: x (N,C,H,W), scale and shift (N,C) or (N,C,1,1) -> (N,C,H,W).

    Raises: what `torchext.modulated_norm` raises.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(
        self, x: Tensor, scale: Tensor, shift: Tensor, activation: Literal["relu"] | None = None
    ) -> Tensor:
        scale, shift = (
            value.flatten(1) if value.dim() == 4 and value.shape[2:] == (1, 1) else value
            for value in (scale, shift)
        )
        return modulated_norm(x, scale, shift, gain="plain", activation=activation)

    def extra_repr(self) -> str:
        return str(self.num_features)


class PixelNorm(nn.Module):
    """ProGAN's pixel norm: y = x / sqrt(mean over channels of x^2 + eps).

    Args:
        eps: 1e-8 as published.

    Shape: (N,C,H,W) -> (N,C,H,W).

    Raises: what `torchext.modulated_norm` raises.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return modulated_norm(x, statistics="rms", eps=self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
