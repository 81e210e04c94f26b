"""Run a published layer and its fused form side by side, and compare all that a user can see."""

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from .family import Draw, Family, UnsupportedError, expect, has_values
from .layer import PublishedCodeWarning, fused_arguments, parameters_of, swap_in
from .recognise import FAMILIES
from .structure import fingerprint, plain_copy, small_copy

# Largest difference, as a share of the largest value, between two right results.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_HALVES = (torch.float16, torch.bfloat16)
_SCALES = (1e-3, 1.0, 1e3)  # of the features


@contextlib.contextmanager
def own_environment(model: nn.Module) -> Iterator[None]:
    """Default dtype and device, autocast, grad mode, dispatch modes and random numbers of its own.

    Whatever the caller has set comes back unchanged.
    """
    devices = {tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())}
    kinds = {"cpu", *(device.type for device in devices)}
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in filter(torch.amp.is_autocast_available, kinds):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.random.fork_rng([d for d in devices if d.type == "cuda"]))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", PublishedCodeWarning)
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_default_dtype, dtype)
        yield


class Prover:
    """Finds the facts of layers and proves each distinct structure once.

    Args:
        verify: whether to compare at all.
    """

    def __init__(self, verify: bool) -> None:
        self.verify = verify
        self.proved: dict[Any, str] = {}  # structure -> why not, "" if it is

    def facts(self, layer: nn.Module, name: str, relation: str = "") -> Any:
        """The facts of a recognised layer.

        Args:
            layer, name: the layer and its family.
            relation: why it may be one, where its class name does not tell: then it is compared in
                any case.

        Raises:
            UnsupportedError: its fused form differs, or it cannot be run.
        """
        with FAMILIES[name].surroundings(layer):
            return self._facts(layer, name, relation)

    def _facts(self, layer: nn.Module, name: str, relation: str) -> Any:
        family = FAMILIES[name]
        try:
            small, facts = self._discovered(layer, family, narrow=True)
        except Exception:  # where its own code needs its own width
            small, facts = self._discovered(layer, family, narrow=False)
        if self.verify or relation:
            structure = (name, fingerprint(small, facts, family.state(facts)))
            if structure not in self.proved:
                self.proved[structure] = _problem(small, name, facts)
            problem = self.proved[structure]
            expect(not problem, f"{relation}: {problem}" if relation else problem)
        return facts

    def _discovered(
        self, layer: nn.Module, family: Family, *, narrow: bool
    ) -> tuple[nn.Module, Any]:
        small = small_copy(layer, family, narrow=narrow)
        probe = _float(plain_copy(small))
        return small, family.discover(probe, Draw(probe, seed=3))


def _problem(small: nn.Module, name: str, facts: Any) -> str:
    try:
        exact = _float(plain_copy(small))
        exact = exact.double() if FAMILIES[name].ill_conditioned(small) else exact
        _verify(exact, name, facts, _SCALES)
        if Draw(small, 0).dtype in _HALVES:
            _verify(small, name, facts, (1.0,))
    except UnsupportedError as problem:
        return str(problem)
    except Exception as problem:  # whatever a user's layer may raise
        return f"the comparison failed: {one_line(problem)}"
    return ""


def _float(layer: nn.Module) -> nn.Module:
    """The layer in float32 if it is one of halves, in whose rounding the rest would drown."""
    return layer.float() if Draw(layer, 0).dtype in _HALVES else layer


def one_line(problem: Exception) -> str:
    text = f"{type(problem).__name__}: {problem}".strip()
    return text.splitlines()[0]


def _verify(small: nn.Module, name: str, facts: Any, scales: tuple[float, ...]) -> None:
    """Raise UnsupportedError unless both forms agree in all that a user can see.

    Each sequence of calls runs on copies of its own, since a call may leave its trace in the next.
    """
    family, names = FAMILIES[name], list(parameters_of(small))
    for scale, training in itertools.product(scales, (True, False)):
        mode = f"in {'training' if training else 'evaluation'}, at inputs of {scale:g}"
        old, new = plain_copy(small).train(training), plain_copy(small).train(training)
        swap_in(new, name, facts, always=True)
        draw = Draw(small, seed=int(training), scale=scale)
        failure, ran, fused = "", 0, 0
        for call in family.calls(small, facts, draw):
            # Once by name.
            keywords = names[: len(call)] if scale > 1 and len(names) >= len(call) else []
            for layer in (old, new):
                family.prepare(layer, call)
            try:
                expected = _run(old, call, keywords)
            except Exception as problem:  # a call that the published layer does not take
                failure = one_line(problem)
                with contextlib.suppress(Exception):
                    _run(new, call, keywords)  # may leave the same trace
                continue
            fused += fused_arguments(new, call, {}) is not None
            with family.comparison():
                got = _run(new, call, keywords)
            _compare(expected, got, mode, scale)
            ran += 1
        expect(ran > 0, f"the comparison failed: {failure}")
        expect(fused > 0, "the fused form takes none of its calls")
        _compare_attributes(old, new, mode)


