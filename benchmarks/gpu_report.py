"""What the compilers and the emulator say of the GPU code, without a GPU.

    python -m benchmarks.gpu_report          (make gpu-report)

Per kernel and target: registers, shared memory, spills, stack, occupancy, widest access to global
memory, divisions in loops, instructions per element: CUDA kernels from the library's own machine
code (every instantiation, the worst shown), Triton kernels compiled ahead of time. Per op:
launches, the bytes that the emulator's ledger counted (32-byte sectors, each once per launch)
against the floor, and an estimate of the time on several GPUs (see `estimate`). Writes
results/gpu.json.
"""

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import torchext

from . import sass

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path(torchext.__file__).parent / "lib" / "libtorchext_cuda.so"
TARGETS = ("sm_80", "sm_90", "sm_100")
# Of one multiprocessor (CUDA C++ Programming Guide, technical specifications per capability).
REGISTERS, MAX_WARPS, MAX_BLOCKS = 65536, 64, 32
SHARED_BYTES = {"sm_80": 164 * 1024, "sm_90": 228 * 1024, "sm_100": 228 * 1024}
SHAPE = (1, 64, 256, 256)
SMALL = (1, 64, 128, 128)
ESTIMATED = (8, 64, 256, 256)

Row = dict[str, Any]


class Device(NamedTuple):
    """Figures of NVIDIA's data sheets and architecture papers."""

    name: str
    target: str  # whose machine code stands for the device's
    multiprocessors: int
    gigahertz: float  # boost
    gigabytes: float  # per second, of the device's memory


DEVICES = (
    Device("A100", "sm_80", 108, 1.41, 2039),
    Device("H100", "sm_90", 132, 1.98, 3350),
    Device("H200", "sm_90", 132, 1.98, 4800),
    Device("B200", "sm_100", 148, 1.97, 8000),
    Device("RTX 4090", "sm_80", 128, 2.52, 1008),
)
# Of one multiprocessor in a clock, of all of them: instructions of warps, sectors from the
# first-level cache (128 bytes), bytes from beyond it.
ISSUES, SECTORS, BYTES = 4, 4, 64
LAUNCH = 2e-6  # seconds from one kernel to the next; assumed


def cuobjdump() -> str:
    """The tool of the CUDA toolkit, or the one that Triton carries."""
    found = shutil.which("cuobjdump")
    if found is None:
        import triton

        carried = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if not carried.exists():
            raise SystemExit("gpu_report: cuobjdump was found neither on the PATH nor in triton")
        found = str(carried)
    return found


def occupancy(registers: int, shared: int, threads: int, target: str) -> float:
    """Share of a multiprocessor's warps that can be resident, from a block's needs."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256  # registers are given out by 256
    blocks = min(MAX_BLOCKS, MAX_WARPS // warps, REGISTERS // max(per_warp * warps, 1))
    if shared:
        blocks = min(blocks, SHARED_BYTES[target] // (shared + 1024))
    return blocks * warps / MAX_WARPS


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Mangled name to template name and arguments, without namespaces and parameters."""
    names = list(names)
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {name: _template(plain) for name, plain in zip(names, text, strict=True)}


def _template(plain: str) -> str:
    """kernel<arguments> of a demangled name."""
    found = re.search(r"\w+_kernel", plain)
    depth = 0
    end = found.end()
    for end in range(found.end(), len(plain)):
        depth += {"<": 1, ">": -1}.get(plain[end], 0)
        if depth == 0:
            break
    text = plain[found.start() : end + 1].rstrip("(")
    return re.sub(r"\((?:bool|int)\)|(?:torchext|\(anonymous namespace\))::| ", "", text)


