"""The record of an op, and all that PyTorch is told of it, in every namespace alike.

An op's arguments and outputs are its schema's (`torchext.schema`), here as in every backend, the
reference included; so what follows is bound by their names.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

from .. import backend, reference, schema
from .checks import PLAIN, memory_format

Gradients = dict[str, Tensor | None]

OPS: dict[str, "Op"] = {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """An op, called with its schema's arguments in order; the backend is that of the first tensor.

    Attributes:
        name: in `torchext.schema.SCHEMAS`.
        fake: the outputs for given arguments, without values, strides as the kernels' are.
        compose: for an op made of others, `compose(ops, *arguments)` with `ops` those of its
            namespace; None where each backend has a kernel.
        backward: the gradients by argument, `backward(ops, kept, *gradients of the outputs)`, these
            in the outputs' own memory formats; None for an op without gradients.
        keep: what the backward needs: the names of arguments and outputs, or where it depends on
            them a dict by name, `keep(arguments, outputs, needs)` with `needs` the names of the
            arguments whose gradients are wanted. `kept` holds it, and `needs`.
        outputs: how many of the outputs, the first ones, have gradients.
        file: the name of the op's file in every room; that of `fake`'s by default.
        twice: how gradients come about that will be differentiated again. "forward": by autograd
            from the op's reference, for which `keep` keeps every argument. "backward": by
            `backward` with the reference's ops. Or a function of `kept` and the gradients.
    """

    name: str
    fake: Callable[..., Any]
    compose: Callable[..., Any] | None = None
    backward: Callable[..., Gradients] | None = None
    keep: tuple[str, ...] | Callable[..., dict[str, Any]] | None = None
    outputs: int = 1
    file: str = ""
    twice: Literal["forward", "backward"] | Callable[..., Gradients] = "forward"
    arguments: tuple[str, ...] = field(init=False)
    _functions: dict[str, "_Functions"] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", schema.arguments(self.name))
        file = self.file or self.fake.__module__.rpartition(".")[2]
        object.__setattr__(self, "file", file)
        OPS[self.name] = self

    def __call__(self, *arguments: Any) -> Any:
        x = arguments[0]
        if x is None:
            x = next(argument for argument in arguments if isinstance(argument, Tensor))
        chosen = backend.choose(self.name, x)
        if chosen is backend.REFERENCE:
            return getattr(reference, self.name)(*arguments)
        if torch.compiler.is_compiling():
            return getattr(getattr(torch.ops, chosen.namespace), self.name)(*arguments)
        return self._eager(chosen.namespace, arguments)

    def _eager(self, namespace: str, arguments: tuple[Any, ...]) -> Any:
        functions = self._functions[namespace]
        try:
            if torch._C._are_functorch_transforms_active():
                # Ops with `register_autograd` fail under torch.func (PyTorch 2.14).
                return functions.transformed.apply(*arguments)
            if self.backward is not None and torch.is_grad_enabled():
                for argument in arguments:
                    if isinstance(argument, Tensor) and argument.requires_grad:
                        return functions.eager.apply(*arguments)
            return functions.run(*arguments)
        except RuntimeError:  # what torch from 2.15 on makes of C++'s std::invalid_argument
            if "check_values" in self.arguments:  # the reference names the wrong value
                getattr(reference, self.name)(*arguments)
            raise

    def install(self, namespace: str) -> None:
        """Tell PyTorch all but the kernels, in a namespace that defines the op."""
        op = getattr(getattr(torch.ops, namespace), self.name)
        ops = getattr(torch.ops, namespace)
        qualified = f"{namespace}::{self.name}"
        if self.compose is not None:
            compose = self.compose
            schema.implement(
                namespace, self.name, lambda *a: compose(ops, *a), "CompositeExplicitAutograd"
            )
        torch.library.register_fake(qualified, self.fake)
        self._functions[namespace] = functions = _functions_of(self, op, ops)
        if self.backward is not None:
            torch.library.register_autograd(
                qualified, functions.backward, setup_context=functions.setup_context
            )
        torch.library.register_vmap(qualified, _loop(op))


@dataclass(frozen=True)
class _Functions:
    """An op of one namespace.

    Attributes:
        run: PyTorch's op below autograd, whose Python part costs as much as a kernel.
        eager: the op with its backward as a plain function, which costs least.
        transformed: the same for torch.func.
        setup_context, backward: as `torch.library.register_autograd` takes them.
    """

    run: Callable[..., Any]
    eager: type[torch.autograd.Function]
    transformed: type[torch.autograd.Function]
    setup_context: Callable[..., None]
    backward: Callable[..., Any]


def _functions_of(record: Op, op: Callable[..., Any], ops: Any) -> _Functions:
    all_names = (*record.arguments, *schema.outputs(record.name))
    names = record.keep if isinstance(record.keep, tuple) else ()
    places = [all_names.index(name) for name in names]

    def needs_of(ctx: Any) -> set[str]:
        # PyTorch may append arguments of its own.
        marks = zip(record.arguments, ctx.needs_input_grad, strict=False)
        return {name for name, need in marks if need}

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if record.keep is None or record.backward is None:
            return
        outputs = (output,) if isinstance(output, Tensor) else output
        ctx.mark_non_differentiable(*outputs[record.outputs :])
        if record.outputs == 1:
            ctx.set_materialize_grads(False)
        if isinstance(record.keep, tuple):
            values = (*inputs, *outputs)
            ctx.names, kept = names, [values[place] for place in places]
        else:
            given = SimpleNamespace(**dict(zip(record.arguments, inputs, strict=True)))
            by_name = record.keep(given, outputs, needs_of(ctx))
            ctx.names, kept = tuple(by_name), list(by_name.values())
        ctx.save_for_backward(*[x if isinstance(x, Tensor) else None for x in kept])
        ctx.others = [None if isinstance(x, Tensor) else x for x in kept]
        ctx.formats = [memory_format(y) for y in outputs[: record.outputs]]

    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        if record.backward is None:
            raise NotImplementedError(f"{record.name} has no backward")
        gradients = gradients[: record.outputs]
        found: Gradients = {}
        if any(gradient is not None for gradient in gradients):
            values = map(_either, ctx.saved_tensors, ctx.others)
            kept = SimpleNamespace(needs=needs_of(ctx), **dict(zip(ctx.names, values, strict=True)))
            twice = torch.is_grad_enabled() or backend.forward_mode()
            if not twice:
                native = [
                    gradient.contiguous(memory_format=layout)
                    for gradient, layout in zip(gradients, ctx.formats, strict=True)
                ]
                with torch._C._AutoDispatchBelowAutograd():  # nothing here has gradients
                    found = record.backward(ops, kept, *native)
            elif record.twice == "backward":
                found = record.backward(reference, kept, *gradients)
            elif record.twice == "forward":
                found = gradients_of_reference(record, kept, *gradients)
            else:
                found = record.twice(kept, *gradients)
        results = tuple(found.get(name) for name in record.arguments)
        return results[0] if len(results) == 1 else results

    def run(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            if record.compose is not None and _plain(arguments):  # PyTorch would only call it
                return record.compose(ops, *arguments)
            return op(*arguments)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            output = run(*arguments)
            setup_context(ctx, arguments, output)
            return output

    Eager.backward = staticmethod(backward)

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> Any:
            return run(*arguments)

    Transformed.setup_context = staticmethod(setup_context)
    Transformed.backward = staticmethod(backward)
    Transformed.vmap = staticmethod(_loop(Transformed.apply))
    return _Functions(run, Eager, Transformed, setup_context, backward)


def _either(tensor: Tensor | None, other: Any) -> Any:
    return other if tensor is None else tensor


def _plain(arguments: tuple[Any, ...]) -> bool:
    """Whether nobody wants to see the op: no subclass of a tensor, and no mode."""
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    return all(type(x) in PLAIN for x in arguments if isinstance(x, Tensor))


def gradients_of_reference(op: Op, kept: SimpleNamespace, *gradients: Tensor) -> Gradients:
    """From the op's formula, by autograd: they can be differentiated again."""
    values = {name: getattr(kept, name) for name in op.arguments}
    wanted = [name for name in op.arguments if name in kept.needs and values[name] is not None]

    def formula(*tensors: Tensor) -> tuple[Tensor, ...]:
        output = getattr(reference, op.name)(
            **{**values, **dict(zip(wanted, tensors, strict=True))}
        )
        return (output,) if isinstance(output, Tensor) else output[: op.outputs]

    _, pullback = torch.func.vjp(formula, *(values[name] for name in wanted))
    return dict(zip(wanted, pullback(gradients), strict=True))


