"""Measure every op against its published form: `python -m benchmarks [options]`.

Within five minutes: the headline cases of every op and the networks, in float32. With --filter all
cases that it names, with --all everything. Prints one table, writes NAME.json and NAME.png (NAME:
results/bench, or --output).
"""

from .environment import restart_with_settled_heap

if __name__ == "__main__":
    restart_with_settled_heap()

import argparse
import importlib
import pkgutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from . import baselines, harness, networks, report

PROGRESS = "{l_bar}{bar:20}| {n}/{total}, {elapsed} gone, {remaining} left {postfix}"
SLOW = (  # as published: last
    "gabor_orientation",
    "label_conv2d",
    "oriented_filter_statistics",
    "spade_modulation_table",
)
OF_OTHERS = {"overhead", "spade_modulation_table"}  # their baselines are other modules'
DTYPES = ("float32", "bfloat16", "float16", "float64")


def ops() -> dict[str, harness.Op]:
    """The ops with a baseline: module name to module."""
    ours, published = (
        {module.name for module in pkgutil.iter_modules([str(folder)])}
        for folder in (Path(__file__).parent, Path(baselines.__file__).parent)
    )
    names = sorted(ours & published | OF_OTHERS, key=lambda name: (name in SLOW, name))
    modules = {name: importlib.import_module(f"{__package__}.{name}") for name in names}
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
        help="may be repeated (default: float32; with --all also bfloat16 where it is computed)",
    )
    parser.add_argument("--threads", type=int, help="of PyTorch (default: all cores)")
    parser.add_argument("--all", action="store_true", help="every case, however long it takes")
    parser.add_argument("--scaling", action="store_true", help="time against size instead")
    parser.add_argument(
        "--output", type=Path, help="path of the results without extension (results/bench)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few calls per row, without torch.compile"
    )
    options = parser.parse_args(arguments)
    options.output = options.output or Path("results", "scaling" if options.scaling else "bench")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if options.threads is not None and options.threads < 1:
        parser.error("--threads: expected a positive number")
    bfloat16 = options.all and not options.scaling and harness.computes_bfloat16(options.device)
    options.dtype = options.dtype or (["float32", "bfloat16"] if bfloat16 else ["float32"])
    return options


def plan_of(options: argparse.Namespace) -> harness.Plan:
    if options.quick:
        return harness.Plan(seconds_per_row=0.3, min_rounds=3, attempts=1, compile=False)
    if options.scaling:
        return harness.Plan(seconds_per_row=1.0, attempts=1)
    if options.all or options.filter:
        return harness.Plan()
    return harness.Plan(seconds_per_row=1.5, attempts=1, seconds=270)


def cases(op: harness.Op, options: argparse.Namespace) -> list[harness.Case]:
    if options.scaling:
        return op.SCALING
    return op.CASES if options.all or options.filter else op.HEADLINE


def jobs(options: argparse.Namespace) -> list[tuple[harness.Op, harness.Case, str, list[str]]]:
    """The cases to set up, with the directions that the filter leaves of each."""
    words = options.filter.lower().split()
    result = []
    for op in ops().values():
        for case in cases(op, options):
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
    work = jobs(options)
    if not work:
        print(f"no row matches the filter {options.filter!r}", file=sys.stderr)
        return 2
    machine = harness.machine(options.device)
    print(report.header(machine), flush=True)

    begin, plan = time.perf_counter(), plan_of(options)
    whole = not (options.filter or options.scaling or options.quick or options.device != "cpu")
    rows: list[harness.Row] = []
    of_networks: list[networks.Row] = []
    uncompiled: list[str] = []
    missing: list[str] = []
    total = sum(len(directions) for *_, directions in work)
    total += len(networks.NETWORKS) * len(networks.DIRECTIONS) * whole
    with tqdm(total=total, unit="row", bar_format=PROGRESS) as bar:
        for op, case, dtype, directions in work:
            spent = time.perf_counter() - begin
            labels = [f"{case.op} {case.name} {dtype} {direction}" for direction in directions]
            if not plan.allows(0.7, spent):
                missing += labels
                continue
            compiled = plan.compile and plan.allows(0.5, spent)
            uncompiled += labels if plan.compile and not compiled else []
            try:
                rows += harness.measure_case(
                    op,
                    case,
                    getattr(torch, dtype),
                    options.device,
                    replace(plan, compile=compiled),
                    directions,
                    bar.set_postfix_str,
                )
            except harness.DisagreementError as error:
                bar.close()
                print(f"{case.op} {case.name}: {error}", file=sys.stderr)
                return 1
            bar.update(len(directions))
        for measured in networks.measure(256, torch.float32, 5, 15.0) if whole else ():
            if plan.allows(0.9, time.perf_counter() - begin):
                bar.set_postfix_str("whole networks")
                of_networks.append(measured())
            bar.update()
        missing += [
            f"{name} {direction}"
            for direction in networks.DIRECTIONS
            for name in networks.NETWORKS
            if whole and not any(row.matches(name, direction) for row in of_networks)
        ]
        bar.set_postfix_str("")

    print(f"\n{report.table(rows)}\n")
    if of_networks:
        print("\n".join([networks.TITLES, *(row.line for row in of_networks)]) + "\n")
    more = ""
    if whole and not options.all:
        more = "other cases, layouts, dtypes and sizes: make bench-full, or --filter WORDS"
    notes = [report.NOTES, report.noise(rows), report.failures(rows), report.called_once(rows)]
    if missing or uncompiled or more:
        notes.append(report.left_out(missing, uncompiled, more))
    print("\n".join(filter(None, notes)) + "\n")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    data, picture = (options.output.with_suffix(end) for end in (".json", ".png"))
    report.write_json(data, machine, rows, [asdict(row) for row in of_networks])
    draw = report.scaling_chart if options.scaling else report.chart
    draw(picture, machine, rows)
    print(f"wrote {data} and {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
