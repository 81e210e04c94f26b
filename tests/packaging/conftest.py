import fcntl
import subprocess
import tarfile
from pathlib import Path

import pytest
from support.environments import ROOT, Environment, clean_variables


@pytest.fixture(scope="session")
def artifacts() -> dict[str, Path]:
    """What `make wheel` makes, which does nothing where it is up to date."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "wheel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other test processes want it too
        subprocess.run(["make", "wheel"], cwd=ROOT, env=clean_variables(), check=True)
    (sdist,) = (ROOT / "dist").glob("*.tar.gz")
    (wheel,) = (ROOT / "dist").glob("*.whl")
    (manylinux,) = (ROOT / "wheelhouse").glob("*.whl")
    return {"sdist": sdist, "wheel": wheel, "manylinux": manylinux}


@pytest.fixture(scope="session")
def unpacked(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist's tree: a source folder that is not the checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(artifacts["sdist"]) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """The project's torch and tools, without the package."""
    return Environment(tmp_path / "venv").link_project()
