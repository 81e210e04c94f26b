"""SPADE's speed by the share of distinct windows: `python -m benchmarks.label_windows_speed`.

Layers, a block's training and whole generators on label maps of four photographs, beside their
published forms; prints a table, and draws the layers' speed-up against the share. Each of --only
takes less than four minutes on two cores.
"""

from .environment import restart_with_settled_heap

if __name__ == "__main__":
    restart_with_settled_heap()

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from tqdm import tqdm

import torchext
from torchext.models.blocks import iterated
from torchext.models.dagan import SPADEGenerator

from . import harness, report
from . import spade_modulation_table as layers
from .baselines import networks as published
from .harness import Case
from .label_maps import PHOTOGRAPHS, segmented

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "label-windows-speed.png"
SIZE = 256  # of the block and the generators
PARTS = ("layers", "networks")


@dataclass(frozen=True)
class Problem:
    """Both forms, as calls; ours numbers the windows anew each time.

    Attributes:
        share: of the pixels, distinct 5x5 windows of the label map.
    """

    name: str
    photograph: str
    share: float
    published: Callable[[], object]
    ours: Callable[[], object]


@dataclass(frozen=True)
class Measured:
    problem: Problem
    published_ms: float
    ours_ms: float
    tables: str  # layers that took the table, of all
    noisy: bool

    @property
    def gain(self) -> float:
        return self.published_ms / self.ours_ms


def _labels(photograph: str, classes: int) -> Tensor:
    return torch.from_numpy(segmented(SIZE, SIZE, classes, photograph))[None, None]


def layer(case: Case) -> Problem:
    C, H, W = case.shape[1:]
    problem = layers.setup(case, torch.float32, "cpu")
    calls = (
        harness.runner(module, problem, "forward") for module in (problem.published, problem.ours)
    )
    name, photograph = f"SPADE layer, C={C}, {H}x{W}", case.op.rpartition(" ")[2]
    return Problem(name, photograph, torchext.label_windows(problem.inputs[2]).share, *calls)


def block(photograph: str) -> Problem:
    """128 to 64 channels, the last of a generator, forward and backward."""
    ours = torchext.nn.SPADEResnetBlock(128, 64, "spectralspadebatch3x3", layers.CLASSES)
    theirs, labels = published.SPADEBlock(ours), _labels(photograph, layers.CLASSES)
    x, grad = torch.randn(1, 128, SIZE, SIZE, requires_grad=True), torch.randn(1, 64, SIZE, SIZE)

    def train(module: torch.nn.Module, segmap: Tensor) -> None:
        torch.autograd.grad(module(x, segmap), (x, *module.parameters()), grad)

    one_hot = published.one_hot(labels, layers.CLASSES, x)
    return Problem(
        "SPADE block, forward and backward",
        photograph,
        torchext.label_windows(labels).share,
        lambda: train(theirs, one_hot),
        lambda: train(ours, labels.clone()),
    )


def generator(classes: int, photograph: str) -> Problem:
    ours = iterated(SPADEGenerator(semantic_nc=classes, crop_size=SIZE))
    theirs, labels = published.DAGAN(ours).eval(), _labels(photograph, classes)
    ours.eval()

    def call(module: torch.nn.Module) -> None:
        with torch.no_grad():
            module(labels.clone())  # which no layer has seen

    name = f"generator, ngf 64, {classes} classes"
    share = torchext.label_windows(labels).share
    return Problem(name, photograph, share, lambda: call(theirs), lambda: call(ours))


def problems(part: str) -> Iterator[Callable[[], Problem]]:
    if part == "layers":
        for case in layers.CASES:
            yield lambda case=case: layer(case)
        return
    for photograph in PHOTOGRAPHS:
        yield lambda photograph=photograph: block(photograph)
    for classes in (35, 151):
        for photograph in PHOTOGRAPHS:
            yield lambda classes=classes, photograph=photograph: generator(classes, photograph)


def measured(problem: Problem, seconds: float) -> Measured:
    with torchext.backend.explain_windows() as choices:
        problem.ours()
    row = harness.Row(Case(problem.name, (1, 1, 1, 1)), torch.float32, "cpu", "forward")
    plan = harness.Plan(seconds_per_row=seconds, min_rounds=3, attempts=1)
    harness.measure({"published": problem.published, "ours": problem.ours}, "cpu", plan, row)
    tables = sum(not choice.reason for choice in choices)
    return Measured(
        problem,
        row.ms["published"],
        row.ms["ours"],
        f"{tables} of {len(choices)}",
        row.noisy,
    )


def lines(found: list[Measured]) -> Iterator[str]:
    """Markdown; with the mean over a problem's maps of photographs."""
    yield "| | map | distinct windows | tables | published | ours | |"
    yield "|---|---|---|---|---|---|---|"
    for name in dict.fromkeys(one.problem.name for one in found):
        rows = [one for one in found if one.problem.name == name]
        for one in rows:
            yield (
                f"| {name} | {one.problem.photograph} | {one.problem.share:.0%} | {one.tables} |"
                f" {one.published_ms:.0f} ms | {one.ours_ms:.0f} ms |"
                f" **{one.gain:.2f}x**{' (noisy)' if one.noisy else ''} |"
            )
        gains = [one.gain for one in rows if one.problem.photograph != "random"]
        yield f"| {name} | mean of {len(gains)} maps | | | | | **{mean(gains):.2f}x** |"


def draw(path: Path, found: list[Measured], title: str) -> None:
    """The layers' speed-up against the share of distinct windows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name in dict.fromkeys(one.problem.name for one in found):
        rows = sorted((one.problem.share, one.gain) for one in found if one.problem.name == name)
        axis.plot(*zip(*rows, strict=True), marker="o", label=name)
    axis.axhline(1, color=report.GREY)
    axis.set(
        xlabel="distinct 5x5 windows, share of the pixels (1: random labels)",
        ylabel="times faster than published",
        xlim=(0, 1.03),
        title=title,
    )
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.label_windows_speed")
    parser.add_argument("--only", choices=PARTS, help="(default: all)")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: all cores)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row (default: 3)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="of the chart")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads or harness.cores())
    header = report.header(harness.machine("cpu"))
    print(header, flush=True)
    for part in (options.only,) if options.only else PARTS:
        found = [
            measured(make(), options.seconds)
            for make in tqdm(list(problems(part)), desc=part, leave=False)
        ]
        print("\n" + "\n".join(lines(found)), flush=True)
        if part == "layers":
            draw(options.output, found, header.partition("\n")[0])
            print(f"\nwrote {options.output}")


if __name__ == "__main__":
    main()