def _loop(run: Callable[..., Any]) -> Callable[..., Any]:
    """vmap as a loop over the mapped dimension: exact for every op, batch statistics included."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        def sample(index: int) -> list[Any]:
            return [
                # Contiguous, whichever dimension was mapped. The dim of a list: a list of None.
                arg.select(dim, index).contiguous() if isinstance(dim, int) else arg
                for arg, dim in zip(args, in_dims, strict=True)
            ]

        results = [run(*sample(index)) for index in range(info.batch_size)]
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


def install(namespace: str) -> None:
    """Define every op under a namespace, with fakes, autograd and vmap; kernels come separately."""
    schema.define(namespace)
    for op in OPS.values():
        op.install(namespace)


def install_triton() -> None:
    """The namespace of the Triton kernels, with launchers found by their op's name and file."""
    install("torchext_triton")
    for op in OPS.values():
        if op.compose is None and op.name not in schema.CPU_ONLY:
            launcher = _launcher(op)
            for key in ("CUDA", "CPU"):  # CPU tensors run under Triton's interpreter
                schema.implement("torchext_triton", op.name, launcher, key)


def _launcher(op: Op) -> Callable[..., Any]:
    def launcher(*arguments: Any) -> Any:  # triton is imported by the first call that needs it
        file: ModuleType = importlib.import_module(f"torchext.kernels.{op.file}")
        return getattr(file, op.name)(*arguments)

    return launcher
