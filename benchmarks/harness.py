"""Times and memory of one op's columns, measured side by side.

A row is one case, dtype and direction. Its columns (published, torch.compile of that, ours, and
the floor: a copy of the same bytes) take turns, so that what else happens on the machine meets them
all. A turn begins with an untimed call: no column inherits the cache or the heap of the one before.
"""

import copy
import os
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

DIRECTIONS = ("forward", "forward+backward")
COLUMNS = ("published", "compile", "ours", "floor")
CHECKED_SIZE = 64  # height and width at which columns are compared in float64, at most
NOISY_SPREAD = 0.15  # interquartile range over the median
NOISY_LOAD = 0.15  # processor cores busy with other work while the row was measured


@dataclass(frozen=True)
class Case:
    """One problem size. `op` names the layer, e.g. RN_B; `layout` the memory format of x."""

    op: str
    shape: tuple[int, int, int, int]
    layout: str = "contiguous"

    @property
    def name(self) -> str:
        size = "x".join(map(str, self.shape))
        return size if self.layout == "contiguous" else f"{size} {self.layout}"

    @property
    def small(self) -> "Case":
        """The same problem at a size at which float64 takes no time."""
        N, C, H, W = self.shape
        return replace(self, shape=(N, C, min(H, CHECKED_SIZE), min(W, CHECKED_SIZE)))

    @property
    def memory_format(self) -> torch.memory_format:
        return getattr(torch, f"{self.layout}_format", None) or getattr(torch, self.layout)


@dataclass
class Problem:
    """What `setup` makes of a case: both layers with the same weights, x first among the inputs."""

    published: nn.Module
    ours: nn.Module
    inputs: tuple[Tensor, ...]
    grad: Tensor


class Op(Protocol):
    """A module of this package that holds an op's cases."""

    CASES: list[Case]
    HEADLINE: list[Case]  # of CASES, what is measured unless more is asked for
    SCALING: list[Case]

    def setup(self, case: Case, dtype: torch.dtype, device: str) -> Problem: ...


@dataclass
class Row:
    """One line of the table."""

    case: Case
    dtype: torch.dtype
    device: str
    direction: str
    ms: dict[str, float | None] = field(default_factory=dict)  # by column
    peak_bytes: dict[str, int] = field(default_factory=dict)
    error: float = 0.0  # ours against float64, as a share of the largest value
    compile_failure: str = ""  # what torch.compile of the published form ended with
    called_once: list[str] = field(default_factory=list)  # columns too slow to be repeated
    spread: float = 0.0
    other_load: float = 0.0

    @property
    def label(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.case.op} {self.case.name} {dtype} {self.direction}"

    @property
    def noisy(self) -> bool:
        return self.spread > NOISY_SPREAD or self.other_load > NOISY_LOAD

    def ratio(self, column: str, over: str) -> float | None:
        above, below = self.ms.get(column), self.ms.get(over)
        return None if above is None or below is None else above / below


# --- what is run ----------------------------------------------------------------------------------


def evaluate(
    module: Callable[..., Tensor],
    parameters: Iterable[Tensor],
    inputs: tuple[Tensor, ...],
    grad: Tensor,
    direction: str,
) -> list[Tensor]:
    """One call of a layer: its output, and for "forward+backward" all gradients."""
    if direction == "forward":
        with torch.no_grad():
            return [module(*inputs)]
    y = module(*inputs)
    return [y, *torch.autograd.grad(y, (inputs[0], *parameters), grad)]


def runner(module: Callable[..., Tensor], problem: Problem, direction: str) -> Callable[[], object]:
    """A call of a layer, or of torch.compile of the published one (which owns the parameters)."""
    owner = problem.ours if module is problem.ours else problem.published
    parameters = tuple(owner.parameters())
    inputs = problem.inputs
    if direction != "forward":
        inputs = (inputs[0].detach().requires_grad_(), *inputs[1:])
    return lambda: evaluate(module, parameters, inputs, problem.grad, direction)


def floor(problem: Problem, direction: str) -> Callable[[], object]:
    """Copies of the bytes that any implementation must move, into memory that is already there.

    Forward: read x, write y (2T). Backward, in addition: read x and the gradient, write x's (3T).
    """
    x, grad = problem.inputs[0], problem.grad
    if x.shape != grad.shape:  # of another size than the result, which is what has to be moved
        x = grad
    out = torch.empty_like(x)

    def copies() -> None:
        out.copy_(x)
        if direction != "forward":
            torch.add(x, grad, out=out)

    return copies


# --- agreement ------------------------------------------------------------------------------------

TOLERANCE = {
    # The published form rounds its sums and sizes to the parameters' type, hence the room for the
    # halves; PyTorch's channels-last batch norm of float32 was seen to be off by 2e-4.
    torch.float64: {"ours": 1e-9, "others": 1e-9},
    torch.float32: {"ours": 1e-4, "others": 2e-3},
    torch.bfloat16: {"ours": 2e-2, "others": 1e-1},
    torch.float16: {"ours": 4e-3, "others": 2e-2},
}


