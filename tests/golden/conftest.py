"""A test for each file and backend, and a summary for each paper."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from support.backends import ALL, WANTED, parameters

from golden import recipe

DATA = Path(__file__).parent / "data"
# The emulator and Triton's interpreter take minutes where these take seconds: only when asked for.
BACKENDS = ("cpu", "reference", "cuda", "triton") if WANTED == ALL else WANTED
SLOW = 5_000_000  # parameters


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_file" not in metafunc.fixturenames:
        return
    folder = metafunc.config.getoption("golden_dir") or DATA
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise pytest.UsageError(f"--golden-dir: no golden file (*.npz) in {folder}")
    metafunc.parametrize("golden_file", [_parameter(file) for file in files])
    metafunc.parametrize("backend", parameters(*BACKENDS))


def _parameter(file: Path) -> object:
    """A file as a pytest parameter; one that cannot be read fails in its own test."""
    try:
        slow = recipe.read(file).num_parameters > SLOW
    except recipe.IllFormedError:
        slow = False
    return pytest.param(file, id=file.stem, marks=[pytest.mark.slow] if slow else [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    statuses: dict[str, dict[str, str]] = defaultdict(dict)  # paper, file: its worst status
    worst: dict[tuple[str, str], tuple[float, str]] = {}  # paper, dtype: ratio, where
    kinks = []
    for status in ("skipped", "passed", "failed"):
        for report in terminalreporter.getreports(status):
            properties = dict(getattr(report, "user_properties", ()))  # none: a file not collected
            if "golden" not in properties:
                continue
            paper, file, backend = properties["golden"]
            statuses[paper][file] = status
            for dtype, (ratio, key) in properties.get("worst", {}).items():
                found = (ratio, f"{file} {key} on {backend}")
                worst[paper, dtype] = max(found, worst.get((paper, dtype), (0.0, "")))
            kinks += [f"{file} {key} on {backend}" for key in properties.get("kinks", [])]
    if not statuses:
        return
    terminalreporter.section("golden files")
    for paper, files in sorted(statuses.items()):
        counts = Counter(files.values())
        line = ", ".join(f"{counts[status]} {status}" for status in ("passed", "failed", "skipped"))
        terminalreporter.write_line(f"{paper}: {line}")
        for (of_paper, dtype), (ratio, where) in worst.items():
            if of_paper == paper:
                terminalreporter.write_line(
                    f"    worst in {dtype}: {ratio:.3g} of the tolerance ({where})"
                )
    for kink in kinks:
        terminalreporter.write_line(f"decided in float64, as float32 meets a kink: {kink}")
