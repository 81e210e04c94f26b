"""What the runner must know of a class; an adapter overrides what differs."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from golden import statements
from golden.recipe import Golden

# What a call may use besides its module and inputs.
FUNCTIONS: dict[str, Any] = {
    "pi": math.pi,
    **{
        name: getattr(torch, name)
        for name in ("abs", "cat", "cos", "exp", "floor", "round", "sigmoid", "sin", "sqrt", "tanh")
    },
}


class MissingOutputError(LookupError):
    """A call did not give an output that its file holds."""


class Adapter:
    """A class whose `call` can be run as written and whose state keys are the published ones.

    Args:
        make: the class; called with the file's `args`.
        names: what a call calls the module.
    """

    def __init__(self, make: Callable[..., nn.Module], *names: str) -> None:
        self.make = make
        self.names = names

    def build(self, golden: Golden) -> nn.Module:
        """The module, with any weights."""
        return self.make(**golden.config["args"])

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        """Load the published state_dict, strictly; a network uses its paper's checkpoint loader."""
        module.load_state_dict(state)

    def parameters(self, module: nn.Module) -> Mapping[str, Tensor]:
        """The parameters by their published keys."""
        return dict(module.named_parameters())

    def bindings(self, module: nn.Module) -> dict[str, Any]:
        """What the names in a call mean, besides the inputs and `FUNCTIONS`."""
        return dict.fromkeys(self.names, module)

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The tensors that the file stores as out.NAME (before the slices in `sampled`), by NAME.

        And those that it stores as f64.NAME, by that.

        Args:
            module: loaded and in the file's mode.
            golden: the file.
            inputs: its drawn inputs; those with a stored gradient require one. Where gradin.NAME
                belongs to a tensor composed from them, it is to be added here under that name.
        """
        # A call may write into an input ("label[:] = 1"), a tensor that needs a gradient may not.
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        names = {**FUNCTIONS, **self.bindings(module), **inputs}
        assigned = statements.run(golden.config["call"], names)
        missing = [name for name in golden.wanted("out") if name not in assigned]
        if missing:
            raise MissingOutputError(
                f"{golden.config['call']!r} assigns {list(assigned)}, the file holds {missing} too"
            )
        return {name: assigned[name] for name in golden.wanted("out")}

    def objective(
        self, golden: Golden, outputs: dict[str, Tensor], inputs: dict[str, Tensor]
    ) -> Tensor:
        """The scalar whose gradients the file stores: its `grad_of`."""
        names = {f"out_{name}": tensor for name, tensor in outputs.items()}
        expression = golden.config["grad_of"].replace("out.", "out_")
        return statements.evaluate(expression, {**inputs, **names, "sum": torch.sum})

    def tolerance(self, golden: Golden, key: str) -> float:
        """The largest absolute error of an array."""
        return golden.tolerance(key)
