"""The papers that are built here: found by name, loaded from files, looked at from outside."""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchext import backend

from . import checkpoint
from .paper import BINDING, Networks, Paper, Stage, configure, options_of

__all__ = [
    "BINDING",
    "NAMES",
    "Networks",
    "Paper",
    "Stage",
    "add",
    "configure",
    "find",
    "load",
    "names",
    "options_of",
    "save",
]

NAMES = (
    "partial_convolutions",
    "region_normalization",
    "pd_gan",
    "dagan",
    "maskgan",
    "michigan",
    "semantic_photo_manipulation",
    "deepfaceediting",
    "fe_gan",
    "maggan",
)
_added: dict[str, Paper] = {}


def names() -> tuple[str, ...]:
    """Of the papers built here and those added."""
    return (*NAMES, *_added)


def add(paper: Paper) -> None:
    """Add a paper of one's own: commands, trainer and checkpoints then know it by its name.

    Raises:
        ValueError: the name is taken.
    """
    if paper.name in names():
        raise ValueError(f"paper: expected a name other than {names()}, got {paper.name!r}")
    _added[paper.name] = paper


def find(name: str) -> Paper:
    """A paper by its name.

    Raises:
        ValueError: an unknown one.
    """
    if name in _added:
        return _added[name]
    if name not in NAMES:
        raise ValueError(f"paper: expected one of {names()}, got {name!r}")
    return importlib.import_module(f".{name}", __package__).PAPER


@functools.cache
def _keys(name: str) -> tuple[frozenset[str], ...]:
    """Of each network of a paper, as published."""
    paper = find(name)
    with torch.device("meta"):
        networks = paper.networks(paper.config())
    return tuple(frozenset(network.state_dict()) for network in networks.values())


def looks_like(state: Mapping[str, Any]) -> str | None:
    """The paper whose networks' keys most of a file's keys are; None where fewer than half are.

    A network's name in front of its keys counts for nothing. Of papers that share a network the one
    is meant to whose networks the shapes fit, with the fewest options changed.
    """
    # Without a name in front of all keys; with a `model.` that `checkpoint.weights` took off.
    bare = [dict(state), {key.split(".", 1)[-1]: value for key, value in state.items()}]
    bare.append({f"model.{key}": value for key, value in state.items()})
    scores = {
        name: max(len(given.keys() & own) / len(given) for given in bare for own in _with_all(name))
        for name in names()
        if state
    }
    most = max(scores.values(), default=0)
    if most <= 0.5:
        return None
    best = [name for name, score in scores.items() if score == most]
    if len(best) == 1:
        return best[0]
    return max(best, key=lambda name: max(_fit(find(name), given) for given in bare))


def _fit(paper: Paper, state: Mapping[str, Any]) -> tuple[int, int]:
    """How well a state fits a paper under the options that its shapes tell; more is better.

    The number of entries whose shapes are the paper's, and minus that of options to be changed.
    """
    told = paper.options(state)
    published = dict(options_of(paper.config()))
    changed = sum(value != published[name] for name, value in told.items())
    try:
        with torch.device("meta"):
            networks = paper.networks(configure(paper.config, told))
    except ValueError:  # there are no such networks
        return 0, -changed
    own = {(k, v.shape) for network in networks.values() for k, v in network.state_dict().items()}
    return sum((k, getattr(v, "shape", None)) in own for k, v in state.items()), -changed


def _with_all(name: str) -> list[frozenset[str]]:
    """The keys of each network, and of all of them together."""
    return [*_keys(name), frozenset().union(*_keys(name))]


def save(path: Path, paper: Paper, config: Any, networks: Networks) -> None:
    """Write networks in our format."""
    tensors = {
        f"networks.{name}.{key}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    checkpoint.save(path, tensors, header(paper, config))


def header(paper: Paper, config: Any) -> dict[str, Any]:
    return {"paper": paper.name, "config": dataclasses.asdict(config)}


def config_of(paper: Paper, head: Mapping[str, Any]) -> Any:
    """The configuration in a file's header; old files hold the stage among the options."""
    values = {name: value for name, value in head["config"].items() if name != "stage"}
    return configure(paper.config, values)


def load(path: Path, paper: Paper, config: Any = None) -> tuple[Networks, Any]:
    """Networks from a file of our format (a training checkpoint too) or a published one.

    Args:
        path: of the file, or the folder of those of a paper that has one for each network.
        paper: whose networks are wanted.
        config: for a published file, which does not hold one (default: the published values).

    Returns:
        The networks that the file holds, averaged ones where it has them, and their configuration.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is cut off, does not fit, or belongs to another paper; the text names the
            options under which it would fit.
    """
    path = Path(path)
    if path.is_dir() and paper.files:
        config = paper.config() if config is None else config
        found = {name: sorted(path.glob(pattern)) for name, pattern in paper.files.items()}
        content = {n: checkpoint.load_published(files[-1]) for n, files in found.items() if files}
        if not content:
            raise ValueError(f"{path}: expected files such as {[*paper.files.values()]}")
        return _published(paper, content, config, path), config
    if not checkpoint.is_ours(path):
        config = paper.config() if config is None else config
        return _published(paper, checkpoint.load_published(path), config, path), config
    tensors, head = checkpoint.load(path)
    if head["paper"] != paper.name:
        raise ValueError(f"{path}: a checkpoint of {head['paper']}, expected {paper.name}")
    config = config_of(paper, head)
    held = {key.split(".")[1] for key in tensors if key.startswith("networks.")}
    networks = paper.networks(config, held)
    for name, network in networks.items():
        averaged = checkpoint.part(tensors, f"averaged.{name}")
        state = averaged or checkpoint.part(tensors, f"networks.{name}")
        checkpoint.load_strictly(network, state, path)
    return networks, config


def _published(paper: Paper, content: Mapping[str, Any], config: Any, path: Path) -> Networks:
    try:
        return paper.load_published(content, config, path)
    except checkpoint.MisfitError as error:
        several = bool(content) and content.keys() <= paper.files.keys()
        with torch.device("meta"):
            own = paper.networks(config).values()
        parts = content.values() if several else [content]
        states = [checkpoint.weights(part, own) for part in parts]
        guess = looks_like({key: value for state in states for key, value in state.items()})
        if guess not in (None, paper.name):
            raise ValueError(f"{error}; it looks like a checkpoint of {guess}") from None
        told = {name: value for state in states for name, value in paper.options(state).items()}
        given = dict(options_of(config))
        other = [f"--set {n}={value}" for n, value in told.items() if given[n] != value]
        if not other:
            raise
        raise ValueError(
            f"{error}; its shapes are those of other options than the given ones: {' '.join(other)}"
        ) from None


def our_layers(networks: Networks) -> dict[str, int]:
    """How many modules of `torchext.nn` the networks hold, by class."""
    counts: dict[str, int] = {}
    for network in networks.values():
        for module in network.modules():
            for kind in type(module).__mro__:
                if kind.__module__.startswith("torchext.nn") and kind.__name__[0] != "_":
                    counts[kind.__name__] = counts.get(kind.__name__, 0) + 1
                    break
    return counts


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def tensors(inputs: Any) -> list[Tensor]:
    """The tensors in an argument of a network: itself, or those of a list."""
    return [x for given in inputs for x in tensors(given)] if isinstance(inputs, list) else [inputs]


def floating_point_operations(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Of the convolutions and matrix products in one forward, 2 for a multiply and add."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # There the convolutions inside our ops are PyTorch's own, which the counter knows.
    with torch.no_grad(), backend.use("reference"), counter:
        network(*inputs)
    return counter.get_total_flops()
