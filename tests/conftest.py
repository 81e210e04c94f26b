"""Set-up that must come before any import of torch or triton."""

import os
import sys
from pathlib import Path

import pytest

# Triton kernels run on CPU tensors; read when a kernel is decorated, so before it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")
# `benchmarks` is no part of the installed package.
sys.path.append(str(Path(__file__).parents[1]))


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here, not in golden/, so that a run from the repository's root knows it too.
    parser.addoption(
        "--golden-dir", type=Path, metavar="DIR", help="run the golden files in DIR, not in data/"
    )
