"""Builds the native parts: the CPU library, the CUDA library where nvcc is found, and _C.

Metadata is in pyproject.toml. What could not be built is said at the end of the build and by
`torchext.build_info()`; it is never an error, because Triton and the reference need no compiler.

Environment:
    TORCH_CUDA_ARCH_LIST   architectures to compile, as in PyTorch ("8.0;9.0+PTX", "Hopper")
    TORCHEXT_CUDA          0: never build the CUDA library; 1: fail when it cannot be built
    TORCHEXT_STRICT        1: fail when a compiler is there and any part cannot be built
    CXX, NVCC              the compilers (default g++ or c++, nvcc); nothing else is tried then. CXX
                           may be a command with words in front, as in "ccache g++"
    MAX_JOBS               compilations that run at once
    TORCHEXT_COVERAGE      1: count executed lines of the C++ sources, for gcov
    TORCHEXT_OBJECTS       a folder of compiled objects, for checks that build the same sources
                           several times
"""

import functools
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
DEFAULT_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
# PyTorch's names of architectures.
NAMED_ARCHITECTURES = {
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;12.0+PTX",
}
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # runs on every torch from 2.10 on
# GCC 12 takes the deliberately undefined registers of its own AVX headers for uninitialized ones.
WARNINGS = "-Wall -Wextra -Wno-unknown-pragmas -Wno-maybe-uninitialized"
# Of kernels. No trapping: lets comparisons vectorise; NaN keeps its meaning.
OPTIMISATION = "-fopenmp-simd -fno-math-errno -fno-trapping-math"
# A kernel file is compiled once per level (csrc/cpu/simd.h); the level is chosen at run time.
SIMD_LEVELS = {"portable": ""}
if platform.machine() in ("x86_64", "AMD64"):
    SIMD_LEVELS["avx2"] = "-mavx2 -mfma -mf16c"
    SIMD_LEVELS["avx512"] = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c"
WIDE_VECTORS = "-mprefer-vector-width=512"  # of the level avx512


def find_cxx() -> list[str] | None:
    """The words of the compiler's command."""
    if words := shlex.split(os.environ.get("CXX", "")):
        return words if all(map(shutil.which, words)) else None
    found = shutil.which("g++") or shutil.which("c++")
    return [found] if found else None


def accepts(cxx: list[str], flags: str) -> bool:
    """Whether the compiler compiles an empty file with these flags."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.cpp")
        source.write_text("")
        command = [*cxx, *flags.split(), "-c", str(source), "-o", f"{source}.o"]
        return subprocess.run(command, capture_output=True).returncode == 0


def accepted(cxx: list[str], flags: str) -> str:
    """Those of the flags that the compiler takes."""
    if accepts(cxx, flags):
        return flags
    return " ".join(flag for flag in flags.split() if accepts(cxx, flag))


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


def wanted_architectures(text: str) -> list[str]:
    """Architectures as nvcc numbers them, "90" or "120+PTX", of a list as PyTorch takes it.

    "9.0a" and "10.0f" stand for 9.0 and 10.0: nothing here uses what the letters add, and the plain
    code runs on later devices, too.

    Raises:
        ValueError: a word that is no architecture.
    """
    found = []
    for item in re.split(r"[;, ]+", text.strip()):
        for name in NAMED_ARCHITECTURES.get(item, item).split(";"):
            match = re.fullmatch(r"(\d+)\.?(\d)[af]?(\+PTX)?", name)
            if not match:
                raise ValueError(
                    "TORCH_CUDA_ARCH_LIST: expected architectures such as 9.0, 9.0+PTX or Hopper,"
                    f" got {item!r}"
                )
            found.append("".join(part or "" for part in match.groups()))
    return list(dict.fromkeys(found))


def cuda_architectures(nvcc: str) -> list[str]:
    """The wanted architectures that this nvcc knows."""
    text = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = set(re.findall(r"compute_(\d+)", text.stdout))
    wanted = wanted_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES)
    return [name for name in wanted if name.removesuffix("+PTX") in known]


def architecture_flags(architectures: list[str]) -> str:
    flags = []
    for name in architectures:
        number = name.removesuffix("+PTX")
        flags.append(f"-gencode arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode arch=compute_{number},code=compute_{number}")
    return " ".join(flags)


@functools.cache
def version_of(compiler: str) -> str:
    return subprocess.getoutput(f"{compiler} --version")


def in_command(value: object) -> str:
    """A word of a shell command in a ninja file."""
    return shlex.quote(str(value)).replace("$", "$$")


def in_build(path: object) -> str:
    """A path of a build statement."""
    return re.sub(r"([$ :])", r"$\1", str(path))


class BuildError(Exception):
    """A part that could not be built; the text holds the compiler's first error."""


