"""Make the known layers inside an existing model run the fused forms.

A recogniser goes by a layer's structure: its class name, what it holds, and its attributes; where
the class name does not tell, a comparison decides. A layer that is swapped stays the object that it
was, of a subclass of its own class whose forward is ours: an optimiser, a state dict, a hook's
handle or a neighbour that knew the layer knows it still.
"""

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from .example import Example, difference
from .family import UnsupportedError
from .fixed_condition import fixed_condition
from .layer import accelerated_class, swap_in, swap_out
from .proof import Prover, one_line, own_environment
from .recognise import FAMILIES, Candidate, copy_of, near_miss, recognised
from .report import ExampleReport, LayerReport, Report

__all__ = [
    "ExampleReport",
    "LayerReport",
    "Report",
    "accelerate",
    "fixed_condition",
    "restore",
]


def accelerate(
    model: nn.Module, *, verify: bool = True, example: Any = None, convolutions: bool = False
) -> tuple[nn.Module, Report]:
    """Make the published layers inside a model run the fused forms, in place.

    Known are partial convolutions (the authors' `PartialConv2d`, `PartialConv3d`; `PartialConv` of
    the widely used U-Net and of PD-GAN; climatereconstructionAI's `PConvBlock`), `RN_B` and `RN_L`,
    `SPDNorm` and PD-GAN's hard diversity map, `SPADE` in its many forms, FE-GAN's `ANLs`, SUPIR's
    `ZeroSFT`, the sparse layers of SparK and nnssl, MAT's `Conv2dLayerPartial`, AdaIN whose scale
    and shift are set as attributes, and pixel norm, with the structure and attributes of the
    published code. Subclasses and layers of other names that hold the same
    are taken where a comparison shows that they do the same. A layer stays the same object
    with all that is in it, also where other modules hold it; its class becomes a subclass of its
    own. What the fused form does not take (an attribute changed later that it does not read, a
    hook or parametrisation inside, a mask that needs a gradient) is run by the published code.

    Args:
        model: any module, also inside DataParallel or DistributedDataParallel.
        verify: compare small copies of each kind of layer with their fused forms first, forward and
            backward, in training and in evaluation, and leave those that differ by more than
            rounding. False: the copies are only run once where that is needed to know the layer,
            and compared where its class name does not tell.
        example: a tuple of the model's arguments, or a dict of its keyword arguments. The model is
            run on it, in its present mode and without gradients, before and after: layers that
            differ there are left, and if the outputs differ all is restored. Buffers, attributes
            and random numbers are put back after each run.
        convolutions: PyTorch's own `Conv2d` of 3x3 kernels with stride 1 too, as
            `torchext.nn.Conv2d` convolves: on the CPU in Winograd's form where that is expected to
            be faster. Those inside of a layer that is swapped are left to it.

    Returns:
        The model itself, and the report of all layers that were found.

    Raises:
        TypeError: model is not a module; example is neither a tuple or list nor a dict.
        Whatever the model itself raises on the example.
    """
    _check_module(model)
    runs = None if example is None else Example(model, example)
    reasons: dict[int, str] = {}
    found: dict[int, tuple[str, nn.Module, str, Any]] = {}
    layers = [
        (path, layer)
        for path, layer in model.named_modules()
        if not _ours(layer) and not isinstance(layer, torch.jit.ScriptModule)
    ]
    # Whoever reads the weights of a convolution inside asks for its very class.
    inside = {id(part) for layer in model.modules() if _ours(layer) for part in layer.modules()}
    within: set[int] = set()  # of those found, which run them or stand for them
    with own_environment(model):
        prover = Prover(verify)
        for path, layer in _progress(layers):
            if id(layer) in within:
                continue
            try:
                candidate = recognised(layer, convolutions and id(layer) not in inside)
                if candidate is not None:
                    candidate, facts = _proved(prover, layer, candidate)
                    accelerated_class(type(layer))  # here, since a class may forbid its subclasses
                    found[id(layer)] = (path, layer, candidate.family, facts)
                    parts = {id(part) for part in layer.modules()}
                    inside |= parts
                    within |= parts
            except UnsupportedError as problem:
                reasons[id(layer)] = str(problem)
            except Exception as problem:  # whatever a user's layer may raise
                reasons[id(layer)] = f"looking at it failed: {one_line(problem)}"
    reasons |= _near_misses(layers, {*found, *reasons, *within})
    calls: dict[int, list[str]] = {}
    kinds = {id(layer): type(layer).__name__ for _, layer in layers}
    outcome = None
    seconds: tuple[dict[int, float], dict[int, float]] = ({}, {})
    if runs is None:
        for _, layer, family, facts in found.values():
            swap_in(layer, family, facts)
    else:
        calls, problems = runs.trace([entry[1:] for entry in found.values()])
        reasons |= problems
        swaps = [entry for key, entry in found.items() if key not in reasons]
        reported = _outermost(layers, {id(entry[1]) for entry in swaps}, {*found, *reasons})
        outcome, *seconds = _before_and_after(runs, swaps, reported)
        if outcome.problem:
            reasons |= {id(entry[1]): f"restored: {outcome.problem}" for entry in swaps}
    report = Report(example=outcome)
    for path, layer in layers:
        key = id(layer)
        if key in found or key in reasons:
            reason = reasons.get(key, "")
            shapes = tuple(calls.get(key, ()))
            saves = FAMILIES[found[key][2]].saves if key in found else ""
            times = (values.get(key) for values in seconds)
            row = LayerReport(path, kinds[key], not reason, reason, shapes, saves, *times)
            report.layers.append(row)
    return model, report


