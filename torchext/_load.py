"""Finds and loads the native libraries, once, and remembers why one is missing."""

import json
from pathlib import Path
from typing import Any

import torch

from . import schema

_FOLDER = Path(__file__).parent / "lib"


def _recorded(name: str) -> dict[str, str]:
    """What the build wrote down: under "left_out" reasons by part, under "built" versions."""
    try:
        return json.loads((_FOLDER / "build.json").read_text())[name]
    except (OSError, ValueError, KeyError):
        return {}


def _left_out(part: str) -> str:
    """What the build said about a library that it did not make."""
    reason = _recorded("left_out").get(part)
    return f"not built: {reason}" if reason else "not built"


def _load(part: str) -> str:
    """Load lib/libtorchext_PART.so. Returns "" or the reason why there is none."""
    path = _FOLDER / f"libtorchext_{part}.so"
    if not path.exists():
        return _left_out(part)
    if part == "cuda" and torch.version.cuda is None:
        return "the installed torch is a CPU build"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        built = build_info_of_module().get("built_with_torch", "unknown")
        return f"built with torch {built}, cannot be loaded by torch {torch.__version__}: {error}"
    return ""


def build_info_of_module() -> dict[str, Any]:
    """What the compiled module says of its build; where it is missing, what the build recorded."""
    try:
        from . import _C
    except ImportError:
        return _recorded("built")
    return _C.build_info()


schema.define("torchext")  # the libraries implement ops that must exist already
problems = {part: _load(part) for part in ("cpu", "cuda")}


def build_info() -> dict[str, Any]:
    """What this installation holds.

    Returns:
        `libraries` maps "cpu" and "cuda" to "loaded" or to the reason why it is missing; `left_out`
        maps what the build could not make ("cpu", "cuda", "_C", or a SIMD level) to the reason.
        Where the package was compiled, also `built_with_torch`, `cuda_version`,
        `cuda_architectures` ("80;90;120+PTX") and, unless "_C" was left out, `stable_abi` (the
        oldest torch that the libraries run on), `compiler`, `simd_highest` (what this processor
        could use) and `simd` (what is used; the environment variable TORCHEXT_SIMD lowers it).
    """
    libraries = {part: problem or "loaded" for part, problem in problems.items()}
    return {"libraries": libraries, "left_out": _recorded("left_out"), **build_info_of_module()}
