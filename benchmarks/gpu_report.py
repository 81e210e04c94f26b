"""What the compilers and the emulator say of the GPU code, without a GPU.

    python -m benchmarks.gpu_report          (make gpu-report)

Per kernel and target: registers, shared memory, spills, stack, occupancy, widest access to global
memory: CUDA kernels from the library's own machine code (every instantiation, the worst shown),
Triton kernels compiled ahead of time. Per op: launches, and the bytes that the emulator's ledger
counted (32-byte sectors, each once per launch) against the floor. Writes results/gpu.json.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import torchext

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path(torchext.__file__).parent / "lib" / "libtorchext_cuda.so"
TARGETS = ("sm_80", "sm_90", "sm_100")
# Of one multiprocessor (CUDA C++ Programming Guide, technical specifications per capability).
REGISTERS, MAX_WARPS, MAX_BLOCKS = 65536, 64, 32
SHARED_BYTES = {"sm_80": 164 * 1024, "sm_90": 228 * 1024, "sm_100": 228 * 1024}
SHAPE = (4, 64, 256, 256)

Row = dict[str, Any]


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
    """Mangled name to template name without namespaces and arguments."""
    names = list(names)
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {
        name: re.search(r"(\w+_kernel)", plain).group(1)
        for name, plain in zip(names, text, strict=True)
    }


def cuda_kernels(threads: dict[str, int]) -> list[Row]:
    """One row per kernel and target: the worst of its instantiations, the widest of accesses."""
    tool, rows = cuobjdump(), []
    for target in TARGETS:
        usage = subprocess.run(
            [tool, "--dump-resource-usage", "-arch", target, str(LIBRARY)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        needs = {
            name: {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", line)}
            for name, line in re.findall(r"Function (\S+):\s*\n\s*(\S.*)", usage)
        }
        code = subprocess.run(
            [tool, "-sass", "-arch", target, str(LIBRARY)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        bodies = dict(re.findall(r"Function : (\S+)\n(.*?)(?=\n\s*Function : |\Z)", code, re.S))
        kernels = demangle(needs)
        for kernel in sorted(set(kernels.values())):
            names = [name for name in needs if kernels[name] == kernel]
            loads, stores = (
                [_widest_access(instruction, bodies[name]) for name in names]
                for instruction in ("LDG", "STG")
            )
            # A spilled register is stored to and loaded from local memory.
            spills = sum(len(re.findall(r"\b(?:LDL|STL)\b", bodies[name])) for name in names)
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
                    # Instantiations that load 128 bits at a time, and store fewer.
                    "narrow_stores": sum(
                        load == 128 and 0 < store < 128
                        for load, store in zip(loads, stores, strict=True)
                    ),
                }
            )
    return rows


def _widest_access(instruction: str, body: str) -> int:
    """Bits of the widest access to global memory of a kind, 0 without any."""
    widths = re.findall(rf"\b{instruction}\.E(?:\.\w+)*?(?:\.(64|128))?\b", body)
    return max((int(bits or 32) for bits in widths), default=0)


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


def traffic_cases() -> dict[str, tuple[Callable[[], Any], int]]:
    """Op and direction to a call of the emulated op, and the floor in bytes."""
    ops = torch.ops.torchext_emulated
    N, C, H, W = SHAPE
    T = 4 * N * C * H * W
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(N, 1, H // 8, W // 8, generator=generator) > 0.4).float()
    weight, bias = torch.randn(2, 2, C, generator=generator)
    filters = [torch.randn(s, generator=generator) / 7 for s in ((1, 2, 7, 7), (1, 1, 7, 7), (1,))]
    conv, affine, one = filters
    cases: dict[str, tuple[Callable[[], Any], int]] = {}
    for layout in ("contiguous", "channels_last"):
        x = torch.randn(SHAPE, generator=generator)
        grad = torch.randn(SHAPE, generator=generator)
        if layout == "channels_last":
            x, grad = (t.to(memory_format=torch.channels_last) for t in (x, grad))
        labels = ops.region_labels(mask, H, W, 2, False)
        norm = (x, labels, weight, bias, None, None, 2, False, 1e-5, True, False)
        _, count, mean, rstd = ops.region_norm(*norm)
        backward = (grad, x, labels, count, mean, rstd, weight, None, 2, False, False)
        self_aware = (x, conv, affine, one, affine, one, 0.5, False, 1e-5, True)
        _, *saved = ops.self_aware_region_norm(*self_aware)
        derivative = (grad, x, *saved, conv, affine, affine, False)

        def forward(norm: tuple = norm) -> None:
            ops.region_norm(norm[0], ops.region_labels(mask, H, W, 2, False), *norm[2:])

        cases[f"region_norm forward {layout}"] = (forward, 3 * T)
        cases[f"region_norm backward {layout}"] = (
            lambda arguments=backward: ops.region_norm_backward(*arguments),
            5 * T,
        )
        cases[f"self_aware_region_norm forward {layout}"] = (
            lambda arguments=self_aware: ops.self_aware_region_norm(*arguments),
            4 * T,
        )
        cases[f"self_aware_region_norm backward {layout}"] = (
            lambda arguments=derivative: ops.self_aware_region_norm_backward(*arguments),
            5 * T,
        )
        gate, attention = torch.rand(N, C), torch.rand(N, 1, H, W)
        small = (gate, attention, 0.2)
        cases[f"dual_attention_pools {layout}"] = (
            lambda maps=(x, grad): ops.dual_attention_pools(*maps),
            2 * T + 3 * attention.nbytes,
        )
        cases[f"dual_attention forward {layout}"] = (
            lambda arguments=(x, grad, *small): ops.dual_attention(*arguments),
            3 * T + attention.nbytes,
        )
        cases[f"dual_attention backward {layout}"] = (
            lambda arguments=(grad, x, grad + x, *small): ops.dual_attention_backward(*arguments),
            5 * T + 2 * attention.nbytes,
        )
    return cases | _partial_conv_cases() | _modulated_norm_cases() | _gabor_cases()


def _partial_conv_cases() -> dict[str, tuple[Callable[[], Any], int]]:
    """Beside the convolution itself: the mask's window, the product, the epilogue, phases."""
    ops = torch.ops.torchext_emulated
    generator = torch.Generator().manual_seed(0)
    N, C, H, W = 1, 64, 128, 128
    x = torch.randn(N, C, H, W, generator=generator)
    mask = (torch.rand(N, 1, H, W, generator=generator) > 0.3).float()
    bias = torch.randn(C, generator=generator)
    window = (mask, [], [3, 3], [1, 1], [1, 1], [1, 1], [H, W], True, True, 1e-8)
    scale, updated = ops.mask_window(*window)
    result, raw = torch.randn(2, N, C, H, W, generator=generator)
    phases = torch.randn(N, 4 * C, H // 2 + 1, W // 2 + 1, generator=generator)
    maps, T = mask.nbytes, x.nbytes
    return {
        "mask_window": (lambda: ops.mask_window(*window), 3 * maps),
        "mask_product": (lambda: ops.mask_product(x, mask, []), 2 * T + maps),
        "partial_conv_epilogue forward": (
            lambda: ops.partial_conv_epilogue(
                x, scale, updated, bias, bias.exp(), bias, 0.2, False
            ),
            2 * T + 2 * maps,
        ),
        "partial_conv_epilogue backward": (
            lambda: ops.partial_conv_epilogue_backward(
                x, None, None, scale, updated, None, 1.0, False
            ),
            2 * T + 2 * maps,
        ),
        "partial_conv_epilogue backward of norm and activation": (
            lambda: ops.partial_conv_epilogue_backward(
                x, result, raw, scale, updated, bias.exp(), 0.2, False
            ),
            4 * T + 2 * maps,
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


def _modulated_norm_cases() -> dict[str, tuple[Callable[[], Any], int]]:
    """Statistics read x once; the rest reads x, gamma and beta and writes y. And the maps."""
    ops = torch.ops.torchext_emulated
    generator = torch.Generator().manual_seed(0)
    N, C, H, W = 1, 64, 128, 128
    x, gamma, beta = torch.randn(3, N, C, H, W, generator=generator)
    weight = torch.rand(N, 1, H, W, generator=generator)
    labels = torch.randint(35, (N, H, W), generator=generator, dtype=torch.int32)
    taps = torch.randn(C, 35, 3, 3, generator=generator)
    T, maps = x.nbytes, weight.nbytes

    def norm(statistics: str, unbiased: bool) -> Any:
        return ops.modulated_norm(
            x, gamma, beta, weight, None, None, None, statistics, unbiased, 1e-5, "one_plus", 0.2
        )

    # Rows that a block has in its cache count once.
    index = torch.randint(64, (N, H // 4, W), generator=generator, dtype=torch.int32)
    index = index.repeat_interleave(4, dim=1)
    table = torch.randn(2, C, 64, generator=generator)

    def of_table() -> Any:
        rows = (table[0].t(), table[1].t())
        return ops.modulated_norm(
            x, *rows, None, None, None, index, "instance", False, 1e-5, "one_plus", 0.2
        )

    return {
        "modulated_norm position": (lambda: norm("position", True), 4 * T + maps),
        "modulated_norm instance": (lambda: norm("instance", False), 5 * T + maps),
        "modulated_norm of a table": (of_table, 3 * T + index.nbytes + table.nbytes),
        "label_conv2d": (
            lambda: ops.label_conv2d(labels, taps, None, torch.float32, False),
            T + labels.nbytes + taps.nbytes,
        ),
        "label_conv2d backward": (
            lambda: ops.label_conv2d_backward(x, labels, 35, 3),
            T + labels.nbytes + taps.nbytes,
        ),
    }


def _gabor_cases() -> dict[str, tuple[Callable[[], Any], int]]:
    """Forward: the image in, two maps out, or three. Backward of the image: two in, one out."""
    ops = torch.ops.torchext_emulated
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

    torchext.ops.install("torchext_emulated")
    emulator = cuda_emulator.load()
    rows, threads = [], {}
    for op, (run, floor) in tqdm(traffic_cases().items(), desc="ledger", unit="op", leave=False):
        with emulator.ledger() as launches:
            run()
        for launch in launches:
            name = re.search(r"(\w+_kernel)", launch.kernel).group(1)
            threads[name] = launch.block[0] * launch.block[1] * launch.block[2]
        rows.append(
            {
                "op": op,
                "kernel": "",
                "backend": "cuda",
                "target": "emulator",
                "launches": len(launches),
                "bytes": sum(x.load.sector_bytes + x.store.sector_bytes for x in launches),
                "floor_bytes": floor,
                "widest_access_bits": 8
                * max(max(x.load.widest_access, x.store.widest_access) for x in launches),
            }
        )
    return rows, threads


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
    }
    print(table(kernels, columns))
    print(f"\nTraffic at {SHAPE} float32, two regions, counted by the emulator:\n")
    shown = [
        {
            **row,
            "mb": f"{row['bytes'] / 1e6:.1f}",
            "floor_mb": f"{row['floor_bytes'] / 1e6:.1f}",
            "ratio": row["bytes"] / row["floor_bytes"],
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
        "widest_access_bits": "widest bits",
    }
    print(table(shown, columns))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.output.with_suffix(".partial")
    partial.write_text(json.dumps({"rows": kernels + ledger}, indent=1) + "\n")
    partial.replace(arguments.output)


if __name__ == "__main__":
    main()
