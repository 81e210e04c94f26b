"""What `import torchext` says when it cannot work. Neither case gets as far as importing torch."""

import shutil
from pathlib import Path

import pytest
from support.environments import ROOT, Environment


@pytest.fixture
def bare(tmp_path: Path) -> Environment:
    """Nothing installed; the checkout's `torchext` alone in the working directory."""
    environment = Environment(tmp_path / "venv")
    shutil.copytree(
        ROOT / "torchext",
        environment.outside / "torchext",
        ignore=shutil.ignore_patterns("*.so", "lib", "__pycache__"),
    )
    return environment


def test_checkout_that_is_not_installed(bare):
    with pytest.raises(
        RuntimeError, match="ImportError: torchext was imported from a source check"
    ):
        bare.run("-c", "import torchext")


def test_unrelated_distribution_of_the_same_name(bare):
    metadata = bare.site / "torchext-0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: torchext\nVersion: 0.1\n")
    with pytest.raises(RuntimeError, match="ImportError: another distribution named 'torchext'"):
        bare.run("-c", "import torchext")
