"""What every op needs beside its kernels, done alike in every namespace."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import backend
from .checks import memory_format

_functions: dict[tuple[str, str], type[torch.autograd.Function]] = {}


def operator(namespace: str, name: str) -> Callable[..., Any]:
    return getattr(getattr(torch.ops, namespace), name)


def call(namespace: str, name: str, *args: Any) -> Any:
    """Call an op, also under torch.func transforms.

    Ops with `register_autograd` fail under torch.func (PyTorch 2.14), so while a transform is
    active the same formulas run through an autograd.Function.
    """
    op = operator(namespace, name)
    if torch.compiler.is_compiling():
        return op(*args)
    wanted = torch.is_grad_enabled() and any(
        isinstance(a, Tensor) and a.requires_grad for a in args
    )
    if wanted or torch._C._are_functorch_transforms_active():
        return _functions[namespace, name].apply(*args)
    with torch._C._AutoDispatchBelowAutograd():  # its Python part costs as much as a small kernel
        return op(*args)


def differentiated() -> bool:
    """Whether what a backward computes may be differentiated, by backward or forward mode."""
    return torch.is_grad_enabled() or backend.forward_mode()


def gradients_of_reference(function: Any, inputs: list[Any], grad: Tensor) -> list[Any]:
    """Gradients of a reference that can be differentiated again, by autograd or torch.func."""
    given = [value is not None for value in inputs]

    def of_tensors(*tensors: Tensor) -> Tensor:
        values = iter(tensors)
        return function(*(next(values) if there else None for there in given))

    _, pullback = torch.func.vjp(of_tensors, *(value for value in inputs if value is not None))
    gradients = iter(pullback(grad))
    return [next(gradients) if there else None for there in given]


def like(grad: Tensor, x: Tensor) -> Tensor:
    """The incoming gradient in x's dtype and memory format."""
    return grad.to(x.dtype).contiguous(memory_format=memory_format(x))


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


def register(
    namespace: str,
    name: str,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Register an op's fake kernel, vmap rule and, where it has one, its backward."""
    qualified = f"{namespace}::{name}"
    op = operator(namespace, name)
    torch.library.register_fake(qualified, fake)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)

    def no_gradient(ctx: Any, *_grads: Any) -> Any:
        raise NotImplementedError(f"{name} has no backward")

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)

    Function.setup_context = staticmethod(setup_context or (lambda ctx, inputs, output: None))
    Function.backward = staticmethod(backward or no_gradient)
    Function.vmap = staticmethod(_loop(Function.apply))
    _functions[namespace, name] = Function
    torch.library.register_vmap(qualified, _loop(op))
