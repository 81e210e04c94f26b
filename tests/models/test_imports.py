"""Imports inside `torchext.models` run one way, and nothing below it knows it."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import torchext
import torchext.models
from torchext.models.papers import NAMES

MODELS = Path(torchext.models.__file__).parent
PACKAGE = Path(torchext.__file__).parent


def modules() -> dict[str, Path]:
    found = {}
    for path in MODELS.rglob("*.py"):
        parts = path.relative_to(MODELS).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(name: str, path: Path, known: set[str]) -> Iterator[str]:
    """Modules of the package that a module imports, also inside functions."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            base += node.module.split(".") if node.module else []
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torchext.models"):
            base = node.module.split(".")[2:]
        else:
            continue
        for alias in node.names:
            inner = ".".join([*base, alias.name])
            target = inner if inner in known else ".".join(base)
            if target != name and target in known:
                yield target


def test_no_circle() -> None:
    found = modules()
    graph = {name: set(imported(name, path, set(found))) for name, path in found.items()}
    # A package's modules are imported under it; importing one runs the package's __init__ first,
    # which is where its own modules come from.
    assert len(graph) > 20
    assert graph["training"] >= {"loop", "recipe", "papers"}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_one_way() -> None:
    found = modules()
    papers = {name.split(".")[0] for name in found if "." in name} - {"blocks", "orientation"}
    assert papers >= set(NAMES)
    for name, path in found.items():
        targets = set(imported(name, path, set(found)))
        if name.split(".")[0] not in papers:  # the ground does not know the papers
            assert not [target for target in targets if target.split(".")[0] in papers], name
        else:  # nor does one paper know another
            others = papers - {name.split(".")[0]}
            assert not [target for target in targets if target.split(".")[0] in others], name
        if "training" in targets | {name}:
            assert name in ("__main__", "training")  # nothing else knows folders of runs


def test_nothing_below_knows_the_models() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path == PACKAGE / "orientation.py":  # the old name of models/orientation
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [f"{getattr(node, 'module', '')}.{alias.name}" for alias in node.names]
                assert not any(re.match(r"(torchext|None)?\.?models\b", name) for name in names), (
                    path
                )
