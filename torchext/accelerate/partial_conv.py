"""Partial convolutions: the authors' layer, and that of the widely used U-Net and of PD-GAN."""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import backend
from ..nn.partial_conv import _grouped
from ..ops.convolution import check_mask
from ..ops.partial_conv import EPS, _product, mask_window, partial_conv2d, partial_conv3d
from ..ops.winograd_conv import conv2d, why_direct
from .family import Draw, Family, attribute, convolution, expect, small_constant, touched
from .structure import plain_copy

_GEOMETRY = frozenset({"kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"})


def _maker(result: Any) -> Callable[[Any], Any]:
    """What makes a pair of that kind: tuple, list or a named tuple."""
    return getattr(type(result), "_make", type(result))


def _learned(mask: Any) -> bool:
    """A mask that gets a gradient, which ours does not give."""
    return isinstance(mask, Tensor) and mask.requires_grad


@dataclass(frozen=True)
class _PublishedFacts:
    """What a run of the authors' layer shows.

    Attributes:
        pair: makes the result where it holds the mask.
        returns_pair: whether it does, in a layer without the option `return_mask`.
        eps: in a layer without such an attribute.
        updated, ratio, size: the attributes in which it keeps the updated mask, the ratio and the
            size of its last input, "" if it does not.
        size_of: "shape", or "spatial" where the size is (H,W) or (D,H,W) alone.
        size_type: of that attribute's value.
    """

    pair: Callable[[Any], Any]
    returns_pair: bool
    eps: float
    updated: str = ""
    ratio: str = ""
    size: str = ""
    size_of: str = ""
    size_type: type = tuple

    def key(self, x: Tensor) -> Any:
        return self.size_type(x.shape if self.size_of == "shape" else x.shape[2:])


