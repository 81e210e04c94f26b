"""Cases of partial convolution and of up-sampling convolution.

Their floor is the bare convolution (after interpolation, where there is one), timed in the same
run. `python -m benchmarks.partial_conv` draws the time of a layer against the share of holes, in
results/hole-share.json and .png.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchext import nn

from . import harness, report
from .baselines import partial_conv as baseline
from .harness import Case, Problem
from .masks import gaussian_hole, irregular_hole


@dataclass(frozen=True)
class Layer:
    """What a case's name stands for; `holes` makes the hole of one image."""

    out_channels: int
    kernel: int
    stride: int = 1
    multi_channel: bool = False
    holes: Callable[[int, int, int], np.ndarray] | None = None


def no_hole(height: int, width: int, seed: int) -> np.ndarray:
    return np.zeros((height, width), dtype=bool)


def strokes(height: int, width: int, seed: int) -> np.ndarray:
    return irregular_hole(height, width, share=0.25, seed=seed)


def blobs(height: int, width: int, seed: int) -> np.ndarray:
    return gaussian_hole(height, width, share=0.5, seed=seed)


LAYERS = {
    "PartialConv k3 known": Layer(64, 3, holes=no_hole),
    "PartialConv k3 25% strokes": Layer(64, 3, holes=strokes),
    "PartialConv k3 50% blobs": Layer(64, 3, holes=blobs),
    "PartialConv k5 s2 all channels": Layer(128, 5, 2, True, strokes),
    "UpsampleConv k3 to 64": Layer(64, 3),
    "UpsampleConv k3 to 256": Layer(256, 3),
    "UpsampleConv k3 to 32": Layer(32, 3),
}
CASES = [
    Case("PartialConv k3 known", (1, 64, 256, 256)),
    Case("PartialConv k3 25% strokes", (1, 64, 256, 256)),
    Case("PartialConv k3 50% blobs", (1, 64, 256, 256)),
    Case("PartialConv k5 s2 all channels", (1, 64, 128, 128)),
    Case("UpsampleConv k3 to 64", (1, 128, 64, 64)),
    Case("UpsampleConv k3 to 256", (1, 512, 64, 64)),
    Case("UpsampleConv k3 to 32", (1, 64, 128, 128)),
]
HEADLINE = [CASES[1], CASES[4]]
SCALING = [Case("PartialConv k3 25% strokes", (1, 64, size, size)) for size in (32, 64, 128, 256)]


def setup(case: Case, dtype: torch.dtype, device: str) -> Problem:
    """Both forms of a layer with the same weights, on the same seeded input."""
    layer = LAYERS[case.op]
    N, C, H, W = case.shape
    generator = torch.Generator().manual_seed(0)
    sizes = (C, layer.out_channels, layer.kernel)
    inputs = [torch.randn(case.shape, generator=generator)]
    if layer.holes is None:
        published = baseline.UpsampleConv2d(*sizes, padding=layer.kernel // 2)
        ours: torch.nn.Module = nn.UpsampleConv2d(*sizes)
        height, width = 2 * H, 2 * W
    else:
        options = {"stride": layer.stride, "padding": layer.kernel // 2}
        multi = {"multi_channel": layer.multi_channel}
        published = baseline.PartialConv2d(*sizes, **options, **multi)
        ours = nn.PartialConv2d(*sizes, **options, **multi)
        holes = np.stack([layer.holes(H, W, n) for n in range(N)])
        mask = 1 - torch.from_numpy(holes)[:, None].float()
        inputs.append(mask.repeat(1, C if layer.multi_channel else 1, 1, 1))
        height, width = (-(-size // layer.stride) for size in (H, W))
    with torch.no_grad():
        for parameter in published.parameters():
            parameter.normal_(0, 0.05, generator=generator)
    ours.load_state_dict(published.state_dict())
    grad = torch.randn((N, layer.out_channels, height, width), generator=generator)

    def ready(value: Tensor) -> Tensor:
        return value.to(device, dtype).contiguous(memory_format=case.memory_format)

    return Problem(
        published.to(device, dtype),
        ours.to(device, dtype),
        tuple(ready(value) for value in inputs),
        ready(grad),
    )


def floor(problem: Problem, direction: str) -> Callable[[], object]:
    """The convolution without mask and ratio."""
    layer = problem.published

    def bare(x: Tensor, *_: Tensor) -> Tensor:
        if isinstance(layer, baseline.UpsampleConv2d):
            return layer(x)
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)

    return harness.runner(bare, problem, direction)


# --- time against the share of holes ------------------------------------------------------------

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def hole_share_curve(
    shape: tuple[int, int, int, int] = (1, 64, 256, 256), rounds: int = 7
) -> list[dict[str, float | str]]:
    """Milliseconds of ours and of the bare convolution, interleaved, for each kind of hole."""
    N, C, H, W = shape
    x, layer = torch.randn(shape), nn.PartialConv2d(C, C, 3, padding=1)
    rows: list[dict[str, float | str]] = []
    for kind, make in (("blobs, sigma 20", gaussian_hole), ("strokes", irregular_hole)):
        for share in SHARES:
            hole = make(H, W, share=share, seed=0)
            mask = 1 - torch.from_numpy(hole)[None, None].float().expand(N, -1, -1, -1)
            calls = {
                "ours": lambda mask=mask: layer(x, mask),
                "bare": lambda: F.conv2d(x, layer.weight, layer.bias, padding=1),
            }
            times: dict[str, list[float]] = {name: [] for name in calls}
            with torch.no_grad():
                for _ in range(rounds):
                    for name, call in calls.items():
                        call()
                        begin = time.perf_counter()
                        call()
                        times[name].append(1e3 * (time.perf_counter() - begin))
            medians = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
            rows.append({"holes": kind, "share": float(hole.mean()), **medians})
    return rows


def draw_hole_share(path: Path, rows: list[dict], machine: dict) -> None:
    figure, axis = report._figure(6.4, 4.2, 1)
    for kind, colour in (("blobs, sigma 20", report.BLUE), ("strokes", report.ORANGE)):
        points = [
            (100 * r["share"], r["ours_ms"] / r["bare_ms"]) for r in rows if r["holes"] == kind
        ]
        axis.plot(*zip(*points, strict=True), "o-", color=colour, label=kind)
    axis.axhline(1, color=report.INK, linewidth=0.8, linestyle=(0, (3, 3)))
    axis.set_xlabel("% of the image in holes")
    axis.set_ylabel("time over the bare convolution's")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    figure.suptitle(
        f"partial_conv2d, 64 channels, 256×256\n{report._subtitle(machine)}", fontsize=11
    )
    figure.savefig(path, dpi=110, facecolor="white")


def main() -> None:
    torch.set_num_threads(harness.cores())
    rows, machine = hole_share_curve(), harness.machine("cpu")
    for row in rows:
        print(
            "{holes:16} {share:5.1%} ours {ours_ms:7.2f} ms, bare {bare_ms:7.2f} ms".format(**row)
        )
    folder = Path("results")
    folder.mkdir(exist_ok=True)
    (folder / "hole-share.json").write_text(
        json.dumps({"machine": machine, "rows": rows}, indent=2)
    )
    draw_hole_share(folder / "hole-share.png", rows, machine)


if __name__ == "__main__":
    main()
