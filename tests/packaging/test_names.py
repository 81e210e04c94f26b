"""An op has the same name in every room."""

import ast
import graphlib

import pytest
from support.environments import ROOT

import torchext

SHARED = {"checks", "convolution", "distributed", "hole_tiles", "labels", "registration"}
NOT_OPS = SHARED | {"__init__"}
OPS = sorted(path.stem for path in (ROOT / "torchext/ops").glob("*.py") if path.stem not in NOT_OPS)
# Made of other ops: no kernels of their own.
COMPOSITES = {"self_aware_region_norm"}
# Their modules stand with the modules of another op.
MODULES_WITH = {
    "self_aware_affine": "region_norm",
    "self_aware_region_norm": "region_norm",
    "diversity_map": "modulated_norm",
    "label_conv2d": "modulated_norm",
}
# Timed as a part of another op.
BENCHMARKED_WITH = {
    "self_aware_affine": "region_norm",
    "self_aware_region_norm": "region_norm",
    "upsample_conv": "partial_conv",
}


def rooms(op: str) -> list[str]:
    files = [
        f"torchext/reference/{op}.py",
        f"torchext/nn/{MODULES_WITH.get(op, op)}.py",
        f"benchmarks/{BENCHMARKED_WITH.get(op, op)}.py",
        f"tests/ops/test_{op}.py",
    ]
    if op not in COMPOSITES:
        files += [f"csrc/cpu/{op}.cpp", f"csrc/cuda/{op}.cu", f"kernels/{op}.py"]
    return files


@pytest.mark.parametrize("op", OPS)
def test_op_has_its_file_in_every_room(op):
    missing = [name for name in rooms(op) if not (ROOT / name).is_file()]
    assert not missing


@pytest.mark.parametrize(
    "pattern", ["csrc/cpu/*.cpp", "csrc/cuda/*.cu", "kernels/*.py", "torchext/reference/*.py"]
)
def test_kernel_file_belongs_to_an_op(pattern):
    # *_kernels.cpp: the part of an op's file that is compiled once per SIMD level.
    names = {path.stem.removesuffix("_kernels") for path in ROOT.glob(pattern)}
    assert names - set(OPS) <= {"__init__", "common", "ahead_of_time"}


def test_exceptions_are_still_needed():
    assert set(OPS) >= COMPOSITES | MODULES_WITH.keys() | BENCHMARKED_WITH.keys()


@pytest.mark.parametrize("name", [name for name in torchext.ops.__all__ if name != "install"])
def test_function_is_public_and_in_the_guide(name):
    assert name in torchext.__all__
    assert any(f"torchext.{name}" in page.read_text() for page in (ROOT / "docs").glob("*.md"))


def test_imports_of_the_package_run_one_way():
    """No circle, and the ground floor imports torch alone."""
    package = ROOT / "torchext"
    modules = {
        ".".join(path.relative_to(package).with_suffix("").parts): path
        for path in package.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = name.split(".")[: -node.level] + (node.module or "").split(".")
                base = [part for part in base if part]
                targets = {".".join([*base, alias.name]) for alias in node.names}
                found |= (targets | {".".join(base)}) & modules.keys()
        graph[name] = found - {name}
    assert len(graph) > 30
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert not graph["schema"]
    assert graph["_load"] == {"schema"}
    assert graph["backend"] == {"_load", "schema"}
    for name, targets in graph.items():
        if name.startswith("reference."):
            assert all(target.startswith("reference.") for target in targets), name
        if name.startswith("ops."):
            known = ("ops.", "reference.", "backend", "schema")
            assert all(target.startswith(known) for target in targets), name
