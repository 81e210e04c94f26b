"""Whether Winograd's form is chosen where it is faster: `python -m benchmarks.winograd_grid`.

Sixty shapes, as the layers of networks have them: the model's expectation beside what is measured,
with the weight transformed anew, as in training, with the transformed weight kept, as in inference,
and of both gradients. Before each call the caches lose all, as they do while a network's other
layers run, but for what the layer before has made: the image, or its gradient. Writes
results/winograd_grid.json.
"""

from .environment import restart_with_settled_heap

if __name__ == "__main__":
    restart_with_settled_heap()

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
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


Call = tuple[Callable[[], object], torch.Tensor]  # and what the caches hold


def measure(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """The median milliseconds of each call; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, (call, held) in calls.items():
            CACHES.add_(1)
            held.sum()
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def row(shape: tuple[int, int, int, int, int], rounds: int) -> dict:
    """Of each kind of convolution: the milliseconds, what was expected and what was chosen."""
    N, ins, outs, size, dilation = shape
    x, weight = torch.randn(N, ins, size, size), torch.randn(outs, ins, 3, 3)
    grad = torch.randn(N, outs, size, size)
    sizes = ([1, 1], [dilation] * 2, [dilation] * 2, 1)
    ops = torch.ops.torchext
    kept = winograd_conv.panels_of(weight)

    def apply(panels: torch.Tensor) -> torch.Tensor:
        return ops.winograd_apply(x, None, panels, outs, *winograd_conv.NO_EPILOGUE, *sizes[1:3])

    def gradients(always: bool, *wanted: bool) -> Callable[[], object]:
        """By PyTorch, or always by Winograd's form."""
        if always:
            given = (ops, grad, x, weight, *sizes, wanted)
            return lambda: winograd_conv.convolution_gradients(*given, always=True)
        given = (grad, x, weight, None, *sizes[:3], False, [0, 0], 1, [*wanted, False])
        return lambda: torch.ops.aten.convolution_backward(*given)

    calls = {
        "direct": (lambda: F.conv2d(x, weight, None, *sizes), x),
        "anew": (lambda: apply(winograd_conv.panels_of(weight)), x),
        "kept": (lambda: apply(kept), x),
        "direct gradient of x": (gradients(False, True, False), grad),
        "gradient of x": (gradients(True, True, False), grad),
        "direct gradient of the weight": (gradients(False, False, True), grad),
        "gradient of the weight": (gradients(True, False, True), grad),
    }
    with torch.no_grad():
        ms = measure(calls, rounds)
    found = {"shape": shape, "ms": ms}
    kinds = winograd_conv.COSTS
    for kind, direct, given in (
        ("anew", "direct", (x, outs, kinds.forward, False)),
        ("kept", "direct", (x, outs, kinds.forward, True)),
        ("gradient of x", "direct gradient of x", (grad, ins, kinds.input_gradient, False)),
        (
            "gradient of the weight",
            "direct gradient of the weight",
            (x, outs, kinds.weight_gradient, False),
        ),
    ):
        image, channels, cost, fixed = given
        dilations = (dilation, dilation)
        expected = winograd_conv.gain(
            image, channels, (size, size), dilations, cost=cost, fixed=fixed
        )
        chosen = winograd_conv.chosen(ops, image, channels, (3, 3), *sizes, cost=cost, fixed=fixed)
        found[kind] = {
            "expected": expected,
            "measured": ms[direct] / ms[kind],
            "chosen": chosen,
            "slower": ms[kind] / ms[direct] if chosen else 1.0,
        }
    return found


KINDS = ("anew", "kept", "gradient of x", "gradient of the weight")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.winograd_grid")
    parser.add_argument("--rounds", type=int, default=9, help="calls of each, of which the median")
    parser.add_argument("--output", type=Path, default=Path("results/winograd_grid.json"))
    options = parser.parse_args(arguments)
    with backend.use("cpu"):
        rows = [row(shape, options.rounds) for shape in tqdm(SHAPES)]
    print("N in->out size dilation | direct ms | expected, measured, * chosen: " + ", ".join(KINDS))
    for found in rows:
        N, ins, outs, size, dilation = found["shape"]
        parts = [f"{N} {ins}->{outs} {size} {dilation}", f"{found['ms']['direct']:.3f}"]
        for kind in KINDS:
            side = found[kind]
            mark = "*" if side["chosen"] else " "
            parts.append(f"{side['expected']:.2f} {side['measured']:.2f}{mark}")
        print(" | ".join(parts))
    for kind in KINDS:
        slower = [found["shape"] for found in rows if found[kind]["slower"] > TOLERANCE]
        missed = [
            found["shape"]
            for found in rows
            if not found[kind]["chosen"] and found[kind]["measured"] > 1.1
        ]
        print(f"{kind}: chosen, but slower: {slower}; faster, but not chosen: {missed}")
    options.output.write_text(
        json.dumps({"machine": machine("cpu"), "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
