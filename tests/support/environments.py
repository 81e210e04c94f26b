"""Virtual environments that hold what a test wants, and nothing of the checkout."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT_SITE = Path(sysconfig.get_paths()["purelib"])

# Both forms of one call, and what the installation says of itself; printed as JSON.
USE = """
import importlib.util, json, warnings
import torch, torchext, torchext.kernels, torchext.models

torch.manual_seed(0)
x = torch.randn(2, 5, 7, 9, requires_grad=True)
mask = torch.rand(2, 1, 7, 9) > 0.5
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    chosen = torchext.backend.which("region_norm", x)
    ours, again = torchext.region_norm(x, mask), torchext.nn.RN_B(5)(x, mask)
(gradient,) = torch.autograd.grad((ours * ours.detach().cos()).sum(), x)
with torchext.backend.use("reference"):
    expected = torchext.region_norm(x, mask)
(expected_gradient,) = torch.autograd.grad((expected * expected.detach().cos()).sum(), x)
print(json.dumps({
    "file": torchext.__file__,
    "torch": torch.__version__,
    "chosen": chosen,
    "libraries": torchext.build_info()["libraries"],
    "warnings": [str(warning.message) for warning in caught],
    "error": max((ours - expected).abs().max().item(),
                 (again - expected).abs().max().item(),
                 (gradient - expected_gradient).abs().max().item()),
    "pollution": [name for name in ("kernels", "models", "csrc") if importlib.util.find_spec(name)],
}))
"""


def clean_variables(**extra: str) -> dict[str, str]:
    """The process environment without what steers this test run; compiled objects are shared."""
    ours = ("TORCHEXT_", "TORCH_CUDA_", "TRITON_", "PYTEST_", "COV_", "MAKE", "PYTHONPATH", "NVCC")
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(ours) or key == "TORCHEXT_OBJECTS"
    }
    return {**kept, **extra}


class Environment:
    """A virtual environment without pip; pip installs into it from outside."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        (self.site,) = (folder / "lib").glob("python*/site-packages")
        self.outside = folder / "elsewhere"  # a working directory far from the checkout
        self.outside.mkdir()

    def install(self, *arguments: str | Path, **variables: str) -> None:
        """pip install without dependencies: the linked packages must not be replaced."""
        command = [sys.executable, "-m", "pip", "--python", self.python, "install", "--no-deps"]
        self._check([*command, "--no-compile", "--no-build-isolation", *arguments], **variables)

    def link_project(self) -> "Environment":
        """Link what the project's environment holds and this one lacks, but for the package."""
        present = {_name_of(path) for path in self.site.glob("*.dist-info")}
        for source in PROJECT_SITE.iterdir():
            ours = source.name.startswith(("torchext", "__editable__", "__pycache__"))
            replaced = source.suffix == ".dist-info" and _name_of(source) in present
            if ours or replaced or source.suffix == ".pth":
                continue
            # A folder shared by distributions: link what is in it.
            for path in source.iterdir() if source.name == "nvidia" else [source]:
                target = self.site / path.relative_to(PROJECT_SITE)
                target.parent.mkdir(exist_ok=True)
                if not target.exists():
                    target.symlink_to(path)
        return self

    def unmet_requirements(self, distribution: str) -> list[str]:
        """What an installed distribution requires and the project's environment cannot lend."""
        (found,) = importlib.metadata.distributions(name=distribution, path=[str(self.site)])
        unmet = []
        for requirement in map(Requirement, found.requires or ()):
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            # CUDA's libraries serve every minor version of their major version.
            if requirement.name.startswith("cuda-"):
                continue
            try:
                version = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                version = ""
            if not version or not requirement.specifier.contains(version, prereleases=True):
                unmet.append(f"{requirement.name}{requirement.specifier}")
        return unmet

    def run(self, *arguments: str | Path, cwd: Path | None = None, **variables: str) -> str:
        """Run Python here, outside the checkout; returns what it printed."""
        return self._check([self.python, *arguments], cwd=cwd or self.outside, **variables)

    def use(self) -> dict[str, Any]:
        return json.loads(self.run("-c", USE).splitlines()[-1])

    def _check(self, command: list[Any], cwd: Path | None = None, **variables: str) -> str:
        result = subprocess.run(
            [str(part) for part in command],
            cwd=cwd or self.outside,
            env=clean_variables(**variables),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if result.returncode != 0:
            output = result.stdout[-8000:] + result.stderr[-8000:]
            raise RuntimeError(f"{' '.join(map(str, command[:8]))} failed:\n{output}")
        return result.stdout


def _name_of(dist_info: Path) -> str:
    return re.sub(r"[-_.]+", "-", dist_info.name.split("-")[0]).lower()
