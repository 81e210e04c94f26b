"""Partial convolutions of projects that wrote their own: which formula it is, a trial tells."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import backend
from ..nn.partial_conv import _grouped
from ..ops.partial_conv import partial_conv2d
from .family import Draw, Family, UnsupportedError, attribute, expect, has_values
from .partial_conv import _learned, _maker

_NUMERATORS = ("window", "window of all channels", "1")
_EPS = (0.0, 1e-8, 1e-6, 1e-5)
# Of the sums, the window's size and the channels.
_UPDATED: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "known": lambda s, size, C: (s > 0).to(s.dtype),
    "clamped": lambda s, size, C: s.clamp(0, 1),
    "sum": lambda s, size, C: s,
    "share": lambda s, size, C: s / size,
    "share of all channels": lambda s, size, C: s / (size * C),
}
_BIASES = ("added", "added to the known", "scaled", "scaled and known")


@dataclass(frozen=True)
class _Formula:
    """y = conv(x * mask) * ratio and the bias, of the kernel's sums s of the mask.

    Attributes:
        masked: whether x is multiplied by the mask.
        numerator: of the ratio numerator / (s + eps), one of _NUMERATORS.
        eps: 0 where the ratio of s = 0 is 0.
        bias: one of _BIASES.
        updated: one of _UPDATED.
        planes: whether the updated mask has as many as y; or it has one.
        pair: makes the result; None where it is y alone.
    """

    masked: bool
    numerator: str
    eps: float
    bias: str
    updated: str
    planes: bool = False
    pair: Callable[[Any], Any] | None = None

    def window(self, s: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor, Tensor]:
        """The factors of convolution and bias, and the updated mask."""
        size, C = math.prod(conv.kernel_size), conv.in_channels
        numerator = {"1": 1, "window": size, "window of all channels": C * size}[self.numerator]
        known = (s > 0).to(s.dtype)
        ratio = numerator / (s + self.eps if self.eps else torch.where(s > 0, s, 1))
        ratio = ratio if self.eps else ratio * known
        updated = _UPDATED[self.updated](s, size, C)
        scale, shift = {
            "added": (ratio * known, torch.ones_like(s)),
            "added to the known": (ratio * updated, updated),
            "scaled": (ratio, ratio),
            "scaled and known": (ratio * updated, ratio * updated),
        }[self.bias]
        return scale, shift, updated


class CopiedPartialConv(Family):
    """A module that holds one convolution and, frozen, a kernel of one value that sums its mask.

    The kernel is a second convolution or a tensor, of one channel or of all.
    """

    saves = "planes of the mask are summed; product, ratio and bias are part of the convolution"
    arity = (2, 2)

    def alike(self, layer: nn.Module) -> bool:
        if isinstance(layer, nn.Conv2d):
            return False
        found = self._find(layer)
        return found is not None and has_values(found[1]) and self.is_kernel(found[1])

    def _find(self, layer: nn.Module) -> tuple[nn.Conv2d, Tensor] | None:
        """The convolution and the mask's kernel."""
        named = {n: part for n, part in layer.named_children() if isinstance(part, nn.Conv2d)}
        convs = list(named.values())
        frozen = [c for c in convs if not any(p.requires_grad for p in c.parameters())]
        if len(convs) == len(frozen) == 2:  # a whole network for inference: the name tells
            frozen = [part for name, part in named.items() if "mask" in name]
        if len(convs) == 2 and len(frozen) == 1:
            (learned,) = (part for part in convs if part is not frozen[0])
            return learned, frozen[0].weight
        if len(convs) != 1:
            return None
        places = (*layer._buffers.values(), *vars(layer).values(), *layer._parameters.values())
        kernels = [
            value
            for value in places
            if isinstance(value, Tensor)
            and value.dim() == 4
            and not value.requires_grad
            and tuple(value.shape[2:]) == convs[0].kernel_size
        ]
        return (convs[0], kernels[0]) if len(kernels) == 1 else None

    def check(self, layer: Any) -> None:
        conv, kernel = self._find(layer)
        attribute(conv, "groups", 1)
        attribute(conv, "padding_mode", "zeros")
        expect(not isinstance(conv.padding, str), "its padding is a text")
        expect(kernel.shape[1] in (1, conv.in_channels), "its mask has other channels")
        expect(self.is_kernel(kernel), "its mask's kernel holds several values")
        expect(not conv._forward_pre_hooks, "its weight is reparametrised")
        for other in layer.children():
            if isinstance(other, nn.Conv2d) and other is not conv:
                expect(other.bias is None, "its mask's convolution has a bias")
                for name in ("stride", "padding", "dilation"):
                    expect(getattr(other, name) == getattr(conv, name), f"{name} of both differ")

    def kernels(self, layer: Any) -> Iterable[Tensor]:
        return [self._find(layer)[1]]

    def is_kernel(self, tensor: Tensor) -> bool:
        return not has_values(tensor) or bool((tensor == self._value(tensor)).all())

    def _value(self, kernel: Tensor) -> float:
        return 1.0

    def replaced(self, layer: Any) -> Iterable[nn.Module]:
        return [part for part in layer.children() if isinstance(part, nn.Conv2d)]

    def ill_conditioned(self, layer: nn.Module) -> bool:
        """Faint masks are divided by their sums, which are small."""
        return True

    def _sums(self, layer: Any, mask: Tensor, x: Tensor) -> tuple[Tensor, list[int] | None, Tensor]:
        """The mask's planes, the channels that each stands for, and (N,1,Ho,Wo) sums."""
        conv, kernel = self._find(layer)
        planes, channels = _grouped(mask, x) if kernel.shape[1] > 1 else (mask, None)
        if kernel.shape[1] > 1 and planes.shape[1] > 1 and planes.stride(1) == 0:
            planes, channels = planes[:, :1], [planes.shape[1]]
        counts = torch.ones(planes.shape[1]) if channels is None else torch.tensor(channels)
        counts = (counts * self._value(kernel)).to(planes).view(1, -1, 1, 1)
        ones = counts.expand(1, -1, *conv.kernel_size)
        with torch.no_grad():
            s = F.conv2d(planes.detach(), ones, None, conv.stride, conv.padding, conv.dilation)
        return planes, channels, s

    def discover(self, layer: Any, draw: Draw) -> _Formula:
        layer = layer.double()
        x, mask = (value.double() for value in self._pair(layer, draw, 2))
        # The second image's mask is so faint that its sums are small beside eps.
        mask = torch.cat((mask[:1], torch.full_like(mask[1:], 1e-6)))
        with torch.no_grad():
            result = layer(x, mask)
            y, updated = (result, None) if isinstance(result, Tensor) else tuple(result)
            options = (_NUMERATORS, _EPS, _BIASES, _UPDATED)
            for option in itertools.product((True, False), *options):
                got, mine = self._convolved(layer, _Formula(*option), x, mask)
                same = updated is None or _same(mine.expand_as(updated), updated)
                if same and _same(got, y):
                    planes = updated is not None and updated.shape[1] == y.shape[1]
                    pair = None if updated is None else _maker(result)
                    return _Formula(*option, planes, pair)
        raise UnsupportedError("its formula is none of those known")

    def takes(self, layer: Any, facts: _Formula, x: Any, mask: Any) -> bool:
        _, kernel = self._find(layer)
        return (
            isinstance(x, Tensor)
            and isinstance(mask, Tensor)
            and not _learned(mask)
            and mask.is_floating_point()
            and mask.dim() == x.dim() == 4
            and mask.shape[1] == kernel.shape[1]
            and mask.shape[0] == x.shape[0]
        )

    def _convolved(
        self, layer: Any, formula: _Formula, x: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        conv, _ = self._find(layer)
        planes, channels, s = self._sums(layer, mask, x)
        scale, shift, updated = formula.window(s, conv)
        y, _ = partial_conv2d(
            x,
            planes if formula.masked else None,
            conv.weight,
            conv.bias,
            conv.stride,
            conv.padding,
            conv.dilation,
            mask_channels=channels if formula.masked else None,
            window=(scale, shift),
        )
        return y, updated

    def forward(self, layer: Any, facts: _Formula, x: Tensor, mask: Tensor) -> Any:
        y, updated = self._convolved(layer, facts, x, mask)
        if facts.pair is None:
            return y
        updated = updated.to(y.dtype).expand(-1, y.shape[1] if facts.planes else 1, -1, -1)
        return facts.pair((y, updated.clone(memory_format=torch.contiguous_format)))

    def _pair(self, layer: Any, draw: Draw, batch: int) -> tuple[Tensor, Tensor]:
        conv, kernel = self._find(layer)
        pairs = zip(conv.kernel_size, conv.dilation, strict=True)
        size = [(k - 1) * d + 7 + 2 * i for i, (k, d) in enumerate(pairs)]
        hole = max(conv.kernel_size) * max(conv.dilation) + 1
        x = draw.features(batch, conv.in_channels, *size)
        return x, draw.mask(batch, kernel.shape[1], *size, hole=hole)

    def calls(self, layer: Any, facts: _Formula, draw: Draw) -> list[tuple[Any, ...]]:
        x, mask = self._pair(layer, draw, 2)
        return [
            (x, mask),
            self._pair(layer, draw, 3),
            (x, draw.soft_mask(*mask.shape)),
            (x, torch.ones_like(mask)),
            (x, mask[:, :1].expand_as(mask)),
        ]


class AveragingPartialConv(CopiedPartialConv):
    """The same with a kernel of 1 / its size."""

    def _value(self, kernel: Tensor) -> float:
        """As it is rounded, where it may be looked at."""
        return float(kernel.flatten()[0]) if backend.readable(kernel) else _average(kernel)

    def is_kernel(self, tensor: Tensor) -> bool:
        return not has_values(tensor) or torch.allclose(
            tensor.double(), torch.tensor(_average(tensor), dtype=torch.float64).to(tensor.device)
        )


def _average(kernel: Tensor) -> float:
    return 1 / math.prod(kernel.shape[2:])


def _same(a: Tensor, b: Tensor) -> bool:
    """Each image to a millionth of its largest value."""
    if a.shape != b.shape:
        return False
    errors, largest = ((v.double().abs().amax((1, 2, 3))) for v in (a - b, b))
    return bool((errors <= 1e-6 * largest).all())
