"""Every Triton variant compiles for every target without a device, and compiles well.

Well means: nothing spilled, no local memory, and 16-byte loads wherever the sizes allow them."""

import json
import os
import subprocess
import sys

import pytest

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# Kernels that run over x; the others work on maps and tables that are small beside it.
MEMORY_BOUND = {
    "region_statistics_kernel",
    "region_norm_apply_kernel",
    "region_norm_backward_sums_kernel",
    "region_norm_backward_apply_kernel",
    "channel_mean_max_kernel",
    "dual_attention_sums_kernel",
    "dual_attention_kernel",
    "dual_attention_backward_kernel",
    "mask_product_kernel",
    "partial_conv_epilogue_kernel",
    "partial_conv_epilogue_backward_kernel",
}
WRITES_X = {
    "dual_attention_kernel",
    "dual_attention_backward_kernel",
    "region_norm_apply_kernel",
    "region_norm_backward_apply_kernel",
    "mask_product_kernel",
    "partial_conv_epilogue_kernel",
    "partial_conv_epilogue_backward_kernel",
}


def compiled(target: str, every: int, cache, *more: str) -> list[dict]:
    """Reports of every n-th variant, from a process in which Triton compiles."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    command = ["-m", "torchext.kernels.ahead_of_time", target, "--every", str(every), *more]
    result = subprocess.run(
        [sys.executable, *command], env=environment, check=True, capture_output=True, text=True
    )
    return [json.loads(line) for line in result.stdout.splitlines()]


def problems(report: dict) -> list[str]:
    """What is wrong with one compiled variant."""
    if "error" in report:
        return [report["error"]]
    found = [f"{key}={report[key]}" for key in ("spill_bytes", "stack_bytes") if report[key]]
    if report["debug"]:  # the call of the failed assertion takes its arguments on the stack
        found = []
    if report["aligned"] and report["target"] != "gfx942":
        if report["kernel"] in MEMORY_BOUND and report["widest_load_bits"] < 128:
            found.append(f"widest_load_bits={report['widest_load_bits']}")
        if report["kernel"] in WRITES_X and report["widest_store_bits"] < 128:
            found.append(f"widest_store_bits={report['widest_store_bits']}")
    return found


def check(reports: list[dict]) -> None:
    assert {report["kernel"] for report in reports} >= MEMORY_BOUND
    bad = [f"{r['variant']}: {', '.join(problems(r))}" for r in reports if problems(r)]
    assert not bad, "\n".join([f"{len(bad)} of {len(reports)} variants", *bad])


@pytest.mark.parametrize("target", TARGETS)
def test_some_variants_compile_well(target, tmp_path):
    check(compiled(target, 61, tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("target", TARGETS)
def test_more_variants_compile_well(target, tmp_path):
    check(compiled(target, 41, tmp_path, "--integers"))
