"""SPADE, SPDNorm, attention normalisation, AdaIN and pixel norm."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.modulated_norm import Statistics, modulated_norm
from ..ops.winograd_conv import conv2d
from .family import Draw, Family, UnsupportedError, expect, small_constant, touched
from .fixed_condition import kept_maps

_SIZE = (12, 14)
_SLOPE = 0.2
# Activations that a layer calls by their names; those of a slope are part of the fused form.
_SLOPES = {"relu": 0.0, "leaky_relu": 0.01, "leaky_relu of 0.2": _SLOPE}
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "leaky_relu of 0.2": lambda x: F.leaky_relu(x, _SLOPE),
    "silu": F.silu,
    "relu6": F.relu6,
    "elu": F.elu,
}
_STATISTICS: dict[str, Statistics | Literal["group"]] = {
    "BatchNorm2d": "batch",
    "BatchNorm3d": "batch",
    "SyncBatchNorm": "batch",
    "SynchronizedBatchNorm2d": "batch",
    "InstanceNorm2d": "instance",
    "InstanceNorm3d": "instance",
    "GroupNorm": "group",
    "PositionalNorm2d": "position",
}


def _statistics_of(norm: nn.Module) -> "Statistics | Literal['group'] | None":
    """By its class or the one that it comes from, as a group norm in float32 does."""
    names = (kind.__name__ for kind in type(norm).__mro__)
    return next((_STATISTICS[name] for name in names if name in _STATISTICS), None)


@dataclass(frozen=True)
class _NormFacts:
    """The norm without parameters inside a layer.

    Attributes:
        statistics: what they are taken over; "group": a group's channels of each image.
        eps: where no attribute holds it.
        counts: whether it counts the batches of training.
        keyed: whether conditions come in a dict, by the text of x's width, as StableSR's do.
        hidden: the function in _FUNCTIONS that the layer calls behind the first layers, or "".
        padding: the child that pads what then goes into the maps' layers, or "".
        tail: the child or the function in _FUNCTIONS that its result passes in the end, or "".
    """

    statistics: Statistics | Literal["group"]
    eps: float
    counts: bool
    keyed: bool = False
    hidden: str = ""
    padding: str = ""
    tail: str = ""


def _first_convolution(module: Any, name: str) -> "nn.Conv2d | nn.Conv3d":
    parts = module.modules() if isinstance(module, nn.Module) else ()
    conv = next((part for part in parts if isinstance(part, (nn.Conv2d, nn.Conv3d))), None)
    expect(conv is not None, f"{name} holds no Conv2d")
    return conv


def _is_plain(conv: nn.Module) -> bool:
    """Whether it is nothing but a convolution."""
    return (
        type(conv) is nn.Conv2d
        and not touched(conv)
        and conv.bias is not None
        and (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def _convolved(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As such a convolution does, by other weights."""
    return conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation)


def _leaves(module: nn.Module) -> list[nn.Module]:
    """What it calls one after the other; itself where that is not all that it does."""
    sequential = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    if not sequential or touched(module):
        return [module]
    return [leaf for child in module for leaf in _leaves(child)]


def _hidden(shared: nn.Module, condition: Tensor) -> Tensor:
    """What the layers in front of the maps give."""
    first, *rest = _leaves(shared)
    if not _is_plain(first):
        return shared(condition)
    hidden = _convolved(first, condition, first.weight, first.bias)
    for layer in rest:
        hidden = layer(hidden)
    return hidden


def _eps_of_map_norm(layers: list[nn.Module]) -> float | None:
    """Of an instance norm behind a map's convolution, 0 without one, None for all else."""
    if not layers:
        return 0.0
    norm = layers[0]
    plain = (
        len(layers) == 1
        and type(norm) is nn.InstanceNorm2d
        and not touched(norm)
        and norm.weight is None
        and not norm.track_running_stats
    )
    return norm.eps if plain else None


