"""The user's example: what each layer is called with, and the model before and after."""

import contextlib
import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from .family import UnsupportedError, expect
from .layer import swap_in
from .proof import TOLERANCES, compare_tensors, one_line

# A network adds the rounding of many layers.
_SLACK = 10


class Example:
    """Runs a model on a user's arguments and leaves no trace of it.

    Args:
        model: in the mode in which it is to be run.
        arguments: its positional arguments, or a dict of its keyword arguments.

    Raises:
        TypeError: arguments is neither a tuple or list nor a dict.
    """

    def __init__(self, model: nn.Module, arguments: Any) -> None:
        if not isinstance(arguments, (tuple, list, dict)):
            raise TypeError(
                "example: expected a tuple of the model's arguments or a dict of its keyword"
                f" arguments, got {type(arguments).__name__}"
            )
        self.model = model
        self.args = () if isinstance(arguments, dict) else tuple(arguments)
        self.kwargs = dict(arguments) if isinstance(arguments, dict) else {}

    def run(self, timed: Iterable[nn.Module] = ()) -> tuple[Any, float, dict[int, float]]:
        """The outputs and the seconds; what the run changes, random numbers too, is put back.

        Args:
            timed: layers whose own seconds are returned too, by their ids.
        """
        with torch.no_grad(), _unchanged(self.model), _timed(timed) as seconds:
            # Copies, since a model may write into its arguments.
            args, kwargs = _pytree.tree_map_only(Tensor, torch.clone, (self.args, self.kwargs))
            _synchronise()
            begin = time.perf_counter()
            outputs = self.model(*args, **kwargs)
            _synchronise()
            return outputs, time.perf_counter() - begin, seconds

    def trace(
        self, found: Sequence[tuple[nn.Module, str, Any]]
    ) -> tuple[dict[int, list[str]], dict[int, str]]:
        """Run the model, and each known layer's fused form beside it on the same arguments.

        Args:
            found: layers, the names of their families, their facts.

        Returns:
            By the layer's id: the shapes of its calls, and why it is to be left, where it is.
        """
        calls: dict[int, list[str]] = {id(layer): [] for layer, _, _ in found}
        problems: dict[int, str] = {}
        handles = []
        for layer, name, facts in found:
            pending: list[Any] = []

            def before(
                layer: nn.Module, args: Any, kwargs: Any, name: str = name, facts: Any = facts,
                pending: list[Any] = pending,
            ) -> None:  # fmt: skip
                calls[id(layer)].append(_shapes(args, kwargs))
                try:
                    rival = _sharing_copy(layer)
                    swap_in(rival, name, facts, always=True)
                    pending.append(rival.forward(*args, **kwargs))
                except Exception as problem:  # whatever a user's layer may raise
                    problems.setdefault(id(layer), f"in the example: {one_line(problem)}")
                    pending.append(None)

            def after(
                layer: nn.Module, _args: Any, outputs: Any, pending: list[Any] = pending
            ) -> None:
                got = pending.pop()
                if id(layer) in problems:
                    return
                try:
                    difference(outputs, got, "in the example", slack=1)
                except UnsupportedError as problem:
                    problems[id(layer)] = str(problem)
                except Exception as problem:  # results that cannot be compared
                    problems[id(layer)] = f"in the example: {one_line(problem)}"

            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(layer.register_forward_hook(after, prepend=True))
        try:
            self.run()
        finally:
            for handle in handles:
                handle.remove()
        return calls, problems


def difference(old: Any, new: Any, mode: str, slack: float = _SLACK) -> float:
    """The largest difference of two results, as a share of the largest value.

    Raises:
        UnsupportedError: it is more than rounding, or their structures differ.
    """
    values, structure = _pytree.tree_flatten(old)
    others, other_structure = _pytree.tree_flatten(new)
    expect(structure == other_structure, f"the kind of the result differs, {mode}")
    largest = 0.0
    for i, (a, b) in enumerate(zip(values, others, strict=True)):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            limit = slack * TOLERANCES.get(a.dtype, 0.0)
            largest = max(largest, compare_tensors(a, b, f"output {i}", mode, limit=limit))
        else:
            expect(bool(a == b), f"output {i} differs, {mode}")
    return largest


def _sharing_copy(layer: nn.Module) -> nn.Module:
    """A copy on the same parameters, with buffers and attributes of its own and without hooks."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in layer.parameters()}
    for part in layer.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    memo |= {id(vars(layer)[name]): type(vars(layer)[name])() for name in hooks}
    return copy.deepcopy(layer, memo)


def _shapes(args: Any, kwargs: Any) -> str:
    def shape(value: Any) -> str:
        if isinstance(value, Tensor):
            return str(tuple(value.shape))
        if isinstance(value, (tuple, list)):
            return f"[{', '.join(map(shape, value))}]"
        return type(value).__name__

    named = (f"{name}={shape(value)}" for name, value in kwargs.items())
    return ", ".join([*map(shape, args), *named])


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextlib.contextmanager
def _timed(layers: Iterable[nn.Module]) -> Iterator[dict[int, float]]:
    """Seconds in the calls of layers, by their ids."""
    seconds: dict[int, float] = {}
    handles = []
    for layer in layers:
        seconds[id(layer)] = 0.0

        def before(layer: nn.Module, *_: Any) -> None:
            _synchronise()
            seconds[id(layer)] -= time.perf_counter()

        def after(layer: nn.Module, *_: Any) -> None:
            _synchronise()
            seconds[id(layer)] += time.perf_counter()

        handles.append(layer.register_forward_pre_hook(before))
        handles.append(layer.register_forward_hook(after, prepend=True))
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Buffers, attributes and random numbers are afterwards as before."""
    attributes = [(part, dict(vars(part)), dict(part._buffers)) for part in model.modules()]
    values = [
        (value, value.detach().clone())
        for _, own, buffers in attributes
        for value in (*buffers.values(), *own.values())
        if isinstance(value, Tensor)
    ]
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(list(devices)):
        try:
            yield
        finally:
            for part, own, buffers in attributes:
                vars(part).clear()
                vars(part).update(own)
                part._buffers.clear()
                part._buffers.update(buffers)
            with torch.inference_mode():  # in which both kinds of tensors can be written
                for value, before in values:
                    value.copy_(before)
