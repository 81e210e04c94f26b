"""Training of all papers: samples in, checkpoints, pictures and a log out.

A paper's `Recipe` says what an iteration is, `loop.Loop` does it, and the `Trainer` keeps a folder.
Every sample follows from (seed, epoch, place), everything else random from (seed, iteration, rank):
a resumed run continues bit for bit.
"""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from . import checkpoint, papers, pictures
from .data import EpochBatches, loader
from .loop import PRECISIONS, Loop, NonFiniteLossError, Precision, Processes
from .recipe import Batch, Recipe

__all__ = ["NonFiniteLossError", "Options", "Trainer", "checkpoints"]


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
    precision: Precision = "float32"
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
        check_ranges(self)


# The least that a number may be.
_LEAST = {
    **dict.fromkeys(("iterations", "epochs", "batch", "accumulate", "keep"), 1),
    **dict.fromkeys(("save_every", "sample_every", "log_every"), 1),
    **dict.fromkeys(("workers", "seed"), 0),
}


def check_ranges(options: Any, shown: Callable[[str], str] = str) -> None:
    """Raise ValueError for a number out of range; one that is None or absent is not looked at.

    Args:
        options: `Options`, or those of the command line.
        shown: a name as the error gives it.
    """
    for name, least in _LEAST.items():
        value = getattr(options, name, None)
        if value is not None and value < least:
            raise ValueError(f"{shown(name)}: expected at least {least}, got {value}")
    if not 0 <= options.average < 1:
        raise ValueError(
            f"{shown('average')}: expected at least 0 and below 1, got {options.average}"
        )


