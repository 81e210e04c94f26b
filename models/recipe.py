"""What a paper adds to the training loop: networks, optimisers, and the phases of an iteration."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Batch = Mapping[str, Any]
Terms = dict[str, Tensor]
T = TypeVar("T")


class Passed:
    """What one phase of an iteration leaves for the next, such as the fakes of one forward.

    Where gradients accumulate over several parts, each phase finds it empty: the graphs of all
    parts would have to be kept.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What an earlier phase made under this name, or what is made now."""
        if name not in self._values:
            self._values[name] = make()
        return self._values[name]


class Phase(NamedTuple):
    """A part of an iteration that ends with steps of some optimisers.

    Attributes:
        optimizers: their names. Only their parameters get gradients: other networks are frozen.
        loss: terms of a batch, weighted, whose sum is minimised.
        leftover: further optimisers whose parameters get gradients here, which stay until the next
            phase that steps them.
    """

    optimizers: tuple[str, ...]
    loss: Callable[[Batch, Passed], Terms]
    leftover: tuple[str, ...] = ()


class Recipe(nn.Module):
    """What a paper adds to the loop.

    Args:
        networks: what is trained and saved, by name.
        config: the paper's options.
        pretrained: files of others' weights that the losses need, by name; see `pretrained.KNOWN`.
        initialise: the names of those that start from new weights; all by default.

    Attributes:
        networks, config, pretrained: as given.
        fresh: the names of those that start from new weights.
        optimizers: by name.
        averaged: names of the networks of which a running average may be kept.
    """

    averaged: tuple[str, ...] = ()

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        config: Any,
        *,
        pretrained: Mapping[str, Path] = MappingProxyType({}),
        initialise: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        if config is None or isinstance(config, Collection):  # the names, as once in this place
            config, initialise = None, config
        self.networks = nn.ModuleDict(networks)
        self.config = config
        self.pretrained = pretrained
        self.fresh = set(networks if initialise is None else initialise)
        self.optimizers: dict[str, Optimizer] = {}

    def phases(self, iteration: int) -> Sequence[Phase]:
        """The phases of an iteration, in order."""
        raise NotImplementedError

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        """By optimiser; epochs and iterations count from 0."""
        raise NotImplementedError

    def samples(self, batch: Batch) -> list[Tensor]:
        """Rows of pictures (N,3,H,W) in [0,1] that show how training goes."""
        raise NotImplementedError


class AdversarialRecipe(Recipe):
    """A generator against a discriminator, by the optimisers of these names.

    A paper gives `fakes`, `generator_loss` and `discriminator_loss`.

    Attributes:
        first: whose step comes first.
        fresh_fakes: the second phase makes fakes of its own, by the generator as it is by then;
            else both take those of one forward.
        leftover: the discriminator keeps the gradients of the generator's loss for its next step.
    """

    first: Literal["discriminator", "generator"] = "discriminator"
    fresh_fakes: bool = False
    leftover: bool = False

    def fakes(self, batch: Batch) -> Any:
        """What the generator makes of a batch: a tensor, or several in a tuple."""
        raise NotImplementedError

    def generator_loss(self, batch: Batch, fakes: Any) -> Terms:
        raise NotImplementedError

    def discriminator_loss(self, batch: Batch, fakes: Any) -> Terms:
        """The fakes are detached."""
        raise NotImplementedError

    def phases(self, iteration: int) -> Sequence[Phase]:
        phases = {
            "discriminator": Phase(("discriminator",), self._discriminator_phase),
            "generator": Phase(
                ("generator",),
                self._generator_phase,
                ("discriminator",) if self.leftover else (),
            ),
        }
        order = ("discriminator", "generator")
        return [phases[name] for name in (order if self.first == order[0] else order[::-1])]

    def _generator_phase(self, batch: Batch, passed: Passed) -> Terms:
        fakes = self.fakes(batch) if self.fresh_fakes else self._shared(batch, passed)
        return self.generator_loss(batch, fakes)

    def _discriminator_phase(self, batch: Batch, passed: Passed) -> Terms:
        if self.fresh_fakes:
            with torch.no_grad():
                fakes = self.fakes(batch)
        else:
            fakes = self._shared(batch, passed)
        several = isinstance(fakes, tuple)
        detached = tuple(fake.detach() for fake in (fakes if several else (fakes,)))
        return self.discriminator_loss(batch, detached if several else detached[0])

    def _shared(self, batch: Batch, passed: Passed) -> Any:
        return passed.once("fakes", lambda: self.fakes(batch))
