"""Compute what a golden file holds, with our modules, and compare."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from golden import statements
from golden.adapters.base import Adapter
from golden.recipe import Golden

DTYPES = (torch.float64, torch.float32)

# A kink is looked for by moving inputs and weights this far in float64, relative, that often. The
# noise on which tolerances rest is that of single roundings, so a smooth result stays within it.
ROUNDINGS = 16
ROUNDING = 2.0**-24
TRIALS = 8


@dataclass(frozen=True)
class Comparison:
    """One array against the file.

    Attributes:
        key: the array's name in the file.
        error: of each stored number, see `deviation`.
        tolerance: the largest that passes.
        text: the worst one in words.
    """

    key: str
    error: Tensor
    tolerance: float
    text: str

    @property
    def ratio(self) -> float:
        """The largest error as a share of the tolerance."""
        largest = self.error.max().item() if self.error.numel() else 0.0
        if self.tolerance == 0:  # a result that is zero must be exactly that
            return float("inf") if largest else 0.0
        return largest / self.tolerance


@dataclass
class Report:
    """How a file went.

    Attributes:
        worst: the worst ratio and its array, by dtype; arrays decided in float64 left out.
        kinks: arrays that fail in float32 because a value sits at a kink, and pass in float64.
        failures: one line for each array that fails otherwise.
    """

    worst: dict[str, tuple[float, str]] = field(default_factory=dict)
    kinks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def check(golden: Golden, adapter: Adapter, device: str = "cpu") -> Report:
    """Run a file in float64 and in float32."""
    comparisons = {}
    for dtype in DTYPES:
        results = compute(golden, adapter, dtype, device)
        comparisons[dtype] = [compare(golden, adapter, key, results[key]) for key in golden.arrays]
    failed = {
        dtype: {c.key: c for c in found if c.ratio > 1} for dtype, found in comparisons.items()
    }
    double, single = failed.values()
    report = Report()
    if single.keys() - double.keys():
        jumps = _jumps(golden, adapter, device)
        # Excused is an error that a jump explains, not a wrong result that happens to be near one.
        report.kinks = [
            key
            for key, c in single.items()
            if key not in double and (c.error <= 2 * jumps[key].clamp(min=c.tolerance / 2)).all()
        ]
    for dtype, found in comparisons.items():
        name = str(dtype).removeprefix("torch.")
        counted = [c for c in found if c.key not in report.kinks]
        if counted:
            report.worst[name] = max((c.ratio, c.key) for c in counted)
        report.failures += [f"{name} {c.key}: {c.text}" for c in counted if c.ratio > 1]
    return report


def compute(
    golden: Golden, adapter: Adapter, dtype: torch.dtype, device: str = "cpu", moved: int = 0
) -> dict[str, Tensor]:
    """Everything that the file stores, from the recipe's weights and inputs.

    Args:
        golden: the file.
        adapter: of its class.
        dtype: of weights, inputs and arithmetic.
        device: where to compute.
        moved: if not 0, move weights and inputs by some roundings, differently for each number.

    Returns:
        Array key to full result (before the slices in `sampled`), detached.
    """
    generator = np.random.default_rng(moved)

    def to_tensor(array: np.ndarray, *, exact: bool = False) -> Tensor:
        if array.dtype != np.float32:
            return torch.from_numpy(array).to(device)
        array = array.astype(np.float64)
        if moved and not exact:
            array = array * (1 + ROUNDINGS * ROUNDING * generator.uniform(-1, 1, array.shape))
        return torch.as_tensor(array).to(device, dtype)

    state = {key: to_tensor(array) for key, array in golden.draw_state().items()}
    inputs = {
        name: to_tensor(array, exact=golden.inputs[name].kind == "holes")
        for name, array in golden.draw_inputs().items()
    }
    for name in inputs.keys() & set(golden.wanted("gradin")):
        inputs[name].requires_grad_()
    module = adapter.build(golden).to(device, dtype)
    adapter.load(module, state)
    module.train(golden.config["mode"] == "train")

    outputs = adapter.outputs(module, golden, inputs)
    results = {
        name if name.startswith("f64.") else f"out.{name}": tensor
        for name, tensor in outputs.items()
    }
    leaves = {f"gradin.{name}": inputs[name] for name in golden.wanted("gradin")}
    parameters = adapter.parameters(module)
    leaves |= {f"grad.{key}": parameters[key] for key in golden.wanted("grad")}
    if leaves:
        objective = adapter.objective(golden, outputs, inputs)
        gradients = torch.autograd.grad(objective, list(leaves.values()), materialize_grads=True)
        results |= dict(zip(leaves, gradients, strict=True))
    return {key: tensor.detach() for key, tensor in results.items()}


def compare(golden: Golden, adapter: Adapter, key: str, result: Tensor) -> Comparison:
    """Compare one result with the file."""
    tolerance = adapter.tolerance(golden, key)
    error = deviation(golden, key, result)
    if not error.numel():
        return Comparison(key, error, tolerance, "")
    stored, worst = golden.arrays[key], int(error.argmax())
    if worst < stored.size:
        place = tuple(int(i) for i in np.unravel_index(worst, stored.shape))
        where = f"{place} of {list(stored.shape)}, where the file has {stored[place]:.9g}"
    else:
        where = ("the mean", "the standard deviation")[worst - stored.size]
    text = (
        f"off by {error[worst]:.3g} at {where}; tolerance {tolerance:.3g};"
        f" {int((error > tolerance).sum())} of {error.numel()} numbers off"
    )
    if error[worst].isinf():
        text += f"; result of shape {list(result.shape)}, {int(result.isnan().sum())} NaN"
    return Comparison(key, error, tolerance, text)


def deviation(golden: Golden, key: str, result: Tensor) -> Tensor:
    """How far a result is from each number in the file; infinite if its shape is another.

    The numbers are the array's, then mean and deviation of the whole if the file stores a part.
    """
    got = result.to("cpu", torch.float64)
    expected = torch.from_numpy(golden.arrays[key].astype(np.float64))
    sample = golden.config.get("sampled", {}).get(key)
    if sample is None:
        if expected.shape == (1,) and got.dim() == 0:  # so are scalars stored
            got = got[None]
        shape, moments = list(expected.shape), torch.empty(2, 0)
    else:
        shape = sample["shape"]
        moments = torch.tensor(
            [[got.mean(), got.std(correction=0)], [sample["mean"], sample["std"]]],
            dtype=torch.float64,
        )
    count = expected.numel() + moments.shape[1]
    if list(got.shape) != shape:
        return torch.full((count,), float("inf"), dtype=torch.float64)
    part = got if sample is None else statements.evaluate("whole" + sample["slice"], {"whole": got})
    apart = torch.where(part.isnan() & expected.isnan(), 0, part - expected)
    difference = torch.cat((apart.flatten(), moments[0] - moments[1]))
    return difference.abs().nan_to_num(float("inf"))


def _jumps(golden: Golden, adapter: Adapter, device: str) -> dict[str, Tensor]:
    """How far each number strays from the file, at most, when all moves by roundings."""
    jumps = {key: torch.zeros(()) for key in golden.arrays}
    for trial in range(1, TRIALS + 1):
        results = compute(golden, adapter, torch.float64, device, moved=trial)
        for key in jumps:
            jumps[key] = torch.maximum(jumps[key], deviation(golden, key, results[key]))
    return jumps
