"""Optimisation steps without files or folders: what training and adapting to one photo share.

Everything random in a step follows from (seed, iteration, rank), so a checkpoint needs no generator
state, and a resumed run continues bit for bit.

In several processes each has its part of the batch, and the gradients of a phase are averaged in
one all-reduce behind its backward pass. No wrapper stands around the networks: a phase may run them
several times, share a forward with the next phase, and leave parameters unused.
"""

import contextlib
import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import checkpoint
from .recipe import Batch, Passed, Recipe, Terms

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
Precision = Literal["float32", "bfloat16", "float16"]


class NonFiniteLossError(FloatingPointError):
    """A loss is NaN or infinite.

    Attributes:
        losses: the names and values of those; empty where another process has them.
        batch: the part of the batch.
    """

    def __init__(self, iteration: int, losses: Mapping[str, float], batch: Batch) -> None:
        shown = ", ".join(f"{name} is {value}" for name, value in losses.items())
        text = f"loss {shown}" if losses else "a loss of another process"
        super().__init__(f"iteration {iteration}: {text}")
        self.losses = losses
        self.batch = batch


@dataclass
class Processes:
    """This process among those that `torchrun` started; alone without it."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    started: bool = field(default=False, repr=False)

    @classmethod
    def join(cls, device: str) -> "Processes":
        """Join the group of processes that the environment tells of."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), started=False)
        if world == 1:
            return cls()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if device == "cuda":
            torch.cuda.set_device(local_rank)
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        return cls(dist.get_rank(), world, local_rank, started=True)

    def leave(self) -> None:
        if self.started:
            dist.destroy_process_group()


