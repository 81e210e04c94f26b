"""Whether Winograd's form is chosen where it is faster: `python -m benchmarks.winograd_grid`.

Sixty shapes, as the layers of networks have them: the model's expectation beside what is measured,
with the weight transformed anew, as in training, and with the transformed weight kept, as in
inference. Before each call the caches lose the weight, as they do while a network's other layers
run, and hold the image. Writes results/winograd_grid.json.
"""

from .environment import restart_with_settled_heap

if __name__ == "__main__":
    restart_with_settled_heap()

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from torchext import backend
from torchext.ops import winograd_conv

from .harness import machine

PAIRS = [(3, 64), (64, 3), (16, 16), (32, 32), (64, 64), (64, 128), (128, 128), (256, 256)]
SHAPES = [
    *((1, *pair, size, 1) for pair in PAIRS for size in (8, 14, 28, 64, 128)),
    *((1, 512, 512, size, 1) for size in (7, 14, 16, 32)),
    *((1, 256, 128, size, 1) for size in (16, 32, 64)),
    *((1, *pair, 256, 1) for pair in ((16, 16), (32, 32), (64, 64), (64, 3))),
    *((4, channels, channels, size, 1) for channels, size in ((64, 56), (256, 14), (512, 7))),
    *((1, channels, channels, 64, 2) for channels in (64, 128, 256)),
    *((2, 128, 128, 33, 1), (1, 96, 160, 50, 1), (1, 48, 48, 100, 1)),
]  # N, channels in, channels out, height and width, dilation
CACHES = torch.empty(1 << 24)  # 64 MiB
TOLERANCE = 1.02  # by which a choice may be slower than a direct convolution


def measure(calls: dict[str, Callable[[], object]], x: torch.Tensor, rounds: int) -> dict:
    """The median milliseconds of each call; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            CACHES.add_(1)
            x.sum()
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def row(shape: tuple[int, int, int, int, int], rounds: int) -> dict:
    N, ins, outs, size, dilation = shape
    x, weight = torch.randn(N, ins, size, size), torch.randn(outs, ins, 3, 3)
    sizes = ((3, 3), (1, 1), [dilation] * 2, [dilation] * 2, 1)
    ops = torch.ops.torchext

    def apply(panels: torch.Tensor) -> torch.Tensor:
        epilogue = winograd_conv.NO_EPILOGUE
        return ops.winograd_apply(x, None, panels, outs, *epilogue, *sizes[2:4])

    kept = winograd_conv.panels_of(weight)
    calls = {
        "direct": lambda: F.conv2d(x, weight, None, 1, dilation, dilation),
        "anew": lambda: apply(winograd_conv.panels_of(weight)),
        "kept": lambda: apply(kept),
    }
    with torch.no_grad():
        ms = measure(calls, x, rounds)
    found = {"shape": shape, "ms": ms}
    for column, fixed in (("anew", False), ("kept", True)):
        takes = winograd_conv.chosen(ops, x, outs, *sizes, fixed=fixed)
        found[column] = {
            "expected": winograd_conv.gain(x, outs, (size, size), (dilation,) * 2, fixed=fixed),
            "measured": ms["direct"] / ms[column],
            "chosen": takes,
            "slower": ms[column] / ms["direct"] if takes else 1.0,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.winograd_grid")
    parser.add_argument("--rounds", type=int, default=9, help="calls of each, of which the median")
    parser.add_argument("--output", type=Path, default=Path("results/winograd_grid.json"))
    options = parser.parse_args()
    with backend.use("cpu"):
        rows = [row(shape, options.rounds) for shape in tqdm(SHAPES)]
    print("N in->out size dilation | direct ms | transformed anew: expected, measured | kept")
    for found in rows:
        N, ins, outs, size, dilation = found["shape"]
        parts = [f"{N} {ins}->{outs} {size} {dilation}", f"{found['ms']['direct']:.3f}"]
        for column in ("anew", "kept"):
            side = found[column]
            mark = "*" if side["chosen"] else " "
            parts.append(f"{side['expected']:.2f} {side['measured']:.2f}{mark}")
        print(" | ".join(parts))
    for column in ("anew", "kept"):
        slower = [found["shape"] for found in rows if found[column]["slower"] > TOLERANCE]
        missed = [
            found["shape"]
            for found in rows
            if not found[column]["chosen"] and found[column]["measured"] > 1.1
        ]
        print(f"{column}: chosen, but slower: {slower}; faster, but not chosen: {missed}")
    options.output.write_text(
        json.dumps({"machine": machine("cpu"), "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
