"""The benchmark harness: what it measures, checks and writes."""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from benchmarks import __main__ as command
from benchmarks import environment, harness, report
from benchmarks.harness import Case, Plan, Row

ROOT = Path(__file__).parents[2]
SMALL = Case("RN_B", (2, 4, 16, 24))
INSTANT = Plan(seconds_per_row=0.02, min_rounds=2, attempts=1, compile=False)
ROW_KEYS = [
    "op", "case", "dtype", "device", "direction", "published_ms", "compile_ms", "ours_ms",
    "floor_ms", "published_over_ours", "compile_over_ours", "ours_over_floor",
    "published_peak_bytes", "ours_peak_bytes",
]  # fmt: skip


@pytest.fixture(scope="module")
def op() -> harness.Op:
    return command.ops()["region_norm"]


@pytest.fixture(scope="module")
def rows(op: harness.Op) -> list[Row]:
    return harness.measure_case(op, SMALL, torch.float32, "cpu", INSTANT)


def test_every_op_has_cases_and_a_baseline() -> None:
    for name, op in command.ops().items():
        assert op.CASES
        assert set(op.HEADLINE) <= set(op.CASES)
        if name != "overhead":
            assert op.SCALING
            assert op.HEADLINE


def test_rows_hold_times_and_memory(rows: list[Row]) -> None:
    assert [row.direction for row in rows] == list(harness.DIRECTIONS)
    for row in rows:
        assert row.ms["compile"] is None
        assert all(row.ms[name] > 0 for name in ("published", "ours", "floor"))
        assert row.error < 1e-4


def test_noisy_rows_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"ours": lambda: time.sleep(1e-3)}
    attempts = []
    monkeypatch.setattr(
        harness, "relative_spread", lambda values: attempts.append(len(values)) or 0.5
    )
    row = Row(SMALL, torch.float32, "cpu", "forward")
    harness.measure(calls, "cpu", Plan(0.01, 2, attempts=3), row)
    assert len(attempts) == 3
    assert row.noisy


def test_relative_spread() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    low, middle, high = statistics.quantiles(values, n=4)
    assert harness.relative_spread(values) == (high - low) / middle


def test_other_load_sees_other_processes() -> None:
    if not Path("/proc/stat").exists():
        pytest.skip("no /proc/stat")
    load = harness.OtherLoad()
    code = "import time; t = time.time()\nwhile time.time() < t + 1: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    time.sleep(1)
    process.wait()
    assert load.cores() > 0.2


def test_peak_counts_temporaries_and_the_result() -> None:
    x = torch.ones(1 << 16)
    size = x.numel() * 4
    scalars = 64
    assert harness.peak_bytes(lambda: x + 1, "cpu") == pytest.approx(size, abs=scalars)
    assert harness.peak_bytes(lambda: (x + 1) * (x + 2), "cpu") == pytest.approx(
        3 * size, abs=scalars
    )


def test_disagreement_is_an_error(op: harness.Op) -> None:
    problem = op.setup(SMALL, torch.float32, "cpu")
    with torch.no_grad():
        problem.ours.foreground_gamma.add_(0.1)
    modules = {"published": problem.published, "ours": problem.ours}
    with pytest.raises(harness.DisagreementError, match="ours: y differs from float64"):
        harness.check(problem, modules, torch.float32, "forward")


