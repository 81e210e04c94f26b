"""The benchmark's outputs: a table for the terminal, JSON for machines, charts for readers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .harness import NOISY_LOAD, NOISY_SPREAD, Row

SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
BLUE, ORANGE, GREY, INK = "#2f6db5", "#e08a2c", "#c9ced6", "#22272e"


def header(machine: dict[str, Any]) -> str:
    """The machine, in a line or two above the table."""
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads,"
        f" {machine['system']}, {str(machine['simd']).upper()}"
    ]
    if "gpu" in machine:
        lines.append(f"{machine['gpu']}, CUDA {machine['cuda']}")
    lines.append(
        f"torch {machine['torch']}, torchext {machine['torchext']}, load average"
        f" {machine['load_average']}, {machine['page_faults_per_fresh_64_mib']} page faults per"
        " fresh 64 MiB tensor"
    )
    return "\n".join(lines)


def _dtype(row: Row) -> str:
    return str(row.dtype).removeprefix("torch.")


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"


def _mebibytes(value: int) -> str:
    return f"{value / 2**20:.3g}"


def table(rows: Sequence[Row]) -> str:
    """One line per row. Rows that stayed noisy are marked with *."""
    titles = (
        "op", "case", "dtype", "direction", "published ms", "compile ms", "ours ms", "floor ms",
        "published/ours", "compile/ours", "ours/floor", "peak MiB published", "peak MiB ours",
        "error",
    )  # fmt: skip
    lines = [
        (
            row.case.op,
            row.case.name,
            SHORT[_dtype(row)],
            row.direction + (" *" if row.noisy else ""),
            *(_milliseconds(row.ms[name]) for name in ("published", "compile", "ours", "floor")),
            _ratio(row.ratio("published", "ours")),
            _ratio(row.ratio("compile", "ours")),
            _ratio(row.ratio("ours", "floor")),
            _mebibytes(row.peak_bytes["published"]),
            _mebibytes(row.peak_bytes["ours"]),
            f"{row.error:.0e}",
        )
        for row in rows
    ]
    # Titles take two lines, so that columns of numbers stay narrow.
    first = [title.rsplit(" ", 1)[0] if " " in title else "" for title in titles]
    second = [title.rsplit(" ", 1)[-1] for title in titles]
    widths = [max(map(len, column)) for column in zip(first, second, *lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        left = 4  # op, case, dtype and direction are words
        return "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    return "\n".join(map(line, (first, second, ["-" * width for width in widths], *lines)))


NOTES = """\
ms: medians of single calls. forward: under no_grad. forward+backward: torch.autograd.grad of x and
all parameters. published: the published op sequence in PyTorch; compile: torch.compile of it.
floor: copies of the same bytes into memory that is there (forward: x to y, 2T; forward+backward:
then x and the gradient to x's, 3T more). peak: most bytes of tensors alive at once, result
included, inputs not. error: largest distance of ours from the published form in float64, as a share
of the largest value, at a size of at most 64 x 64; torch.compile was compared at the full size."""


def noise(rows: Sequence[Row]) -> str:
    """Which rows stayed noisy, and why."""
    noisy = [row for row in rows if row.noisy]
    if not noisy:
        return "No row stayed noisy."
    lines = [
        f"{len(noisy)} of {len(rows)} rows stayed noisy (*; limits: spread"
        f" {NOISY_SPREAD:.0%}, other load {NOISY_LOAD} cores):"
    ]
    lines += [
        f"  {row.label}: spread {row.spread:.0%}, other load {row.other_load:.2f} cores"
        for row in noisy
    ]
    return "\n".join(lines)


def called_once(rows: Sequence[Row]) -> str:
    """Columns that were too slow to be repeated; empty if there are none."""
    slow = [(row.label, ", ".join(row.called_once)) for row in rows if row.called_once]
    lines = [f"  {label}: {columns}" for label, columns in slow]
    return "\n".join(["timed in a single call, since one takes long:", *lines]) if slow else ""


def left_out(labels: Sequence[str], uncompiled: Sequence[str], more: str) -> str:
    """What was not measured, and how to measure it."""
    lines = [f"  {label}" for label in labels] + [f"  {label}: compile" for label in uncompiled]
    return "\n".join([f"left out: {more}".rstrip(), *lines])


def failures(rows: Sequence[Row]) -> str:
    """Rows whose published form torch.compile could not compile; empty if there are none."""
    failed = [row for row in rows if row.compile_failure]
    if not failed:
        return ""
    lines = [f"  {row.label}: {row.compile_failure}" for row in failed]
    return "\n".join(["torch.compile of the published form failed in:", *lines])


def as_json(
    machine: dict[str, Any], rows: Sequence[Row], networks: Sequence[dict] = ()
) -> dict[str, Any]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.4g}")

    return {
        "machine": {
            **machine,
            "noisy_rows": [row.label for row in rows if row.noisy],
            "compile_failures": [row.label for row in rows if row.compile_failure],
            "called_once": {row.label: row.called_once for row in rows if row.called_once},
        },
        "rows": [
            {
                "op": row.case.op,
                "case": row.case.name,
                "dtype": _dtype(row),
                "device": row.device,
                "direction": row.direction,
                **{f"{name}_ms": rounded(value) for name, value in row.ms.items()},
                "published_over_ours": rounded(row.ratio("published", "ours")),
                "compile_over_ours": rounded(row.ratio("compile", "ours")),
                "ours_over_floor": rounded(row.ratio("ours", "floor")),
                "published_peak_bytes": row.peak_bytes["published"],
                "ours_peak_bytes": row.peak_bytes["ours"],
            }
            for row in rows
        ],
        **({"networks": list(networks)} if networks else {}),
    }


def write_json(
    path: Path, machine: dict[str, Any], rows: Sequence[Row], networks: Sequence[dict] = ()
) -> None:
    path.write_text(json.dumps(as_json(machine, rows, networks), indent=2) + "\n")


def _figure(width: float, height: float, columns: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "font.size": 10,
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.edgecolor": GREY,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    return pyplot.subplots(1, columns, figsize=(width, height), layout="constrained")


def _subtitle(machine: dict[str, Any]) -> str:
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    return f"{where}, torch {machine['torch']}"


def chart(path: Path, machine: dict[str, Any], rows: Sequence[Row]) -> None:
    """Speed-ups as horizontal bars: over the published form, and over torch.compile of it."""
    panels = [("published", "times faster than as published")]
    if any(row.ms["compile"] is not None for row in rows):
        panels.append(("compile", "times faster than torch.compile of it"))
    groups = list(dict.fromkeys((row.case, _dtype(row)) for row in rows))
    height = 1.6 + 0.52 * len(groups)
    figure, axes = _figure(5.2 * len(panels) + 2.0, height, len(panels))
    axes = [axes] if len(panels) == 1 else list(axes)
    for axis, (column, title) in zip(axes, panels, strict=True):
        for direction, offset, colour in (
            ("forward", -0.19, BLUE),
            ("forward+backward", 0.19, ORANGE),
        ):
            shown = [
                (groups.index((row.case, _dtype(row))) + offset, row.ratio(column, "ours"))
                for row in rows
                if row.direction == direction and row.ms[column] is not None
            ]
            if not shown:
                continue
            places, values = zip(*shown, strict=True)
            # From 1 on: what is slower points to the left.
            lengths = [value - 1 for value in values]
            bars = axis.barh(places, lengths, left=1, height=0.36, color=colour, label=direction)
            axis.bar_label(bars, [f"{value:.1f}" for value in values], padding=3, fontsize=9)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        axis.set_title(title, fontsize=11, loc="left")
        axis.set_ylim(len(groups) - 0.5, -0.5)
        axis.margins(x=0.15)
        axis.tick_params(axis="y", length=0)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
    names = [
        f"{case.op} {'×'.join(map(str, case.shape))}, {dtype}"
        + ("" if case.layout == "contiguous" else f"\n{case.layout}")
        for case, dtype in groups
    ]
    axes[0].set_yticks(range(len(groups)), names)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"torchext against PyTorch\n{_subtitle(machine)}", fontsize=11)
    figure.savefig(path, dpi=110, facecolor="white")


def scaling_chart(path: Path, machine: dict[str, Any], rows: Sequence[Row]) -> None:
    """Milliseconds against pixels, a panel for each op and direction."""
    panels = list(dict.fromkeys((row.case.op, row.direction) for row in rows))
    figure, axes = _figure(4.4 * len(panels), 4.2, len(panels))
    axes = [axes] if len(panels) == 1 else list(axes)
    colours = {"published": INK, "compile": ORANGE, "ours": BLUE, "floor": GREY}
    for axis, (op, direction) in zip(axes, panels, strict=True):
        own = [row for row in rows if (row.case.op, row.direction) == (op, direction)]
        for name, colour in colours.items():
            points = sorted(
                (row.case.shape[2] * row.case.shape[3], row.ms[name])
                for row in own
                if row.ms[name] is not None
            )
            if points:
                axis.loglog(*zip(*points, strict=True), "o-", color=colour, label=name)
        axis.set_title(f"{op}, {own[0].case.shape[1]} channels, {direction}", fontsize=10)
        axis.set_xlabel("pixels")
        axis.grid(color=GREY, linewidth=0.4)
    axes[0].set_ylabel("ms")
    axes[0].legend(frameon=False)
    figure.suptitle(_subtitle(machine), fontsize=11)
    figure.savefig(path, dpi=110, facecolor="white")
