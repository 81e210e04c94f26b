"""The published baseline of region normalisation, and its cases under pytest-benchmark."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import harness, region_norm
from benchmarks.harness import Case
from benchmarks.masks import irregular_hole


class Traffic(TorchDispatchMode):
    """Counts kernels, and the bytes of their inputs and outputs, as if nothing were fused."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view and "detach" not in function.name():
            self.ops += 1
            values = torch.utils._pytree.tree_leaves((args, result))
            self.bytes += sum(
                value.numel() * value.element_size()
                for value in values
                if isinstance(value, Tensor)
            )
        return result


@pytest.mark.parametrize(
    "case, ops, forward_mb, training_mb",
    [
        (Case("RN_B", (1, 64, 256, 256)), 42, 676, 1584),
        (Case("RN_B", (1, 256, 64, 64)), 42, 168, 395),
        (Case("RN_L", (1, 256, 64, 64)), 44, 189, 420),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_baseline_costs_what_the_published_code_costs(
    case: Case, ops: int, forward_mb: int, training_mb: int
) -> None:
    problem = region_norm.setup(case, torch.float32, "cpu")
    counted = {}
    for direction in harness.DIRECTIONS:
        with Traffic() as counted[direction]:
            harness.runner(problem.published, problem, direction)()
    assert counted["forward"].ops == pytest.approx(ops, abs=3)
    assert counted["forward"].bytes / 1e6 == pytest.approx(forward_mb, rel=0.01)
    assert counted["forward+backward"].bytes / 1e6 == pytest.approx(training_mb, rel=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", ["RN_B", "RN_L"])
@pytest.mark.parametrize("direction", harness.DIRECTIONS)
def test_both_forms_agree(op: str, layout: str, dtype: torch.dtype, direction: str) -> None:
    problem = region_norm.setup(Case(op, (2, 32, 24, 20), layout), dtype, "cpu")
    assert problem.inputs[0].is_contiguous(memory_format=problem_format(layout))
    modules = {"published": problem.published, "ours": problem.ours}
    harness.check(problem, modules, dtype, direction)


def problem_format(layout: str) -> torch.memory_format:
    return Case("", (1, 1, 1, 1), layout).memory_format


def test_irregular_hole_is_seeded_and_of_the_size_asked_for() -> None:
    hole = irregular_hole(64, 96, share=0.3, seed=5)
    assert hole.shape == (64, 96)
    assert 0.3 <= hole.mean() < 0.5
    assert (hole == irregular_hole(64, 96, share=0.3, seed=5)).all()
    assert (hole != irregular_hole(64, 96, share=0.3, seed=6)).any()


@pytest.mark.slow
@pytest.mark.parametrize("column", ["published", "ours"])
@pytest.mark.parametrize("direction", harness.DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case", region_norm.CASES, ids=lambda case: f"{case.op} {case.name}".replace(" ", "-")
)
def test_speed(benchmark, case: Case, dtype: torch.dtype, direction: str, column: str) -> None:
    """`pytest tests/benchmarks -m slow --benchmark-columns=median,iqr`; the table's own cases."""
    problem = region_norm.setup(case, dtype, "cpu")
    call = harness.runner(getattr(problem, column), problem, direction)
    benchmark.group = f"{case.op} {case.name} {dtype} {direction}"
    benchmark.pedantic(call, warmup_rounds=2, rounds=5)
