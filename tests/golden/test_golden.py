"""Every golden file of a folder, in float64 and float32, on every backend.

`pytest tests/golden --golden-dir DIR`; without the option, the files beside this test. Backends are
cpu and reference, and those of a GPU if there is one; TORCHEXT_TEST_BACKENDS names others.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.backends import running

import torchext
from golden import adapters, recipe, runner


@pytest.fixture(autouse=True)
def _strict_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tolerances rest on the noise of single roundings. TF32 would flip pixels at hard thresholds,
    Winograd's noise is ten times as large; tests of networks compare it with direct convolutions.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with torchext.backend.convolution("direct"):
        yield


@contextlib.contextmanager
def failing_plainly(kind: type[Exception]) -> Iterator[None]:
    """Fail with an error's text alone: it says all there is to know."""
    try:
        yield
    except kind as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def test_golden(golden_file: Path, backend: str, record_property: Callable) -> None:
    record_property("golden", ("unreadable", golden_file.stem, backend))
    with failing_plainly(recipe.IllFormedError):
        golden = recipe.read(golden_file)
    record_property("golden", (golden.paper, golden.name, backend))
    adapter = adapters.find(golden.paper, golden.class_name)
    if adapter is None:
        pytest.skip(f"{golden.paper}: no adapter yet for class {golden.class_name!r}")
    with running(backend) as device, failing_plainly(adapters.MissingOutputError):
        report = runner.check(golden, adapter, device)
    record_property("worst", report.worst)
    record_property("kinks", report.kinks)
    if report.failures:
        lines = "\n".join(f"  {line}" for line in report.failures)
        pytest.fail(f"{golden.name} ({golden.class_name}) on {backend}:\n{lines}", pytrace=False)
