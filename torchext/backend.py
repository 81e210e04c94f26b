"""Which kernel runs: the one place where a backend is chosen.

A CPU tensor goes to the C++ kernels, a CUDA tensor to the CUDA kernels if they were compiled for
its device, else to Triton; whatever is left goes to the reference in plain PyTorch, with one
warning that says why. `use` or the environment variable TORCHEXT_BACKEND forces one backend;
`which` and `explain` answer without running anything.
"""

import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._C import _functorch as functorch
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from . import _load, reference, schema


@dataclass(frozen=True)
class Backend:
    """A set of kernels.

    Attributes:
        name: what `use` and TORCHEXT_BACKEND call it.
        namespace: where its ops are registered; empty for the reference, which is not.
        problem: why it cannot take a tensor of a device ("" if it can). Chooses, explains and is
            the text of the error when the backend is forced.
        automatic: False for a backend that runs only when it is forced.
    """

    name: str
    namespace: str
    problem: Callable[[torch.device], str]
    automatic: bool = True

    @property
    def ops(self) -> Any:
        """What holds its ops, by name."""
        return getattr(torch.ops, self.namespace) if self.namespace else reference


def _cpu_problem(device: torch.device) -> str:
    if device.type != "cpu":
        return f"takes CPU tensors, got one on {device.type}"
    return _load.problems["cpu"] and f"the CPU library is missing ({_load.problems['cpu']})"


@functools.cache
def _driver_problem() -> str:
    """Whether the driver is too old for the library, which would fail at its first launch."""
    built = _load.build_info().get("cuda_version", "")
    driver = torch._C._cuda_getDriverVersion()  # 12080 for CUDA 12.8
    if built and driver // 1000 < int(built.split(".")[0]):
        return (
            f"was compiled with CUDA {built}, the driver knows {driver // 1000}."
            f"{driver % 1000 // 10} alone: update it, or build with an nvcc of its version"
        )
    return ""


