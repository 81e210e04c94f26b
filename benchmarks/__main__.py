"""Measure every op against its published form: `python -m benchmarks [options]`.

Prints one table, writes NAME.json and NAME.png (NAME: results/bench, or --output).
"""

from .environment import restart_with_settled_heap

if __name__ == "__main__":
    restart_with_settled_heap()

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from . import baselines, harness, report

DTYPES = ("float32", "bfloat16", "float16", "float64")


def ops() -> dict[str, harness.Op]:
    """The ops with a baseline: module name to module."""
    ours, published = (
        {module.name for module in pkgutil.iter_modules([str(folder)])}
        for folder in (Path(__file__).parent, Path(baselines.__file__).parent)
    )
    modules = {
        name: importlib.import_module(f"{__package__}.{name}") for name in sorted(ours & published)
    }
    return {name: module for name, module in modules.items() if hasattr(module, "CASES")}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0].rstrip(": `")
    )
    parser.add_argument(
        "--filter", default="", help="rows that contain all these words, e.g. 'RN_B forward'"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype",
        action="append",
        choices=DTYPES,
        help="may be repeated (default: float32 and bfloat16)",
    )
    parser.add_argument("--threads", type=int, help="of PyTorch (default: all cores)")
    parser.add_argument("--scaling", action="store_true", help="time against size instead")
    parser.add_argument(
        "--output", type=Path, help="path of the results without extension (results/bench)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few calls per row, without torch.compile"
    )
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or (["float32"] if options.scaling else ["float32", "bfloat16"])
    options.output = options.output or Path("results", "scaling" if options.scaling else "bench")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if options.threads is not None and options.threads < 1:
        parser.error("--threads: expected a positive number")
    return options


def jobs(options: argparse.Namespace) -> list[tuple[harness.Op, harness.Case, str, list[str]]]:
    """The cases to set up, with the directions that the filter leaves of each."""
    words = options.filter.lower().split()
    result = []
    for op in ops().values():
        for case in op.SCALING if options.scaling else op.CASES:
            for dtype in options.dtype:
                directions = getattr(op, "DIRECTIONS", harness.DIRECTIONS)
                labels = {d: f"{case.op} {case.name} {dtype} {d}" for d in directions}
                wanted = [
                    direction
                    for direction, label in labels.items()
                    if all(word in label.lower() for word in words)
                ]
                if wanted:
                    result.append((op, case, dtype, wanted))
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads or harness.cores())
    # Full float32 in every column: reduced precision would move saliencies across the threshold.
    torch.backends.cudnn.allow_tf32 = False
    plan = harness.Plan()
    if options.quick:
        plan = replace(plan, seconds_per_row=0.3, min_rounds=3, attempts=1, compile=False)
    elif options.scaling:
        plan = replace(plan, seconds_per_row=1.0, attempts=1)
    work = jobs(options)
    if not work:
        print(f"no row matches the filter {options.filter!r}", file=sys.stderr)
        return 2
    machine = harness.machine(options.device)
    print(report.header(machine), flush=True)

    rows: list[harness.Row] = []
    total = sum(len(directions) for *_, directions in work)
    with tqdm(total=total, unit="row", bar_format="{l_bar}{bar:20}| {n}/{total} {postfix}") as bar:
        for op, case, dtype, directions in work:
            try:
                new = harness.measure_case(
                    op,
                    case,
                    getattr(torch, dtype),
                    options.device,
                    plan,
                    directions,
                    bar.set_postfix_str,
                )
            except harness.DisagreementError as error:
                bar.close()
                print(f"{case.op} {case.name}: {error}", file=sys.stderr)
                return 1
            rows += new
            bar.update(len(new))
        bar.set_postfix_str("")

    notes = filter(None, (report.NOTES, report.noise(rows), report.failures(rows)))
    print(f"\n{report.table(rows)}\n\n" + "\n".join(notes) + "\n")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    data, picture = (options.output.with_suffix(end) for end in (".json", ".png"))
    report.write_json(data, machine, rows)
    draw = report.scaling_chart if options.scaling else report.chart
    draw(picture, machine, rows)
    print(f"wrote {data} and {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
