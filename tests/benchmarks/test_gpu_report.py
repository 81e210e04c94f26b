"""The compiler report's zeroes and the traffic ledger's limits hold."""

import pytest

import torchext
from benchmarks import gpu_report

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