def _run(layer: nn.Module, call: tuple[Any, ...], keywords: list[str]) -> dict[str, Any]:
    """Outputs, gradients, and the state afterwards."""
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(leaf(item) for item in value)
        if isinstance(value, dict):
            return {key: leaf(item) for key, item in value.items()}
        if isinstance(value, Tensor) and value.requires_grad:
            leaves.append(value.detach().clone().requires_grad_())
            return leaves[-1]
        return value

    torch.manual_seed(4)  # of what is dropped
    layer.zero_grad()
    arguments = [leaf(argument) for argument in call]
    named = dict(zip(keywords, arguments, strict=False))
    result = layer(**named) if named else layer(*arguments)
    outputs = list(result) if isinstance(result, (list, tuple)) else [result]
    results: dict[str, Any] = {"the kind of the result": type(result)}
    results |= {f"output {i}": value for i, value in enumerate(outputs)}
    tensors = (value for value in outputs if isinstance(value, Tensor))
    differentiable = [value for value in tensors if value.requires_grad]
    generator = torch.Generator(device="cpu").manual_seed(2)
    gradients = [
        torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
        for value in differentiable
    ]
    if differentiable:
        torch.autograd.backward(differentiable, gradients)
    for i, value in enumerate(leaves):
        results[f"gradient of input {i}"] = (
            torch.zeros_like(value) if value.grad is None else value.grad
        )
    for name, parameter in layer.named_parameters():
        if parameter.grad is not None:
            results[f"gradient of {name}"] = parameter.grad.clone()
    results.update({f"buffer {name}": value.clone() for name, value in layer.named_buffers()})
    return results


def _compare(old: dict[str, Any], new: dict[str, Any], mode: str, scale: float) -> None:
    for name in {**old, **new}:  # in order
        expect(name in old and name in new, f"only one of the two has {name}, {mode}")
        a, b = old[name], new[name]
        if not isinstance(a, Tensor):
            expect(a == b, f"{name} differs, {mode}")
            continue
        if name.startswith("gradient") and a.dtype in _HALVES:
            # In float32 they have been compared; here rounding decides at the kink of a ReLU.
            expect(a.shape == b.shape and a.dtype == b.dtype, f"{name} differs in kind, {mode}")
            continue
        if name.startswith("output"):
            floor = 1e-3 * min(scale, 1)
            expect(b.is_contiguous() or not a.is_contiguous(), f"{name} is not contiguous, {mode}")
            expect(_writable(b) or not _writable(a), f"{name} cannot be written to, {mode}")
        else:
            floor = 1e-3 * max(1 / scale, 1) if name.startswith("gradient") else 1e-3
            # A bias in front of a norm has no gradient but the rounding of its terms.
            weight = old.get(f"{name.removesuffix('.bias')}.weight")
            if name.endswith(".bias") and weight is not None:
                floor = max(floor, 0.1 * float(weight.abs().max()))
        compare_tensors(a, b, name, mode, floor)


def compare_tensors(
    a: Tensor, b: Tensor, name: str, mode: str, floor: float = 1e-3, limit: float | None = None
) -> float:
    """The largest difference as a share of the largest value, at least `floor`.

    Raises:
        UnsupportedError: it is more than rounding, or shape or dtype differ.
    """
    expect(a.shape == b.shape, f"{name} differs in shape, {mode}")
    expect(a.dtype == b.dtype, f"{name} differs in dtype, {mode}")
    if a.numel() == 0 or not (has_values(a) and has_values(b)):
        return 0.0
    limit = TOLERANCES.get(a.dtype, 0.0) if limit is None else limit
    a, b = a.detach().double(), b.detach().double()
    error = float((a - b).abs().max()) / max(float(a.abs().max()), floor)
    expect(error <= limit, f"{name} differs by {error:.1e} of its largest, {mode}")
    return error


def _writable(tensor: Tensor) -> bool:
    """Whether each element has a place of its own."""
    return all(
        stride != 0 or size <= 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _compare_attributes(old: nn.Module, new: nn.Module, mode: str) -> None:
    """What neighbours may read, on both layers and on all inside."""
    for (path, a), b in zip(old.named_modules(), new.modules(), strict=True):
        for name in {**vars(a), **vars(b)}:
            if name.startswith("_"):
                continue
            label = f"attribute {path}.{name}".replace(" .", " ")
            expect(hasattr(a, name) and hasattr(b, name), f"only one of the two has {label}")
            x, y = getattr(a, name), getattr(b, name)
            expect(isinstance(x, Tensor) == isinstance(y, Tensor), f"{label} differs in kind")
            if isinstance(x, Tensor):
                compare_tensors(x, y, label, mode)
            elif isinstance(x, (bool, int, float, str, tuple, list, type(None))):
                expect(type(x) is type(y) and x == y, f"{label} is {y!r}, not {x!r}, {mode}")
