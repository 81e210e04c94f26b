"""Maps of a condition that are kept while it and the weights stand still."""

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import backend

_CONDITIONS = 2  # with and without guidance

_active: ContextVar["KeptMaps | None"] = ContextVar("torchext_fixed_condition", default=None)


@contextlib.contextmanager
def fixed_condition(memory: int = 2**30) -> Iterator["KeptMaps"]:
    """Inside the `with` block, accelerated SPADE layers keep the maps that they made.

    A sampler of a diffusion model calls its network for the same label map in every step: gamma and
    beta are then made in the first and taken again in all others. Only in evaluation and without
    gradients; not under `torch.compile`. The last two conditions are known, one with and one
    without guidance.

    On the CPU conditions are compared by their values, so a new tensor of the same values counts as
    the same. On other devices that would wait for the device: there it must be the same tensor,
    not written into since. Weights are told by identity and version; what is written through
    `weight.data` inside the block is not seen. It holds for the thread that enters the block: not
    for the replicas of `DataParallel`.

    Args:
        memory: the most bytes of maps; those used longest ago go first. All is freed at the end.

    Yields:
        What is kept, with the numbers of maps `made` and `reused`.

    Raises:
        ValueError: memory is negative.
    """
    if memory < 0:
        raise ValueError(f"memory: expected at least 0, got {memory}")
    kept = KeptMaps(memory)
    token = _active.set(kept)
    try:
        yield kept
    finally:
        _active.reset(token)
        kept.clear()


class KeptMaps:
    """The maps of the last conditions.

    Args:
        memory: the most bytes of maps.

    Attributes:
        made, reused: pairs of maps.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.made = self.reused = self.size = 0
        self.conditions: list[_Condition] = []  # the one used last comes last
        self.maps: OrderedDict[Any, tuple[_Weights, tuple[Tensor, ...]]] = OrderedDict()

    def clear(self) -> None:
        self.conditions.clear()
        self.maps.clear()
        self.size = 0

    def get(
        self, key: Any, condition: Tensor, weights: Sequence[Tensor], make: Callable[[], Any]
    ) -> tuple[Tensor, ...]:
        """The maps, made now where none of that key, condition and weights are kept.

        Args:
            key: of a layer and a size.
            condition: what they are made of.
            weights: the parameters and buffers that make them.
            make: makes them.
        """
        number = self._number(condition)
        versions = [_version(weight) for weight in weights]
        found = self.maps.get((number, key))
        if found is not None and found[0].same(weights, versions):
            self.maps.move_to_end((number, key))
            self.reused += 1
            return found[1]
        maps = make()
        self.made += 1
        self._drop(lambda other: other == (number, key))
        self.maps[number, key] = _Weights(weights, versions), maps
        self.size += _bytes(maps)
        while self.size > self.memory:
            self.size -= _bytes(self.maps.popitem(last=False)[1][1])
        return maps

    def _number(self, condition: Tensor) -> int:
        """Of the condition among those known, which it then is."""
        found = next((known for known in self.conditions if known.is_(condition)), None)
        if found is None:
            found = _Condition(condition)
            if len(self.conditions) == _CONDITIONS:
                old = self.conditions.pop(0)
                self._drop(lambda key: key[0] == id(old))
        else:
            self.conditions.remove(found)
        self.conditions.append(found)
        return id(found)

    def _drop(self, chosen: Callable[[Any], bool]) -> None:
        for key in [key for key in self.maps if chosen(key)]:
            self.size -= _bytes(self.maps.pop(key)[1])


class _Weights(NamedTuple):
    """Those that made maps. Held, so that no other takes the place of one that is gone."""

    tensors: Sequence[Tensor]
    versions: list[int | None]

    def same(self, tensors: Sequence[Tensor], versions: list[int | None]) -> bool:
        return (
            self.versions == versions
            and len(self.tensors) == len(tensors)
            and all(a is b for a, b in zip(self.tensors, tensors, strict=True))
        )


class _Condition:
    """What tells a condition from others."""

    def __init__(self, condition: Tensor) -> None:
        self.seen, self.version = weakref.ref(condition), _version(condition)
        self.value = condition.clone() if backend.readable(condition) else None

    def is_(self, other: Tensor) -> bool:
        if self.value is None or not backend.readable(other):
            return self.seen() is other and self.version == _version(other) is not None
        return (
            self.value.dtype == other.dtype
            and self.value.shape == other.shape
            and torch.equal(self.value, other)
        )


def _version(tensor: Tensor) -> int | None:
    """None where writing into it leaves no trace."""
    return None if tensor.is_inference() else tensor._version


def _bytes(maps: Sequence[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in maps)


def kept_maps(
    layer: nn.Module,
    parts: Sequence[nn.Module],
    condition: Tensor,
    size: Sequence[int],
    make: Callable[[], Any],
) -> Any:
    """`make()`, or what it gave before, inside of `fixed_condition` where that is the same.

    Args:
        layer: whose maps they are.
        parts: its modules that make them.
        condition: what they are made of.
        size: to which.
        make: makes them.
    """
    kept = _active.get()
    if (
        kept is None
        or layer.training
        or torch.is_grad_enabled()
        or type(condition) not in (Tensor, nn.Parameter)
        or backend.traced()
        or torch._C._are_functorch_transforms_active()
    ):
        return make()
    weights = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    kind = condition.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    return kept.get((id(layer), tuple(size), autocast), condition, weights, make)
