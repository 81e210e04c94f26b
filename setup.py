"""Builds the native parts: the CPU library, the CUDA library where nvcc is found, and _C.

Metadata is in pyproject.toml. What a missing compiler leaves out is said at the end of the build
and by `torchext.build_info()`; it is never an error, because Triton and the reference need none.

Environment:
    TORCH_CUDA_ARCH_LIST   architectures to compile, as in PyTorch ("8.0;9.0+PTX")
    TORCHEXT_CUDA          0: never build the CUDA library; 1: fail when it cannot be built
    CXX, NVCC              the compilers (default g++ or c++, nvcc); nothing else is tried then
    MAX_JOBS               compilations that run at once
    TORCHEXT_COVERAGE      1: count executed lines of the C++ sources, for gcov
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
DEFAULT_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # runs on every torch from 2.10 on
# GCC 12 takes the deliberately undefined registers of its own AVX headers for uninitialized ones.
WARNINGS = "-Wall -Wextra -Wno-unknown-pragmas -Wno-maybe-uninitialized"
# A kernel file is compiled once per level (csrc/cpu/simd.h); the level is chosen at run time.
SIMD_LEVELS = {"portable": ""}
if platform.machine() in ("x86_64", "AMD64"):
    SIMD_LEVELS["avx2"] = "-mavx2 -mfma -mf16c"
    SIMD_LEVELS["avx512"] = (
        "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512"
    )


def find_cxx() -> str | None:
    if "CXX" in os.environ:
        return shutil.which(os.environ["CXX"])
    return shutil.which("g++") or shutil.which("c++")


def find_nvcc() -> str | None:
    if "NVCC" in os.environ:
        return shutil.which(os.environ["NVCC"])
    if path := shutil.which("nvcc"):
        return path
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if home and (path := shutil.which("nvcc", path=str(Path(home) / "bin"))):
            return path
    return None


def nvcc_version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\d+\.\d+)", text).group(1)


def cuda_architectures(nvcc: str) -> list[str]:
    """The wanted architectures that this nvcc knows, as in "90" or "120+PTX"."""
    text = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = set(re.findall(r"compute_(\d+[a-z]?)", text.stdout))
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
    names = [item.replace(".", "") for item in re.split(r"[;, ]+", wanted.strip()) if item]
    return [name for name in names if name.removesuffix("+PTX") in known]


def architecture_flags(architectures: list[str]) -> str:
    flags = []
    for name in architectures:
        number = name.removesuffix("+PTX")
        flags.append(f"-gencode arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode arch=compute_{number},code=compute_{number}")
    return " ".join(flags)


class NinjaFile:
    """Collects build statements; compiler paths and include folders stand in one place."""

    def __init__(self, cxx: str, build: Path) -> None:
        import pybind11
        import torch
        from torch.utils import cpp_extension

        self.build = build
        self.torch_library_folder = Path(torch.__file__).parent / "lib"
        includes = [f"-isystem {path}" for path in cpp_extension.include_paths()]
        python_include = sysconfig.get_paths()["include"]
        self.python_includes = f"-isystem {python_include} -isystem {pybind11.get_include()}"
        self.host_flags = f"-std=c++17 -O2 -fPIC -fvisibility=hidden {WARNINGS} {STABLE_ABI}"
        self.includes = " ".join(includes)
        self.coverage = "--coverage" if os.environ.get("TORCHEXT_COVERAGE") == "1" else ""
        self.lines = [
            "ninja_required_version = 1.3",
            "rule cxx",
            f"  command = {cxx} -MMD -MF $out.d {self.coverage} $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {cxx} -shared {self.coverage} $in -o $out $flags",
        ]

    def objects(self, rule: str, source: Path, name: str, flags: str) -> str:
        out = self.build / "objects" / f"{name}.o"
        self.lines += [f"build {out}: {rule} {source}", f"  flags = {flags}"]
        return str(out)

    def link(self, target: Path, objects: list[str], flags: str) -> None:
        self.lines += [f"build {target}: link {' '.join(objects)}", f"  flags = {flags}"]

    def add_nvcc(self, nvcc: str, cxx: str) -> None:
        self.lines += [
            "rule nvcc",
            f"  command = {nvcc} -ccbin {cxx} -MMD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]

    def run(self) -> None:
        from ninja import BIN_DIR

        self.build.mkdir(parents=True, exist_ok=True)
        (self.build / "build.ninja").write_text("\n".join(self.lines) + "\n")
        command = [str(Path(BIN_DIR) / "ninja"), "-C", str(self.build)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        subprocess.run(command, check=True)


class BuildNative(build_ext):
    """One ninja run for everything; the extension list only tells setuptools where it lands."""

    def run(self) -> None:
        # In editable mode setuptools reports the final place of an extension, in the checkout.
        module = Path(self.get_ext_fullpath("torchext._C")).resolve()
        package = ROOT / "torchext" if self.inplace or self.editable_mode else module.parent
        (package / "lib").mkdir(parents=True, exist_ok=True)
        left_out = self.build_native(package / module.name, package / "lib")
        # What the build left out, for `torchext.build_info()`.
        (package / "lib" / "build.json").write_text(json.dumps({"left_out": left_out}, indent=1))
        for part, reason in left_out.items():
            self.warn(f"torchext: {part} was left out: {reason}")

    def build_native(self, module: Path, libraries: Path) -> dict[str, str]:
        """Build what can be built; returns what was left out, and why."""
        cpu_library = libraries / "libtorchext_cpu.so"
        cuda_library = libraries / "libtorchext_cuda.so"
        cxx = find_cxx()
        if cxx is None:
            for stale in (module, cpu_library, cuda_library):
                stale.unlink(missing_ok=True)
            reason = "no C++ compiler was found"
            return {"cpu": reason, "cuda": reason}
        left_out = {}
        ninja = NinjaFile(cxx, ROOT / "build" / f"native-{sys.implementation.cache_tag}")
        self.add_cpu(ninja, cpu_library)
        nvcc, reason = self.usable_nvcc(ninja)
        architectures = cuda_architectures(nvcc) if nvcc else []
        if nvcc:
            self.add_cuda(ninja, nvcc, cxx, architectures, cuda_library)
        else:
            cuda_library.unlink(missing_ok=True)
            left_out["cuda"] = reason
        self.add_module(ninja, module, nvcc, architectures)
        ninja.run()
        return left_out

    def usable_nvcc(self, ninja: NinjaFile) -> tuple[str | None, str]:
        wanted = os.environ.get("TORCHEXT_CUDA", "")
        nvcc = find_nvcc()
        if wanted == "0":
            nvcc, reason = None, "TORCHEXT_CUDA=0"
        elif nvcc is None:
            reason = "nvcc was not found"
        elif not (ninja.torch_library_folder / "libtorch_cuda.so").exists():
            nvcc, reason = None, "the installed torch is a CPU build"
        else:
            reason = ""
        if wanted == "1" and nvcc is None:
            raise RuntimeError(f"TORCHEXT_CUDA=1, but {reason}")
        return nvcc, reason

    def add_cpu(self, ninja: NinjaFile, library: Path) -> None:
        objects = []
        for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
            if source.stem.endswith("_kernels"):
                # No trapping: lets comparisons vectorise; NaN keeps its meaning.
                kernel = "-O3 -fopenmp-simd -fno-math-errno -fno-trapping-math"
                for level, simd in SIMD_LEVELS.items():
                    flags = f"{ninja.host_flags} {kernel} -DTORCHEXT_SIMD={level} {simd}"
                    name = f"cpu/{source.stem}_{level}"
                    objects.append(ninja.objects("cxx", source, name, flags))
            else:
                flags = f"{ninja.host_flags} -O3 {ninja.includes}"
                objects.append(ninja.objects("cxx", source, f"cpu/{source.stem}", flags))
        flags = f"-L{ninja.torch_library_folder} -ltorch_cpu -lm"
        ninja.link(library, objects, flags)

    def add_cuda(
        self, ninja: NinjaFile, nvcc: str, cxx: str, architectures: list[str], library: Path
    ) -> None:
        ninja.add_nvcc(nvcc, cxx)
        includes = ninja.includes.replace("-isystem ", "-isystem=")
        flags = (
            f"-std=c++17 -O3 --expt-relaxed-constexpr -DUSE_CUDA {STABLE_ABI}"
            f" -Xcompiler -fPIC,-fvisibility=hidden --threads 2 {includes}"
            f" {architecture_flags(architectures)}"
        )
        objects = [
            ninja.objects("nvcc", source, f"cuda/{source.stem}", flags)
            for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
        ]
        toolkit = Path(nvcc).resolve().parent.parent
        if not (toolkit / "lib64").exists():  # a wrapper script on the PATH
            toolkit = Path(f"/usr/local/cuda-{nvcc_version(nvcc)}")
        flags = (
            f"-L{ninja.torch_library_folder} -ltorch_cpu -ltorch_cuda"
            f" -L{toolkit}/lib64 -lcudart_static -ldl -lrt -lpthread"
        )
        ninja.link(library, objects, flags)

    def add_module(
        self, ninja: NinjaFile, module: Path, nvcc: str | None, architectures: list[str]
    ) -> None:
        import torch

        defines = {
            "TORCHEXT_TORCH_VERSION": torch.__version__,
            "TORCHEXT_CUDA_VERSION": nvcc_version(nvcc) if nvcc else "",
            "TORCHEXT_CUDA_ARCHITECTURES": ";".join(architectures),
        }
        quoted = " ".join(f"'-D{key}=\"{value}\"'" for key, value in defines.items())
        flags = f"{ninja.host_flags} {ninja.python_includes} {quoted}"
        source = ROOT / "csrc" / "bindings.cpp"
        ninja.link(module, [ninja.objects("cxx", source, "bindings", flags)], "")

    def get_outputs(self) -> list[str]:
        folder = Path(self.get_ext_fullpath("torchext._C")).parent
        outputs = [*folder.glob("_C*.so"), *(folder / "lib").glob("*")]
        return [str(path) for path in outputs]


setup(
    packages=[
        "torchext",
        "torchext.accelerate",
        "torchext.kernels",
        "torchext.models",
        "torchext.models.partial_convolutions",
        "torchext.models.pd_gan",
        "torchext.models.region_normalization",
        "torchext.nn",
        "torchext.ops",
        "torchext.reference",
    ],
    package_dir={"torchext.kernels": "kernels", "torchext.models": "models"},
    package_data={"torchext": ["py.typed"]},
    ext_modules=[Extension("torchext._C", ["csrc/bindings.cpp"], optional=True)],
    cmdclass={"build_ext": BuildNative},
)