def _maps(
    first: nn.Module, second: nn.Module, x: Tensor, affine: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """gamma and beta by two layers, in one convolution where they are nothing but convolutions.

    Or convolutions with instance norms, as in MONAI.

    Args:
        first, second: of gamma and of beta.
        x: their input.
        affine: (C,) weight and bias of the norm in front, (n * w + b) * (1 + gamma) + beta. Then
            w * (1 + gamma) and b * (1 + gamma) + beta are returned.
    """
    (conv, *rest), (other, *other_rest) = _leaves(first), _leaves(second)
    eps = _eps_of_map_norm(rest)
    together = (
        _is_plain(conv)
        and _is_plain(other)
        and conv.padding == other.padding
        and conv.kernel_size == other.kernel_size
        and eps is not None
        and eps == _eps_of_map_norm(other_rest)
    )
    folded = together and eps == 0 and affine is not None
    if not together:
        gamma, beta = first(x), second(x)
    else:
        weights, biases = (conv.weight, other.weight), (conv.bias, other.bias)
        if folded:
            w, b = affine
            weights = (
                conv.weight * w.view(-1, 1, 1, 1),
                other.weight + conv.weight * b.view(-1, 1, 1, 1),
            )
            biases = w * (1 + conv.bias), other.bias + b * (1 + conv.bias)
        both = _convolved(conv, x, torch.cat(weights), torch.cat(biases))
        if eps:
            both = modulated_norm(both, eps=eps)
        gamma, beta = both.split((conv.out_channels, other.out_channels), dim=1)
    if affine is None or folded:
        return gamma, beta
    w, b = (value.view(-1, *[1] * (x.dim() - 2)) for value in affine)
    return w * (1 + gamma), b * (1 + gamma) + beta


def _resized(condition: Tensor, x: Tensor) -> Tensor:
    """By nearest neighbour; maps of volumes too."""
    if condition.shape[2:] == x.shape[2:]:
        return condition
    return F.interpolate(condition, size=tuple(x.shape[2:]), mode="nearest")


def _as_image(x: Tensor, groups: int | None) -> Tensor:
    """Volumes, and the channels of a group, as images."""
    if groups is not None:
        return x.reshape(x.shape[0], groups, -1, x.shape[-1])
    return x.flatten(2, 3) if x.dim() == 5 else x


class _Modulated(Family):
    """A norm without parameters, modulated by two maps of a condition."""

    saves = "statistics, modulation and activation are one pass; both maps are one convolution"
    norm: str
    shared: str
    gamma: str
    beta: str
    gain = "one_plus"
    activation: float | None = None
    takes_affine = False

    def _name(self, layer: Any, role: str) -> str:
        """What a layer calls its norm, shared, gamma or beta."""
        return getattr(self, role)

    def _parts(self, layer: Any) -> list[nn.Module]:
        """What makes the maps: shared, gamma and beta."""
        return [getattr(layer, self._name(layer, role)) for role in ("shared", "gamma", "beta")]

    def _norm(self, layer: Any) -> Any:
        return getattr(layer, self._name(layer, "norm"), None)

    def check(self, layer: Any) -> None:
        for role, part in zip(("shared", "gamma", "beta"), self._parts(layer), strict=True):
            _first_convolution(part, self._name(layer, role))
        norm, name = self._norm(layer), self._name(layer, "norm")
        if not isinstance(norm, nn.Module):  # a function, as PD-GAN's norm by position
            expect(norm is None or callable(norm), f"{name} is a {type(norm).__name__}")
            return
        kind = _statistics_of(norm)
        expect(kind is not None, f"{name} is a {type(norm).__name__}")
        affine = getattr(norm, "weight", None) is not None
        expect(not affine or self.takes_affine, f"{name} has an affine")
        expect(not affine or getattr(norm, "bias", None) is not None, f"{name} has half an affine")
        if kind == "instance":
            expect(not getattr(norm, "track_running_stats", False), f"{name} tracks statistics")
        if kind == "batch":
            expect(norm.momentum is not None, f"{name} has a cumulative average")

    def replaced(self, layer: Any) -> Iterable[nn.Module]:
        norm = self._norm(layer)
        return [norm] if isinstance(norm, nn.Module) else []

    def discover(self, layer: Any, draw: Draw) -> _NormFacts:
        norm = self._norm(layer)
        if not isinstance(norm, nn.Module):
            norm = self._function(layer, draw) if norm is None else norm
            eps = _eps_of_position_norm(norm, draw.features(2, self._sizes(layer)[0], *_SIZE))
            return _NormFacts("position", eps, False)
        count, counts = getattr(norm, "num_batches_tracked", None), False
        if count is not None:
            before = count.clone()
            norm.train()(draw.features(2, norm.num_features, *self._extent(layer)))
            counts = not torch.equal(before, norm.num_batches_tracked)
        eps = small_constant(type(norm).forward, 1e-5)
        return _NormFacts(_statistics_of(norm), eps, counts)

    def takes(self, layer: Any, facts: _NormFacts, x: Any, condition: Any, *rest: Any) -> bool:
        norm = self._norm(layer)
        # Replicas that exchange statistics among themselves, by threads.
        parallel = getattr(norm, "_is_parallel", False) and norm.training
        tensors = all(isinstance(value, Tensor) for value in (x, condition, *rest))
        return tensors and condition.is_floating_point() and not parallel

    def forward(
        self, layer: Any, facts: _NormFacts, x: Tensor, condition: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        norm = self._norm(layer)
        maps = self._modulation(layer, facts, norm, x, condition)
        activation, tail = self._tail(layer, facts)
        groups = norm.num_groups if facts.statistics == "group" else None
        batch = facts.statistics == "batch"
        running_mean = getattr(norm, "running_mean", None) if batch else None
        training = not batch or norm.training or running_mean is None
        y = modulated_norm(
            _as_image(x, groups),
            *(_as_image(value, groups) for value in maps),
            weight=weight,
            statistics="instance" if groups is not None else facts.statistics,
            eps=getattr(norm, "eps", facts.eps),
            unbiased=facts.statistics == "position",
            gain=self.gain if _affine_of(norm) is None else "plain",
            activation=activation,
            running_mean=running_mean,
            running_var=None if running_mean is None else norm.running_var,
            training=training,
            momentum=norm.momentum if batch else 0.1,
            process_group=_process_group(norm) if batch and training else None,
        )
        if facts.counts and norm.training:
            norm.num_batches_tracked.add_(1)
        y = y.view(x.shape) if y.dim() != x.dim() or groups is not None else y
        return y if tail is None else tail(y)

    def _tail(
        self, layer: Any, facts: _NormFacts
    ) -> tuple[float | None, Callable[[Tensor], Tensor] | None]:
        """The slope of the activation in the fused form, and what is called behind it."""
        child = getattr(layer, facts.tail, None) if facts.tail else None
        if child is None:
            slope = _SLOPES.get(facts.tail, self.activation)
            return slope, None if slope is not None else _FUNCTIONS.get(facts.tail)
        if type(child) is nn.ReLU and not touched(child):
            return 0.0, None
        if type(child) is nn.LeakyReLU and not touched(child) and 0 <= child.negative_slope <= 1:
            return child.negative_slope, None
        return None, child

    def _modulation(
        self, layer: Any, facts: _NormFacts, norm: Any, x: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        """gamma and beta at x's size."""
        shared, gamma, beta = self._parts(layer)
        affine = _affine_of(norm)

        def make() -> tuple[Tensor, Tensor]:
            hidden = _hidden(shared, _resized(condition, x))
            hidden = _FUNCTIONS[facts.hidden](hidden) if facts.hidden else hidden
            hidden = getattr(layer, facts.padding)(hidden) if facts.padding else hidden
            return _maps(gamma, beta, hidden, affine)

        parts = [shared, gamma, beta] if affine is None else [shared, gamma, beta, norm]
        return kept_maps(layer, parts, condition, x.shape[2:], make)

    def _extent(self, layer: Any) -> tuple[int, ...]:
        """Of small images or volumes."""
        conv = _first_convolution(self._parts(layer)[0], self._name(layer, "shared"))
        return _SIZE if isinstance(conv, nn.Conv2d) else (6, *_SIZE[:1], 9)

    def _function(self, layer: Any, draw: Draw) -> Callable[[Tensor], Tensor]:
        """The norm of a layer that calls a function by its name."""
        raise UnsupportedError(f"{self._name(layer, 'norm')} is missing")

    def _sizes(self, layer: Any) -> tuple[int, int]:
        """Channels of x and of the condition."""
        shared, gamma, _ = self._parts(layer)
        condition = _first_convolution(shared, self._name(layer, "shared")).in_channels
        return _first_convolution(gamma, self._name(layer, "gamma")).out_channels, condition


def _eps_of_position_norm(norm: Any, x: Tensor) -> float:
    """Read off its result, as three digits; 1e-5 if that is no norm's."""
    with torch.no_grad():
        x = x * 1e-4  # so that the variance is small beside it
        root = (x - x.mean(dim=1, keepdim=True)) / norm(x)
        eps = float((root.square() - x.var(dim=1, keepdim=True)).median())
    return float(f"{eps:.2e}") if 0 < eps < 1 else 1e-5


def _affine_of(norm: Any) -> tuple[Tensor, Tensor] | None:
    """(C,) weight and bias of a norm, where it has them."""
    weight = getattr(norm, "weight", None)
    return None if weight is None else (weight, norm.bias)


def _process_group(norm: nn.Module) -> "dist.ProcessGroup | None":
    """The processes whose statistics PyTorch's synchronised norm joins."""
    synchronised = isinstance(norm, nn.SyncBatchNorm) and norm.training
    if not (synchronised and dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


class SPADE(_Modulated):
    """`SPADE` with any condition's layers."""

    arity = (2, 2)
    norm, shared, gamma, beta = "param_free_norm", "mlp_shared", "mlp_gamma", "mlp_beta"
    attributes = frozenset({norm, shared, gamma, beta})
    takes_affine = True

    def discover(self, layer: Any, draw: Draw) -> _NormFacts:
        facts, (C, label_nc), size = (
            super().discover(layer, draw),
            self._sizes(layer),
            self._extent(layer),
        )
        x, condition = draw.features(2, C, *size), draw.condition(2, label_nc, *size)
        given: Any = condition
        try:
            expected = layer.train()(x, given)
        except Exception:  # whatever a user's layer may raise
            given = {str(size[-1]): condition}
            try:
                expected = layer(x, given)
            except Exception:
                return facts
            facts = replace(facts, keyed=True)
        alike = (
            f for f in self._variants(layer, facts) if self._gives(layer, f, x, given, expected)
        )
        return next(alike, facts)

    def _variants(self, layer: Any, facts: _NormFacts) -> Iterator[_NormFacts]:
        """Activations and padding that a layer may have beside the known, the simplest first."""
        shared, *_ = parts = self._parts(layer)
        inside = {id(part) for part in (*parts, self._norm(layer))}
        others = [
            (name, child)
            for name, child in layer.named_children()
            if id(child) not in inside and not [*child.parameters()]
        ]
        pads = [name for name, child in others if type(child).__name__.endswith(("Pad2d", "Pad3d"))]
        ends_bare = isinstance(_leaves(shared)[-1], (nn.Conv2d, nn.Conv3d))
        tails = [*(name for name, _ in others if name not in pads), *_FUNCTIONS]
        hidden = ["", *_FUNCTIONS] if ends_bare else [""]
        for tail, padding, first in itertools.product(["", *tails], ["", *pads], hidden):
            yield replace(facts, hidden=first, padding=padding, tail=tail)

    def _gives(
        self, layer: Any, facts: _NormFacts, x: Tensor, condition: Any, expected: Any
    ) -> bool:
        try:
            with torch.no_grad():
                y = self.forward(layer, facts, x, condition)
        except Exception:  # whatever a user's layer may raise
            return False
        same = isinstance(expected, Tensor) and y.shape == expected.shape
        return same and torch.allclose(y, expected, rtol=1e-3, atol=1e-3)

    def takes(self, layer: Any, facts: _NormFacts, x: Any, condition: Any) -> bool:
        if facts.keyed:
            if not isinstance(x, Tensor) or not isinstance(condition, dict):
                return False
            condition = condition.get(str(x.shape[-1]))
        return super().takes(layer, facts, x, condition)

    def forward(
        self, layer: Any, facts: _NormFacts, x: Tensor, condition: Any, weight: None = None
    ) -> Tensor:
        condition = condition[str(x.shape[-1])] if facts.keyed else condition
        return super().forward(layer, facts, x, condition)

    def calls(self, layer: Any, facts: _NormFacts, draw: Draw) -> list[tuple[Any, ...]]:
        C, label_nc = self._sizes(layer)
        size = self._extent(layer)
        x = draw.features(2, C, *size)
        if facts.keyed:
            key = str(size[-1])
            return [
                (x, {key: draw.condition(2, label_nc, *size)}),
                (draw.features(3, C, *size), {key: draw.condition(3, label_nc, *size), "1": x}),
            ]
        return [
            (x, draw.mask(2, label_nc, *size)),
            (draw.features(3, C, *size), draw.condition(3, label_nc, *(2 * n for n in size))),
            (x, draw.condition(2, label_nc, *size[:-2], 7, 31)),
        ]


_OTHER_NAMES = {
    "shared": ("mlp_shared", "conv_shared", "shared", "mlp", "conv"),
    "gamma": ("mlp_gamma", "conv_gamma", "gamma_conv", "gamma"),
    "beta": ("mlp_beta", "conv_beta", "beta_conv", "beta"),
}


class CopiedSPADE(SPADE):
    """`SPADE` whose parts have other names: OASIS's norm is `first_norm`, say."""

    attributes = frozenset()

    def alike(self, layer: nn.Module) -> bool:
        return all(self._name(layer, role) for role in ("norm", *_OTHER_NAMES))

    def _name(self, layer: Any, role: str) -> str:
        """ "" where it has none."""
        children = layer._modules
        if role == "norm":
            norms = (name for name, child in children.items() if _statistics_of(child) is not None)
            return next(norms, "")
        return next((name for name in _OTHER_NAMES[role] if children.get(name) is not None), "")


class SPADEGroupNorm(SPADE):
    """The semantic diffusion model's, whose norm has another name."""

    norm = "norm"
    attributes = frozenset({"norm", "mlp_shared", "mlp_gamma", "mlp_beta"})


class ZeroSFT(SPADE):
    """SUPIR's: the control c moves the features before they are modulated by it."""

    arity = (2, 4)
    gamma, beta = "zero_mul", "zero_add"
    attributes = frozenset({"param_free_norm", "mlp_shared", "zero_mul", "zero_add", "zero_conv"})

    def check(self, layer: Any) -> None:
        super().check(layer)
        expect(isinstance(layer.zero_conv, nn.Conv2d), "zero_conv is no Conv2d")

    def ill_conditioned(self, layer: nn.Module) -> bool:
        """The gradient of a bias in front of a group norm is the difference of large sums."""
        return True

    def discover(self, layer: Any, draw: Draw) -> _NormFacts:
        return _Modulated.discover(self, layer, draw)

    def takes(
        self, layer: Any, facts: _NormFacts, c: Any, h: Any, h_ori: Any = None, scale: Any = 1
    ) -> bool:
        given = (c, h) if h_ori is None else (c, h, h_ori)
        concatenated = layer.zero_conv.out_channels < self._sizes(layer)[0]
        return (
            all(isinstance(value, Tensor) for value in given)
            and concatenated == (h_ori is not None)
            and c.shape[2:] == h.shape[2:]
            and isinstance(scale, (int, float))
        )

    def forward(
        self, layer: Any, facts: _NormFacts, c: Tensor, h: Tensor, h_ori: Tensor | None = None,
        scale: float = 1,
    ) -> Tensor:  # fmt: skip
        x = h + layer.zero_conv(c)
        x = x if h_ori is None else torch.cat((h_ori, x), dim=1)
        y = _Modulated.forward(self, layer, facts, x, c)
        if scale == 1:
            return y
        raw = h if h_ori is None else torch.cat((h_ori, h), dim=1)
        return y * scale + raw * (1 - scale)

    def calls(self, layer: Any, facts: _NormFacts, draw: Draw) -> list[tuple[Any, ...]]:
        C, label_nc = self._sizes(layer)
        own = layer.zero_conv.out_channels
        calls: list[tuple[Any, ...]] = []
        for batch, scale in ((2, 1), (3, 0.7)):
            c, h = (draw.features(batch, n, *_SIZE) for n in (label_nc, own))
            before = draw.features(batch, C - own, *_SIZE) if own < C else None
            calls.append((c, h, before, scale))
        return calls


class SPDNorm(_Modulated):
    """PD-GAN's `SPDNorm`."""

    arity = (3, 3)
    norm, shared, gamma, beta = "param_free_norm", "mlp_activate", "mlp_gamma", "mlp_beta"
    attributes = frozenset({shared, gamma, beta})

    def _function(self, layer: Any, draw: Draw) -> Callable[[Tensor], Tensor]:
        """A weight of zeros leaves the norm alone."""
        prior = draw.condition(2, self._sizes(layer)[1], *_SIZE)
        return lambda x: layer(x, prior, torch.zeros_like(x[:, :1]))

    def calls(self, layer: Any, facts: _NormFacts, draw: Draw) -> list[tuple[Any, ...]]:
        C, prior = self._sizes(layer)
        x, three = draw.features(2, C, *_SIZE), draw.features(3, C, *_SIZE)
        return [
            (x, draw.condition(2, prior, *(2 * n for n in _SIZE)), draw.mask(2, 1, *_SIZE)),
            (x, draw.condition(2, prior, *_SIZE), draw.condition(2, C, *_SIZE)),
            (three, draw.condition(3, prior, 7, 31), draw.soft_mask(3, C, *_SIZE)),
        ]


class AttentionNorm(_Modulated):
    """FE-GAN's `ANLs`."""

    arity = (2, 2)
    norm, shared, gamma, beta = "batch_norm", "shared", "gamma", "beta"
    attributes = frozenset({norm, shared, gamma, beta, "conv"})
    gain = "sigmoid"
    activation = _SLOPE

    def forward(self, layer: Any, facts: _NormFacts, x: Tensor, condition: Tensor) -> Tensor:
        return x + layer.conv(super().forward(layer, facts, x, condition))

    def calls(self, layer: Any, facts: _NormFacts, draw: Draw) -> list[tuple[Any, ...]]:
        C, label_nc = self._sizes(layer)
        conditions = (
            draw.condition(2, label_nc, *(2 * n for n in _SIZE)),
            draw.condition(3, label_nc, *_SIZE),
        )
        return [(draw.features(len(value), C, *_SIZE), value) for value in conditions]


class AdaptiveInstanceNorm(Family):
    """AdaIN whose scale and shift are set from outside before the call; facts are their names."""

    saves = "statistics, scale and shift are one pass, without copies of scale and shift"
    known = (("weight", "bias"), ("scale", "shift"))
    live = frozenset({"eps", "momentum", "weight", "bias", "scale", "shift"})

    def _names(self, layer: Any) -> tuple[str, str]:
        found = [names for names in self.known if all(hasattr(layer, name) for name in names)]
        known = " or ".join(", ".join(names) for names in self.known)
        expect(len(found) == 1, f"its scale and shift are not the attributes {known}")
        return found[0]

    def check(self, layer: Any) -> None:
        expect(not layer._parameters and not layer._modules, "it has parameters or children")
        self._names(layer)
        for name, kind in (("eps", float), ("num_features", int)):
            expect(isinstance(getattr(layer, name, None), kind), f"{name} is no number")

    def discover(self, layer: Any, draw: Draw) -> tuple[str, str]:
        return self._names(layer)

    def takes(self, layer: Any, facts: tuple[str, str], x: Tensor) -> bool:
        values = [getattr(layer, name) for name in facts]
        return all(isinstance(value, Tensor) for value in (x, *values)) and all(
            value.numel() == x.shape[0] * x.shape[1] for value in values
        )

    def forward(self, layer: Any, facts: tuple[str, str], x: Tensor) -> Tensor:
        scale, shift = (getattr(layer, name).reshape(x.shape[0], x.shape[1]) for name in facts)
        return modulated_norm(x, scale, shift, gain="plain", eps=layer.eps)

    def calls(self, layer: Any, facts: tuple[str, str], draw: Draw) -> list[tuple[Any, ...]]:
        return [(draw.features(batch, layer.num_features, *_SIZE),) for batch in (2, 3)]

    def prepare(self, layer: Any, call: tuple[Any, ...]) -> None:
        """The published code sets them flat, image after image."""
        (x,) = call
        generator = torch.Generator(device="cpu").manual_seed(6)
        for name in self._names(layer):
            value = torch.randn(x.shape[0] * layer.num_features, generator=generator)
            setattr(layer, name, value.to(x.device, x.dtype))


class PixelNorm(Family):
    """`PixelNorm` under its several names, for maps and for latent vectors."""

    saves = "one pass"
    live = frozenset({"eps", "epsilon"})

    def _eps(self, layer: Any) -> float:
        found = (vars(layer)[name] for name in ("eps", "epsilon") if name in vars(layer))
        return next(found, None)

    def check(self, layer: Any) -> None:
        expect(not layer._parameters and not layer._modules, "it has parameters or children")
        eps = self._eps(layer)
        expect(eps is None or isinstance(eps, float), f"eps is {eps!r}, no number")

    def discover(self, layer: Any, draw: Draw) -> float:
        """eps, where no attribute holds it."""
        return small_constant(type(layer).forward, 1e-8)

    def takes(self, layer: Any, facts: float, x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() >= 2 and x.is_floating_point()

    def forward(self, layer: Any, facts: float, x: Tensor) -> Tensor:
        eps = self._eps(layer)
        # Any other rank as a map: the channels are the second dimension in all.
        image = x if x.dim() == 4 else x.reshape(*x.shape[:2], -1, 1)
        y = modulated_norm(image, statistics="rms", eps=facts if eps is None else eps)
        return y if x.dim() == 4 else y.reshape(x.shape)

    def calls(self, layer: Any, facts: float, draw: Draw) -> list[tuple[Any, ...]]:
        shapes = ((2, 7, *_SIZE), (2, 16, 1, 1), (3, 16), (2, 7, 5), (2, 7, 3, 4, 5))
        calls = [(draw.features(*shape),) for shape in shapes]
        return [*calls, (torch.zeros_like(calls[0][0]).requires_grad_(),)]
