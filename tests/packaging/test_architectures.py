"""The list of CUDA architectures, as PyTorch users write it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import setuptools

SETUP = Path(__file__).parents[2] / "setup.py"


@pytest.fixture
def setup_file(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("torchext_setup", SETUP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "text, expected",
    [
        ("8.0;9.0+PTX", ["80", "90+PTX"]),
        ("8.0 8.6, 12.0", ["80", "86", "120"]),
        ("9.0a;10.0f;12.0a+PTX", ["90", "100", "120+PTX"]),
        ("Ampere;Hopper", ["80", "86+PTX", "90+PTX"]),
        ("9.0;9.0", ["90"]),
    ],
)
def test_lists(text: str, expected: list[str], setup_file: ModuleType) -> None:
    assert setup_file.wanted_architectures(text) == expected


@pytest.mark.parametrize("text", ["Hoper", "9", "sm_90", "9.0;;x"])
def test_other_words_are_errors(text: str, setup_file: ModuleType) -> None:
    with pytest.raises(ValueError, match="TORCH_CUDA_ARCH_LIST: expected architectures such as"):
        setup_file.wanted_architectures(text)


def test_none_that_nvcc_knows(setup_file: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "99.0;8.0+PTX")
    text = "compute_80\ncompute_90\n"
    monkeypatch.setattr(
        setup_file.subprocess, "run", lambda *_, **__: type("Run", (), {"stdout": text})
    )
    assert setup_file.cuda_architectures("nvcc") == ["80+PTX"]
