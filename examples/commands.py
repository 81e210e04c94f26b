"""What the examples share: commands of `torchext.models` in this process, training by the clock."""

import time
from collections.abc import Callable

from torchext.models.__main__ import main as command_line

FIRST, STRETCHES = 20, 5  # iterations whose time tells how many follow, and runs in all


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
