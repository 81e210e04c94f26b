"""The compiler report's zeroes, the traffic ledger's limits, and what a check on a GPU writes."""

import json
from pathlib import Path

import pytest
import torch

import torchext
from benchmarks import gpu_check, gpu_report, sass

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
# Instantiations of four halves, whose 64 bits the compiler writes in two.
SPLIT_STORES = {"plane_epilogue_kernel": 2, "plane_epilogue_backward_kernel": 2}
# Kernels with divisions of 64-bit integers in a loop: of an index into rows or images, mostly where
# it does not fit into 32 bits (quotient.cuh), or once for a row or a slice of it.
LONG_DIVISIONS = {
    *("combine_moments_kernel", "diversity_maps_kernel", "region_labels_kernel"),
    *("modulated_norm_apply_kernel", "modulated_norm_pixel_kernel", "segmented_sum_kernel"),
    *("modulated_norm_backward_apply_kernel", "modulated_norm_backward_sums_kernel"),
    *("oriented_filter_max_backward_bank_kernel", "pixel_epilogue_backward_kernel"),
    *("region_norm_backward_apply_kernel", "self_aware_maps_backward_kernel"),
    "spatial_sums_kernel",
}
# Instructions of the hottest loop for each element that it moves, of the worst instantiation, at
# most; kernels that stage what they compute with in shared memory take many.
INSTRUCTIONS = {
    "channel_walk_pixel_kernel": 30,
    "channel_walk_plane_kernel": 32,
    "combine_bank_gradients_kernel": 3,
    "combine_channel_sums_kernel": 6,
    "combine_epilogue_sums_kernel": 5,
    "combine_moments_kernel": 32,
    "combine_sums_kernel": 11,
    "combine_weight_gradients_kernel": 3,
    "diversity_maps_kernel": 712,
    "interleave_pixels_backward_kernel": 24,
    "interleave_pixels_kernel": 11,
    "interleave_plane_backward_kernel": 4,
    "interleave_plane_kernel": 7,
    "label_conv2d_backward_kernel": 26,
    "label_conv2d_backward_total_kernel": 7,
    "label_conv2d_kernel": 10,
    "mask_channel_sum_kernel": 28,
    "mask_product_kernel": 62,
    "mask_window_kernel": 4,
    "modulated_norm_apply_kernel": 37,
    "modulated_norm_backward_apply_kernel": 29,
    "modulated_norm_backward_sums_kernel": 18,
    "modulated_norm_channel_sum_kernel": 6,
    "modulated_norm_pixel_backward_kernel": 17,
    "modulated_norm_pixel_kernel": 32,
    "modulated_norm_plane_sum_channels_last_kernel": 6,
    "modulated_norm_plane_sum_kernel": 3,
    "modulated_norm_total_kernel": 3,
    "oriented_filter_max_backward_bank_kernel": 63,
    "oriented_filter_max_backward_image_kernel": 59,
    "oriented_filter_max_kernel": 15,
    "oriented_filter_statistics_kernel": 140,
    "pixel_epilogue_backward_kernel": 24,
    "pixel_epilogue_kernel": 30,
    "plane_epilogue_backward_kernel": 12,
    "plane_epilogue_kernel": 14,
    "region_labels_kernel": 175,
    "region_norm_apply_kernel": 21,
    "region_norm_backward_apply_kernel": 28,
    "region_partials_kernel": 248,
    "segmented_sum_channels_last_kernel": 8,
    "segmented_sum_kernel": 37,
    "self_aware_maps_backward_kernel": 69,
    "self_aware_maps_kernel": 62,
    "soft_diversity_map_backward_kernel": 41,
    "soft_diversity_map_kernel": 110,
    "spatial_sums_kernel": 36,
}
# A block's sums, many where an image is small.
PARTS = {"partial_conv_epilogue backward channels_last": 1.2}
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
            assert row["narrow_stores"] <= SPLIT_STORES.get(row["kernel"], 0), row
        assert row["instructions_per_element"] <= INSTRUCTIONS[row["kernel"]], row
    assert {row["kernel"] for row in rows} == INSTRUCTIONS.keys()
    assert {row["kernel"] for row in rows if row["long_divisions"]} == LONG_DIVISIONS
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
    assert len([op for op in rows if op.split()[0] in PARTIAL_CONV]) == 14
    for op, row in rows.items():
        if op.split()[0] in PARTIAL_CONV:
            assert row["launches"] <= 2, row
            assert row["bytes"] <= PARTS.get(op, 1.1) * row["floor_bytes"], row
        if op.startswith("modulated_norm"):
            assert row["launches"] <= 3, row
            assert row["bytes"] <= 1.1 * row["floor_bytes"], row
    assert rows["label_conv2d"]["launches"] == 1
    assert rows["label_conv2d"]["bytes"] <= 1.1 * rows["label_conv2d"]["floor_bytes"]
    assert rows["label_conv2d backward"]["launches"] == 2
    oriented = ("max forward", "max backward image", "statistics forward")
    for op in oriented:
        row = rows[f"oriented_filter_{op}"]
        assert row["launches"] == 1
        assert row["bytes"] <= 1.5 * row["floor_bytes"]


