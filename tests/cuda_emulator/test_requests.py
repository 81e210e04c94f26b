"""What the warps of every kernel ask of the memory: sectors that an instruction touches, over the
fewest that its bytes would fit in, summed over a launch (include/emulator/requests.h).

Every lane's bytes count once, so that a value which many lanes read costs nothing. What one
instruction leaves of a sector the next one may find in the first-level cache, for loads; the ratio
is that of the cache's work, not of the memory's.
"""

import re
from pathlib import Path

import pytest
import torch
from support.calls import calls

import cuda_emulator
from torchext import backend

pytestmark = pytest.mark.slow  # a build of its own

SHAPE = (2, 64, 32, 32)
LIMIT = 1.25
SLACK = 1.02  # of the numbers of the table, which are rounded
BUILDS = [(dtype, last) for dtype in (torch.float32, torch.float16) for last in (False, True)]

FLOATS = "beside 8 elements of 16 bits stand 8 numbers of 32: two words, half a sector each"
TABLE = "a table's rows, one for each pixel, as the index has them; they stay in the cache"
CHANNELS = "a channel's parameters are read and written one by one by the thread that has them"
PARTIALS = "partial results: small, side by side for the kernel that adds them up"
BORDERS = "a tile with its border: short rows"
PHASES = "rows of odd length, each thread several of its elements, one at a time"
# Kernel and direction, to the ratios of float32, contiguous and channels_last, and of float16; 1
# stands for whatever the limit allows. Then why.
EXCEPTIONS = {
    "interleave_pixels_kernel load": ((1, 2.0, 1, 3.33), CHANNELS),
    "interleave_plane_kernel load": ((3.5, 1, 10.0, 1), PHASES),
    "interleave_plane_backward_kernel store": ((3.39, 1, 8.11, 1), PHASES),
    "label_conv2d_kernel load": (
        (3.61, 3.61, 3.61, 3.61),
        "the weights under the taps, as the labels have them; they stay in the cache",
    ),
    "label_conv2d_backward_total_kernel store": (
        (1.9, 1.9, 1.9, 1.9),
        "the weights' gradient, transposed: 8 numbers of a channel, from any address on",
    ),
    "modulated_norm_apply_kernel load": ((1.59, 1, 3.66, 1.72), f"{FLOATS}; {TABLE}"),
    "modulated_norm_backward_apply_kernel load": ((1.32, 1, 2.76, 1.45), f"{FLOATS}; {TABLE}"),
    "modulated_norm_backward_sums_kernel load": ((1.28, 1, 2.24, 1.76), f"{FLOATS}; {TABLE}"),
    "modulated_norm_backward_sums_kernel store": ((1, 2.0, 1.99, 4.0), f"{FLOATS}; {PARTIALS}"),
    "modulated_norm_plane_sum_channels_last_kernel store": ((1, 8.0, 1, 8.0), PARTIALS),
    "modulated_norm_pixel_kernel load": ((1, 1, 1, 1.5), FLOATS),
    "modulated_norm_pixel_backward_kernel load": ((1, 1, 1.59, 1), FLOATS),
    "modulated_norm_pixel_backward_kernel store": ((1, 1, 1.8, 1.8), FLOATS),
    "oriented_filter_max_kernel load": ((3.8, 3.8, 3.8, 3.8), f"the bank; {BORDERS}"),
    "oriented_filter_max_backward_bank_kernel store": ((4.0, 4.0, 4.0, 4.0), PARTIALS),
    "oriented_filter_statistics_kernel load": ((1.3, 1.3, 1.3, 1.3), BORDERS),
    "pixel_epilogue_kernel load": ((1, 1, 1, 1.47), FLOATS),
    "pixel_epilogue_backward_kernel store": ((1, 1.47, 1, 2.11), f"{PARTIALS}; {CHANNELS}"),
    "plane_epilogue_kernel load": ((1, 1, 1.8, 1), FLOATS),
    "plane_epilogue_backward_kernel load": ((1, 1, 1.8, 1), FLOATS),
    "region_labels_kernel load": (
        (4.0, 4.0, 4.0, 4.0),
        "a mask of one channel: four values and more to a thread, one at a time",
    ),
    "region_norm_apply_kernel load": ((1, 1.58, 1.32, 3.11), f"{FLOATS}; {CHANNELS}"),
    "region_norm_backward_apply_kernel load": ((1, 1.46, 1.32, 2.85), f"{FLOATS}; {CHANNELS}"),
    "region_partials_kernel load": ((1, 1, 1, 1.58), CHANNELS),
    "region_partials_kernel store": ((1, 4.0, 1, 8.0), PARTIALS),
    "segmented_sum_kernel load": (
        (3.5, 1, 4.09, 1),
        "the pixels of a row, wherever they lie in the plane",
    ),
    "self_aware_maps_kernel load": ((1.9, 1.9, 1.9, 1.9), BORDERS),
    "self_aware_maps_backward_kernel load": ((1.75, 1.75, 1.75, 1.75), BORDERS),
    "self_aware_maps_backward_kernel store": ((4.04, 4.04, 4.04, 4.04), PARTIALS),
    "spatial_sums_kernel store": ((5.67, 5.67, 5.67, 5.67), PARTIALS),
}
KERNELS = {
    name
    for path in (Path(__file__).resolve().parents[2] / "csrc" / "cuda").glob("*.cu*")
    for name in re.findall(r"__global__ void[^;{]*?(\w+_kernel)\(", path.read_text())
}


@pytest.fixture(scope="module")
def ratios() -> dict[str, list[float]]:
    """Kernel and direction to the worst ratio in each of `BUILDS`."""
    emulator = cuda_emulator.load_requests()
    backend.register(
        backend.Backend("cuda-requests", "torchext_requests", lambda _: "", automatic=False)
    )
    found: dict[str, list[float]] = {}
    for i, (dtype, last) in enumerate(BUILDS):
        with backend.use("cuda-requests"), emulator.ledger() as launches:
            for call in calls(SHAPE, dtype, last).values():
                outputs = call.forward()
                if call.leaves:
                    call.backward(outputs, [torch.ones_like(y) for y in outputs])
        for launch in launches:
            kernel = re.search(r"(\w+_kernel)", launch.kernel).group(1)
            for what, traffic in (("load", launch.load), ("store", launch.store)):
                worst = found.setdefault(f"{kernel} {what}", [0.0] * len(BUILDS))
                worst[i] = max(worst[i], traffic.request_ratio)
    return found


def test_every_kernel_runs(ratios: dict[str, list[float]]) -> None:
    assert {name.split()[0] for name in ratios} == KERNELS


def test_warps_touch_few_sectors(ratios: dict[str, list[float]]) -> None:
    wrong = []
    for name, found in ratios.items():
        allowed = EXCEPTIONS.get(name, ((1,) * len(BUILDS), ""))[0]
        for build, ratio, limit in zip(BUILDS, found, allowed, strict=True):
            if ratio > SLACK * max(limit, LIMIT):
                wrong.append(f"{name}, {build}: {ratio:.3f}, more than {max(limit, LIMIT)}")
            elif limit > 1 and ratio <= LIMIT:
                wrong.append(f"{name}, {build}: {ratio:.3f} is no exception any more")
    assert wrong == []
    assert set(EXCEPTIONS) <= set(ratios)