class Trainer:
    """Trains the networks of a paper's stage.

    Args:
        paper, config, stage: whose, with which options, and which part.
        recipe: losses and optimisers.
        dataset: of samples.
        options: how.

    Raises:
        ValueError: `output` holds checkpoints and `resume` is off, or of another paper or stage, or
            with other options of networks or losses.
    """

    def __init__(
        self,
        paper: papers.Paper,
        config: Any,
        stage: papers.Stage,
        recipe: Recipe,
        dataset: Dataset,
        options: Options,
    ) -> None:
        self.paper = paper
        self.config = config
        self.stage = stage
        self.options = options
        self.dataset = dataset
        self.loop = Loop(
            recipe,
            seed=options.seed,
            device=options.device,
            precision=options.precision,
            channels_last=options.channels_last,
            average=options.average,
            processes=Processes.join(options.device),
        )
        found = checkpoints(options.output)
        if options.resume and found:
            self.restore(found[-1])
        elif found:
            raise ValueError(
                f"{options.output}: holds {found[-1].name} of an earlier run; resume it, or choose"
                " another folder"
            )
        self.loop.share()

    @property
    def iteration(self) -> int:
        return self.loop.iteration

    @property
    def recipe(self) -> Recipe:
        return self.loop.recipe

    def run(self) -> dict[str, float]:
        """Train up to the last iteration; returns its losses, averaged over processes.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite, in any process.
        """
        options, loop = self.options, self.loop
        processes = loop.processes
        main = processes.rank == 0
        places = EpochBatches(
            len(self.dataset),
            options.batch,
            seed=options.seed,
            start=loop.iteration * options.accumulate,
            rank=processes.rank,
            world=processes.world,
        )
        batches = iter(loader(self.dataset, places, workers=options.workers))
        loop.recipe.train()
        losses: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self._log()) if main else None
            bar = stack.enter_context(
                tqdm(
                    total=options.iterations,
                    initial=loop.iteration,
                    desc=self.paper.name,
                    disable=options.quiet or not main,
                )
            )
            while loop.iteration < options.iterations:
                parts = [loop.moved(next(batches)) for _ in range(options.accumulate)]
                epoch = loop.iteration * options.accumulate // places.per_epoch
                try:
                    losses = loop.step(parts, epoch)
                except NonFiniteLossError as error:
                    self._keep(error)
                    raise
                last = loop.iteration == options.iterations
                bar.update()
                bar.set_postfix({k: f"{v:.3g}" for k, v in losses.items()}, refresh=False)
                if main and (loop.iteration % options.log_every == 0 or last):
                    log({"iteration": loop.iteration, "epoch": epoch, **losses})
                if main and (loop.iteration % options.sample_every == 0 or last):
                    self.show(parts[0])
                if main and (loop.iteration % options.save_every == 0 or last):
                    self.save()
        if processes.world > 1:
            dist.barrier()
        processes.leave()
        return losses

    # --- what is written ----------------------------------------------------------------------

    def _keep(self, error: NonFiniteLossError) -> None:
        """Write the batch that gave a loss which is not finite; the error names the file."""
        if not error.losses:
            return
        iteration, rank = self.loop.iteration, self.loop.processes.rank
        path = self.options.output / f"batch-{iteration:08}-{rank}.safetensors"
        tensors = {key: value for key, value in error.batch.items() if isinstance(value, Tensor)}
        texts = {key: value for key, value in error.batch.items() if key not in tensors}
        header = {"iteration": iteration, "losses": str(error.losses), **texts}
        checkpoint.save(path, tensors, header)
        images = error.batch.get("name")
        error.args = (f"{error}; images {images}; the batch is in {path}",)

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
        few = {key: value[:images] for key, value in batch.items()}
        self.recipe.eval()
        with self.loop.autocast():
            rows = self.recipe.samples(few)
        self.recipe.train()
        path = self.options.output / f"samples-{self.iteration:08}.png"
        pictures.write(pictures.grid(rows), path)

    def _header(self) -> dict[str, Any]:
        options = self.options
        return {
            **papers.header(self.paper, self.config),
            "stage": self.stage.name,
            "iteration": self.iteration,
            "scaler": self.loop.scaler.state_dict(),
            # What the order of the samples and the noise depend on.
            "training": {
                "batch": options.batch * options.accumulate * self.loop.processes.world,
                "seed": options.seed,
            },
        }

    def save(self) -> Path:
        """Write a checkpoint and remove old ones; returns its file."""
        path = self.options.output / f"checkpoint-{self.iteration:08}.safetensors"
        checkpoint.save(path, self.loop.state(), self._header())
        for old in checkpoints(self.options.output)[: -self.options.keep]:
            try:
                old.unlink()
            except OSError as error:  # another program reads it
                warnings.warn(f"{old}: not removed ({error.strerror or error})", stacklevel=2)
        return path

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: it is of another paper or stage, or was trained with other options of
                networks or losses; those of the schedule may change.
        """
        tensors, head = checkpoint.load(path)
        if head["paper"] != self.paper.name:
            raise ValueError(f"{path}: a checkpoint of {head['paper']}, not of {self.paper.name}")
        if "iteration" not in head:
            raise ValueError(f"{path}: holds networks alone, nothing to resume training from")
        stage = str(head.get("stage") or head["config"].get("stage", self.stage.name))
        if stage != self.stage.name:
            raise ValueError(f"{path}: a checkpoint of stage {stage}, not of {self.stage.name}")
        theirs = dict(papers.options_of(papers.config_of(self.paper, head), papers.BINDING))
        for name, now in papers.options_of(self.config, papers.BINDING):
            if theirs[name] != now:
                raise ValueError(f"{path}: {name} was {theirs[name]!r} there, {now!r} is given")
        training = self._header()["training"]
        if head["training"] != training:
            raise ValueError(f"{path}: trained with {head['training']}, {training} is given")
        self.loop.load_state(tensors, path)
        self.loop.scaler.load_state_dict(head["scaler"])
        self.loop.iteration = head["iteration"]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a training folder, oldest first."""
    return sorted(Path(folder).glob("checkpoint-*.safetensors"))