def test_failing_compiler_only_empties_its_column(
    op: harness.Op, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no such luck")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    plan = replace(INSTANT, compile=True)
    (row,) = harness.measure_case(op, SMALL, torch.float32, "cpu", plan, ["forward"])
    assert row.ms["compile"] is None
    assert row.ms["ours"] > 0
    assert "RN_B 2x4x16x24 float32 forward: TorchDynamoException" in report.failures([row])


def test_json_and_table_and_charts(rows: list[Row], tmp_path: Path) -> None:
    machine = harness.machine("cpu")
    report.write_json(tmp_path / "bench.json", machine, rows)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert list(written) == ["machine", "rows"]
    assert [list(row) for row in written["rows"]] == [ROW_KEYS] * len(rows)
    ratio = rows[0].ms["published"] / rows[0].ms["ours"]
    assert written["rows"][0]["published_over_ours"] == pytest.approx(ratio, rel=1e-3)

    lines = report.table(rows).splitlines()
    assert len(lines) == 3 + len(rows)
    assert "2x4x16x24" in lines[-1]

    report.chart(tmp_path / "bench.png", machine, rows)
    report.scaling_chart(tmp_path / "scaling.png", machine, rows)
    for name in ("bench.png", "scaling.png"):
        assert (tmp_path / name).stat().st_size > 1000


def test_default_is_the_headline_within_a_budget() -> None:
    default = command.parse([])
    assert command.plan_of(default).seconds <= 300
    assert default.dtype == ["float32"]
    rows = [(case, dtype) for _, case, dtype, _ in command.jobs(default)]
    assert rows == [(c, "float32") for op in command.ops().values() for c in op.HEADLINE]
    every = command.parse(["--all", "--dtype", "float32"])
    assert command.plan_of(every).seconds is None
    rows = [case for _, case, _, _ in command.jobs(every)]
    assert rows == [case for op in command.ops().values() for case in op.CASES]


@pytest.mark.parametrize("computed", [False, True])
def test_bfloat16_only_where_it_is_computed(
    monkeypatch: pytest.MonkeyPatch, computed: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": computed})
    wanted = ["float32", "bfloat16"] if computed else ["float32"]
    assert command.parse(["--all"]).dtype == wanted
    assert command.parse(["--dtype", "bfloat16"]).dtype == ["bfloat16"]


def test_a_slow_column_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"published": [], "ours": []}
    clock = [0.0]

    def call(name: str, seconds: float) -> None:
        clock[0] += seconds
        times[name].append(seconds)

    calls = {"published": lambda: call("published", 2.0), "ours": lambda: call("ours", 0.01)}
    monkeypatch.setattr(harness.time, "perf_counter_ns", lambda: int(1e9 * clock[0]))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])
    row = Row(SMALL, torch.float32, "cpu", "forward")
    harness.measure(calls, "cpu", Plan(seconds_per_row=1.0, attempts=1), row)
    assert row.called_once == ["published"]
    assert len(times["published"]) == 2  # to warm up, and to be timed
    assert row.ms["published"] == pytest.approx(2000)
    assert row.ms["ours"] == pytest.approx(10)
    assert "published" in report.called_once([row])


def test_the_budget_leaves_out_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plan = replace(INSTANT, seconds=100.0)
    monkeypatch.setattr(command, "plan_of", lambda options: plan)
    clock = iter(range(0, 10_000, 30))  # every look at the clock finds 30 seconds gone
    monkeypatch.setattr(command.time, "perf_counter", lambda: float(next(clock)))
    measured = []

    def measure_case(op, case, dtype, device, plan, directions, progress):
        measured.append((case, plan.compile))
        return [
            Row(
                case,
                dtype,
                device,
                d,
                dict.fromkeys(harness.COLUMNS, 1.0),
                {"published": 1, "ours": 1},
            )
            for d in directions
        ]

    monkeypatch.setattr(harness, "measure_case", measure_case)
    monkeypatch.setattr(command.networks, "measure", lambda *_: [])
    assert command.main(["--output", str(tmp_path / "out")]) == 0
    assert len(measured) == 2  # at 30 and at 60 seconds of 100
    text = capsys.readouterr().out
    assert "left out: other cases, layouts, dtypes and sizes: make bench-full" in text
    assert "Gabor 1x1x512x512 float32 forward" in text
    assert "PD-GAN generator training step" in text


def test_filter_takes_all_words() -> None:
    options = command.parse(["--filter", "rn_l BFLOAT16 forward+", "--dtype", "bfloat16"])
    assert [(case.op, dtype, wanted) for _, case, dtype, wanted in command.jobs(options)] == [
        ("RN_L", "bfloat16", ["forward+backward"])
    ]


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--dtype", "int8"]])
def test_bad_options(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.parse(arguments)
    assert caught.value.code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_absent_cuda_is_a_plain_error(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        command.parse(["--device", "cuda"])
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_command_restarts_with_settled_heap(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in environment.HEAP}
    run = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--quick", "--threads", "1", "--dtype"),
            *("float32", "--filter", "RN_L forward", "--output", str(tmp_path / "out")),
        ],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 threads" in run.stdout
    machine = json.loads((tmp_path / "out.json").read_text())["machine"]
    assert machine["threads"] == 1
    if sys.platform == "linux":
        # 64 MiB are 16,384 pages of 4 KiB; all of them fault where the thresholds do not hold.
        assert machine["page_faults_per_fresh_64_mib"] < 1000