@functools.cache
def _uncovered(index: int) -> str:
    """Why none of the compiled architectures runs on a GPU."""
    names = [item for item in _load.build_info().get("cuda_architectures", "").split(";") if item]
    compiled = [int(name.removesuffix("+PTX")) for name in names]
    portable = [int(name.removesuffix("+PTX")) for name in names if name.endswith("+PTX")]
    major, minor = torch.cuda.get_device_capability(index)
    capability = 10 * major + minor
    # A cubin runs on the later minor versions of its major version, PTX on anything later.
    covered = any(a // 10 == major and a <= capability for a in compiled)
    if covered or any(a <= capability for a in portable):
        return ""
    return f"cuda:{index} has capability {major}.{minor}, compiled were {';'.join(names)}"


def _cuda_problem(device: torch.device) -> str:
    if device.type != "cuda":
        return f"takes CUDA tensors, got one on {device.type}"
    if _load.problems["cuda"]:
        return f"the CUDA library is missing ({_load.problems['cuda']})"
    return _driver_problem() or _uncovered(device.index or 0)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton_problem(device: torch.device) -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cuda" or (device.type == "cpu" and _interpreted()):
        return ""
    return f"takes CUDA tensors (CPU tensors with TRITON_INTERPRET=1), got one on {device.type}"


REFERENCE = Backend("reference", "", lambda _device: "")
_backends = {
    "cpu": Backend("cpu", "torchext", _cpu_problem),
    "cuda": Backend("cuda", "torchext", _cuda_problem),
    "triton": Backend("triton", "torchext_triton", _triton_problem, automatic=not _interpreted()),
    "reference": REFERENCE,
}
_forced: str | None = os.environ.get("TORCHEXT_BACKEND") or None
CONVOLUTIONS = ("auto", "direct", "winograd")
_convolution: str = os.environ.get("TORCHEXT_CONVOLUTION") or "auto"
_check_values = False


@dataclass(frozen=True)
class WindowChoice:
    """Whether a SPADE layer computed its maps once for each distinct window of the label map.

    Attributes:
        layer: the `torchext.nn.SPADE`, whose name is that of the same module in a network.
        shape: (N,C,H,W) of its input.
        counts: distinct 3x3 windows of the map, then distinct windows of these; what was not
            counted is not there.
        gain: time of the convolutions over that of the table and its look-up, both expected;
            None where neither was.
        reason: why it convolved; "" where it took the table.
    """

    layer: torch.nn.Module
    shape: tuple[int, ...]
    counts: tuple[int, ...] = ()
    gain: float | None = None
    reason: str = ""

    @property
    def share(self) -> float | None:
        """Distinct windows for each pixel, of the last level that was counted."""
        pixels = self.shape[0] * self.shape[2] * self.shape[3]
        return self.counts[-1] / pixels if self.counts and pixels else None

    def __str__(self) -> str:
        parts = [f"{self.shape[1]} channels, {self.shape[2]}x{self.shape[3]}"]
        if self.share is not None:
            parts.append(f"{self.share:.1%} of the windows are distinct")
        if self.gain is not None:
            parts.append(f"a gain of {self.gain:.2f} is expected")
        return ", ".join([*parts, f"convolved: {self.reason}" if self.reason else "table"])


_window_choices: list[WindowChoice] | None = None


def has_tiles(ops: Any) -> bool:
    """Whether these are the CPU's ops, which alone hold those of `torchext.schema.CPU_ONLY`."""
    return ops is _backends["cpu"].ops


def sums_in_order(ops: Any, x: torch.Tensor) -> bool:
    """Whether kernels that sum rows want their pixels in order: many threads take one row."""
    return ops is not reference and not (has_tiles(ops) and x.is_cpu)


def names() -> list[str]:
    """The backends, in the order in which they are tried."""
    return list(_backends)


def register(backend: Backend) -> None:
    """Add a backend whose ops are registered (`torchext.ops.install`) in its namespace."""
    _backends[backend.name] = backend


def explain(op: str, x: torch.Tensor) -> dict[str, str]:
    """Why each backend can or cannot run an op on a tensor.

    Args:
        op: an op's name, as in `torchext.schema.SCHEMAS`. All exist in every backend but
            those of `torchext.schema.CPU_ONLY`.
        x: the tensor that the op would be called with.

    Returns:
        Backend name to reason, "" where the backend can run it.
    """
    _check_op(op)
    reasons = {name: backend.problem(x.device) for name, backend in _backends.items()}
    if op in schema.CPU_ONLY:
        reasons |= {name: "has no such op" for name in reasons if name != "cpu"}
    return reasons


def which(op: str, x: torch.Tensor) -> str:
    """The name of the backend that would run an op on a tensor.

    Raises:
        ValueError: no op has this name, or no backend has the forced name.
        NotImplementedError: the forced backend cannot take the tensor.
    """
    _check_op(op)
    return choose(op, x).name


def forward_mode() -> bool:
    """Whether tensors may carry tangents: inside `forward_ad.dual_level` or `torch.func.jvp`."""
    return forward_ad._current_level >= 0


def choose(op: str, x: torch.Tensor) -> Backend:
    """The backend that runs `op` on `x`; forced, or the first that can.

    In forward-mode differentiation it is the reference, whose operations carry tangents.
    """
    if forward_mode():
        return REFERENCE
    device = x.device
    if _forced is not None:
        backend = _backends.get(_forced)
        if backend is None:
            raise ValueError(f"backend: expected one of {list(_backends)}, got {_forced!r}")
        problem = backend.problem(device)
        if problem:
            raise NotImplementedError(f"backend: {_forced!r} was forced, but it {problem}")
        return backend
    for backend in _backends.values():
        if backend.automatic and not backend.problem(device):
            if backend is REFERENCE and not torch.compiler.is_compiling():
                _warn_of_reference(device)
            return backend
    raise AssertionError("the reference takes every tensor")


@functools.cache
def _warn_of_reference(device: torch.device) -> None:
    reasons = "; ".join(
        f"{name}: {backend.problem(device)}"
        for name, backend in _backends.items()
        if backend is not REFERENCE and backend.automatic
    )
    warnings.warn(
        f"torchext runs its slow reference on {device.type} tensors ({reasons})", stacklevel=5
    )


def _check_op(op: str) -> None:
    if op not in schema.SCHEMAS:
        raise ValueError(f"op: expected one of {sorted(schema.SCHEMAS)}, got {op!r}")


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Force a backend for everything inside the `with` block (in every thread).

    Args:
        name: one of `names()`.

    Raises:
        ValueError: no backend has this name.
    """
    global _forced
    if name not in _backends:
        raise ValueError(f"name: expected one of {list(_backends)}, got {name!r}")
    before = _forced
    _forced = name
    try:
        yield
    finally:
        _forced = before


def simd_level() -> str:
    """Of the CPU's kernels: "avx512", "avx2", "portable"; "" where there are none."""
    return _simd_level(os.environ.get("TORCHEXT_SIMD"))


@functools.cache
def _simd_level(_wanted: str | None) -> str:  # which the module reads at every call
    return _load.build_info_of_module().get("simd", "")


def chosen_convolution() -> str:
    """How layers convolve on the CPU: one of `CONVOLUTIONS`.

    Raises:
        ValueError: TORCHEXT_CONVOLUTION is none of them.
    """
    if _convolution not in CONVOLUTIONS:
        raise ValueError(
            f"TORCHEXT_CONVOLUTION: expected one of {list(CONVOLUTIONS)}, got {_convolution!r}"
        )
    return _convolution


@contextlib.contextmanager
def convolution(name: str) -> Iterator[None]:
    """Choose how layers convolve 3x3 kernels on the CPU, inside the `with` block (every thread).

    Args:
        name: "auto" takes Winograd's convolution (`torchext.winograd_conv2d`) where it is expected
            to be faster, "winograd" wherever it can be taken, "direct" never: results are then
            PyTorch's own, bit for bit. The environment variable TORCHEXT_CONVOLUTION does it for
            a whole program.

    Raises:
        ValueError: no convolution has this name.
    """
    global _convolution
    if name not in CONVOLUTIONS:
        raise ValueError(f"name: expected one of {list(CONVOLUTIONS)}, got {name!r}")
    before = _convolution
    _convolution = name
    try:
        yield
    finally:
        _convolution = before


@contextlib.contextmanager
def explain_windows() -> Iterator[list[WindowChoice]]:
    """Collect what SPADE layers choose inside the `with` block (in every thread), call by call.

    Layers inside `torch.compile` and export choose while they are traced, which is not told.
    """
    global _window_choices
    before = _window_choices
    _window_choices = found = []
    try:
        yield found
    finally:
        _window_choices = before


def tell_windows(choice: WindowChoice) -> None:
    """Hand a choice to `explain_windows`."""
    if _window_choices is not None and not traced():
        _window_choices.append(choice)


@contextlib.contextmanager
def check_values() -> Iterator[None]:
    """Check mask values on CUDA tensors too, by asynchronous device asserts.

    On CPU tensors values are always checked in eager mode; under `torch.compile` and export never.
    """
    global _check_values
    before = _check_values
    _check_values = True
    try:
        yield
    finally:
        _check_values = before


def traced() -> bool:
    """Whether a graph is being recorded: values are unknown, and none may be baked in."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if not torch._C._len_torch_dispatch_stack():
        return False
    modes = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in (modes.PROXY, modes.FAKE))


def mapped(x: torch.Tensor) -> bool:
    """Whether `x` stands for the samples of a torch.func.vmap."""
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def readable(x: torch.Tensor) -> bool:
    """Whether Python may look at `x`'s values now, at no more cost than reading them."""
    return (
        x.device.type == "cpu" and not traced() and not isinstance(x, FakeTensor) and not mapped(x)
    )


def checks_values(x: torch.Tensor) -> bool:
    """Whether the values of a mask on `x`'s device are checked now."""
    return readable(x) or (x.device.type != "cpu" and _check_values and not traced())
