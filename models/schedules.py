"""How learning rates fall: factors of the first rate, by epochs or iterations counted from 0."""

from collections.abc import Sequence


def constant_then_linear(count: int, constant: int, decay: int) -> float:
    """1 for `constant` counts, then in equal steps to 0, which the `decay`-th one reaches.

    Args:
        count: epochs or iterations before this one.
        constant: at least 0; below 0 the fall has begun before the first count.
        decay: how many counts the fall takes.
    """
    return max(0.0, 1 - max(0, count - constant) / decay)


def exponential(count: int, factor: float, constant: int = 0) -> float:
    """1 for `constant` counts, then `factor` times that of the count before."""
    return factor ** max(0, count - constant)


def steps(count: int, at: Sequence[int], factor: float) -> float:
    """`factor` for each of the counts `at` that is reached."""
    return factor ** sum(count >= place for place in at)


def polynomial(
    count: int, total: int, power: float = 0.9, *, warm_up: int = 0, start: float = 1e-3
) -> float:
    """(1 - share gone) ** power, behind a warm-up that rises from `start` to 1 by equal factors."""
    if count < warm_up:
        return start ** (1 - count / warm_up)
    return max(0.0, 1 - (count - warm_up) / (total - warm_up)) ** power