def restore(model: nn.Module) -> nn.Module:
    """Undo `accelerate`: the layers run their published code again, with all that is in them.

    Args:
        model: what `accelerate` returned, or a copy of it.

    Returns:
        The model itself.

    Raises:
        TypeError: model is not a module.
    """
    _check_module(model)
    for layer in model.modules():
        swap_out(layer)
    return model


def _proved(prover: Prover, layer: nn.Module, candidate: Candidate) -> tuple[Candidate, Any]:
    """What a layer is in the end, and its facts."""
    try:
        return candidate, prover.facts(layer, candidate.family, candidate.relation)
    except UnsupportedError:
        other = copy_of(layer, candidate)
        if other is None:
            raise
        with contextlib.suppress(UnsupportedError):
            FAMILIES[other.family].check(layer)
            return other, prover.facts(layer, other.family, other.relation)
        raise


def _near_misses(layers: Sequence[tuple[str, nn.Module]], known: set[int]) -> dict[int, str]:
    """Layers called like ours, by their ids; not those that hold ours or such, as blocks do."""
    problems: dict[int, str] = {}
    for _, layer in reversed(layers):  # what is inside comes first
        parts = list(layer.modules())
        if not any(id(part) in known or id(part) in problems or _ours(part) for part in parts):
            problem = near_miss(layer)
            if problem:
                problems[id(layer)] = problem
    return problems


def _outermost(
    layers: Sequence[tuple[str, nn.Module]], swaps: set[int], known: set[int]
) -> list[nn.Module]:
    """Those known that are not inside of a swapped layer, where a hook would be in its way."""
    inside = {
        id(part)
        for _, layer in layers
        if id(layer) in swaps
        for part in layer.modules()
        if part is not layer
    }
    return [layer for _, layer in layers if id(layer) in known - inside]


def _ours(layer: nn.Module) -> bool:
    return type(layer).__module__.split(".")[0] == "torchext"


def _before_and_after(
    runs: Example, swaps: Sequence[tuple[str, nn.Module, str, Any]], reported: list[nn.Module]
) -> tuple[ExampleReport, dict[int, float], dict[int, float]]:
    """Time the model, swap, time it again; where it then differs or fails, undo all.

    Returns:
        What came of it, and the seconds of the reported layers before and after, by their ids.
    """
    expected, before, each_before = runs.run(reported)
    if not swaps:
        return ExampleReport(before), each_before, {}
    for _, layer, family, facts in swaps:
        swap_in(layer, family, facts)
    try:
        for _ in range(2):  # transformed weights are kept from the second on
            runs.run()
        outputs, after, each_after = runs.run(reported)
        outcome = ExampleReport(before, after, difference(expected, outputs, "in the example"))
        return outcome, each_before, each_after
    except Exception as problem:  # whatever a model may raise on layers that are not its own
        for _, layer, _, _ in swaps:
            swap_out(layer)
        text = str(problem) if isinstance(problem, UnsupportedError) else one_line(problem)
        return ExampleReport(before, problem=text), each_before, {}


def _check_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def _progress(layers: Sequence[Any]) -> Iterator[Any] | Sequence[Any]:
    """With a bar where it takes some seconds and tqdm is there."""
    if importlib.util.find_spec("tqdm") is None:
        return layers
    from tqdm import tqdm

    return tqdm(layers, desc="torchext.accelerate", unit="layer", delay=3, leave=False)
