"""Compilation of the kernels without a device, and what the compilers say about the result.

`python -m torchext.kernels.ahead_of_time sm_90 gfx942 --every 20` prints one JSON object for each
variant and target. It compiles, so it must not run under TRITON_INTERPRET=1.
"""

import argparse
import functools
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

from . import (
    diversity_map,
    dual_attention,
    gabor_orientation,
    label_conv2d,
    modulated_norm,
    partial_conv,
    region_norm,
    self_aware_affine,
    upsample_conv,
)
from .common import CUDA_OPTIONS, Variant

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@functools.cache
def variants() -> list[Variant]:
    """Every variant of every kernel."""
    return [
        *gabor_orientation.ahead_of_time_variants(),
        *region_norm.ahead_of_time_variants(),
        *self_aware_affine.ahead_of_time_variants(),
        *partial_conv.ahead_of_time_variants(),
        *modulated_norm.ahead_of_time_variants(),
        *dual_attention.ahead_of_time_variants(),
        *diversity_map.ahead_of_time_variants(),
        *label_conv2d.ahead_of_time_variants(),
        *upsample_conv.ahead_of_time_variants(),
    ]


def compile_variant(variant: Variant, target: str) -> dict:
    """Compile one variant; its registers, bytes of shared memory, spills, stack and accesses.

    `widest_load_bits` and `widest_store_bits` are those of the widest access to global memory, 0
    where every access is narrower than 32 bits."""
    source = triton.compiler.ASTSource(
        variant.kernel, variant.signature, variant.constexprs, variant.attributes
    )
    options = {"num_warps": variant.num_warps, "debug": variant.debug}
    hip = TARGETS[target].backend == "hip"
    if not hip:
        options |= CUDA_OPTIONS
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    inspect = _inspect_hip if hip else _inspect_cuda
    return {
        "kernel": variant.kernel.__name__,
        "target": target,
        "num_warps": variant.num_warps,
        "shared_bytes": compiled.metadata.shared,
        **inspect(compiled.asm),
    }


def _inspect_cuda(asm: dict) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        text = subprocess.run(
            [_CUOBJDUMP, "--dump-resource-usage", file.name],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {
        "registers": usage["REG"],
        "stack_bytes": usage["STACK"],
        "spill_bytes": usage["LOCAL"],
        "widest_load_bits": _widest(r"ld\.global\S*?(?:\.v(\d))?\.b(\d+)", asm["ptx"]),
        "widest_store_bits": _widest(r"st\.global\S*?(?:\.v(\d))?\.b(\d+)", asm["ptx"]),
    }


def _inspect_hip(asm: dict) -> dict:
    text = asm["amdgcn"]

    def field(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", text).group(1))

    return {
        "registers": field("vgpr_count"),
        "stack_bytes": field("private_segment_fixed_size"),
        # Scalar registers spill into lanes of vector registers, not into memory.
        "spill_bytes": 4 * field("vgpr_spill_count"),
        "widest_load_bits": _widest(r"(?:global|buffer)_load_dword(?:x(\d))?()", text),
        "widest_store_bits": _widest(r"(?:global|buffer)_store_dword(?:x(\d))?()", text),
    }


def _widest(pattern: str, text: str) -> int:
    sizes = (int(n or 1) * int(bits or 32) for n, bits in re.findall(pattern, text))
    return max(sizes, default=0)


def _report(index: int, target: str) -> dict:
    variant = variants()[index]
    report = {"variant": str(variant), "aligned": variant.aligned, "debug": variant.debug}
    try:
        return report | compile_variant(variant, target)
    except Exception as error:  # whatever a compiler raises belongs to its variant
        return report | {"kernel": variant.kernel.__name__, "target": target, "error": repr(error)}


def _integers(variant: Variant) -> tuple[str, ...]:
    """The kernel, and what Triton makes of each of its integers: i32, i64, or the constant 1."""
    kinds = [
        kind if kind != "constexpr" else "1"
        for name, kind in variant.signature.items()
        if kind in ("i32", "i64") or (kind == "constexpr" and variant.constexprs[name] is not None)
    ]
    return variant.kernel.__name__, *kinds


def reports(
    targets: list[str], every: int = 1, jobs: int = 2, integers: bool = False
) -> Iterator[dict]:
    """The reports of every n-th variant, and the first of each kernel, for these targets.

    With `integers` the first of each kernel with each kind of integers.
    """
    kinds = [_integers(v) if integers else v.kernel.__name__ for v in variants()]
    firsts = {kind: index for index, kind in reversed([*enumerate(kinds)])}
    indices = {*firsts.values(), *range(0, len(kinds), every)}
    chosen = itertools.product(sorted(indices), targets)
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_report, *zip(*chosen, strict=True), chunksize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET")
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        help="compile every n-th variant, and the first of each kernel, only",
    )
    parser.add_argument(
        "--integers",
        action="store_true",
        help="and the first of each kernel with each kind of integers: 1, 32 bits, 64 bits",
    )
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    for report in reports(arguments.targets, arguments.every, arguments.jobs, arguments.integers):
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