@pytest.mark.slow
@pytest.mark.skipif(CUDA != "loaded", reason=f"the CUDA library is {CUDA}")
def test_estimates(ledger: tuple) -> None:
    """The norms, which move memory alone, should come near to it."""
    gpu_report.add_estimates(ledger[0])
    rows = {row["op"]: row["estimates"] for row in ledger[0]}
    for layout in ("contiguous", "channels_last"):
        for op in (
            *("region_norm forward", "region_norm backward", "modulated_norm instance"),
            *("modulated_norm backward instance", "modulated_norm backward instance activated"),
        ):
            for device in ("A100", "H100", "H200", "RTX 4090"):
                found = rows[f"{op} {layout}"][device]
                assert found["floor_ms"] < found["estimate_ms"] <= 1.1 * found["floor_ms"], op


def test_estimate_takes_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    device = gpu_report.Device("one", "sm_90", 10, 1.0, 100)
    monkeypatch.setattr(gpu_report, "_instructions", lambda _: {"k_kernel": 0.5})
    part = {
        "kernel": "k_kernel<float,4>",
        "blocks": 5,
        "bytes": 10**8,
        "asked_bytes": 10**8,
        "request_sectors": 10**6,
    }

    def found(**changes: int) -> tuple[str, float]:
        (row,) = gpu_report.estimate({"parts": [{**part, **changes}], "times": 2}, device)
        return row["bound"], row["seconds"] - gpu_report.LAUNCH

    assert found() == ("memory", pytest.approx(2e-3))
    assert found(blocks=1) == ("memory", pytest.approx(2e-3))  # two blocks, of two calls
    assert found(request_sectors=10**8) == ("requests", pytest.approx(2e8 / (4 * 1e10)))
    more = found(asked_bytes=10**10)
    assert more == ("instructions", pytest.approx(0.5 * 2e10 / (32 * 4 * 1e10)))


# Two loops, one within the other, that divide by calls: the inner moves 16 bytes each way.
SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   CALL.REL.NOINC 0xc0 ;
        /*0020*/                   MOV R2, RZ ;
        /*0030*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0040*/                   FADD R4, R4, R5 ;
        /*0050*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0060*/              @P0 BRA 0x30 ;
        /*0070*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0080*/                   CALL.REL.NOINC 0xc0 ;
        /*0090*/              @!P1 BRA 0x20 ;
        /*00a0*/                   EXIT ;
        /*00b0*/                   BRA 0xb0;
        /*00c0*/                   I2F.U64.RP R8, R2 ;
        /*00d0*/                   RET.REL.NODEC R6 0x0 ;
"""


def test_machine_code() -> None:
    code = sass.parse(SASS)
    assert len(code) == 14
    (outer,) = sass.loops(code)
    assert [x.address for x in outer] == list(range(0x20, 0xA0, 0x10))
    assert sass.long_divisions(code, outer) == 1
    assert sass.long_divisions(code, code[:3]) == 1
    assert sass.long_divisions(code, code[3:7]) == 0
    assert sass.hot(code) == outer
    assert (sass.widest(code, "LDG"), sass.widest(code[7:], "LDG")) == (128, 16)
    assert sass.instructions_per_byte(code) == pytest.approx(8 / 34)
    assert sass.loops(code[10:]) == []


def test_templates() -> None:
    plain = "void torchext::(anonymous namespace)::a_kernel<float, (int)4, (bool)1>(float*, int)"
    assert gpu_report._template(plain) == "a_kernel<float,4,1>"
    assert gpu_report.element_bytes("a_kernel<__half,8>") == 2
    assert gpu_report.whole_access("a_kernel<__half,4>") == 64
    assert gpu_report.whole_access("a_kernel<float,8>") == 128


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
