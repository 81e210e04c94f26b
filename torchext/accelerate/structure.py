"""Small copies of a layer, and what of a layer decides how it behaves."""

import copy
import functools
import math
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .family import Family, has_values

_WIDE = 8  # wider layers are copied narrower
_OF_WEIGHTS = ("SpectralNorm", "WeightNorm")


def plain_copy(layer: nn.Module) -> nn.Module:
    """A deep copy, also where old spectral norm left its last weight, which is no leaf."""
    derived = {id(value): value.detach().clone() for value in _tensors(layer) if not value.is_leaf}
    return copy.deepcopy(layer, derived)


def small_copy(layer: nn.Module, family: Family, *, narrow: bool) -> nn.Module:
    """A copy of its structure with random weights, without hooks but those that make a weight.

    PyTorch's synchronised batch norm, which waits for other processes, is batch norm in the copy.

    Args:
        layer: also one without values (on the device "meta", or fake); its copy is on the CPU.
        family: knows which tensors keep their values.
        narrow: with few channels; different widths stay different.
    """
    widths = _narrow_widths(layer) if narrow else _Widths({}, {})
    generator = torch.Generator(device="cpu").manual_seed(11)
    kernels = {id(kernel) for kernel in family.kernels(layer)}
    memo: dict[int, Any] = {}
    drawn = {id(p) for part in layer.modules() for p in _drawn(part)}
    for value in _tensors(layer):
        small = widths.slice(value.detach(), id(value) in drawn, generator, id(value) in kernels)
        if isinstance(value, nn.Parameter):
            small = nn.Parameter(small, requires_grad=value.requires_grad)
        memo[id(value)] = small
    for part in layer.modules():
        for name, hooks in vars(part).items():
            if name.endswith("_hooks") and isinstance(hooks, dict):
                of_weights = {k: v for k, v in hooks.items() if type(v).__name__ in _OF_WEIGHTS}
                memo[id(hooks)] = OrderedDict(copy.deepcopy(of_weights))
    new = copy.deepcopy(layer, memo)
    for part in new.modules():
        for name, value in vars(part).items():
            if type(value) is int:
                part.__dict__[name] = widths.number(value)
        # A copy must not wait for other processes, nor for the threads of `DataParallel`.
        if isinstance(part, nn.SyncBatchNorm):
            part.__class__ = _of_one_process(type(part))
        if "_is_parallel" in vars(part):
            part._is_parallel = False
    return new


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Takes features of any rank, as `SyncBatchNorm` does."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


@functools.cache
def _of_one_process(kind: type[nn.Module]) -> type[nn.Module]:
    """What a synchronised batch norm is without other processes; with its own forward, if any."""
    if "forward" not in vars(kind) or kind is nn.SyncBatchNorm:
        return nn.BatchNorm2d
    members = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    return type(kind.__name__, (_BatchNorm,), members)


def _tensors(layer: nn.Module) -> Iterator[Tensor]:
    for part in layer.modules():
        for group in (part._parameters, part._buffers, vars(part)):
            yield from (value for value in group.values() if isinstance(value, Tensor))


def _drawn(part: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from (p for p in part._parameters.values() if p is not None)
    yield from (b for b in part._buffers.values() if b is not None)


class _Widths:
    """Numbers of channels, and their products with a window's size, and what they become."""

    def __init__(self, channels: dict[int, int], products: dict[int, int]) -> None:
        self.channels, self.products = channels, products

    def number(self, value: int) -> int:
        return self.channels.get(value, self.products.get(value, value))

    def slice(self, value: Tensor, drawn: bool, generator: torch.Generator, kernel: bool) -> Tensor:
        shape = [self.channels.get(n, n) if i < 2 else n for i, n in enumerate(value.shape)]
        if value.dim() == 1:
            shape = [self.number(value.shape[0])]
        if drawn and not kernel and value.is_floating_point():
            fan = math.prod(shape[1:]) if len(shape) > 1 else 4
            new = torch.randn(shape, generator=generator) / math.sqrt(max(fan, 1))
            if value.dim() == 1:  # also fits a variance
                new = new.abs() + 0.1
            device = value.device if has_values(value) else "cpu"
            return new.to(device, value.dtype)
        if not has_values(value):
            fill = torch.ones if kernel else torch.zeros
            return fill(shape, dtype=value.dtype, device="cpu")
        return value[tuple(slice(n) for n in shape)].clone()


def _narrow_widths(layer: nn.Module) -> _Widths:
    parts = list(layer.modules())
    if any(getattr(part, "groups", 1) != 1 or isinstance(part, nn.GroupNorm) for part in parts):
        return _Widths({}, {})
    tensors = [value for part in layer.modules() for value in _drawn(part)]
    filters = [value.shape for value in tensors if value.dim() > 2]
    windows = {math.prod(shape[2:]) for shape in filters}
    found = {n for shape in filters for n in shape[:2]}
    products = {n * window for n in found for window in windows if window > 1}
    found |= {value.shape[0] for value in tensors if value.dim() == 1} - products
    wide = sorted(n for n in found if n > _WIDE)
    free = iter(n for n in range(4, 4 + 2 * len(found) + 2) if n not in found)
    channels = {n: next(free) for n in wide}
    return _Widths(
        channels,
        {n * window: m * window for n, m in channels.items() for window in windows if window > 1},
    )


def fingerprint(layer: nn.Module, facts: Any, state: frozenset[str]) -> Any:
    """What decides how a layer behaves; equal for layers that differ in weights alone."""
    return (
        repr(facts),
        tuple((path, type(part), _contents(part, state)) for path, part in layer.named_modules()),
    )


def _contents(part: nn.Module, state: frozenset[str]) -> tuple[Any, ...]:
    contents = []
    for name, value in sorted(vars(part).items()):
        derived = f"{name}_orig" in part._parameters or f"{name}_g" in part._parameters
        if name == "training" or name in state or derived:
            continue
        if name == "_modules":
            value = tuple(value)
        elif name in ("_parameters", "_buffers"):
            value = tuple((key, _described(tensor)) for key, tensor in value.items())
        elif name.endswith("_hooks"):
            value = tuple(type(hook).__name__ for hook in value.values())
        elif isinstance(value, Tensor):
            value = (_described(value), _bytes(value))
        elif type(value).__repr__ is object.__repr__:  # which tells its address alone
            value = type(value)
        elif isinstance(value, types.FunctionType):
            cells = tuple(repr(cell.cell_contents) for cell in value.__closure__ or ())
            value = (value.__code__, repr(value.__defaults__), cells)
        else:
            value = (type(value), repr(value))
        contents.append((name, value))
    return tuple(contents)


def _described(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
