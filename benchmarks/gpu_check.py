"""On a machine with a GPU: every test that needs one, then the benchmark, into one file.

    python -m benchmarks.gpu_check          (make gpu-check)

Writes results/gpu-check.json whatever fails: the machine, the tests' counts and failures, and the
benchmark's rows. Ends with 0 where all tests passed and the benchmark ran.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import torchext

from . import harness

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 4000  # characters of a failure's text, its end


def tests_of(report: str) -> dict[str, Any]:
    """Counts, and the failed tests' names and texts, of pytest's JUnit XML."""
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0}
    failures = []
    for case in ElementTree.fromstring(report).iter("testcase"):
        found["seconds"] += float(case.get("time", 0))
        bad = [child for kind in ("failure", "error") for child in case.findall(kind)]
        if bad:
            found["failed"] += 1
            text = bad[0].text or bad[0].get("message", "")
            name = f"{case.get('classname')}::{case.get('name')}"
            failures.append({"test": name, "text": text[-LONGEST:]})
        elif case.find("skipped") is not None:
            found["skipped"] += 1
        else:
            found["passed"] += 1
    return {**found, "seconds": round(found["seconds"], 1), "failures": failures}


def run_tests(folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    report = folder / "tests.xml"
    command = ["-m", "pytest", "-m", "gpu", "-q", f"--junitxml={report}", *arguments]
    # Compiled Triton kernels, not the interpreter that the other tests run them in.
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment)
    if not report.exists():
        return {"error": f"pytest ended with {ended.returncode} and wrote no report"}
    return tests_of(report.read_text())


def run_benchmark(folder: Path, arguments: Sequence[str], device: str = "cuda") -> dict[str, Any]:
    output = folder / "bench"
    command = ["-m", "benchmarks", "--device", device, "--output", str(output), *arguments]
    ended = subprocess.run([sys.executable, *command], cwd=ROOT)
    written = output.with_suffix(".json")
    if ended.returncode != 0 or not written.exists():
        return {"error": f"the benchmark ended with {ended.returncode}"}
    return json.loads(written.read_text())


def passed(result: dict[str, Any]) -> bool:
    """Whether tests ran and none failed, and the benchmark ran."""
    tests, benchmark = result["tests"], result["benchmark"]
    ran = tests.get("passed", 0) > 0 and tests["failed"] == 0
    return ran and "error" not in benchmark


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "gpu-check.json")
    parser.add_argument("--quick", action="store_true", help="a few calls per row of the benchmark")
    parser.add_argument("--tests", default="tests", help="file or folder of tests (default: all)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu_check: torch sees no CUDA device", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {
            "machine": harness.machine("cuda"),
            "capability": list(torch.cuda.get_device_capability()),
            "build": torchext.build_info(),
            "tests": run_tests(folder, [options.tests]),
            "benchmark": run_benchmark(folder, ["--quick"] if options.quick else []),
        }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1, default=str) + "\n")
    tests = {key: value for key, value in result["tests"].items() if key != "failures"}
    print(f"tests: {tests}\nwrote {options.output}")
    return 0 if passed(result) else 1


if __name__ == "__main__":
    sys.exit(main())
