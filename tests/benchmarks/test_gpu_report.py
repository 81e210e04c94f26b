"""The compiler report's zeroes, the traffic ledger's limits, and what a check on a GPU writes."""

import json
from pathlib import Path

import pytest
import torch

import torchext
from benchmarks import gpu_check, gpu_report

PARTIAL_CONV = ("mask_window", "mask_product", "partial_conv_epilogue", "interleave_phases")
# Kernels that keep many numbers in registers instead of resident warps: the folded window of the
# filters, and four maps of eight pixels or channels of 16 bits; or tables in shared memory.
FEWER_WARPS = {
    "label_conv2d_backward_kernel": 0.125,
    "oriented_filter_max_kernel": 0.125,
    "modulated_norm_pixel_backward_kernel": 0.125,
    "modulated_norm_backward_sums_kernel": 0.125,
}
# Kernels that read feature maps and write sums alone, in some instantiations at least.
SUMS = (
    *("channel_walk_pixel_kernel", "channel_walk_plane_kernel"),
    *("region_partials_kernel", "spatial_sums_kernel", "label_conv2d_backward_kernel"),
)
# Kernels that write rows of odd lengths.
ANY_ADDRESS = ("interleave_plane_backward_kernel",)
CUDA = torchext.build_info()["libraries"]["cuda"]


@pytest.fixture(scope="module")
def ledger() -> tuple[list[gpu_report.Row], dict[str, int]]:
    return gpu_report.traffic()


@pytest.mark.slow
@pytest.mark.skipif(CUDA != "loaded", reason=f"the CUDA library is {CUDA}")
def test_no_spills_and_wide_accesses(ledger: tuple) -> None:
    rows = gpu_report.cuda_kernels(ledger[1])
    assert {row["target"] for row in rows} == set(gpu_report.TARGETS)
    for row in rows:
        assert row["spill_bytes"] == row["stack_bytes"] == 0, row
        assert row["occupancy"] >= FEWER_WARPS.get(row["kernel"], 0.25), row
        if row["kernel"] not in (*SUMS, *ANY_ADDRESS):
            assert row["narrow_stores"] == 0, row
    streaming = ("apply_kernel", "partials_kernel", "sums_kernel")
    wide = [row for row in rows if row["kernel"].endswith(streaming)]
    assert len(wide) >= 4 * len(gpu_report.TARGETS)
    for row in wide:
        if not row["kernel"].startswith("combine"):
            assert row["widest_access_bits"] == 128, row


@pytest.mark.slow
def test_traffic_and_launches(ledger: tuple) -> None:
    rows = {row["op"]: row for row in ledger[0]}
    for layout in ("contiguous", "channels_last"):
        for direction in ("forward", "backward"):
            row = rows[f"region_norm {direction} {layout}"]
            assert row["launches"] <= 3
            assert row["bytes"] <= 1.1 * row["floor_bytes"]
            row = rows[f"self_aware_region_norm {direction} {layout}"]
            assert row["launches"] <= 5
            assert row["bytes"] <= 1.1 * row["floor_bytes"]
        for op, launches in {"_pools": 4, " forward": 1, " backward": 2}.items():
            row = rows[f"dual_attention{op} {layout}"]
            assert row["launches"] <= launches, row
            assert row["bytes"] <= 1.1 * row["floor_bytes"], row
    of_partial_conv = {op: row for op, row in rows.items() if op.split()[0] in PARTIAL_CONV}
    assert len(of_partial_conv) == 7
    for row in of_partial_conv.values():
        assert row["launches"] <= 2, row
        assert row["bytes"] <= 1.1 * row["floor_bytes"], row
    for op in ("modulated_norm position", "modulated_norm instance", "label_conv2d"):
        assert rows[op]["launches"] <= 3, rows[op]
        assert rows[op]["bytes"] <= 1.1 * rows[op]["floor_bytes"], rows[op]
    assert rows["label_conv2d backward"]["launches"] == 2
    oriented = ("max forward", "max backward image", "statistics forward")
    for op in oriented:
        row = rows[f"oriented_filter_{op}"]
        assert row["launches"] == 1
        assert row["bytes"] <= 1.5 * row["floor_bytes"]


def test_occupancy() -> None:
    assert gpu_report.occupancy(32, 0, 256, "sm_90") == 1.0
    assert gpu_report.occupancy(64, 0, 256, "sm_90") == 0.5
    assert gpu_report.occupancy(128, 0, 256, "sm_80") == 0.25
    assert gpu_report.occupancy(32, 100 * 1024, 256, "sm_80") == 0.125


JUNIT = """
<testsuites><testsuite>
<testcase classname="tests.ops.test_a" name="test_b[cuda]" time="1.5"/>
<testcase classname="tests.ops.test_a" name="test_c" time="0.5"><skipped message="no"/></testcase>
<testcase classname="tests.ops.test_a" name="test_d" time="1">
<failure message="x">off by 1</failure></testcase>
<testcase classname="tests.ops.test_a" name="test_e"><error message="broke"/></testcase>
</testsuite></testsuites>"""


def test_check_counts_tests() -> None:
    found = gpu_check.tests_of(JUNIT)
    failures = found.pop("failures")
    assert found == {"passed": 1, "failed": 2, "skipped": 1, "seconds": 3.0}
    assert failures == [
        {"test": "tests.ops.test_a::test_d", "text": "off by 1"},
        {"test": "tests.ops.test_a::test_e", "text": "broke"},
    ]


@pytest.mark.parametrize("what", ["passed", "failed", "no tests", "no benchmark"])
def test_check_writes_one_file(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tests = {"passed": what != "no tests", "failed": what == "failed", "failures": []}
    benchmark = {"error": "ended with 1"} if what == "no benchmark" else {"rows": [{"op": "x"}]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(gpu_check.harness, "machine", lambda device: {"gpu": device})
    monkeypatch.setattr(gpu_check, "run_tests", lambda *_: tests)
    monkeypatch.setattr(gpu_check, "run_benchmark", lambda *_: benchmark)
    output = tmp_path / "new" / "check.json"
    assert gpu_check.main(["--output", str(output)]) == (0 if what == "passed" else 1)
    written = json.loads(output.read_text())
    assert written["benchmark"] == benchmark
    assert written["machine"] == {"gpu": "cuda"}
    assert str(output) in capsys.readouterr().out


@pytest.mark.slow
def test_check_of_real_runs(tmp_path: Path) -> None:
    """pytest and the benchmark are called as they understand it."""
    found = gpu_check.run_tests(tmp_path, ["tests/ops/test_transforms.py", "--collect-only"])
    assert found == {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0, "failures": []}
    words = ["--quick", "--filter", "diversity_map 1x1x256x256 float32"]
    measured = gpu_check.run_benchmark(tmp_path, words, "cpu")
    assert {row["direction"] for row in measured["rows"]} == {"forward"}
    assert gpu_check.run_benchmark(tmp_path, ["--filter", "no such row"], "cpu").keys() == {"error"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_check_needs_a_gpu(capsys: pytest.CaptureFixture) -> None:
    assert gpu_check.main([]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err