class DisagreementError(AssertionError):
    """A column computes something else; its time would mean nothing."""


def check(
    problem: Problem, modules: dict[str, Callable[..., Tensor]], dtype: torch.dtype, direction: str
) -> float:
    """Compare every column with the published layer in float64; returns our error.

    Raises:
        DisagreementError: a column is further away than its dtype explains.
    """
    exact = copy.deepcopy(problem.published).double()
    inputs = tuple(value.double() for value in problem.inputs)
    inputs[0].requires_grad_()
    values = evaluate(exact, exact.parameters(), inputs, problem.grad.double(), direction)
    expected = dict(zip(_names(problem.published), values, strict=False))
    errors = {
        column: _distance(column, module, "float64", expected, problem, dtype, direction)
        for column, module in modules.items()
    }
    return errors["ours"]


def check_compiled(
    problem: Problem, compiled: Callable[..., Tensor], dtype: torch.dtype, direction: str
) -> None:
    """Compare torch.compile of the published layer with the layer itself, at the size measured.

    Raises:
        DisagreementError: they differ by more than rounding.
    """
    values = runner(problem.published, problem, direction)()
    expected = dict(zip(_names(problem.published), values, strict=False))
    _distance("compile", compiled, "the published form", expected, problem, dtype, direction)


def _names(module: nn.Module) -> list[str]:
    return ["y", "x", *dict(module.named_parameters())]


def _distance(
    column: str,
    module: Callable[..., Tensor],
    exact: str,
    expected: dict[str, Tensor],
    problem: Problem,
    dtype: torch.dtype,
    direction: str,
) -> float:
    """Of a column's results from what is expected, as a share of the largest value."""
    owner = problem.ours if column == "ours" else problem.published
    got = dict(zip(_names(owner), runner(module, problem, direction)(), strict=False))
    assert got.keys() == expected.keys()
    by_name = {}
    for name, value in expected.items():
        scale = value.abs().max().clamp(min=1e-12)
        difference = (got[name].to(value.dtype) - value).abs().max()
        by_name[name] = (difference / scale).item()
    worst = max(by_name, key=by_name.__getitem__)
    limit = TOLERANCE[dtype]["ours" if column == "ours" else "others"]
    if not by_name[worst] <= limit:
        raise DisagreementError(
            f"{column}: {worst} differs from {exact} by {by_name[worst]:.1e} of its largest value,"
            f" more than {limit:.0e} ({dtype}, {direction})"
        )
    return by_name[worst]


# --- time and memory ------------------------------------------------------------------------------


class Clock:
    """Milliseconds of single calls on a device."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        if self.cuda:
            # As large as twice any L2 cache: written before each timed call, so that no call finds
            # its input there by chance, and so that launching overlaps with work as in a network.
            self.flush = torch.empty(256 << 20, dtype=torch.uint8, device=device)

    def times(self, call: Callable[[], object], count: int) -> list[float]:
        call()
        return self._cuda_times(call, count) if self.cuda else self._cpu_times(call, count)

    def single(self, call: Callable[[], object]) -> float:
        return (self._cuda_times if self.cuda else self._cpu_times)(call, 1)[0]

    def _cpu_times(self, call: Callable[[], object], count: int) -> list[float]:
        result = []
        for _ in range(count):
            begin = time.perf_counter_ns()
            call()
            result.append((time.perf_counter_ns() - begin) / 1e6)
        return result

    def _cuda_times(self, call: Callable[[], object], count: int) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for begin, end in events:
            self.flush.zero_()
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Most bytes of tensors alive at once during a call, results included, inputs not.

    From the allocator's own records: temporaries inside an op count; what C++ code takes from the
    heap directly does not (for our kernels: tables of a few KiB).
    """
    call()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    alive = peak = 0
    for _, nbytes in sorted(changes, key=lambda change: change[0]):
        alive += nbytes
        peak = max(peak, alive)
    return peak


class OtherLoad:
    """Processor cores kept busy by other processes since it was made (0 where not known)."""

    def __init__(self) -> None:
        self.begin = self._sample()

    @staticmethod
    def _sample() -> tuple[float, float, float]:
        own = os.times()
        try:
            with open("/proc/stat") as file:
                user, nice, system, _, _, irq, softirq, steal, *_ = map(
                    int, file.readline().split()[1:]
                )
            busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError):
            busy = own.user + own.system
        return time.perf_counter(), busy, own.user + own.system

    def cores(self) -> float:
        wall, busy, own = (now - then for now, then in zip(self._sample(), self.begin, strict=True))
        return max(0.0, busy - own) / max(wall, 1e-9)


