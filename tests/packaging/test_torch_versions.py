"""One wheel serves other releases of PyTorch than the one that it was built with."""

import importlib.metadata
import shutil

import pytest
from support.environments import ROOT, Environment

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(2400)]


@pytest.mark.parametrize("requirement", ["torch==2.13.0", "torch"], ids=["2.13.0", "newest"])
def test_op_tests_pass(artifacts, requirement, tmp_path):
    environment = Environment(tmp_path / "venv")
    try:
        environment.install("--only-binary=:all:", requirement)
        if unmet := environment.unmet_requirements("torch"):
            environment.install("--only-binary=:all:", *unmet)
    except RuntimeError as error:
        pytest.skip(f"{requirement} cannot be installed here: {error}")
    environment.link_project()
    version = environment.run("-c", "import torch; print(torch.__version__)").strip()
    if version.split("+")[0] == importlib.metadata.version("torch"):
        pytest.skip(f"the newest torch to be had is the project's own, {version}")
    environment.install(artifacts["manylinux"])
    report = environment.use()
    print(f"built with torch {importlib.metadata.version('torch')}, running with {report['torch']}")
    assert report["libraries"]["cpu"] == "loaded"
    assert report["warnings"] == []

    # The tests without the checkout: an import of the wrong torchext cannot happen.
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("golden", "packaging", "__pycache__")
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    output = environment.run(
        *(
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow and not gpu",
            "-k",
            "float32 or bad_input or opcheck or directly",  # the rest depends on torch less
            "tests/ops",
        ),
        cwd=copy,
        TORCHEXT_TEST_BACKENDS="cpu,reference",
    )
    print(output[-2000:])
