"""What the examples share: commands of `torchext.models` in this process, training by the clock."""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torchext.models.__main__ import main as command_line

FIRST, STRETCHES = 20, 5  # iterations whose time tells how many follow, and runs in all


def parse(
    name: str,
    description: str | None,
    arguments: Sequence[str] | None,
    papers: Sequence[str] = (),
) -> argparse.Namespace:
    """seconds, iterations and output of the example of a name, and one of its papers."""
    parser = argparse.ArgumentParser(prog=f"python -m examples.{name}", description=description)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="for everything (default: %(default)g)"
    )
    parser.add_argument("--iterations", type=int, help="of training, instead of seconds")
    if papers:
        parser.add_argument(
            "--paper", choices=papers, default=papers[0], help="(default: %(default)s)"
        )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results", name),
        help="a folder to write to (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    if not given.seconds > 0:
        parser.error(f"--seconds: expected more than 0, got {given.seconds:g}")
    if given.iterations is not None and given.iterations < 1:
        parser.error(f"--iterations: expected at least 1, got {given.iterations}")
    return given


def run(*arguments: object) -> None:
    """`python -m torchext.models ...`, in this process."""
    words = [*map(str, arguments)]
    print(f"$ python -m torchext.models {' '.join(words)}", flush=True)
    if command_line(words) != 0:
        raise SystemExit("the command above failed")


def train_for(seconds: float, train: Callable[[int], None]) -> int:
    """Train in stretches, as many iterations as the seconds allow; returns how many.

    Args:
        seconds: for all.
        train: until there have been so many iterations; continues what there is.
    """
    end = time.perf_counter() + seconds
    iterations, more = 0, FIRST
    for stretches_left in reversed(range(STRETCHES)):
        begin = time.perf_counter()
        iterations += more
        train(iterations)
        now = time.perf_counter()
        if stretches_left == 0 or now >= end:
            break
        # As many a second as just before: others may use the machine too.
        more = max(1, int((end - now) / stretches_left * more / (now - begin)))
    return iterations


def train_share(options: argparse.Namespace, share: float, train: Callable[[int], None]) -> int:
    """Train for a share of the example's seconds, or its iterations; returns how many."""
    if options.iterations is None:
        return train_for(share * options.seconds, train)
    train(options.iterations)
    return options.iterations


def train_stages(
    options: argparse.Namespace,
    shares: Mapping[str, float],
    train: Callable[[Path, int, tuple[object, ...]], None],
    checkpoint: Path,
    start: Path | None = None,
) -> tuple[list[int], float]:
    """Train one stage after the other, each from the networks of the one before.

    Args:
        options: of `parse`.
        shares: of the seconds, for each stage; "" is the stage of a paper that has one.
        train: what is to be written to a folder, for so many iterations, with more options of
            `train`; continues what is in the folder.
        checkpoint: the file to write, of the last stage.
        start: networks to begin with.

    Returns:
        the iterations of each stage, and the seconds of all.
    """
    counts: list[int] = []
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        newest = start
        for stage, share in shares.items():
            output = Path(temporary, stage or "only")
            how: tuple[object, ...] = ("--stage", stage) if stage else ()
            if newest is not None:
                how += ("--checkpoint", newest)

            def further(count: int, output: Path = output, how: tuple = how) -> None:
                train(output, count, how)

            counts.append(train_share(options, share, further))
            [newest] = output.glob("*.safetensors")
        seconds = time.perf_counter() - begin
        shutil.copyfile(newest, checkpoint)
    return counts, seconds