@dataclass(frozen=True)
class Plan:
    """How long to measure. A row runs rounds until its seconds are spent, and again if noisy.

    Attributes:
        seconds_per_row: of timing; a column whose single call takes half of them is called once.
        min_rounds: also where they take longer, up to three times as long.
        attempts: of a noisy row.
        compile: whether there is a column of torch.compile.
        seconds: for everything. Compiling stops when half of them are spent, rows of ops when 70 %
            are, the rest is the networks'. None: no limit.
    """

    seconds_per_row: float = 3.0
    min_rounds: int = 5
    attempts: int = 2
    compile: bool = True
    seconds: float | None = None

    def allows(self, share: float, spent: float) -> bool:
        """Whether less than a share of the seconds has been spent."""
        return self.seconds is None or spent < share * self.seconds


def measure(calls: dict[str, Callable[[], object]], device: str, plan: Plan, row: Row) -> None:
    """Fill a row's times by rounds over all columns; noisy rows are measured again."""
    clock = Clock(device)
    turn_ms = 1e3 * plan.seconds_per_row / plan.min_rounds / len(calls) / 2
    counts: dict[str, int] = {}
    slow: dict[str, list[float]] = {}
    for name, call in calls.items():
        call()
        first = clock.single(call)
        if first > 500 * plan.seconds_per_row:
            slow[name] = [first, first]
            continue
        call()
        once = min(clock.times(call, 2))
        counts[name] = max(1, min(20, int(turn_ms / once)))
    row.called_once = list(slow)
    best = None
    for _ in range(plan.attempts):
        samples: dict[str, list[float]] = {name: [] for name in counts}
        load = OtherLoad()
        begin, rounds, spent = time.perf_counter(), 0, 0.0
        while spent < plan.seconds_per_row or (
            rounds < plan.min_rounds and spent < 3 * plan.seconds_per_row
        ):
            for name, count in counts.items():
                samples[name] += clock.times(calls[name], count)
            rounds += 1
            spent = time.perf_counter() - begin
        samples |= slow
        spread = max(relative_spread(values) for values in samples.values())
        attempt = (load.cores(), spread, samples)
        if best is None or max(attempt[:2]) < max(best[:2]):
            best = attempt
        row.other_load, row.spread, _ = best
        if not row.noisy:
            break
    row.ms = dict.fromkeys(COLUMNS)
    row.ms.update({name: statistics.median(values) for name, values in best[2].items()})


def relative_spread(values: list[float]) -> float:
    """Interquartile range over the median; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle


def compile_failure(
    modules: dict[str, Callable[..., Tensor]], problem: Problem, direction: str
) -> str:
    """Compile; if the compiler fails, take its column out and say how."""
    if "compile" not in modules:
        return ""
    try:
        runner(modules["compile"], problem, direction)()
    except torch._dynamo.exc.TorchDynamoException as error:
        del modules["compile"]
        return type(error).__name__
    return ""


def measure_case(
    op: Op,
    case: Case,
    dtype: torch.dtype,
    device: str,
    plan: Plan,
    directions: Iterable[str] = DIRECTIONS,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """All rows of a case and dtype: one `setup` feeds speed and memory, a small one agreement."""
    problem, small = op.setup(case, dtype, device), op.setup(case.small, dtype, device)
    modules: dict[str, Callable[..., Tensor]] = {"published": problem.published}
    if plan.compile:
        torch.compiler.reset()
        modules["compile"] = torch.compile(problem.published, dynamic=False)
    modules["ours"] = problem.ours
    rows = []
    for direction in directions:
        row = Row(case, dtype, device, direction)
        progress(f"{row.label}: compiling, checking")
        usable = dict(modules)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice of the compiler to its user
            row.compile_failure = compile_failure(usable, problem, direction)
            if "compile" in usable:
                check_compiled(problem, usable["compile"], dtype, direction)
            both = {"published": small.published, "ours": small.ours}
            row.error = check(small, both, dtype, direction)
        calls = {name: runner(module, problem, direction) for name, module in usable.items()}
        for name in ("published", "ours"):
            row.peak_bytes[name] = peak_bytes(calls[name], device)
        calls["floor"] = getattr(op, "floor", floor)(problem, direction)  # an op may have its own
        progress(f"{row.label}: timing")
        measure(calls, device, plan, row)
        rows.append(row)
    return rows


# --- the machine ----------------------------------------------------------------------------------


def faults_of_fresh_tensor(mebibytes: int = 64) -> int:
    """Page faults per fresh tensor: about 0 when the heap is settled, 256 per MiB when not."""

    def fill() -> None:
        torch.empty(mebibytes << 18).fill_(1.0)

    for _ in range(10):
        fill()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        fill()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def computes_bfloat16(device: str) -> bool:
    """Whether the processor has arithmetic for bfloat16; without it PyTorch's takes minutes."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine(device: str) -> dict[str, object]:
    """What the numbers depend on, without anything that names a person or a host."""
    import torchext

    result: dict[str, object] = {
        "processor": processor_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "torchext": torchext.__version__,
        "simd": torchext.build_info().get("simd", ""),
        "load_average": round(os.getloadavg()[0], 2),
        "page_faults_per_fresh_64_mib": faults_of_fresh_tensor(),
    }
    if device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
        result["cuda"] = torch.version.cuda
    return result
