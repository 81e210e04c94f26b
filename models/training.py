"""The training loop of all papers: several networks and optimisers, one or many processes.

A paper's `Recipe` says what an iteration is; the `Trainer` does the rest. Everything random in an
iteration follows from (seed, iteration, rank), and every sample from (seed, epoch, place), so a
checkpoint needs no generator state, and a resumed run continues bit for bit.

Under `torchrun` each process has its part of the batch, and the gradients of a phase are averaged
in one all-reduce behind its backward pass. No wrapper stands around the networks: a phase may run
them several times, share a forward with the next phase, and leave parameters unused.
"""

import contextlib
import copy
import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from . import checkpoint, papers, pictures
from .data import EpochBatches, MaskedImages, loader

Batch = dict[str, Any]
Terms = dict[str, Tensor]
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Phase(NamedTuple):
    """A part of an iteration that ends with steps of some optimisers.

    Attributes:
        optimizers: their names. Only their parameters get gradients: other networks are frozen.
        loss: terms of a batch, weighted, whose sum is minimised. It may leave tensors in the batch
            for the next phase (where gradients accumulate over several batches it does not find
            them there, and has to compute them again).
        leftover: further optimisers whose parameters get gradients here, which stay until the next
            phase that steps them.
    """

    optimizers: tuple[str, ...]
    loss: Callable[[Batch], Terms]
    leftover: tuple[str, ...] = ()


