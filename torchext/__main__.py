"""`python -m torchext`: what is installed, and which backend each op would use and why.

With `--check`, every public function is also compared with its reference on this machine. The
report always prints: whatever fails is a line in it, and only a failed check makes the exit
status 1.
"""

import argparse
import platform
import sys
import traceback
from collections.abc import Callable, Iterator

Section = Callable[[], Iterator[str]]


def versions() -> Iterator[str]:
    import torch

    import torchext

    yield f"torchext {torchext.__version__}"
    yield f"Python {platform.python_version()}, {platform.platform()}"
    yield f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    yield f"threads: {torch.get_num_threads()}"
    try:
        import triton

        yield f"triton {triton.__version__}"
    except ImportError:
        yield "triton: not installed"


def devices() -> Iterator[str]:
    import torch

    if not torch.cuda.is_available():
        yield "CUDA device: none"
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        major, minor = torch.cuda.get_device_capability(index)
        yield f"cuda:{index}: {name}, capability {major}.{minor}"


def build() -> Iterator[str]:
    import torchext

    info = torchext.build_info()
    for part, state in info.pop("libraries").items():
        yield f"{part} library: {state}"
    for part, reason in info.pop("left_out").items():
        yield f"left out of the build: {part}: {reason}"
    yield from (f"{key}: {value or 'none'}" for key, value in info.items())


def backends() -> Iterator[str]:
    import torch

    from torchext import backend
    from torchext.schema import SCHEMAS

    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for kind in kinds:
        x = torch.empty(0, device=kind)
        chosen: dict[str, list[str]] = {}
        for op in SCHEMAS:
            chosen.setdefault(backend.which(op, x), []).append(op)
        for name, ops in chosen.items():
            yield f"{kind} tensors use {name} for {', '.join(ops)}"
        for name, reason in backend.explain("region_norm", x).items():
            yield f"    {name}: {reason or 'can run'}"


def check() -> Iterator[str]:
    """Compare every public function with its reference, on every backend that can run here."""
    from torchext import self_check

    yield from self_check.run()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torchext", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="compare every function with its reference"
    )
    sections: list[Section] = [versions, devices, build, backends]
    if parser.parse_args().check:
        sections.append(check)
    failed = False
    for section in sections:
        try:
            for line in section():
                print(line, flush=True)
                failed |= line.startswith("FAILED")
        except Exception:  # the report must always print
            print(f"FAILED {section.__name__}:")
            traceback.print_exc(file=sys.stdout)
            failed |= section is check
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
