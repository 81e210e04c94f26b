"""Steps of fitting an image-specific generator to one photo: `python -m benchmarks.adaptation`.

Published is the loop in pure PyTorch, on the same weights: the generator's upper layers and the
perturbation network layer by layer, each operation for itself. Both are compared before they are
timed. Writes results/adaptation.json.
"""

from .environment import restart_with_settled_heap

if __name__ == "__main__":
    restart_with_settled_heap()

import argparse
import copy
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Adam

from torchext.models.loop import Loop
from torchext.models.semantic_photo_manipulation.fitting import Adaptation
from torchext.models.semantic_photo_manipulation.networks import (
    CODE_LAYER,
    SIZES,
    Config,
    FreeMaps,
    PerturbationNetwork,
    ProgressiveGenerator,
    perturbed_layers,
)

from .baselines import networks as published
from .harness import cores, machine
from .networks import TITLES, Row, as_published, medians

Perturbation = PerturbationNetwork | FreeMaps
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the losses, and of the last's gradients


class PublishedLoop:
    """Of the same batch as `Adaptation` takes: everything in each step, by autograd."""

    def __init__(
        self, generator: ProgressiveGenerator, config: Config, perturbation: Perturbation
    ) -> None:
        like = next(generator.parameters())
        self.generator = published.progressive(generator).to(like).requires_grad_(False)
        self.perturbation = perturbation
        self.weight = config.loss.delta_weight
        self.optimizer = Adam(perturbation.parameters(), config.schedule.adapt_rate)

    def terms(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        deltas = self.perturbation()
        image = self.generator.run(batch["code"], CODE_LAYER + 1, deltas=deltas)
        squares = [(delta**2).mean() for delta in deltas.values()]
        return {
            "match": (image * batch["keep"] - batch["photo"] * batch["keep"]).abs().mean(),
            "deltas": self.weight * torch.stack(squares).sum(),
        }

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        terms = self.terms(batch)
        self.optimizer.zero_grad()
        torch.stack([*terms.values()]).sum().backward()
        self.optimizer.step()
        return {name: term.item() for name, term in terms.items()}


def gradients(terms: Mapping[str, Tensor], perturbation: Perturbation) -> list[Tensor]:
    return [*torch.autograd.grad(sum(terms.values()), [*perturbation.parameters()])]


def both(
    generator: ProgressiveGenerator, perturbation: Perturbation, dtype: torch.dtype
) -> tuple[PublishedLoop, Adaptation]:
    """The loops of copies, which start alike."""
    given = [
        copy.deepcopy(network).to(dtype) for network in (generator, perturbation, perturbation)
    ]
    config = Config()
    return PublishedLoop(given[0], config, given[1]), Adaptation(given[0], config, given[2])


def check_equal(
    generator: ProgressiveGenerator, perturbation: Perturbation, batch: Mapping[str, Tensor]
) -> None:
    """Compare losses, and in float64, where no kink hides that they are the same, gradients.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    for dtype, tolerance in TOLERANCE.items():
        given = {name: value.to(dtype) for name, value in batch.items()}
        theirs, ours = both(generator, perturbation, dtype)
        expected, got = theirs.terms(given), ours.terms(ours.prepared(given))
        for name, value in expected.items():
            if not (got[name] - value).abs() <= tolerance * value.abs():
                raise RuntimeError(f"{name}: {got[name]:.6f}, but {value:.6f} as published")
        if dtype == torch.float64:
            wanted = gradients(expected, theirs.perturbation)
            found = gradients(got, ours.networks["perturbation"])
            largest = max(value.abs().max() for value in wanted)
            error = max((a - b).abs().max() for a, b in zip(wanted, found, strict=True)) / largest
            if not error <= tolerance:
                raise RuntimeError(f"gradients differ from the published by {error:.1e}")


def perturbation_of(kind: str, generator: ProgressiveGenerator) -> Perturbation:
    """Not zero, so that the comparison sees it."""
    if kind == "maps":
        made: Perturbation = FreeMaps(generator, perturbed_layers(generator))
        values = [*made.parameters()]
    else:
        made = PerturbationNetwork(generator)
        values = [p for name, p in made.named_parameters() if ".side." in name]
    with torch.no_grad():
        for value in values:
            value.normal_(std=0.02)
    return made


def measure(
    size: int, rounds: int, seconds: float = float("inf"), *, kinds: Sequence[str] = ("network",)
) -> Iterator[Row]:
    """A row for each kind of perturbation: of the paper's network, or of free maps."""
    for kind in kinds:
        torch.manual_seed(0)
        generator = ProgressiveGenerator(size).eval().requires_grad_(False)
        batch = {
            "code": generator.run(torch.randn(1, generator.sizes[0], 1, 1), last=CODE_LAYER),
            "photo": torch.rand(1, 3, size, size) * 2 - 1,
            "keep": torch.rand(1, 1, size, size).round(),
        }
        perturbation = perturbation_of(kind, generator)
        check_equal(generator, perturbation, batch)
        theirs, ours = both(generator, perturbation, torch.float32)
        loop, prepared = Loop(ours), ours.prepared(batch)
        ours.networks.train()
        calls = [
            as_published(lambda theirs=theirs, batch=batch: theirs.step(batch)),
            lambda loop=loop, prepared=prepared: loop.step([prepared], epoch=0),
        ]
        times = medians(calls, rounds, seconds)
        yield Row(f"adaptation, {kind} {size}", "float32", "step", *times, None)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptation", description=__doc__)
    parser.add_argument("--size", type=int, default=256, choices=SIZES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--output", type=Path, default=Path("results", "adaptation.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(TITLES)
    rows = []
    for row in measure(options.size, options.rounds, kinds=("network", "maps")):
        rows.append(row)
        print(f"{row.line}   {1e3 / row.published_ms:.2f} and {1e3 / row.ours_ms:.2f} steps/s")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine("cpu"), "rows": [asdict(row) for row in rows]}
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
