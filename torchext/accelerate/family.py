"""What a family of published layers has to tell: how it is known, run and proved."""

import contextlib
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


class UnsupportedError(Exception):
    """A layer that looks like a published one, and why it is left alone."""


def expect(condition: bool, text: str) -> None:
    if not condition:
        raise UnsupportedError(text)


def attribute(module: nn.Module, name: str, *allowed: Any, label: str = "") -> Any:
    """An attribute that must have one of the values that the fused form knows."""
    value = getattr(module, name, None)
    expect(
        value in allowed, f"{label}{name} is {value!r}, known are {', '.join(map(repr, allowed))}"
    )
    return value


def convolution(module: nn.Module, name: str, *, dilated: bool = False) -> nn.Conv2d:
    """A child that must be a convolution of one group, padded by zeros."""
    conv = getattr(module, name, None)
    expect(isinstance(conv, nn.Conv2d), f"{name} is no Conv2d")
    if not dilated:
        attribute(conv, "dilation", (1, 1), label=f"{name}.")
    attribute(conv, "groups", 1, label=f"{name}.")
    attribute(conv, "padding_mode", "zeros", label=f"{name}.")
    return conv


def has_values(tensor: Tensor) -> bool:
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def is_only(tensor: Tensor, value: float) -> bool:
    """Whether all of a tensor has one value, as far as it has values yet."""
    return not has_values(tensor) or bool((tensor == value).all())


def touched(module: nn.Module) -> bool:
    """Whether something acts in this module's own call, which a fused form leaves out."""
    return bool(
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def small_constant(function: Any, default: float) -> float:
    """The first number between 0 and 1e-3 in a function: its eps, where no attribute holds it."""
    code = getattr(function, "__code__", None)
    constants = (*(getattr(function, "__defaults__", None) or ()), *getattr(code, "co_consts", ()))
    found = (c for c in constants if isinstance(c, float) and 0 < c <= 1e-3)
    return next(found, default)


class Draw:
    """Random tensors of a layer's dtype and device.

    Args:
        layer: decides dtype and device.
        seed: of the values; the same for the layers that are compared.
        scale: of the features.
    """

    def __init__(self, layer: nn.Module, seed: int, scale: float = 1.0) -> None:
        tensors = itertools.chain(layer.parameters(), layer.buffers())
        some = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
        self.dtype, self.device, self.scale = some.dtype, some.device, scale
        self.generator = torch.Generator(device="cpu").manual_seed(seed)

    def features(self, *shape: int) -> Tensor:
        return self._leaf(torch.randn(shape, generator=self.generator) * self.scale)

    def condition(self, *shape: int) -> Tensor:
        return self._leaf(torch.randn(shape, generator=self.generator))

    def _leaf(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.dtype).requires_grad_()

    def mask(self, *shape: int, hole: int = 5) -> Tensor:
        """0 and 1 in blobs, and a hole of that size in a corner of the first image."""
        coarse = [-(-size // 3) for size in shape[2:]]
        value = torch.rand((*shape[:2], *coarse), generator=self.generator)
        for dim, size in enumerate(shape[2:], start=2):
            value = value.repeat_interleave(3, dim).narrow(dim, 0, size)
        value = (value > 0.4).float()
        value[(0, slice(None), *(slice(hole) for _ in coarse))] = 0
        return value.to(self.device, self.dtype)

    def soft_mask(self, *shape: int) -> Tensor:
        """Between 0 and 1, mostly far below, with zeros."""
        value = torch.rand(shape, generator=self.generator) ** 4
        return (value * self.mask(*shape).to("cpu", torch.float32)).to(self.device, self.dtype)


class Family:
    """Published layers that differ in what `facts` hold alone.

    An instance has no state of its own: what it needs of a layer stands in the layer, or in the
    facts that were found by running it.

    Attributes:
        saves: what the fused form does less of, for the report.
        arity: the fewest and the most arguments of the fused form.
        attributes: names that a layer must have, beside its class name, to be known.
        live: attributes that `forward` reads in every call. Where another one changes, the layer
            runs its published code from then on.
    """

    saves: str = ""
    arity: tuple[int, int] = (1, 1)
    attributes: frozenset[str] = frozenset()
    live: frozenset[str] = frozenset()

    def alike(self, layer: nn.Module) -> bool:
        """Whether a layer of any class holds what one of this family holds."""
        return bool(self.attributes) and all(hasattr(layer, name) for name in self.attributes)

    def check(self, layer: nn.Module) -> None:
        """Raise UnsupportedError for what only looks alike. Also reads values."""

    def kernels(self, layer: nn.Module) -> Iterable[Tensor]:
        """Frozen kernels, whose values belong to the structure."""
        return ()

    def is_kernel(self, tensor: Tensor) -> bool:
        """Whether a frozen kernel has the values that the fused form stands for."""
        return is_only(tensor, 1)

    def replaced(self, layer: nn.Module) -> Iterable[nn.Module]:
        """Modules inside that `forward` does not call."""
        return ()

    def ill_conditioned(self, layer: nn.Module) -> bool:
        """Whether rounding may be large, so that only float64 can be compared."""
        return False

    def discover(self, layer: nn.Module, draw: Draw) -> Any:
        """Facts that only a run of the published layer, here on a copy, can tell."""
        return None

    def state(self, facts: Any) -> frozenset[str]:
        """Attributes that a call sets."""
        return frozenset()

    def takes(self, layer: nn.Module, facts: Any, *arguments: Any) -> bool:
        """Whether the fused form does what the published one does with these arguments."""
        return True

    def gains_nothing(self, layer: nn.Module, facts: Any, *arguments: Any) -> bool:
        """Whether the published code, which then runs, is as fast with arguments that are taken."""
        return False

    def forward(self, layer: nn.Module, facts: Any, *arguments: Any) -> Any:
        """The fused form."""
        raise NotImplementedError

    def calls(self, layer: nn.Module, facts: Any, draw: Draw) -> list[tuple[Any, ...]]:
        """Arguments of the comparison, in the order of the calls."""
        raise NotImplementedError

    def comparison(self) -> contextlib.AbstractContextManager[None]:
        """What the fused form is compared in."""
        return contextlib.nullcontext()

    def surroundings(self, layer: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Leaves what `prepare` changes outside of the layer as it was."""
        return contextlib.nullcontext()

    def prepare(self, layer: nn.Module, call: tuple[Any, ...]) -> None:
        """Set what a layer needs before a call of the comparison."""
