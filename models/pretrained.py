"""Files of others' weights that losses and parsers need, by the names that papers declare."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Weights:
    """A file that is not ours to ship.

    Attributes:
        what: it holds.
        how: to get it, on a machine with a network.
        cached: pattern of the name under which it may lie in PyTorch's cache already.
    """

    what: str
    how: str
    cached: str = ""


def _torchvision(model: str) -> Weights:
    return Weights(
        f"torchvision's {model.upper()}, trained on ImageNet",
        f'save `torchvision.models.{model}(weights="IMAGENET1K_V1").state_dict()`',
        f"{model}-*.pth",
    )


KNOWN = {name: _torchvision(name) for name in ("vgg16", "vgg19")}


def check(given: Mapping[str, Path], needed: Collection[str]) -> None:
    """Raise ValueError for files that are not needed."""
    for name in given:
        if name not in needed:
            expected = f"one of {sorted(needed)}" if needed else "none, as nothing is needed"
            raise ValueError(f"--pretrained: expected {expected}, got {name!r}")


def find(name: str, path: Path | None = None) -> Path:
    """The file of these weights: the one given, or that in PyTorch's cache.

    Raises:
        FileNotFoundError: there is none; the text says what is needed and how to get it.
    """
    weights = KNOWN[name]
    if path is not None:
        if not Path(path).exists():
            raise FileNotFoundError(
                f"{path}: expected {weights.what} ({name}), found no such file; {_advice(name)}"
            )
        return Path(path)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    found = sorted(cache.glob(weights.cached)) if weights.cached else []
    if not found:
        where = f", and no {weights.cached} lies in {cache}" if weights.cached else ""
        raise FileNotFoundError(
            f"{name}: {weights.what}, is needed; none was given{where}; {_advice(name)}"
        )
    return found[-1]


def _advice(name: str) -> str:
    return f"{KNOWN[name].how} on a machine with a network, and give it: --pretrained {name}=FILE"
