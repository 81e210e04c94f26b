"""sdist and wheels, installed in clean environments and used far from the checkout."""

import os
import shutil
import tarfile
import zipfile

import pytest
import torch
from support.environments import ROOT

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(1800)]

# One architecture is enough to see that nvcc is found and its library loads, where no compiled
# objects are shared.
SHARED = "TORCHEXT_OBJECTS" in os.environ
ARCHITECTURES = {} if SHARED else {"TORCH_CUDA_ARCH_LIST": "9.0"}
EXPECTS_CUDA = torch.version.cuda is not None and shutil.which("nvcc") is not None


def assert_complete(report: dict, environment) -> None:
    assert report["file"].startswith(str(environment.site))
    assert report["pollution"] == []
    assert report["libraries"]["cpu"] == "loaded"
    if EXPECTS_CUDA:
        assert report["libraries"]["cuda"] == "loaded"
    assert report["chosen"] == "cpu"
    assert report["warnings"] == []
    assert report["error"] < 1e-5


def test_sdist_holds_every_source(artifacts):
    with tarfile.open(artifacts["sdist"]) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {
        str(path.relative_to(ROOT))
        for folder in ("csrc", "kernels", "models", "torchext")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".cpp", ".cu", ".cuh", ".h", ".py", ".typed")
    }
    assert wanted - held == set()
    assert not [name for name in held if name.endswith((".so", ".o"))]


def test_sdist_builds_and_works(unpacked, environment):
    environment.install(unpacked, **ARCHITECTURES)
    assert_complete(environment.use(), environment)


@pytest.mark.parametrize("kind", ["wheel", "manylinux"])
def test_wheel_holds_the_package_alone(artifacts, kind):
    with zipfile.ZipFile(artifacts[kind]) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"torchext"}
    for wanted in ("py.typed", "lib/libtorchext_cpu.so", "kernels/__init__.py", "nn/__init__.py"):
        assert f"torchext/{wanted}" in names
    assert ("torchext/lib/libtorchext_cuda.so" in names) == EXPECTS_CUDA
    assert not [name for name in names if name.endswith((".h", ".cpp", ".cu", ".cuh"))]


@pytest.mark.parametrize("kind", ["wheel", "manylinux"])
def test_wheel_works(artifacts, environment, kind):
    if kind == "manylinux":
        assert "-manylinux_2_" in artifacts[kind].name
    environment.install(artifacts[kind])
    assert_complete(environment.use(), environment)


def test_without_nvcc(unpacked, environment):
    environment.install(unpacked, NVCC="/missing/nvcc")
    report = environment.use()
    assert report["libraries"] == {"cpu": "loaded", "cuda": "not built: nvcc was not found"}
    assert (report["chosen"], report["warnings"]) == ("cpu", [])
    assert report["error"] < 1e-5
    assert "nvcc was not found" in environment.run("-m", "torchext")


def test_without_compiler(unpacked, environment):
    environment.install(unpacked, CXX="/missing/g++")
    report = environment.use()
    missing = "not built: no C++ compiler was found"
    assert report["libraries"] == {"cpu": missing, "cuda": missing}
    assert report["chosen"] == "reference"
    (warning,) = report["warnings"]
    assert "slow reference" in warning
    assert "no C++ compiler was found" in warning
    assert report["error"] < 1e-5
    assert "no C++ compiler was found" in environment.run("-m", "torchext")


# A compiler without Python's headers that knows neither AVX-512 nor one of our options.
LIMITED_COMPILER = """#!/bin/sh
for word in "$@"; do
  case "$word" in
    -mavx512*|-fno-trapping-math) echo "error: unrecognized option $word" >&2; exit 1;;
    *bindings.cpp) echo "fatal error: Python.h: No such file or directory" >&2; exit 1;;
  esac
done
exec g++ "$@"
"""


def test_limited_compiler_and_paths_with_blanks(unpacked, environment, tmp_path):
    tree = tmp_path / "a folder" / "source tree"
    shutil.copytree(unpacked, tree)
    compiler = tmp_path / "a folder" / "limited c++"
    compiler.write_text(LIMITED_COMPILER)
    compiler.chmod(0o755)
    environment.install(tree, NVCC="/missing/nvcc", CXX=f"env '{compiler}'")
    report = environment.use()
    assert report["libraries"] == {"cpu": "loaded", "cuda": "not built: nvcc was not found"}
    assert (report["chosen"], report["warnings"]) == ("cpu", [])
    assert report["error"] < 1e-5
    said = environment.run("-m", "torchext")
    assert "left out of the build: avx512: the compiler rejects -mavx512f" in said
    assert "left out of the build: _C: it does not compile: fatal error: Python.h" in said
    with pytest.raises(RuntimeError, match=r"Python\.h: No such file or directory"):
        environment.install(
            tree, NVCC="/missing/nvcc", CXX=f"env '{compiler}'", TORCHEXT_STRICT="1"
        )


def test_wanted_cuda_that_cannot_be_built(unpacked, environment):
    with pytest.raises(RuntimeError, match="TORCHEXT_CUDA=1, but nvcc was not found"):
        environment.install(unpacked, NVCC="/missing/nvcc", TORCHEXT_CUDA="1")
