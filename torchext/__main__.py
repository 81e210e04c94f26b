"""`python -m torchext`: what is installed, and which backend each op would use and why.

With `--check`, every op is also compared with its reference on this machine. The report always
prints: whatever fails is a line in it, and only a failed check makes the exit status 1.
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
    yield from (f"{key}: {value or 'none'}" for key, value in info.items())


def backends() -> Iterator[str]:
    import torch

    from torchext import backend
    from torchext.ops.schema import SCHEMAS

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
    """Compare every public op with its reference, on every backend that can run here."""
    import torch

    import torchext
    from torchext import backend, reference

    generator = torch.Generator().manual_seed(0)
    cpu = {
        "x": torch.randn(2, 16, 40, 36, generator=generator),
        "mask": (torch.rand(2, 1, 40, 36, generator=generator) > 0.4).to(torch.uint8),
        "weight": torch.randn(2, 16, generator=generator),
        "bias": torch.randn(2, 16, generator=generator),
    }

    def oriented(module: object, grey: torch.Tensor) -> torch.Tensor:
        bank = torchext.gabor_bank(8, 5, dtype=grey.dtype, device=grey.device)
        if module is reference:
            return reference.oriented_filter_max(grey, bank, absolute=True)[0].abs()
        return torchext.oriented_filter_max(grey, bank, "abs")[1]

    shapes = [(1, 2, 7, 7), (1, 1, 7, 7), (1,), (1, 1, 7, 7), (1,)]
    filters = [0.1 * torch.randn(shape, generator=generator) for shape in shapes]
    cases = {
        "region_norm": lambda module, t, f: module.region_norm(
            t["x"], t["mask"], t["weight"], t["bias"]
        ),
        "region_statistics": lambda module, t, f: module.region_statistics(
            t["x"].detach(), t["mask"]
        )[2],
        "oriented_filter_max": lambda module, t, f: oriented(module, t["x"][:, :1]),
        "self_aware_affine": lambda module, t, f: torch.cat(
            module.self_aware_affine(t["x"], *f)[:3], dim=1
        ),
        "self_aware_region_norm": lambda module, t, f: module.self_aware_region_norm(
            t["x"], *f, threshold=0.5
        ),
    }
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        data = {key: value.to(device) for key, value in cpu.items()}
        weights = [value.to(device) for value in filters]
        for name, reason in backend.explain("region_norm", data["x"]).items():
            if reason or name == "reference":
                continue
            for op, case in cases.items():
                results = []
                for module, dtype in ((torchext, torch.float32), (reference, torch.float64)):
                    tensors = {
                        key: value.to(dtype) if value.is_floating_point() else value
                        for key, value in data.items()
                    }
                    tensors["x"] = tensors["x"].clone().requires_grad_()
                    with backend.use(name):
                        y = case(module, tensors, [w.to(dtype) for w in weights])
                    if y.requires_grad:
                        y.square().sum().backward()
                    gradient = tensors["x"].grad
                    results.append((y.detach(), 0 if gradient is None else gradient))
                (y, grad), (expected, expected_grad) = results
                error = max(
                    float((y - expected).abs().max()),
                    float(torch.as_tensor(grad - expected_grad).abs().max()),
                )
                verdict = "ok" if error < 1e-4 else "FAILED"
                yield f"{verdict:6} {op} on {name} ({device}): largest error {error:.1e}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torchext", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare every op with its reference")
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
