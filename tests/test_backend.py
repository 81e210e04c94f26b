"""Choosing, forcing and asking for a backend, and the report of `python -m torchext`."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

import torchext
from torchext import __main__ as report
from torchext import backend
from torchext.ops.op import OPS

X = torch.zeros(1, 2, 4, 4)
MASK = torch.ones(1, 1, 4, 4)


def test_which_and_explain() -> None:
    expected = "cpu" if torchext.build_info()["libraries"]["cpu"] == "loaded" else "reference"
    assert backend.which("region_norm", X) == expected
    reasons = backend.explain("region_norm", X)
    assert list(reasons)[:4] == ["cpu", "cuda", "triton", "reference"]
    assert reasons["reference"] == ""
    assert reasons["cuda"] == "takes CUDA tensors, got one on cpu"


def test_use_forces_and_restores() -> None:
    before = backend.which("region_norm", X)
    with backend.use("reference"):
        assert backend.which("region_norm", X) == "reference"
        with backend.use("cuda"), pytest.raises(NotImplementedError) as error:
            torchext.region_norm(X, MASK)
        assert backend.which("region_norm", X) == "reference"
    assert backend.which("region_norm", X) == before
    assert str(error.value) == (
        "backend: 'cuda' was forced, but it takes CUDA tensors, got one on cpu"
    )


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"name: expected one of \['cpu', 'cuda', .*got 'gpu'"):
        backend.use("gpu").__enter__()
    with pytest.raises(ValueError, match=r"op: expected one of .*got 'norm'"):
        backend.which("norm", X)
    with pytest.raises(ValueError, match=r"op: expected one of .*got 'norm'"):
        backend.explain("norm", X)


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_hole_tiles_exist_on_the_cpu_alone() -> None:
    reasons = backend.explain("gather_tiles", X)
    assert reasons["cpu"] == backend.explain("region_norm", X)["cpu"]
    assert all(reason for name, reason in reasons.items() if name != "cpu")


def test_environment_variable() -> None:
    code = "import torch, torchext; print(torchext.backend.which('region_norm', torch.zeros(1)))"
    assert run(code, TORCHEXT_BACKEND="reference").stdout.strip() == "reference"
    wrong = run(code, TORCHEXT_BACKEND="fast")
    assert "backend: expected one of ['cpu', 'cuda', 'triton', 'reference'], got 'fast'" in (
        wrong.stderr
    )


def test_other_devices_take_the_reference_with_one_warning() -> None:
    backend._warn_of_reference.cache_clear()
    x, mask = X.to("meta"), MASK.to("meta")
    with pytest.warns(UserWarning, match="torchext runs its slow reference on meta tensors"):
        y = torchext.region_norm(x, mask)
    assert y.shape == x.shape
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torchext.region_norm(x, mask)


@pytest.mark.parametrize(
    "driver, built, expected",
    [
        (13000, "13.0", ""),
        (13010, "12.4", ""),
        (13000, "13.2", ""),  # minor versions are compatible
        (12080, "13.0", "was compiled with CUDA 13.0, the driver knows 12.8 alone: update it"),
    ],
)
def test_a_driver_older_than_the_library(
    driver: int, built: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    monkeypatch.setattr(backend._load, "build_info", lambda: {"cuda_version": built})
    backend._driver_problem.cache_clear()
    try:
        problem = backend._driver_problem()
    finally:
        backend._driver_problem.cache_clear()
    assert problem.startswith(expected)
    assert bool(problem) == bool(expected)


def test_each_gpu_is_looked_at_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the library does not cover leaves the others theirs."""
    capabilities = [(9, 0), (8, 6), (6, 1), (12, 1)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(
        backend._load, "build_info", lambda: {"cuda_architectures": "80;90;100+PTX"}
    )
    backend._uncovered.cache_clear()
    try:
        problems = [backend._uncovered(index) for index in range(4)]
    finally:
        backend._uncovered.cache_clear()
    assert problems == [
        *("", ""),
        "cuda:2 has capability 6.1, compiled were 80;90;100+PTX",
        "",
    ]


def test_simd_level_falls_back_to_the_highest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHEXT_SIMD", "unheard-of")
    info = torchext.build_info()
    assert info.get("simd") == info.get("simd_highest")


def test_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["torchext", "--check"])
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert report.main() == 0
    text = capsys.readouterr().out
    for word in (torchext.__version__, torch.__version__, "cpu library", "region_norm on cpu"):
        assert word in text
    assert "FAILED" not in text
    assert f"all of {len(OPS)} ops ran on cpu" in text
    for name in torchext.ops.__all__:  # every public function of tensors
        pure = (
            "LabelWindows",
            "explain_convolution",
            "install",
            "gabor_bank",
            "gabor_kernel_bank",
            "difference_of_gaussians",
            "orientation_",
        )
        assert name.startswith(pure) or f"{name} on cpu" in text or f"{name}, " in text, name


def test_report_prints_what_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(sys, "argv", ["torchext"])
    monkeypatch.setattr(backend, "which", broken)
    assert report.main() == 0
    text = capsys.readouterr().out
    assert "FAILED backends" in text
    assert "no such thing" in text
