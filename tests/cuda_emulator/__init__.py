"""Builds csrc/cuda/*.cu with g++ into a library whose ops take CPU tensors, and runs them.

`include/` holds a header-only stand-in for the CUDA runtime (see `include/cuda_runtime.h`). The ops
appear as `torch.ops.torchext_emulated.NAME`, under schemas that `torchext.ops` defines.

    import cuda_emulator                     # the tests folder is on the path

    emulator = cuda_emulator.load()          # builds if sources, headers or flags have changed
    with emulator.order("shuffled:7"):       # or "forward", "reverse"
        y = torch.ops.torchext_emulated.region_norm(...)
    with emulator.ledger() as launches:      # global memory traffic
        torch.ops.torchext_emulated.region_norm(...)
    print(launches[0].kernel, launches[0].load.sector_bytes)

Environment:

- `TORCHEXT_EMULATOR_ORDER`: the order in which blocks, and threads of a block, run at first.
- `TORCHEXT_EMULATOR_SANITIZE=1`: `load()` builds with AddressSanitizer and UBSan. An access out of
  bounds, of a tensor or of shared memory, ends the process with a report. The sanitizer must be
  there before Python is, so the tests run sanitized as

      LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" \
      ASAN_OPTIONS=detect_leaks=0 TORCHEXT_EMULATOR_SANITIZE=1 pytest tests/ops

- `TORCHEXT_EMULATOR_RACES=1`: `load()` builds with a check of every access to shared memory, and of
  what several blocks do to the same global memory; `races()` tells what it found.
- `TORCHEXT_EMULATOR_REQUESTS=1`: `load()` builds with a count of the 32-byte sectors that each load
  and store instruction of a warp touches, for the ledger (see `include/emulator/requests.h`).
- `TORCHEXT_EMULATOR_COVERAGE=1`: `load()` builds for gcov; the counts of a run land beside the
  objects in `build/cuda_emulator/objects` (`gcovr --root . build/cuda_emulator`).
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_ROOT = Path(__file__).resolve().parents[2]
_INCLUDE = Path(__file__).resolve().parent / "include"
_BUILD = _ROOT / "build" / "cuda_emulator"
_TORCH = Path(torch.__file__).resolve().parent

_COMPILE = (
    "-x", "c++", "-std=c++17", "-fPIC", "-Wall", "-Wno-unknown-pragmas",
    # two emulated libraries in one process must not share a scheduler
    "-fvisibility=hidden", "-fno-gnu-unique",
    # kernels with equal code keep their own names; vec.cuh reads any type through words
    "-fno-ipa-icf", "-fno-strict-aliasing",
    "-DTORCHEXT_EMULATED", "-DTORCH_TARGET_VERSION=0x020a000000000000",
)  # fmt: skip
_LINK = (f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-lc10", "-Wl,-Bsymbolic")
# not optimised: with these checks g++ takes several times longer for -O1
_SANITIZE = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize=vptr",
             "-fno-sanitize-recover=all")  # fmt: skip
_RACES = ("-fsanitize=thread", "-O1", "-fno-optimize-sibling-calls", "-DEMULATOR_RACES")
# one place in the source stays one place in the code, that all lanes pass
_REQUESTS = ("-O1", "-fno-thread-jumps", "-fno-crossjumping", "-fno-tree-ch", "-DEMULATOR_REQUESTS")


@dataclass(frozen=True)
class Traffic:
    """Global memory loads or stores of one launch."""

    bytes: int  # that threads asked for
    sectors: int  # distinct 32-byte sectors among them
    widest_access: int  # bytes of the widest single access
    # Of a build with requests=True: instructions of warps, the sectors that each touches, summed,
    # and the fewest that the same bytes would fit in.
    requests: int = 0
    request_sectors: int = 0
    ideal_sectors: int = 0

    @property
    def sector_bytes(self) -> int:
        return 32 * self.sectors

    @property
    def request_ratio(self) -> float:
        """Sectors over the ideal: 1 where a warp's bytes lie side by side, up to 8 for floats."""
        return self.request_sectors / max(self.ideal_sectors, 1)


@dataclass(frozen=True)
class Launch:
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int  # dynamic
    load: Traffic
    store: Traffic


SHARED_MEMORY = 227  # KiB for a block, an H100's