class Loop:
    """Steps of a recipe's optimisers.

    Args:
        recipe: losses and optimisers. Its networks are moved to the device.
        seed: of everything random.
        device: of this process.
        precision: of the forward passes (autocast); weights stay float32.
        channels_last: memory format of the networks and images.
        average: decay of the running average of weights; 0 keeps none.
        processes: this process among others.

    Attributes:
        iteration: steps done.
        averaged: running averages of networks, by name.

    Raises:
        ValueError: an unknown precision, or an average outside [0,1).
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
        channels_last: bool = False,
        average: float = 0.0,
        processes: Processes | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {sorted(PRECISIONS)}, got {precision!r}")
        if not 0 <= average < 1:
            raise ValueError(f"average: expected at least 0 and below 1, got {average}")
        self.seed = seed
        self.device = torch.device(device)
        self.dtype = PRECISIONS[precision]
        self.channels_last = channels_last
        self.average = average
        self.processes = processes or Processes()
        self.recipe = recipe.to(self.device)
        if channels_last:
            self.recipe.to(memory_format=torch.channels_last)
        names = recipe.averaged if average else ()
        self.averaged = nn.ModuleDict(
            {name: copy.deepcopy(recipe.networks[name]) for name in names}
        ).requires_grad_(False)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        self.iteration = 0

    def share(self) -> None:
        """Give all processes the weights of the first."""
        if self.processes.world > 1:
            for tensor in [*self.recipe.parameters(), *self.recipe.buffers()]:
                dist.broadcast(tensor.data, src=0)

    def step(self, parts: Sequence[Batch], epoch: int) -> dict[str, float]:
        """One iteration on a batch, given in parts; returns the losses, averaged over processes.

        Args:
            parts: of the batch, on the device (see `moved`); their gradients are summed up.
            epoch: for the learning rates.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite, in any process.
        """
        seed = (self.seed, self.iteration, self.processes.rank)
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
        for name, rate in self.recipe.learning_rates(epoch, self.iteration).items():
            for group in self.recipe.optimizers[name].param_groups:
                group["lr"] = rate
        losses: dict[str, Tensor] = {}
        shared = Passed()
        for phase in self.recipe.phases(self.iteration):
            stepped = self._parameters(phase.optimizers)
            filled = stepped + self._parameters(phase.leftover)
            for part in parts:
                passed = shared if len(parts) == 1 else Passed()
                with self.autocast():
                    terms = phase.loss(part, passed)
                self._check(terms, part)
                total = torch.stack([term.float().sum() for term in terms.values()]).sum()
                self.scaler.scale(total / len(parts)).backward(inputs=filled)
                for name, term in terms.items():
                    share = term.detach() / len(parts)
                    losses[name] = losses[name] + share if name in losses else share
            self._average_gradients(filled)
            for name in phase.optimizers:
                self.scaler.step(self.recipe.optimizers[name])
            for parameter in stepped:
                parameter.grad = None
        self.scaler.update()
        self._update_average()
        self.iteration += 1
        return self._mean(losses)

    def _parameters(self, optimizers: Sequence[str]) -> list[nn.Parameter]:
        groups = [g for name in optimizers for g in self.recipe.optimizers[name].param_groups]
        return [p for group in groups for p in group["params"] if p.requires_grad]

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision of the forward passes."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def moved(self, batch: Batch) -> Batch:
        """A batch on the device, in the memory format."""

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            value = value.to(self.device, non_blocking=True)
            if self.channels_last and value.dim() == 4:
                return value.contiguous(memory_format=torch.channels_last)
            return value

        return {key: move(value) for key, value in batch.items()}

    def _average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        if self.processes.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.processes.world
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, values in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(values.view_as(gradient))

    def _mean(self, losses: Terms) -> dict[str, float]:
        values = torch.stack([value.float() for value in losses.values()])
        if self.processes.world > 1:
            dist.all_reduce(values)
            values /= self.processes.world
        return dict(zip(losses, values.tolist(), strict=True))

    @torch.no_grad()
    def _update_average(self) -> None:
        for name, average in self.averaged.items():
            network = self.recipe.networks[name]
            for ours, theirs in zip(average.parameters(), network.parameters(), strict=True):
                ours.lerp_(theirs, 1 - self.average)
            for ours, theirs in zip(average.buffers(), network.buffers(), strict=True):
                ours.copy_(theirs)

    def _check(self, terms: Terms, batch: Batch) -> None:
        values = torch.stack([term.detach().float().sum() for term in terms.values()])
        finite = values.isfinite()
        worst = finite.all().float()
        if self.processes.world > 1:
            dist.all_reduce(worst, op=dist.ReduceOp.MIN)
        if worst:
            return
        named = {n: v for n, v, ok in zip(terms, values.tolist(), finite, strict=True) if not ok}
        raise NonFiniteLossError(self.iteration, named, batch)

    # --- state --------------------------------------------------------------------------------

    def state(self) -> checkpoint.State:
        """Networks, averages, optimisers and the gradients that a phase left, by name."""
        tensors: checkpoint.State = {}
        for name, network in self.recipe.networks.items():
            for key, value in network.state_dict().items():
                tensors[f"networks.{name}.{key}"] = value
            for key, parameter in network.named_parameters():
                if parameter.grad is not None:  # a phase's leftover
                    tensors[f"gradients.{name}.{key}"] = parameter.grad
        for name, network in self.averaged.items():
            for key, value in network.state_dict().items():
                tensors[f"averaged.{name}.{key}"] = value
        for name, optimizer in self.recipe.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"optimizers.{name}.{index}.{key}"] = torch.as_tensor(value)
        return tensors

    def load_state(self, tensors: checkpoint.State, source: object) -> None:
        """Take over what `state` gave.

        Raises:
            ValueError: it does not fit; `source` is named.
        """
        for name, network in self.recipe.networks.items():
            checkpoint.load_strictly(network, checkpoint.part(tensors, f"networks.{name}"), source)
            gradients = checkpoint.part(tensors, f"gradients.{name}")
            for key, parameter in network.named_parameters():
                if key in gradients:
                    parameter.grad = gradients[key].to(parameter)
        for name, network in self.averaged.items():
            state = checkpoint.part(tensors, f"averaged.{name}")
            checkpoint.load_strictly(network, state, f"{source}, averaged")
        for name, optimizer in self.recipe.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in checkpoint.part(tensors, f"optimizers.{name}").items():
                index, entry = key.split(".", maxsplit=1)
                state.setdefault(int(index), {})[entry] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