class Recipe(nn.Module):
    """What a paper adds to the loop.

    Args:
        networks: what is trained and saved, by name.
        initialise: the names of those that start from new weights; all by default.

    Attributes:
        networks: what is trained and saved, by name.
        optimizers: by name.
        averaged: names of the networks of which a running average may be kept.
    """

    averaged: tuple[str, ...] = ()

    def __init__(
        self, networks: Mapping[str, nn.Module], initialise: Collection[str] | None = None
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
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


class NonFiniteLossError(FloatingPointError):
    """A loss is NaN or infinite; the text names it, the files of the batch, and where it lies."""


@dataclass(frozen=True)
class Options:
    """How to train, for every paper.

    Attributes:
        output: a folder for checkpoints, pictures and the log.
        iterations: the total, those before a resume included.
        batch: images per process and accumulated part.
        accumulate: parts whose gradients are summed up before a step.
        workers: processes that prepare images.
        device: of this process; "cuda" takes the process's own.
        precision: of the forward passes (autocast); weights stay float32.
        channels_last: memory format of the networks and images.
        average: decay of the running average of weights; 0 keeps none.
        save_every, sample_every, log_every: iterations; the last one is always saved.
        keep: how many checkpoints.
        resume: continue from the newest checkpoint in `output`.
        seed: of everything random.
        tensorboard: log there too.
        quiet: no progress bar.
    """

    output: Path
    iterations: int
    batch: int
    accumulate: int = 1
    workers: int = 0
    device: str = "cpu"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    average: float = 0.0
    save_every: int = 1000
    sample_every: int = 1000
    log_every: int = 10
    keep: int = 3
    resume: bool = False
    seed: int = 0
    tensorboard: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision: expected one of {sorted(PRECISIONS)}, got {self.precision!r}"
            )
        counts = ("iterations", "batch", "accumulate", "save_every", "sample_every", "log_every")
        for name, least in (*((name, 1) for name in (*counts, "keep")), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average: expected at least 0 and below 1, got {self.average}")


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


class Trainer:
    """Trains a paper's networks.

    Args:
        paper, config: whose, with which options.
        recipe: losses and optimisers.
        dataset: of samples.
        options: how.

    Raises:
        ValueError: `output` holds checkpoints and `resume` is off, or of another paper, or with
            other options.
    """

    def __init__(
        self,
        paper: papers.Paper,
        config: Any,
        recipe: Recipe,
        dataset: MaskedImages,
        options: Options,
    ) -> None:
        self.paper = paper
        self.config = config
        self.options = options
        self.dataset = dataset
        self.processes = Processes.join(options.device)
        self.device = torch.device(options.device)
        self.recipe = recipe.to(self.device)
        if options.channels_last:
            self.recipe.to(memory_format=torch.channels_last)
        names = recipe.averaged if options.average else ()
        self.averaged = nn.ModuleDict(
            {name: copy.deepcopy(recipe.networks[name]) for name in names}
        ).requires_grad_(False)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "float16")
        self.iteration = 0
        found = checkpoints(options.output)
        if options.resume and found:
            self.restore(found[-1])
        elif found:
            raise ValueError(
                f"{options.output}: holds {found[-1].name} of an earlier run; resume it, or choose"
                " another folder"
            )
        if self.processes.world > 1:
            for tensor in [*self.recipe.parameters(), *self.recipe.buffers()]:
                dist.broadcast(tensor.data, src=0)

    # --- the loop -----------------------------------------------------------------------------

    def run(self) -> dict[str, float]:
        """Train up to the last iteration; returns its losses, averaged over processes.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite, in any process.
        """
        options, main = self.options, self.processes.rank == 0
        places = EpochBatches(
            len(self.dataset),
            options.batch,
            seed=options.seed,
            start=self.iteration * options.accumulate,
            rank=self.processes.rank,
            world=self.processes.world,
        )
        batches = iter(loader(self.dataset, places, workers=options.workers))
        self.recipe.train()
        losses: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self._log()) if main else None
            bar = stack.enter_context(
                tqdm(
                    total=options.iterations,
                    initial=self.iteration,
                    desc=self.paper.name,
                    disable=options.quiet or not main,
                )
            )
            while self.iteration < options.iterations:
                parts = [self._moved(next(batches)) for _ in range(options.accumulate)]
                epoch = self.iteration * options.accumulate // places.per_epoch
                losses = self.step(parts, epoch)
                self.iteration += 1
                last = self.iteration == options.iterations
                bar.update()
                bar.set_postfix({k: f"{v:.3g}" for k, v in losses.items()}, refresh=False)
                if main and (self.iteration % options.log_every == 0 or last):
                    log({"iteration": self.iteration, "epoch": epoch, **losses})
                if main and (self.iteration % options.sample_every == 0 or last):
                    self.show(parts[0])
                if main and (self.iteration % options.save_every == 0 or last):
                    self.save()
        if self.processes.world > 1:
            dist.barrier()
        self.processes.leave()
        return losses

    def step(self, parts: Sequence[Batch], epoch: int) -> dict[str, float]:
        """One iteration on a batch, given in parts; returns the losses."""
        seed = (self.options.seed, self.iteration, self.processes.rank)
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
        for name, rate in self.recipe.learning_rates(epoch, self.iteration).items():
            for group in self.recipe.optimizers[name].param_groups:
                group["lr"] = rate
        losses: dict[str, Tensor] = {}
        for phase in self.recipe.phases(self.iteration):
            stepped = self._parameters(phase.optimizers)
            filled = stepped + self._parameters(phase.leftover)
            for part in parts:
                # Several parts share nothing between phases: their graphs would all be kept.
                batch = part if len(parts) == 1 else dict(part)
                with self._autocast():
                    terms = phase.loss(batch)
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
        return self._mean(losses)

    def _parameters(self, optimizers: Sequence[str]) -> list[nn.Parameter]:
        groups = [g for name in optimizers for g in self.recipe.optimizers[name].param_groups]
        return [p for group in groups for p in group["params"] if p.requires_grad]

    def _autocast(self) -> contextlib.AbstractContextManager:
        dtype = PRECISIONS[self.options.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _moved(self, batch: Batch) -> Batch:
        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            value = value.to(self.device, non_blocking=True)
            if self.options.channels_last and value.dim() == 4:
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
                ours.lerp_(theirs, 1 - self.options.average)
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
        if finite.all():
            raise NonFiniteLossError(f"iteration {self.iteration}: a loss of another process")
        named = {n: v for n, v, ok in zip(terms, values.tolist(), finite, strict=True) if not ok}
        shown = ", ".join(f"{name} is {value}" for name, value in named.items())
        path = self.options.output / f"batch-{self.iteration:08}-{self.processes.rank}.safetensors"
        tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        texts = {key: value for key, value in batch.items() if not isinstance(value, Tensor)}
        checkpoint.save(path, tensors, {"iteration": self.iteration, "losses": str(named), **texts})
        raise NonFiniteLossError(
            f"iteration {self.iteration}: loss {shown}; images {texts.get('name')};"
            f" the batch is in {path}"
        )

    # --- what is written ----------------------------------------------------------------------

    @contextlib.contextmanager
    def _log(self) -> Iterator[Callable[[Mapping[str, float]], None]]:
        self.options.output.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context((self.options.output / "log.jsonl").open("a"))
            writer = None
            if self.options.tensorboard:
                try:
                    from torch.utils.tensorboard import SummaryWriter
                except ImportError:
                    raise ModuleNotFoundError(
                        "tensorboard: not installed; `pip install tensorboard`, or train without it"
                    ) from None
                writer = stack.enter_context(SummaryWriter(self.options.output))

            def log(values: Mapping[str, float]) -> None:
                file.write(json.dumps(values) + "\n")
                file.flush()
                if writer is not None:
                    for name, value in values.items():
                        writer.add_scalar(name, value, values["iteration"])

            yield log

    @torch.no_grad()
    def show(self, batch: Batch, images: int = 4) -> None:
        """Write a grid of pictures; the state of training stays as it is."""
        few = {k: v[:images] for k, v in batch.items() if k in ("image", "known", "noise", "name")}
        self.recipe.eval()
        with self._autocast():
            rows = self.recipe.samples(few)
        self.recipe.train()
        path = self.options.output / f"samples-{self.iteration:08}.png"
        pictures.write(pictures.grid(rows), path)

    def _header(self) -> dict[str, Any]:
        options = self.options
        return {
            **papers.header(self.paper, self.config),
            "iteration": self.iteration,
            "scaler": self.scaler.state_dict(),
            # What the order of the samples and the noise depend on.
            "training": {
                "batch": options.batch * options.accumulate * self.processes.world,
                "seed": options.seed,
            },
        }

    def save(self) -> Path:
        """Write a checkpoint and remove old ones; returns its file."""
        tensors: dict[str, Tensor] = {}
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
        path = self.options.output / f"checkpoint-{self.iteration:08}.safetensors"
        checkpoint.save(path, tensors, self._header())
        for old in checkpoints(self.options.output)[: -self.options.keep]:
            try:
                old.unlink()
            except OSError as error:  # another program reads it
                warnings.warn(f"{old}: not removed ({error.strerror or error})", stacklevel=2)
        return path

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: it is of another paper, or was trained with other options.
        """
        tensors, head = checkpoint.load(path)
        if head["paper"] != self.paper.name:
            raise ValueError(f"{path}: a checkpoint of {head['paper']}, not of {self.paper.name}")
        if "iteration" not in head:
            raise ValueError(f"{path}: holds networks alone, nothing to resume training from")
        theirs = papers.configure(self.paper.config, head["config"])
        for option in dataclasses.fields(theirs):
            before, now = (getattr(c, option.name) for c in (theirs, self.config))
            if before != now:
                raise ValueError(f"{path}: {option.name} was {before!r} there, {now!r} is given")
        training = self._header()["training"]
        if head["training"] != training:
            raise ValueError(f"{path}: trained with {head['training']}, {training} is given")
        for name, network in self.recipe.networks.items():
            checkpoint.load_strictly(network, checkpoint.part(tensors, f"networks.{name}"), path)
            gradients = checkpoint.part(tensors, f"gradients.{name}")
            for key, parameter in network.named_parameters():
                if key in gradients:
                    parameter.grad = gradients[key].to(parameter)
        for name, network in self.averaged.items():
            state = checkpoint.part(tensors, f"averaged.{name}")
            checkpoint.load_strictly(network, state, f"{path}, averaged")
        for name, optimizer in self.recipe.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in checkpoint.part(tensors, f"optimizers.{name}").items():
                index, entry = key.split(".", maxsplit=1)
                state.setdefault(int(index), {})[entry] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.scaler.load_state_dict(head["scaler"])
        self.iteration = head["iteration"]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a training folder, oldest first."""
    return sorted(Path(folder).glob("checkpoint-*.safetensors"))