class Emulator:
    """A loaded library of emulated ops, and its controls."""

    def __init__(self, path: Path) -> None:
        self.path = path
        torch.ops.load_library(str(path))
        self._controls = ctypes.CDLL(str(path))
        self._controls.emulator_ledger_json.restype = ctypes.c_char_p
        self._order = os.environ.get("TORCHEXT_EMULATOR_ORDER", "forward")

    def set_order(self, name: str) -> None:
        """Run blocks and threads "forward", "reverse", "shuffled" or "shuffled:SEED"."""
        if self._controls.emulator_set_order(name.encode()) != 0:
            raise ValueError(
                f"order must be 'forward', 'reverse', 'shuffled' or 'shuffled:SEED', got {name!r}"
            )
        self._order = name

    def races(self) -> tuple[int, list[str]]:
        """Bytes checked, and the races found, since the last call; of a build with races=True."""
        self._controls.emulator_races.restype = ctypes.c_char_p
        checked, *found = self._controls.emulator_races().decode().splitlines()
        return int(checked), found

    @contextmanager
    def order(self, name: str) -> Iterator[None]:
        before = self._order
        self.set_order(name)
        try:
            yield
        finally:
            self.set_order(before)

    @contextmanager
    def shared_memory(self, kibibytes: int) -> Iterator[None]:
        """A device whose blocks may ask for this much shared memory: 64 (T4), 99, 163 (A100)..."""
        self._controls.emulator_set_shared_memory(ctypes.c_int64(1024 * kibibytes))
        try:
            yield
        finally:
            self._controls.emulator_set_shared_memory(ctypes.c_int64(1024 * SHARED_MEMORY))

    @contextmanager
    def ledger(self) -> Iterator[list[Launch]]:
        """Record the launches inside the block; the list is filled at its end."""
        launches: list[Launch] = []
        self._controls.emulator_ledger_enable(1)
        try:
            yield launches
            for entry in json.loads(self._controls.emulator_ledger_json()):
                entry.update({name: tuple(entry[name]) for name in ("grid", "block")})
                entry.update({name: Traffic(**entry[name]) for name in ("load", "store")})
                launches.append(Launch(**entry))
        finally:
            self._controls.emulator_ledger_enable(0)


def _flag(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


@functools.cache
def _toolchain() -> str:
    """Everything but sources and headers on which a build depends."""
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    return _digest(compiler.stdout, torch.__version__, _TORCH)


def _run(command: Sequence[object]) -> None:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stderr}")


def _compile(source: Path, headers: str, flags: Sequence[str]) -> Path:
    key = _digest(_toolchain(), source, source.read_text(), headers, *_COMPILE, *flags)
    target = _BUILD / "objects" / f"{source.stem}-{key}.o"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        includes = ("-I", _INCLUDE, "-I", _ROOT / "csrc" / "cuda", "-I", _ROOT / "csrc",
                    "-isystem", _TORCH / "include")  # fmt: skip
        partial = target.with_suffix(".partial.o")
        _run(("g++", *_COMPILE, *flags, *includes, "-c", source, "-o", partial))
        partial.replace(target)
    return target


def build(
    sources: Sequence[Path] | None = None,
    *,
    sanitize: bool = False,
    coverage: bool = False,
    races: bool = False,
    requests: bool = False,
    flags: Sequence[str] = (),
) -> Path:
    """Build `sources` (by default csrc/cuda/*.cu) unless that has been done; return the library."""
    paths = sorted(sources or (_ROOT / "csrc" / "cuda").glob("*.cu"))
    flags = (*flags, *(_SANITIZE if sanitize else ("-O1", "--coverage") if coverage else ("-O2",)))
    # not linked: the hooks are race.h's
    compiled = (*flags, *(_RACES if races else ()), *(_REQUESTS if requests else ()))
    headers = sorted(
        path
        for folder in (_ROOT / "csrc", _ROOT / "csrc" / "cuda", _INCLUDE, _INCLUDE / "emulator")
        for path in folder.iterdir()
        if path.is_file() and path.suffix in (".h", ".cuh", ".inl", "")
    )
    headers_key = _digest(*(path.read_text() for path in headers))
    _BUILD.mkdir(parents=True, exist_ok=True)
    with open(_BUILD / "lock", "w") as lock, ThreadPoolExecutor(os.cpu_count()) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other test processes may build at the same time
        objects = list(pool.map(lambda path: _compile(path, headers_key, compiled), paths))
        library = _BUILD / f"libtorchext_emulated-{_digest(*objects, *_LINK)}.so"
        if not library.exists():
            partial = library.with_suffix(".partial")
            _run(("g++", "-shared", *flags, *objects, *_LINK, "-o", partial))
            partial.replace(library)
    return library


@functools.cache
def load(
    sources: tuple[Path, ...] | None = None,
    *,
    sanitize: bool | None = None,
    coverage: bool | None = None,
    races: bool | None = None,
    requests: bool | None = None,
    flags: tuple[str, ...] = (),
) -> Emulator:
    """Build (see `build`; the environment decides what is left None) and load, once."""
    sanitize = _flag("TORCHEXT_EMULATOR_SANITIZE") if sanitize is None else sanitize
    coverage = _flag("TORCHEXT_EMULATOR_COVERAGE") if coverage is None else coverage
    races = _flag("TORCHEXT_EMULATOR_RACES") if races is None else races
    requests = _flag("TORCHEXT_EMULATOR_REQUESTS") if requests is None else requests
    kind = {"sanitize": sanitize, "coverage": coverage, "races": races, "requests": requests}
    return Emulator(build(sources, **kind, flags=flags))


def load_requests() -> Emulator:
    """A build with requests beside the usual one: its ops are `torch.ops.torchext_requests`'s."""
    from torchext import ops

    ops.install("torchext_requests")
    kinds = dict.fromkeys(("sanitize", "coverage", "races"), False)
    return load(requests=True, flags=("-Dtorchext_emulated=torchext_requests",), **kinds)


def sanitizer_environment() -> dict[str, str]:
    """What the environment of a Python process needs in order to load a sanitized build."""
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    return {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "TORCHEXT_EMULATOR_SANITIZE": "1",
    }
