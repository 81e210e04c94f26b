"""An op has the same name in every room."""

import ast
import graphlib
import importlib
import inspect
import re

import pytest
from support.environments import ROOT

import torchext
from torchext import reference, schema
from torchext.ops.op import OPS as RECORDS

SHARED = {"checks", "convolution", "distributed", "filter_banks", "hole_tiles", "labels", "op"}
FILES_OF_THE_CPU = {
    "gather_tiles": "partial_conv",
    "scatter_tiles": "partial_conv",
    "number_windows": "label_windows",
    "winograd_apply": "winograd_conv",
    "winograd_weight": "winograd_conv",
    "winograd_weight_gradient": "winograd_conv",
}
NOT_OPS = SHARED | {"__init__"}
OPS = sorted(path.stem for path in (ROOT / "torchext/ops").glob("*.py") if path.stem not in NOT_OPS)
# Made of other ops: no kernels of their own.
COMPOSITES = {
    "self_aware_region_norm",
    "label_windows",
    "spade_modulation_table",
    "winograd_conv",
}
# Their modules stand with the modules of another op.
MODULES_WITH = {
    "self_aware_affine": "region_norm",
    "self_aware_region_norm": "region_norm",
    "diversity_map": "modulated_norm",
    "label_conv2d": "modulated_norm",
    "spade_modulation_table": "modulated_norm",
}
# Timed as a part of another op.
BENCHMARKED_WITH = {
    "self_aware_affine": "region_norm",
    "self_aware_region_norm": "region_norm",
    "upsample_conv": "partial_conv",
    "label_windows": "spade_modulation_table",
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


def test_every_schema_has_a_record_in_its_file():
    assert RECORDS.keys() == schema.SCHEMAS.keys()
    assert {op.file for op in RECORDS.values()} <= {*OPS, "hole_tiles"}


def test_every_op_has_a_reference_with_the_arguments_of_its_schema():
    for name, op in RECORDS.items():
        formula = getattr(reference, name, None)
        if formula is None:  # gradients that autograd takes from the op's reference
            assert "_backward" in name or name.endswith("_") or name in schema.CPU_ONLY, name
        else:
            assert tuple(inspect.signature(formula).parameters) == op.arguments, name


def test_every_op_with_kernels_has_a_launcher_with_the_arguments_of_its_schema():
    pytest.importorskip("triton")
    for name, op in RECORDS.items():
        if op.compose is None and name not in schema.CPU_ONLY:
            launcher = getattr(importlib.import_module(f"torchext.kernels.{op.file}"), name)
            assert tuple(inspect.signature(launcher).parameters) == op.arguments, name


IMPLEMENTED = re.compile(r'TORCHEXT_IMPLEMENT\(m, (\w+)\)|m\.impl\("(\w+)", TORCH_BOX\(&(\w+)\)\)')


CALLS = [path for path in (ROOT / "csrc").glob("*.h") if path.stem in OPS]


def implemented(source: str) -> dict[str, str]:
    """The C++ function of each op that a source registers."""
    return {op or name: op or function for op, name, function in IMPLEMENTED.findall(source)}


def test_every_op_with_kernels_is_registered_in_the_file_of_its_name():
    both = {name: path.stem for path in CALLS for name in implemented(path.read_text())}
    expected = {name: op.file for name, op in RECORDS.items() if op.compose is None}
    cpu_only = {name: expected.pop(name) and FILES_OF_THE_CPU[name] for name in schema.CPU_ONLY}
    assert both == expected
    for file in set(both.values()):
        for folder, ending in (("cpu", "cpp"), ("cuda", "cu")):
            assert "  implement(m);" in (ROOT / f"csrc/{folder}/{file}.{ending}").read_text()
    assert cpu_only == {
        name: path.stem
        for path in (ROOT / "csrc/cpu").glob("*.cpp")
        for name in implemented(path.read_text())
    }


def test_functions_in_cpp_have_the_arguments_of_the_schema():
    sources = [*CALLS, *(ROOT / "csrc/cpu").glob("*.cpp")]
    checked = set()
    for source in (path.read_text() for path in sources):
        for name, function in implemented(source).items():
            signature = rf"\b{function}\(\s*((?:const |bool|int64_t|double)[^{{;]*)\) {{"
            text = re.search(signature, source)
            arguments = re.findall(r"(\w+)\s*(?:,|$)", re.sub(r"<[^>]*>", "", text[1]))
            expected = schema.arguments(name)
            assert tuple(arguments) == expected, name
            checked.add(name)
    assert checked == {name for name, op in RECORDS.items() if op.compose is None}


def test_limits_in_cpp_are_those_of_python():
    source = (ROOT / "csrc/definitions.h").read_text()
    limits = dict(re.findall(r"constexpr int (\w+) = (\d+);", source))
    ops = {name: importlib.import_module(f"torchext.ops.{name}") for name in [*OPS, *SHARED]}
    expected = {
        "kMaxRegions": ops["checks"].MAX_REGIONS,
        "kMaxMaskChannels": ops["convolution"].MAX_MASK_CHANNELS,
        "kMaxFilterSize": ops["filter_banks"].MAX_SIZE,
        "kMaxFilters": ops["filter_banks"].MAX_COUNT,
        "kMaxSelfAwareKernel": ops["self_aware_affine"].MAX_KERNEL,
        "kMaxLabelKernel": ops["label_conv2d"].MAX_KERNEL,
        "kMaxSteps": ops["diversity_map"].MAX_STEPS,
        "kMaxWindow": ops["diversity_map"].MAX_WINDOW,
    }
    assert {name: int(value) for name, value in limits.items()} == expected


@pytest.mark.parametrize("name", [name for name in torchext.ops.__all__ if "install" not in name])
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