@cache
def machine_code(target: str) -> dict[str, sass.Code]:
    """Of each of the library's kernels, by mangled name."""
    text = subprocess.run(
        [cuobjdump(), "-sass", "-arch", target, str(LIBRARY)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    bodies = re.findall(r"Function : (\S+)\n(.*?)(?=\n\s*Function : |\Z)", text, re.S)
    return {name: sass.parse(body) for name, body in bodies}


def element_bytes(template: str) -> int:
    """Of the first floating type among a kernel's template arguments; 4 without one."""
    found = re.search(r"\b(double|float|__half|__nv_bfloat16)\b", template)
    return {"double": 8, "float": 4}.get(found.group(1), 2) if found else 4


def whole_access(template: str) -> int:
    """Bits of as many elements as an instantiation takes at a time, at most 128."""
    found = re.search(r"\b(?:double|float|__half|__nv_bfloat16),(\d+)\b", template)
    return min(128, 8 * element_bytes(template) * int(found.group(1))) if found else 128


def cuda_kernels(threads: dict[str, int]) -> list[Row]:
    """One row per kernel and target: the worst of its instantiations, the widest of accesses."""
    rows = []
    for target in TARGETS:
        usage = subprocess.run(
            [cuobjdump(), "--dump-resource-usage", "-arch", target, str(LIBRARY)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        needs = {
            name: {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", line)}
            for name, line in re.findall(r"Function (\S+):\s*\n\s*(\S.*)", usage)
        }
        codes = machine_code(target)
        templates = demangle(needs)
        kernels = {name: template.partition("<")[0] for name, template in templates.items()}
        for kernel in sorted(set(kernels.values())):
            names = [name for name in needs if kernels[name] == kernel]
            loads, stores = (
                [sass.widest(codes[name], kind) for name in names] for kind in ("LDG", "STG")
            )
            wide = [
                name
                for name, *widths in zip(names, loads, stores, strict=True)
                if 128 in widths or 128 not in (*loads, *stores)
            ]
            # A spilled register is stored to and loaded from local memory.
            spills = sum(
                bool(re.search(r"\b(?:LDL|STL)\b", x.text)) for name in names for x in codes[name]
            )
            registers = max(needs[name]["REG"] for name in names)
            shared = max(needs[name].get("SHARED", 0) for name in names)
            rows.append(
                {
                    "op": "",
                    "kernel": kernel,
                    "backend": "cuda",
                    "target": target,
                    "variants": len(names),
                    "registers": registers,
                    "shared_bytes": shared,
                    "spill_bytes": 4 * spills,
                    "stack_bytes": max(needs[name]["STACK"] for name in names),
                    "occupancy": occupancy(registers, shared, threads.get(kernel, 256), target),
                    "widest_access_bits": max(*loads, *stores),
                    # Instantiations that load 128 bits at a time and store less than they could.
                    "narrow_stores": sum(
                        load == 128 and 0 < store < whole_access(templates[name])
                        for name, load, store in zip(names, loads, stores, strict=True)
                    ),
                    # Instantiations that divide 64-bit integers in a loop.
                    "long_divisions": sum(
                        any(
                            sass.long_divisions(codes[name], part)
                            for part in sass.loops(codes[name])
                        )
                        for name in names
                    ),
                    # For each element that the hottest loop moves, of those with wide accesses.
                    "instructions_per_element": max(
                        sass.instructions_per_byte(codes[name]) * element_bytes(templates[name])
                        for name in wide
                    ),
                }
            )
    return rows


def triton_kernels(every: bool) -> list[Row]:
    """One row per Triton kernel and target; a few variants of each unless `every`."""
    from torchext.kernels import ahead_of_time

    chosen: dict[str, list] = {}
    for variant in ahead_of_time.variants():
        chosen.setdefault(variant.kernel.__name__, []).append(variant)
    if not every:
        chosen = {name: variants[:1] for name, variants in chosen.items()}
    work = [
        (name, target, variant)
        for name, variants in chosen.items()
        for target in ahead_of_time.TARGETS
        for variant in variants
    ]
    found: dict[tuple[str, str], list[Row]] = {}
    for name, target, variant in tqdm(work, desc="Triton", unit="variant", leave=False):
        found.setdefault((name, target), []).append(ahead_of_time.compile_variant(variant, target))
    rows = []
    for (name, target), results in found.items():
        row = {
            key: max(result[key] for result in results)
            for key in ("registers", "shared_bytes", "spill_bytes", "stack_bytes")
        }
        warps = max(result["num_warps"] for result in results)
        known = target in SHARED_BYTES
        rows.append(
            {
                "op": "",
                "kernel": name,
                "backend": "triton",
                "target": target,
                "variants": len(results),
                **row,
                "occupancy": occupancy(row["registers"], row["shared_bytes"], 32 * warps, target)
                if known
                else None,
                "widest_access_bits": max(
                    max(r["widest_load_bits"], r["widest_store_bits"]) for r in results
                ),
                "narrow_stores": sum(
                    r["widest_load_bits"] == 128 and 0 < r["widest_store_bits"] < 128
                    for r in results
                ),
            }
        )
    return rows


class Case(NamedTuple):
    """An op's call, the fewest bytes it can move, and how often it goes into `ESTIMATED`."""

    run: Callable[[], Any]
    floor_bytes: int
    times: float


def traffic_cases(ops: Any) -> dict[str, Case]:
    """Op, direction and layout to a call of the emulated op."""
    cases: dict[str, Case] = {}
    for layout in ("contiguous", "channels_last"):
        for of_layout, shape in (
            (_region_norm_cases, SHAPE),
            (_dual_attention_cases, SHAPE),
            (_partial_conv_cases, SMALL),
            (_modulated_norm_cases, SMALL),
        ):
            times = math.prod(ESTIMATED) / math.prod(shape)
            for op, (run, floor) in of_layout(ops, _tensors(shape, layout)).items():
                cases[f"{op} {layout}"] = Case(run, floor, times)
    times = math.prod(ESTIMATED) / math.prod(SMALL)
    for op, (run, floor) in _label_conv_cases(ops, _tensors(SMALL, "contiguous")).items():
        cases[op] = Case(run, floor, times)
    for op, (run, floor) in _gabor_cases(ops).items():
        cases[op] = Case(run, floor, ESTIMATED[0])
    return cases


def _tensors(shape: tuple[int, ...], layout: str) -> list[torch.Tensor]:
    """Four feature maps."""
    generator = torch.Generator().manual_seed(0)
    last = layout == "channels_last"
    form = torch.channels_last if last else torch.contiguous_format
    return [torch.randn(shape, generator=generator).to(memory_format=form) for _ in range(4)]


Cases = dict[str, tuple[Callable[[], Any], int]]


def _region_norm_cases(ops: Any, maps: list[torch.Tensor]) -> Cases:
    x, grad = maps[:2]
    N, C, H, W = x.shape
    T = x.nbytes
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(N, 1, H // 8, W // 8, generator=generator) > 0.4).float()
    weight, bias = torch.randn(2, 2, C, generator=generator)
    filters = [torch.randn(s, generator=generator) / 7 for s in ((1, 2, 7, 7), (1, 1, 7, 7), (1,))]
    conv, affine, one = filters
    labels = ops.region_labels(mask, H, W, 2, False)
    norm = (labels, weight, bias, None, None, 2, False, 1e-5, True, False)
    _, count, mean, rstd = ops.region_norm(x, *norm)
    backward = (grad, x, labels, count, mean, rstd, weight, None, 2, False, False)
    self_aware = (x, conv, affine, one, affine, one, 0.5, False, 1e-5, True)
    _, *saved = ops.self_aware_region_norm(*self_aware)
    derivative = (grad, x, *saved, conv, affine, affine, False)
    return {
        "region_norm forward": (
            lambda: ops.region_norm(x, ops.region_labels(mask, H, W, 2, False), *norm[1:]),
            3 * T,
        ),
        "region_norm backward": (lambda: ops.region_norm_backward(*backward), 5 * T),
        "region_statistics": (
            lambda: ops.region_statistics(x, labels, 2, False, False),
            T + labels.nbytes,
        ),
        "self_aware_region_norm forward": (
            lambda: ops.self_aware_region_norm(*self_aware),
            4 * T,
        ),
        "self_aware_region_norm backward": (
            lambda: ops.self_aware_region_norm_backward(*derivative),
            5 * T,
        ),
        "soft_diversity_map forward": (
            lambda: ops.soft_diversity_map(x, labels),
            2 * T + labels.nbytes,
        ),
        "soft_diversity_map backward": (
            lambda: ops.soft_diversity_map_backward(grad, x, labels),
            3 * T + labels.nbytes,
        ),
    }


def _dual_attention_cases(ops: Any, maps: list[torch.Tensor]) -> Cases:
    high, low, grad, _ = maps
    N, C, H, W = low.shape
    generator = torch.Generator().manual_seed(2)
    gate = torch.rand(N, C, generator=generator)
    attention = torch.rand(N, 1, H, W, generator=generator)
    small = (gate, attention, 0.2)
    T = low.nbytes
    return {
        "dual_attention_pools": (
            lambda: ops.dual_attention_pools(high, low),
            2 * T + 3 * attention.nbytes,
        ),
        "dual_attention forward": (
            lambda: ops.dual_attention(high, low, *small),
            3 * T + attention.nbytes,
        ),
        "dual_attention backward": (
            lambda: ops.dual_attention_backward(grad, high, low, *small),
            5 * T + 2 * attention.nbytes,
        ),
    }


def _partial_conv_cases(ops: Any, maps: list[torch.Tensor]) -> Cases:
    """Beside the convolution itself: the mask's window, the product, the epilogue, phases."""
    x, result, raw, _ = maps
    N, C, H, W = x.shape
    last = not x.is_contiguous()
    generator = torch.Generator().manual_seed(3)
    mask = (torch.rand(N, 1, H, W, generator=generator) > 0.3).float()
    bias = torch.randn(C, generator=generator)
    window = (mask, [], [3, 3], [1, 1], [1, 1], [1, 1], [H, W], True, True, 1e-8)
    scale, updated = ops.mask_window(*window)
    phases = torch.randn(N, 4 * C, H // 2 + 1, W // 2 + 1, generator=generator)
    phases = phases.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    small, T = mask.nbytes, x.nbytes
    norm = (bias.exp(), 0.2, False)
    return {
        "mask_window": (lambda: ops.mask_window(*window), 3 * small),
        "mask_product": (lambda: ops.mask_product(x, mask, []), 2 * T + small),
        "partial_conv_epilogue forward": (
            lambda: ops.partial_conv_epilogue(x, scale, updated, bias, norm[0], bias, *norm[1:]),
            2 * T + 2 * small,
        ),
        "partial_conv_epilogue backward": (
            lambda: ops.partial_conv_epilogue_backward(
                x, None, None, scale, updated, None, 1.0, False
            ),
            2 * T + 2 * small,
        ),
        "partial_conv_epilogue backward of norm and activation": (
            lambda: ops.partial_conv_epilogue_backward(x, result, raw, scale, updated, *norm),
            4 * T + 2 * small,
        ),
        "interleave_phases forward": (
            lambda: ops.interleave_phases(phases, bias, None, [0, 1, 0, 1]),
            2 * T,
        ),
        "interleave_phases backward": (
            lambda: ops.interleave_phases_backward(x, [0, 1, 0, 1], H // 2 + 1, W // 2 + 1),
            T + phases.nbytes,
        ),
    }


def _modulated_norm_cases(ops: Any, maps: list[torch.Tensor]) -> Cases:
    """Statistics read x once; the rest reads x, gamma and beta and writes y. And the maps.

    Backward with statistics per channel: sums of grad, x and gamma, with the gradients of gamma and
    beta; then the gradient of x from the same three. Behind an activation both read y too.
    """
    x, gamma, beta, grad = maps
    N, C, H, W = x.shape
    generator = torch.Generator().manual_seed(4)
    weight = torch.rand(N, 1, H, W, generator=generator)
    T, small = x.nbytes, weight.nbytes

    def arguments(statistics: str, slope: float) -> tuple[Callable, Callable]:
        of_pixel = statistics == "position"
        mask = weight if of_pixel else None
        rule = (statistics, of_pixel, 1e-5, "one_plus", slope)

        def forward() -> Any:
            return ops.modulated_norm(x, gamma, beta, mask, None, None, None, *rule)

        y, mean, rstd = forward()

        def backward() -> Any:
            return ops.modulated_norm_backward(
                grad, y if slope != 1 else None, x, gamma, beta, mask, mean, rstd, None,
                statistics, False, of_pixel, "one_plus", slope, False,
            )  # fmt: skip

        return forward, backward

    # Rows that a block has in its cache count once.
    index = torch.randint(64, (N, H // 4, W), generator=generator, dtype=torch.int32)
    index = index.repeat_interleave(4, dim=1)
    table = torch.randn(2, C, 64, generator=generator)
    rows = [t.t() if x.is_contiguous() else t.t().contiguous() for t in table]

    def of_table() -> Any:
        return ops.modulated_norm(
            x, *rows, None, None, None, index, "instance", False, 1e-5, "one_plus", 0.2
        )

    position, position_backward = arguments("position", 1.0)
    instance, instance_backward = arguments("instance", 1.0)
    activated, activated_backward = arguments("instance", 0.2)
    return {
        "modulated_norm position": (position, 4 * T + small),
        "modulated_norm backward position": (position_backward, 6 * T + small),
        "modulated_norm instance": (instance, 5 * T),
        "modulated_norm backward instance": (instance_backward, 8 * T),
        "modulated_norm instance activated": (activated, 5 * T),
        "modulated_norm backward instance activated": (activated_backward, 11 * T),
        "modulated_norm of a table": (of_table, 3 * T + index.nbytes + table.nbytes),
    }


def _label_conv_cases(ops: Any, maps: list[torch.Tensor]) -> Cases:
    x = maps[0]
    N, C, H, W = x.shape
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(35, (N, H, W), generator=generator, dtype=torch.int32)
    taps = torch.randn(C, 35, 3, 3, generator=generator)
    floor = x.nbytes + labels.nbytes + taps.nbytes
    return {
        "label_conv2d": (
            lambda: ops.label_conv2d(labels, taps, None, torch.float32, False),
            floor,
        ),
        "label_conv2d backward": (lambda: ops.label_conv2d_backward(x, labels, 35, 3), floor),
    }


def _gabor_cases(ops: Any) -> Cases:
    """Forward: the image in, two maps out, or three. Backward of the image: two in, one out."""
    image = 255 * torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    bank = torchext.gabor_bank()
    response, index = ops.oriented_filter_max(image, bank, False)
    floor = 3 * image.nbytes
    few, positions = torchext.gabor_bank(8, 5), torch.arange(8.0)
    bordered = torch.nn.functional.pad(image, [2] * 4)
    return {
        "oriented_filter_max forward": (
            lambda: ops.oriented_filter_max(image, bank, False),
            floor,
        ),
        "oriented_filter_statistics forward": (
            lambda: ops.oriented_filter_statistics(bordered, few, positions, False, 0.0),
            4 * image.nbytes,
        ),
        "oriented_filter_max backward image": (
            lambda: ops.oriented_filter_max_backward_image(response, index, bank),
            floor,
        ),
    }


def traffic() -> tuple[list[Row], dict[str, int]]:
    """One row per op, direction and layout; and the threads per block of each kernel seen."""
    sys.path.insert(0, str(ROOT / "tests"))
    import cuda_emulator

    emulator = cuda_emulator.load_requests()
    cases = traffic_cases(torch.ops.torchext_requests)
    rows, threads = [], {}
    for op, case in tqdm(cases.items(), desc="ledger", unit="op", leave=False):
        with emulator.ledger() as launches:
            case.run()
        parts = []
        for launch in launches:
            template = _template(launch.kernel)
            threads[template.partition("<")[0]] = math.prod(launch.block)
            both = (launch.load, launch.store)
            parts.append(
                {
                    "kernel": template,
                    "blocks": math.prod(launch.grid),
                    "bytes": sum(x.sector_bytes for x in both),
                    "asked_bytes": sum(x.bytes for x in both),
                    "request_sectors": sum(x.request_sectors for x in both),
                    "ideal_sectors": sum(x.ideal_sectors for x in both),
                }
            )
        rows.append(
            {
                "op": op,
                "kernel": "",
                "backend": "cuda",
                "target": "emulator",
                "launches": len(launches),
                "bytes": sum(part["bytes"] for part in parts),
                "floor_bytes": case.floor_bytes,
                "widest_access_bits": 8
                * max(max(x.load.widest_access, x.store.widest_access) for x in launches),
                "times": case.times,
                "parts": parts,
            }
        )
    return rows, threads


@cache
def _instructions(target: str) -> dict[str, float]:
    """Per byte, of each instantiation and, by the kernel's name alone, of the worst."""
    codes = machine_code(target)
    found: dict[str, float] = {}
    for name, template in demangle(codes).items():
        value = sass.instructions_per_byte(codes[name])
        kernel = template.partition("<")[0]
        found[template] = value
        found[kernel] = max(found.get(kernel, 0), value)
    return found


def estimate(row: Row, device: Device) -> list[Row]:
    """Of each launch of a row of `traffic`, as large as `ESTIMATED`, the seconds and their bound.

    The longest of four, and `LAUNCH`: the bytes at the memory's full bandwidth, the same bytes at
    what the busy multiprocessors take in, the requests' sectors at what their first-level caches
    serve, the instructions of the hottest loop for every byte asked for. No waiting is counted.
    """
    instructions = _instructions(device.target)
    clock = 1e9 * device.gigahertz
    found = []
    for part in row["parts"]:
        of_all = {key: value * row["times"] for key, value in part.items() if key != "kernel"}
        busy = min(of_all["blocks"], device.multiprocessors) * clock
        kernel = part["kernel"]
        per_byte = instructions.get(kernel, instructions.get(kernel.partition("<")[0], 0))
        bounds = {
            "memory": of_all["bytes"] / (1e9 * device.gigabytes),
            "multiprocessors": of_all["bytes"] / (BYTES * busy),
            "requests": of_all["request_sectors"] / (SECTORS * busy),
            "instructions": of_all["asked_bytes"] * per_byte / (32 * ISSUES * busy),
        }
        bound = max(bounds, key=lambda name: bounds[name])
        found.append({"kernel": kernel, "seconds": bounds[bound] + LAUNCH, "bound": bound})
    return found


def add_estimates(rows: list[Row]) -> None:
    """Each device's floor, from the least bytes alone, and estimate, in milliseconds."""
    for row in rows:
        row["estimates"] = {}
        for device in DEVICES:
            parts = estimate(row, device)
            floor = row["floor_bytes"] * row["times"] / (1e9 * device.gigabytes)
            row["estimates"][device.name] = {
                "floor_ms": 1e3 * floor,
                "estimate_ms": 1e3 * sum(part["seconds"] for part in parts),
                "bounds": [part["bound"] for part in parts],
            }


def table(rows: list[Row], columns: dict[str, str]) -> str:
    """Right-aligned columns under their headings."""
    lines = [list(columns.values())]
    for row in rows:
        cells = [row.get(key) for key in columns]
        lines.append([f"{c:.2f}" if isinstance(c, float) else str(c) for c in cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def print_estimates(rows: list[Row]) -> None:
    print(f"\nESTIMATES, not measurements, at {ESTIMATED} float32: ms, over the floor, bounds\n")
    shown = [
        {
            **found,
            "op": row["op"],
            "device": name,
            "bound": ", ".join(found["bounds"]),
            "ratio": found["estimate_ms"] / found["floor_ms"],
        }
        for row in rows
        for name, found in row.get("estimates", {}).items()
    ]
    columns = {
        "op": "op",
        "device": "device",
        "bound": "bound by",
        "floor_ms": "floor ms",
        "estimate_ms": "estimate ms",
        "ratio": "ratio",
    }
    print(table(shown, columns))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "gpu.json")
    parser.add_argument("--all", action="store_true", help="every variant of the Triton kernels")
    parser.add_argument("--no-triton", action="store_true", help="leave the Triton kernels out")
    arguments = parser.parse_args()
    ledger, threads = traffic()
    kernels: list[Row] = []
    if torchext.build_info()["libraries"]["cuda"] == "loaded":
        kernels += cuda_kernels(threads)
        add_estimates(ledger)
    else:
        reason = torchext.build_info()["libraries"]["cuda"]
        print(f"no CUDA kernels in this report: the CUDA library is {reason}")
    if not arguments.no_triton:
        kernels += triton_kernels(arguments.all)
    columns = {
        "kernel": "kernel",
        "backend": "backend",
        "target": "target",
        "variants": "variants",
        "registers": "registers",
        "shared_bytes": "shared B",
        "spill_bytes": "spill B",
        "stack_bytes": "stack B",
        "occupancy": "occupancy",
        "widest_access_bits": "widest bits",
        "narrow_stores": "narrow stores",
        "long_divisions": "divisions",
        "instructions_per_element": "instructions",
    }
    print(table(kernels, columns))
    print(f"\nTraffic at {SHAPE} (norms of maps, convolutions {SMALL}) float32, emulated:\n")
    shown = [
        {
            **row,
            "mb": f"{row['bytes'] / 1e6:.1f}",
            "floor_mb": f"{row['floor_bytes'] / 1e6:.1f}",
            "ratio": row["bytes"] / row["floor_bytes"],
            "requests": sum(part["request_sectors"] for part in row["parts"])
            / sum(part["ideal_sectors"] for part in row["parts"]),
        }
        for row in ledger
    ]
    columns = {
        "op": "op",
        "backend": "backend",
        "target": "target",
        "launches": "launches",
        "mb": "MB",
        "floor_mb": "floor MB",
        "ratio": "ratio",
        "requests": "sectors/ideal",
        "widest_access_bits": "widest bits",
    }
    print(table(shown, columns))
    print_estimates(ledger)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.output.with_suffix(".partial")
    partial.write_text(json.dumps({"rows": kernels + ledger}, indent=1) + "\n")
    partial.replace(arguments.output)


if __name__ == "__main__":
    main()
