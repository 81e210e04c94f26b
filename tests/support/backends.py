"""The backends that every op is tested on, and how a test runs on one."""

import contextlib
import functools
import os
from collections.abc import Iterator

import cuda_emulator
import pytest
import torch

import torchext
from torchext import backend

ALL = ("reference", "cpu", "cuda-emulated", "triton-interpreted", "cuda", "triton")
WANTED = tuple(filter(None, os.environ.get("TORCHEXT_TEST_BACKENDS", "").split(","))) or ALL


@functools.cache
def emulator() -> cuda_emulator.Emulator:
    """Build the CUDA sources for the CPU and register them as a backend."""
    torchext.ops.install("torchext_emulated")
    library = cuda_emulator.load()

    def problem(device: torch.device) -> str:
        return "" if device.type == "cpu" else f"takes CPU tensors, got one on {device.type}"

    backend.register(
        backend.Backend("cuda-emulated", "torchext_emulated", problem, automatic=False)
    )
    return library


def device_of(name: str) -> str:
    return "cuda" if name in ("cuda", "triton") else "cpu"


@contextlib.contextmanager
def running(name: str) -> Iterator[str]:
    """Run everything inside on one backend; gives the device that its tensors belong on."""
    if name == "cuda-emulated":
        emulator()
    forced = "triton" if name == "triton-interpreted" else name
    with backend.use(forced):
        yield device_of(name)


def parameters(*names: str) -> list:
    """pytest parameters for the wanted backends among `names` (all by default).

    The GPU's are there only with a GPU; they carry the mark `gpu`.
    """
    return [
        pytest.param(name, marks=[pytest.mark.gpu] if device_of(name) == "cuda" else [])
        for name in names or ALL
        if name in WANTED and (device_of(name) == "cpu" or torch.cuda.is_available())
    ]
