"""What a call for one image launches: our kernels with their blocks, and PyTorch's own ops.

A GPU has more multiprocessors than many of these launches have blocks, and every launch costs a few
microseconds: for one image of 64 x 64 that is the time.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support.backends import emulator
from support.calls import calls
from torch.utils._python_dispatch import TorchDispatchMode

from torchext import backend
from torchext.ops.op import OPS

SHAPE = (1, 64, 64, 64)
TABLE = Path(__file__).with_name("launches.txt")
LAYOUTS = ("contiguous", pytest.param("channels_last", marks=pytest.mark.slow))


class Cost(NamedTuple):
    """Of a call: ops of PyTorch, and the name and blocks of each launch."""

    ops: int
    launches: list[tuple[str, int]]

    def __str__(self) -> str:
        return f"{self.ops} | " + ", ".join(f"{name} {blocks}" for name, blocks in self.launches)

    def exceeds(self, other: "Cost") -> bool:
        """Whether it takes more ops, other launches or fewer blocks."""
        same = [name for name, _ in self.launches] == [name for name, _ in other.launches]
        return (
            self.ops > other.ops
            or not same
            or any(a[1] < b[1] for a, b in zip(self.launches, other.launches, strict=True))
        )


def expected() -> dict[str, Cost]:
    """By call, direction and layout."""
    found = {}
    for line in TABLE.read_text().splitlines():
        if not line.startswith("#"):
            name, ops, launches = (part.strip() for part in line.split("|"))
            pairs = re.findall(r"(\w+) (\d+)", launches)
            found[name] = Cost(int(ops), [(kernel, int(blocks)) for kernel, blocks in pairs])
    return found


class AtenOps(TorchDispatchMode):
    """The ops of PyTorch that compute, in order, those within our composites too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, op: Any, types: Any, arguments: tuple = (), options: dict | None = None
    ) -> Any:
        options = options or {}
        if op.namespace != "aten":
            compose = OPS[op.name().partition("::")[2]].compose
            if compose is None:
                return op(*arguments, **options)
            with self:
                return compose(getattr(torch.ops, op.namespace), *arguments, **options)
        name = op.name().removeprefix("aten::").partition(".")[0]
        allocates = name.startswith(("empty", "new_empty"))
        if not op.is_view and not allocates and name not in ("detach", "_unsafe_view"):
            self.names.append(name)
        return op(*arguments, **options)


def measured(layout: str) -> Iterator[tuple[str, Cost, list[str]]]:
    """Call, direction and layout, what it costs, and the ops by name."""
    library = emulator()
    for name, call in calls(SHAPE, torch.float32, layout == "channels_last").items():
        outputs: list[torch.Tensor] = []
        with backend.use("cuda-emulated"):
            call.forward()  # after which what is kept for later calls is there
        for direction in ("forward", "backward"):
            if direction == "backward" and not call.leaves:
                continue
            gradients = [torch.ones_like(y) for y in outputs]
            with backend.use("cuda-emulated"), library.ledger() as launches, AtenOps() as aten:
                if direction == "forward":
                    outputs = call.forward()
                else:
                    call.backward(outputs, gradients)
            blocks = [
                (re.search(r"(\w+)_kernel", launch.kernel).group(1), math.prod(launch.grid))
                for launch in launches
            ]
            yield f"{name} {direction}, {layout}", Cost(len(aten.names), blocks), aten.names


@pytest.mark.parametrize("layout", LAYOUTS)
def test_launches_of_one_image(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "readable", lambda _: False)  # as a GPU's values are not
    table = {name: cost for name, cost in expected().items() if name.endswith(layout)}
    found = {name: (cost, ops) for name, cost, ops in measured(layout)}
    assert list(found) == list(table)
    wrong = [
        f"{name} | {cost}\nexpected {table[name]}\n{ops}"
        for name, (cost, ops) in found.items()
        if cost.exceeds(table[name])
    ]
    assert not wrong, "\n\n".join(wrong)


def test_a_dearer_call_is_found() -> None:
    cost = Cost(1, [("a", 2), ("b", 3)])
    for dearer in (
        Cost(2, cost.launches),
        Cost(1, [("a", 2), ("b", 2)]),
        Cost(1, [("a", 2), ("b", 3), ("b", 3)]),
        Cost(1, [("a", 2), ("c", 3)]),
    ):
        assert dearer.exceeds(cost)
    assert not Cost(0, [("a", 2), ("b", 4)]).exceeds(cost)