class NinjaFile:
    """Collects build statements; compiler paths and include folders stand in one place."""

    def __init__(self, cxx: list[str], build: Path) -> None:
        import pybind11
        import torch
        from torch.utils import cpp_extension

        self.build = build
        self.cxx = cxx
        self.torch_library_folder = Path(torch.__file__).parent / "lib"
        self.include_folders = cpp_extension.include_paths()
        self.python_folders = [sysconfig.get_paths()["include"], pybind11.get_include()]
        self.python_includes = self.including(self.python_folders)
        self.includes = self.including(self.include_folders)
        warnings = accepted(cxx, WARNINGS)
        hidden = accepted(cxx, "-fvisibility=hidden")
        self.host_flags = f"-std=c++17 -O2 -fPIC {hidden} {warnings} {STABLE_ABI}"
        self.coverage = "--coverage" if os.environ.get("TORCHEXT_COVERAGE") == "1" else ""
        self.store = os.environ.get("TORCHEXT_OBJECTS", "")
        self.to_store: dict[Path, Path] = {}  # objects to compile, and where they are stored then
        self.objects_of: dict[Path, list[Path]] = {}  # what a target is linked of
        self.compilers = {"cxx": shlex.join(cxx)}
        command = " ".join(map(in_command, cxx))
        self.lines = [
            "ninja_required_version = 1.3",
            "rule cxx",
            f"  command = {command} -MMD -MF $out.d {self.coverage} $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule copy",
            "  command = cp $in $out",
            "rule link",
            f"  command = {command} -shared {self.coverage} $in -o $out $flags",
        ]

    @staticmethod
    def including(folders: list[str], option: str = "-isystem ") -> str:
        return " ".join(f"{option}{in_command(folder)}" for folder in folders)

    def objects(self, rule: str, source: Path, name: str, flags: str) -> Path:
        target = self.build / "objects" / f"{name}.o"
        if self.store:
            stored = Path(self.store, f"{source.stem}-{self.key(rule, source, flags)}.o").resolve()
            if stored.exists():
                self.lines += [f"build {in_build(target)}: copy {in_build(stored)}"]
                return target
            self.to_store[target] = stored
        self.lines += [
            f"build {in_build(target)}: {rule} {in_build(source)}",
            f"  flags = {flags}",
        ]
        return target

    def key(self, rule: str, source: Path, flags: str) -> str:
        """Of all that an object depends on, wherever the sources and torch lie."""
        import torch

        for folder in (*self.include_folders, *self.python_folders):
            flags = flags.replace(in_command(folder), "")
        headers = sorted((ROOT / "csrc").rglob("*.*h"))
        texts = (path.read_text() for path in (source, *headers))
        compiler = self.compilers[rule]
        parts = (
            compiler,
            version_of(compiler),
            self.coverage,
            flags,
            torch.__version__,
            sys.version,
        )
        return hashlib.sha256("\0".join((*parts, *texts)).encode()).hexdigest()[:32]

    def store_objects(self, target: Path) -> None:
        """Only of a target that was built: where it was not, objects of an older build may lie."""
        for compiled in self.objects_of[target]:
            if stored := self.to_store.get(compiled):
                stored.parent.mkdir(parents=True, exist_ok=True)
                partial = stored.with_suffix(f".{os.getpid()}")
                shutil.copyfile(compiled, partial)
                partial.replace(stored)

    def link(self, target: Path, objects: list[Path], flags: str) -> None:
        self.objects_of[target] = objects
        names = " ".join(map(in_build, objects))
        self.lines += [f"build {in_build(target)}: link {names}", f"  flags = {flags}"]

    def add_nvcc(self, nvcc: str) -> None:
        # nvcc calls the compiler itself, not what stands in front of it.
        host = in_command(shutil.which(self.cxx[-1]))
        self.compilers["nvcc"] = shlex.quote(nvcc)
        self.lines += [
            "rule nvcc",
            f"  command = {in_command(nvcc)} -ccbin {host} -MMD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]

    def write(self) -> None:
        self.build.mkdir(parents=True, exist_ok=True)
        (self.build / "build.ninja").write_text("\n".join(self.lines) + "\n")

    def run(self, target: Path) -> None:
        """Bring one target up to date.

        Raises:
            BuildError: it cannot be built.
        """
        from ninja import BIN_DIR

        command = [str(Path(BIN_DIR) / "ninja"), "-C", str(self.build)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        command.append(str(target))
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        first_error = ""
        for line in process.stdout:
            sys.stdout.write(line)
            if not first_error and re.search(r"\berror\b", line):
                first_error = line.strip()
        if process.wait() != 0:
            raise BuildError(first_error or f"ninja ended with status {process.returncode}")


class BuildNative(build_ext):
    """One ninja run for everything; the extension list only tells setuptools where it lands."""

    def run(self) -> None:
        # In editable mode setuptools reports the final place of an extension, in the checkout.
        module = Path(self.get_ext_fullpath("torchext._C")).resolve()
        package = ROOT / "torchext" if self.inplace or self.editable_mode else module.parent
        (package / "lib").mkdir(parents=True, exist_ok=True)
        left_out, built = self.build_native(package / module.name, package / "lib")
        # What the build left out and what it holds, for `torchext.build_info()`.
        record = {"left_out": left_out, "built": built}
        (package / "lib" / "build.json").write_text(json.dumps(record, indent=1))
        for part, reason in left_out.items():
            self.warn(f"torchext: {part} was left out: {reason}")

    def build_native(self, module: Path, libraries: Path) -> tuple[dict[str, str], dict[str, str]]:
        """Build what can be built; returns what was left out and why, and the versions used."""
        targets = {
            "cpu": libraries / "libtorchext_cpu.so",
            "cuda": libraries / "libtorchext_cuda.so",
            "_C": module,
        }
        cxx = find_cxx()
        if cxx is None:
            for stale in targets.values():
                stale.unlink(missing_ok=True)
            return dict.fromkeys(targets, "no C++ compiler was found"), {}
        left_out = {}
        ninja = NinjaFile(cxx, ROOT / "build" / f"native-{sys.implementation.cache_tag}")
        levels = self.usable_levels(cxx, left_out)
        self.add_cpu(ninja, targets["cpu"], levels)
        nvcc, architectures, reason = self.usable_nvcc(ninja)
        if nvcc:
            self.add_cuda(ninja, nvcc, architectures, targets["cuda"])
        else:
            targets.pop("cuda").unlink(missing_ok=True)
            left_out["cuda"] = reason
        built = self.add_module(ninja, module, nvcc, architectures, levels)
        ninja.write()
        for part, target in targets.items():
            try:
                ninja.run(target)
                ninja.store_objects(target)
            except BuildError as error:
                required = part == "cuda" and os.environ.get("TORCHEXT_CUDA") == "1"
                if required or os.environ.get("TORCHEXT_STRICT") == "1":
                    raise
                target.unlink(missing_ok=True)
                left_out[part] = f"it does not compile: {error}"
        return left_out, built

    def usable_levels(self, cxx: list[str], left_out: dict[str, str]) -> dict[str, str]:
        """The SIMD levels whose flags the compiler takes, up to the first that it rejects."""
        levels = {}
        for level, flags in SIMD_LEVELS.items():
            if not accepts(cxx, flags):
                left_out[level] = f"the compiler rejects {flags}"
                break
            levels[level] = flags
        if "avx512" in levels:
            levels["avx512"] += " " + accepted(cxx, WIDE_VECTORS)
        return levels

    def usable_nvcc(self, ninja: NinjaFile) -> tuple[str | None, list[str], str]:
        """nvcc and what it is to compile for; or None and why there is none."""
        import torch

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
        architectures = cuda_architectures(nvcc) if nvcc else []
        if nvcc and not architectures:
            reason = f"nvcc {nvcc_version(nvcc)} knows none of the architectures that are asked for"
            nvcc = None
        if wanted == "1" and nvcc is None:
            raise RuntimeError(f"TORCHEXT_CUDA=1, but {reason}")
        if nvcc and nvcc_version(nvcc).split(".")[0] != torch.version.cuda.split(".")[0]:
            print(
                f"torchext: nvcc is of CUDA {nvcc_version(nvcc)}, torch of {torch.version.cuda}: a"
                " driver that is too old for nvcc's will leave the CUDA kernels to Triton"
            )
        return nvcc, architectures, reason

    def add_cpu(self, ninja: NinjaFile, library: Path, levels: dict[str, str]) -> None:
        objects = []
        common = f"{ninja.host_flags} -O3 -DTORCHEXT_SIMD_LEVELS={len(levels) - 1}"
        kernel = f"{common} {accepted(ninja.cxx, OPTIMISATION)}"
        for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
            if source.stem.endswith("_kernels"):
                for level, simd in levels.items():
                    flags = f"{kernel} -DTORCHEXT_SIMD={level} {simd}"
                    name = f"cpu/{source.stem}_{level}"
                    objects.append(ninja.objects("cxx", source, name, flags))
            else:
                flags = f"{common} {ninja.includes}"
                objects.append(ninja.objects("cxx", source, f"cpu/{source.stem}", flags))
        flags = f"-L{in_command(ninja.torch_library_folder)} -ltorch_cpu -lm"
        ninja.link(library, objects, flags)

    def add_cuda(
        self, ninja: NinjaFile, nvcc: str, architectures: list[str], library: Path
    ) -> None:
        ninja.add_nvcc(nvcc)
        includes = ninja.including(ninja.include_folders, "-isystem=")
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
            f"-L{in_command(ninja.torch_library_folder)} -ltorch_cpu -ltorch_cuda"
            f" -L{in_command(toolkit / 'lib64')} -lcudart_static -ldl -lrt -lpthread"
        )
        ninja.link(library, objects, flags)

    def add_module(
        self,
        ninja: NinjaFile,
        module: Path,
        nvcc: str | None,
        architectures: list[str],
        levels: dict[str, str],
    ) -> dict[str, str]:
        """Returns what the module will say, for where it cannot be built."""
        import torch

        built = {
            "built_with_torch": torch.__version__,
            "cuda_version": nvcc_version(nvcc) if nvcc else "",
            "cuda_architectures": ";".join(architectures),
        }
        quoted = " ".join(f"'-DTORCHEXT_{key.upper()}=\"{value}\"'" for key, value in built.items())
        levels_flag = f"-DTORCHEXT_SIMD_LEVELS={len(levels) - 1}"
        flags = f"{ninja.host_flags} {levels_flag} {ninja.python_includes} {quoted}"
        source = ROOT / "csrc" / "bindings.cpp"
        ninja.link(module, [ninja.objects("cxx", source, "bindings", flags)], "")
        return built

    def get_outputs(self) -> list[str]:
        folder = Path(self.get_ext_fullpath("torchext._C")).parent
        outputs = [*folder.glob("_C*.so"), *(folder / "lib").glob("*")]
        return [str(path) for path in outputs]


# Whose folders stand at the top of the checkout, but whose names would pollute site-packages.
FOLDERS = {"torchext.kernels": "kernels", "torchext.models": "models"}


def packages() -> list[str]:
    found = []
    for name, folder in {"torchext": "torchext", **FOLDERS}.items():
        found += [name, *(f"{name}.{inner}" for inner in find_packages(str(ROOT / folder)))]
    return found


setup(
    packages=packages(),
    package_dir=FOLDERS,
    package_data={"torchext": ["py.typed"]},
    ext_modules=[Extension("torchext._C", ["csrc/bindings.cpp"], optional=True)],
    cmdclass={"build_ext": BuildNative},
)