class PublishedPartialConv(Family):
    """`PartialConv2d`, `PartialConv3d`: subclasses of PyTorch's convolutions."""

    saves = (
        "the mask is summed, not convolved; product, ratio, bias and holes are part of "
        "the convolution"
    )
    arity = (1, 2)
    live = _GEOMETRY | {"return_mask", "eps"}

    def check(self, layer: nn.Module) -> None:
        expect(isinstance(layer, (nn.Conv2d, nn.Conv3d)), "no subclass of Conv2d or Conv3d")
        attribute(layer, "multi_channel", False, True)
        if hasattr(layer, "return_mask"):
            attribute(layer, "return_mask", False, True)
        for kernel in self.kernels(layer):
            expect(self.is_kernel(kernel), "weight_maskUpdater holds other values than 1")

    def kernels(self, layer: nn.Module) -> Iterable[Tensor]:
        kernel = getattr(layer, "weight_maskUpdater", None)
        return [kernel] if isinstance(kernel, Tensor) else []

    def discover(self, layer: Any, draw: Draw) -> _PublishedFacts:
        before = dict(vars(layer))
        size = self._size(layer)
        x = draw.features(2, layer.in_channels, *size)
        # Of halves, where ratio and updated mask differ also for a window of one pixel.
        mask = draw.mask(2, self._planes(layer), *size) / 2
        result = layer(x, mask)
        returns_pair = not isinstance(result, Tensor)
        pair = result if returns_pair else self._pair_set_later(layer, x, mask)
        eps = small_constant(type(layer).forward, EPS)
        ratio, updated = self._window(layer, mask, None, getattr(layer, "eps", eps))
        names: dict[str, Any] = {}
        for name, value in vars(layer).items():
            if name.startswith("_") or value is before.get(name):
                continue
            if isinstance(value, Tensor) and value.dim() == x.dim():
                for role, plane in (("updated", updated), ("ratio", ratio)):
                    if value.shape[2:] == plane.shape[2:] and torch.allclose(
                        value.float(), plane.float().expand_as(value), 1e-3, 1e-3
                    ):
                        names[role] = name
            elif isinstance(value, (tuple, list)):
                for kind, size in (("shape", x.shape), ("spatial", x.shape[2:])):
                    if tuple(value) == tuple(size):
                        names |= {"size": name, "size_of": kind, "size_type": type(value)}
        if "ratio" in names and "updated" in names:
            # A mask so faint that its sums are small beside eps, where its code has several.
            layer(x, torch.full_like(mask, 1e-10))
            ratio, s = (getattr(layer, names[role]) for role in ("ratio", "updated"))
            window = math.prod(layer.kernel_size) * self._planes(layer)
            measured = float((window * s / ratio - s).median())
            eps = float(f"{measured:.2e}") if 0 < measured < 1 else eps
        return _PublishedFacts(_maker(pair), returns_pair, eps, **names)

    def _pair_set_later(self, layer: Any, x: Tensor, mask: Tensor) -> Any:
        """What it returns once its user sets `return_mask`; a tuple if that is not to be known."""
        layer = plain_copy(layer)
        layer.return_mask = True
        try:
            return layer(x, mask)
        except Exception:  # its own code does not expect that
            return ()

    def state(self, facts: _PublishedFacts) -> frozenset[str]:
        return frozenset({facts.updated, facts.ratio, facts.size})

    def takes(
        self, layer: Any, facts: _PublishedFacts, x: Tensor, mask: Tensor | None = None
    ) -> bool:
        if not isinstance(x, Tensor) or not isinstance(mask, (Tensor, type(None))):
            return False
        if mask is None and self._kept(layer, facts, x):
            # With a mask of all channels the kept one may differ between them by now.
            batch = getattr(layer, facts.updated).shape[0]
            return not layer.multi_channel and batch in (1, x.shape[0])
        if mask is None:
            return True
        return not _learned(mask) and mask.dim() > 1 and mask.shape[1] == self._planes(layer)

    def forward(
        self, layer: Any, facts: _PublishedFacts, x: Tensor, mask: Tensor | None = None
    ) -> Any:
        channels = None
        kept = mask is None and self._kept(layer, facts, x)
        if kept:
            ratio, updated = (getattr(layer, name) for name in (facts.ratio, facts.updated))
        else:
            plane = x.new_ones((1, 1, *x.shape[2:])) if mask is None else mask
            if layer.multi_channel:
                plane, channels = (
                    (plane, [layer.in_channels]) if mask is None else _grouped(plane, x)
                )
            ratio, updated = self._window(layer, plane, channels, getattr(layer, "eps", facts.eps))
            mask = None if mask is None else plane
        if kept and self._whole(layer, ratio, updated):
            window = None
        else:
            scale = ratio if layer.bias is None else ratio * updated
            window = _accumulated(scale, x), _accumulated(updated, x)
        function = partial_conv2d if x.dim() == 4 else partial_conv3d
        y, _ = function(
            x,
            mask,
            layer.weight,
            layer.bias,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            mask_channels=None if mask is None else channels,
            padding_mode=layer.padding_mode,
            window=window,
        )
        if kept and not getattr(layer, "return_mask", facts.returns_pair):
            return y  # what it keeps stays
        return self._result(layer, facts, x, mask, y, ratio.to(x.dtype), updated.to(x.dtype))

    def _result(
        self, layer: Any, facts: _PublishedFacts, x: Tensor, mask: Tensor | None, y: Tensor,
        ratio: Tensor, updated: Tensor,
    ) -> Any:  # fmt: skip
        """Keep what the published layer keeps, and return what it returns."""
        returns_pair = getattr(layer, "return_mask", facts.returns_pair)
        if layer.multi_channel:
            batch = x.shape[0] if mask is None else mask.shape[0]
            shape = (batch, layer.out_channels, *updated.shape[2:])
            ratio, updated = ratio.expand(shape), updated.expand(shape)
        if returns_pair:  # its user may write into it
            updated = updated.clone(memory_format=torch.contiguous_format)
        kept = (facts.updated, updated), (facts.ratio, ratio), (facts.size, facts.key(x))
        for name, value in kept:
            if name:
                setattr(layer, name, value)
        return facts.pair((y, updated)) if returns_pair else y

    def _window(
        self, layer: Any, mask: Tensor, channels: list[int] | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Ratio and updated mask."""
        geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        return mask_window(mask.detach(), *geometry, eps=eps, mask_channels=channels)

    def _kept(self, layer: Any, facts: _PublishedFacts, x: Tensor) -> bool:
        """Whether a call without mask takes the window of the last call."""
        keeps = facts.size and facts.ratio and facts.updated
        return bool(keeps) and getattr(layer, facts.size) == facts.key(x)

    def gains_nothing(
        self, layer: Any, facts: _PublishedFacts, x: Tensor, mask: Tensor | None = None
    ) -> bool:
        """Without a mask, where the published code is a convolution and a product by what is kept.

        On the CPU ours gains where it convolves in Winograd's form.
        """
        if mask is not None or not self._kept(layer, facts, x) or not backend.readable(x):
            return False
        swap = layer._torchext_swap
        kind = (x.shape, x.dtype, x.is_contiguous(), backend.chosen_convolution())
        if kind not in swap.decided:
            if len(swap.decided) > 100:
                swap.decided.clear()
            sizes = (layer.stride, layer.padding, layer.dilation, layer.groups)
            ops = backend.choose("partial_conv", x).ops
            plain = isinstance(layer.padding, str) or layer.padding_mode != "zeros"
            swap.decided[kind] = plain or bool(
                why_direct(ops, x, layer.out_channels, layer.kernel_size, *sizes)
            )
        return swap.decided[kind]

    def _whole(self, layer: Any, ratio: Tensor, updated: Tensor) -> bool:
        """Whether all windows are known and none is padded: nothing is to be corrected."""
        return (
            not isinstance(layer.padding, str)
            and not any(layer.padding)
            and backend.readable(ratio)
            and bool((ratio == 1).all())
            and bool((updated == 1).all())
        )

    def _planes(self, layer: Any) -> int:
        return layer.in_channels if layer.multi_channel else 1

    def _size(self, layer: Any) -> list[int]:
        pairs = zip(layer.kernel_size, layer.dilation, strict=True)
        return [(k - 1) * d + 7 + 2 * i for i, (k, d) in enumerate(pairs)]

    def calls(self, layer: Any, facts: _PublishedFacts, draw: Draw) -> list[tuple[Any, ...]]:
        size, C, M = self._size(layer), layer.in_channels, self._planes(layer)
        hole = max(layer.kernel_size) * max(layer.dilation) + 1
        x, three, mask = (
            draw.features(2, C, *size),
            draw.features(3, C, *size),
            draw.mask(2, M, *size, hole=hole),
        )
        return [
            (x,),
            (x, mask),
            (draw.features(2, C, *size),),
            (three,),  # the mask that was kept had another batch size
            (three, draw.mask(1, M, *size, hole=hole)),
            (x,),
            (x, draw.mask(2, 1, *size, hole=hole).expand(2, M, *size)),
            (x, draw.soft_mask(2, M, *size)),
            (draw.features(2, C, *(n + 2 for n in size)),),
        ]


def _accumulated(value: Tensor, x: Tensor) -> Tensor:
    return value.to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def _takes_mask(module: nn.Module) -> bool:
    """A norm over what is known."""
    return len(inspect.signature(module.forward).parameters) > 1


@dataclass(frozen=True)
class _PortFacts:
    """What a run of the U-Net's layer shows.

    Attributes:
        pair: makes the result.
        takes_list: whether the one argument is [x, mask].
    """

    pair: Callable[[Any], Any]
    takes_list: bool


class PortPartialConv(Family):
    """`PartialConv` with the children `input_conv` and `mask_conv`."""

    saves = "one plane of the mask is summed in place of a second convolution of all channels"
    arity = (1, 2)
    attributes = frozenset({"input_conv", "mask_conv"})

    def has_own_kernel(self, layer: Any) -> bool:
        """Whether the mask's sums are weighted: PD-GAN's script initialises that kernel too."""
        window = getattr(layer, "mask_conv", None)
        return isinstance(window, nn.Conv2d) and not (
            self.is_kernel(window.weight) and window.bias is None
        )

    def check(self, layer: Any) -> None:
        conv = convolution(layer, "input_conv", dilated=True)
        window = convolution(layer, "mask_conv", dilated=True)
        for name in ("kernel_size", "stride", "padding", "dilation", "in_channels", "out_channels"):
            expect(
                getattr(conv, name) == getattr(window, name),
                f"{name} of the two convolutions differ",
            )
        expect(not conv._forward_pre_hooks, "the weight of input_conv is reparametrised")

    def kernels(self, layer: Any) -> Iterable[Tensor]:
        return [layer.mask_conv.weight]

    def replaced(self, layer: Any) -> Iterable[nn.Module]:
        return layer.input_conv, layer.mask_conv

    def discover(self, layer: Any, draw: Draw) -> _PortFacts:
        x, mask = self._features(layer, draw, 2), self._mask(layer, draw, 2)
        try:
            result, takes_list = layer(x, mask), False
        except TypeError:  # one argument
            result, takes_list = layer([x, mask]), True
        expect(isinstance(result, (tuple, list)), f"it returns a {type(result).__name__}")
        return _PortFacts(_maker(result), takes_list)

    def takes(self, layer: Any, facts: _PortFacts, *arguments: Any) -> bool:
        values = arguments[0] if facts.takes_list else arguments
        return (
            isinstance(values, (tuple, list))
            and len(values) == 2
            and all(isinstance(value, Tensor) for value in values)
            and not _learned(values[1])
        )

    def forward(self, layer: Any, facts: _PortFacts, *arguments: Any) -> Any:
        x, mask = arguments[0] if facts.takes_list else arguments
        conv = layer.input_conv
        mask, channels = _grouped(mask, x)
        y, updated = partial_conv2d(
            x,
            mask,
            conv.weight,
            conv.bias,
            conv.stride,
            conv.padding,
            conv.dilation,
            form="sum",
            mask_channels=channels,
        )
        # Each of its planes is its own, since its user may write into it.
        updated = updated.expand(x.shape[0], conv.out_channels, *updated.shape[2:])
        return facts.pair((y, updated.to(y.dtype).clone(memory_format=torch.contiguous_format)))

    def _size(self, layer: Any) -> list[int]:
        conv = layer.input_conv
        pairs = zip(conv.kernel_size, conv.dilation, strict=True)
        return [(k - 1) * d + 7 + 2 * i for i, (k, d) in enumerate(pairs)]

    def _features(self, layer: Any, draw: Draw, batch: int) -> Tensor:
        return draw.features(batch, layer.input_conv.in_channels, *self._size(layer))

    def _mask(self, layer: Any, draw: Draw, batch: int, planes: int = 0) -> Tensor:
        conv = layer.input_conv
        hole = max(conv.kernel_size) * max(conv.dilation) + 1
        shape = (batch, planes or conv.in_channels, *self._size(layer))
        return draw.mask(*shape, hole=hole)

    def calls(self, layer: Any, facts: _PortFacts, draw: Draw) -> list[tuple[Any, ...]]:
        x, three = (self._features(layer, draw, batch) for batch in (2, 3))
        pairs = [
            (x, self._mask(layer, draw, 2, 1).expand_as(x)),
            (three, self._mask(layer, draw, 3)),
            (x, draw.soft_mask(*x.shape)),
            (x, torch.ones_like(x).detach()),
        ]
        return [([x, mask],) for x, mask in pairs] if facts.takes_list else pairs


class WeightedPartialConv(PortPartialConv):
    """`PartialConv` with whatever `mask_conv` holds: y = conv(x * mask) / mask_conv(mask) + bias.

    The sums differ between output channels. Where several channels of a mask are one plane, their
    kernels are added up first.
    """

    saves = "equal planes of the mask are convolved once, with their kernels' sum"

    def kernels(self, layer: Any) -> Iterable[Tensor]:
        return ()

    def ill_conditioned(self, layer: nn.Module) -> bool:
        """Divided is by sums of both signs, which come close to 0."""
        return True

    def check(self, layer: Any) -> None:
        super().check(layer)
        window = layer.mask_conv
        expect(
            not any(parameter.requires_grad for parameter in window.parameters()),
            "mask_conv is trained",
        )
        expect(not window._forward_pre_hooks, "the weight of mask_conv is reparametrised")

    def forward(self, layer: Any, facts: _PortFacts, *arguments: Any) -> Any:
        x, mask = arguments[0] if facts.takes_list else arguments
        conv, window = layer.input_conv, layer.mask_conv
        planes, channels = _grouped(mask, x)
        mask, channels = check_mask("mask", planes, x, channels)
        kernel = window.weight
        if channels:
            kernel = torch.cat([k.sum(1, keepdim=True) for k in kernel.split(channels, 1)], 1)
        geometry = (conv.stride, conv.padding, conv.dilation)
        with torch.no_grad():
            sums = F.conv2d(mask, kernel, window.bias, *geometry)
            known = sums != 0
            scale = torch.where(known, sums.reciprocal(), 0)
        masked = _product(x, mask, channels)
        y = conv2d(masked, conv.weight, None, *geometry) * scale
        if conv.bias is not None:
            y = y + conv.bias.view(1, -1, 1, 1) * known
        updated = known.to(y.dtype).expand_as(y)
        return facts.pair((y, updated.clone(memory_format=torch.contiguous_format)))


class PaddedPartialConv(PortPartialConv):
    """climatereconstructionAI's `PConvBlock`: padded by `trans_pad`, then `bn` and `activation`.

    In evaluation both are part of the convolution.
    """

    saves = (
        "planes of the mask are padded and summed in place of a second convolution of all channels;"
        " in evaluation norm and activation are part of the convolution"
    )
    attributes = frozenset({"input_conv", "mask_conv", "padding", "trans_pad"})
    live = frozenset({"padding", "trans_pad"})

    def check(self, layer: Any) -> None:
        super().check(layer)
        expect(self.is_kernel(layer.mask_conv.weight), "mask_conv.weight holds other values than 1")
        expect(layer.mask_conv.bias is None, "mask_conv has a bias")
        expect(callable(layer.trans_pad), "trans_pad is no function")
        norm = getattr(layer, "bn", None)
        expect(norm is None or isinstance(norm, nn.BatchNorm2d), f"bn is a {type(norm).__name__}")

    def ill_conditioned(self, layer: Any) -> bool:
        """The gradient of a bias in front of a norm is the difference of large sums."""
        return getattr(layer, "bn", None) is not None and layer.input_conv.bias is not None

    def forward(self, layer: Any, facts: _PortFacts, *arguments: Any) -> Any:
        x, mask = arguments[0] if facts.takes_list else arguments
        conv, (tail, rest) = layer.input_conv, self._tail(layer)
        planes, channels = _grouped(mask, x)
        mask, channels = check_mask("mask", planes, x, channels)
        padding = conv.padding
        if layer.trans_pad is F.pad and padding == (0, 0) and len(set(layer.padding)) == 1:
            padding = layer.padding[0]
        else:
            x, mask = (layer.trans_pad(value, layer.padding) for value in (x, mask))
        y, updated = partial_conv2d(
            x,
            mask,
            conv.weight,
            conv.bias,
            conv.stride,
            padding,
            conv.dilation,
            form="sum",
            mask_channels=channels or None,
            **tail,
        )
        updated = updated.expand(y.shape)
        for module in rest:
            y = module(y, updated) if _takes_mask(module) else module(y)
        return facts.pair((y, updated.to(y.dtype).clone(memory_format=torch.contiguous_format)))

    def _tail(self, layer: Any) -> tuple[dict[str, Any], list[nn.Module]]:
        """Options of the convolution for what follows it, and the modules that are called."""
        norm, activation = getattr(layer, "bn", None), getattr(layer, "activation", None)
        modules = [module for module in (norm, activation) if module is not None]
        slopes = {nn.ReLU: 0.0, nn.LeakyReLU: getattr(activation, "negative_slope", 0.0)}
        if (
            type(norm) is not nn.BatchNorm2d
            or norm.training
            or norm.running_var is None
            or norm.weight is None
            or touched(norm)
            or (activation is not None and (type(activation) not in slopes or touched(activation)))
        ):
            return {}, modules
        weight = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        tail: dict[str, Any] = {"norm_weight": weight}
        tail["norm_bias"] = norm.bias - norm.running_mean * weight
        if activation is not None:
            tail["negative_slope"] = slopes[type(activation)]
        return tail, []
