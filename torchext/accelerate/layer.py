"""A published layer whose forward is the fused one.

The layer stays the object that it was, with all that is in it; its class becomes a subclass of its
own. So every attribute is read and set as before, whoever holds the layer goes on holding it, and
what the fused form does not take is run by the published code.
"""

import copyreg
import functools
import inspect
import types
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .family import Family, has_values, touched
from .recognise import FAMILIES


@dataclass
class Swap:
    """What an accelerated layer knows beside its published state.

    Attributes:
        family: its name in FAMILIES.
        facts: of the family.
        defaults: the parameters of the published forward, in order, with their defaults.
        constants: attributes that the facts depend on, and their values.
        children: the classes of the modules inside.
        kernels: the frozen kernels as they were last read: place -> (id, version).
        always: the fused form is to run wherever it is right, faster or not: to be compared.
        decided: what its family has decided for calls of one kind, to be asked once.
    """

    family: str
    facts: Any
    defaults: dict[str, Any]
    constants: tuple[tuple[str, Any], ...]
    children: tuple[tuple[str, type], ...]
    kernels: dict[int, tuple[int, int]] = field(default_factory=dict)
    always: bool = False
    decided: dict[Any, bool] = field(default_factory=dict)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """What the fused form is called with; None where that is not all of the call."""
        fewest, most = FAMILIES[self.family].arity
        values, used = list(args), 0
        for name in list(self.defaults)[len(args) :]:
            used += name in kwargs
            values.append(kwargs.get(name, self.defaults[name]))
        while values and values[-1] is inspect.Parameter.empty:
            values.pop()
        beyond = zip(values[most:], list(self.defaults.values())[most:], strict=False)
        if (
            used < len(kwargs)
            or len(values) < fewest
            or len(args) > max(most, len(self.defaults))
            or any(value is not default for value, default in beyond)
        ):
            return None
        return values[:most]


class AcceleratedLayer:
    """The part of an accelerated layer's class that is ours; the other base is the published one.

    Attributes:
        published: the class as it was.
        _torchext_swap: None where the published code runs.
    """

    published: type[nn.Module]
    _torchext_swap: Swap | None = None

    def _get_name(self) -> str:
        return f"torchext {self.published.__name__}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        function, arguments, *rest = super().__reduce_ex__(protocol)
        if function is copyreg.__newobj__ and arguments[0] is type(self):
            return _new, (self.published, *arguments[1:]), *rest
        return function, arguments, *rest


def _new(published: type[nn.Module], *arguments: Any) -> nn.Module:
    kind = accelerated_class(published)
    return kind.__new__(kind, *arguments)


@functools.cache
def accelerated_class(published: type[nn.Module]) -> type[nn.Module]:
    """A published class with the fused forward, under the same name."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _forward(self, published.forward, args, kwargs)

    # torch.compile counts compilations by code object: not those of all classes together.
    forward.__code__ = forward.__code__.replace()
    forward.__doc__ = published.forward.__doc__
    forward.__signature__ = inspect.signature(published.forward)
    members = {
        "__module__": __name__,
        "__doc__": published.__doc__,
        "forward": forward,
        "published": published,
    }
    return type(published.__name__, (AcceleratedLayer, published), members)


class PublishedCodeWarning(UserWarning):
    """The fused form did not take a call that it should take; the published code has run it."""


def _forward(layer: Any, published: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    arguments = fused_arguments(layer, args, kwargs)
    if arguments is None:
        return _published(layer, published, args, kwargs)
    swap = layer._torchext_swap
    try:
        return FAMILIES[swap.family].forward(layer, swap.facts, *arguments)
    except (TypeError, ValueError) as problem:  # the checks of an op, before any work
        result = _published(layer, published, args, kwargs)
        warnings.warn(
            f"{type(layer).__name__}: its published code runs, since the fused one raised"
            f" {type(problem).__name__}: {problem}",
            PublishedCodeWarning,
            stacklevel=4,
        )
        return result


def _published(layer: Any, published: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the published code; of its own class, where that asks for `super(type(self), self)`."""
    names = getattr(getattr(published, "__code__", None), "co_names", ())
    if not {"super", "type"} <= {*names}:
        return published(layer, *args, **kwargs)
    kind = type(layer)
    layer.__class__ = layer.published
    try:
        return published(layer, *args, **kwargs)
    finally:
        layer.__class__ = kind


def fused_arguments(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
    """What the fused form is called with; None where the published code is to run.

    That is so where the call or the layer are not such as the fused form was proved for, or where
    it gains nothing.
    """
    swap = layer._torchext_swap
    arguments = None if swap is None else swap.arguments(args, kwargs)
    if arguments is None:
        return None
    family = FAMILIES[swap.family]
    as_proved = (
        all(getattr(layer, name, None) == value for name, value in swap.constants)
        and all(type(getattr(layer, name, None)) is kind for name, kind in swap.children)
        and not any(touched(part) for part in family.replaced(layer))
        and all(_still_right(swap, i, t) for i, t in enumerate(family.kernels(layer)))
        and family.takes(layer, swap.facts, *arguments)
    )
    if not as_proved:
        return None
    left = not swap.always and family.gains_nothing(layer, swap.facts, *arguments)
    return None if left else arguments


def _still_right(swap: Swap, place: int, kernel: Tensor) -> bool:
    """Whether a frozen kernel is as it must be; its values are read again only after a change."""
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or not has_values(kernel)
    ):
        return True
    seen = (id(kernel), -1 if kernel.is_inference() else kernel._version)
    if swap.kernels.get(place) != seen:
        if not FAMILIES[swap.family].is_kernel(kernel):
            return False
        swap.kernels[place] = seen
    return True


def parameters_of(layer: nn.Module) -> dict[str, Any]:
    """The parameters of a layer's forward, in order, with their defaults."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(layer.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }


def constants_of(layer: nn.Module, family: Family, facts: Any) -> tuple[tuple[str, Any], ...]:
    """The plain values and functions among its attributes that the fused form does not read."""
    plain = (bool, int, float, str, tuple, type(None), types.FunctionType)
    others = family.live | family.state(facts) | {"training"}
    return tuple(
        (name, value)
        for name, value in vars(layer).items()
        if isinstance(value, plain)
        and not isinstance(value, torch.Size)
        and name not in others
        and not name.startswith("_")
    )


def swap_in(layer: nn.Module, name: str, facts: Any, *, always: bool = False) -> None:
    """Make a layer run the fused form of the family of that name; see `Swap`."""
    constants = constants_of(layer, FAMILIES[name], facts)
    children = tuple((key, type(child)) for key, child in layer.named_children())
    swap = Swap(name, facts, parameters_of(layer), constants, children, always=always)
    layer.__class__ = accelerated_class(type(layer))
    layer.__dict__["_torchext_swap"] = swap


def swap_out(layer: nn.Module) -> None:
    """Make it run its published code again."""
    if isinstance(layer, AcceleratedLayer):
        layer.__dict__.pop("_torchext_swap", None)
        # A class that a parametrisation has put before ours stays, and has no swap any more.
        if type(layer).__bases__[0] is AcceleratedLayer:
            layer.__class__ = layer.published
