"""The papers that are built here, and what each must say of itself."""

import argparse
import dataclasses
import importlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torchext import backend

from . import checkpoint

if typing.TYPE_CHECKING:
    from .data import MaskedImages
    from .training import Recipe

NAMES = ("partial_convolutions", "region_normalization", "pd_gan")

Networks = dict[str, nn.Module]


@dataclass(frozen=True)
class Paper:
    """A paper as the command line, the trainer and the checkpoint files see it.

    Attributes:
        name: of its folder.
        title: of the publication.
        config: a frozen dataclass of every option, with the published values as defaults.
        networks: builds the networks that a configuration trains, by name.
        recipe: losses and optimisers for these networks; see `training.Recipe`.
        dataset: the training images of a folder.
        load_published: networks from what a published file holds, strictly.
        example: inputs of the first network at the paper's size, for `info`.
        edit: the edit of the command line: networks, configuration and the parsed options.
        edit_arguments: adds what `edit` needs to a parser.
        options: what the shapes in a published state_dict tell of its configuration, by option.
        marks: parts of keys that no other paper's published files hold.
        files: patterns of the published files in a folder, by network, where each has its own.
    """

    name: str
    title: str
    config: type
    networks: Callable[[Any], Networks]
    recipe: Callable[..., "Recipe"]
    dataset: Callable[..., "MaskedImages"]
    load_published: Callable[[Mapping[str, Any], Any, object], Networks]
    example: Callable[[Any], dict[str, tuple]]
    edit: Callable[[Networks, Any, argparse.Namespace], None]
    edit_arguments: Callable[[argparse.ArgumentParser], None]
    options: Callable[[Mapping[str, Any]], dict[str, Any]]
    marks: tuple[str, ...]
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def find(name: str) -> Paper:
    """A paper by its name.

    Raises:
        ValueError: an unknown one.
    """
    if name not in NAMES:
        raise ValueError(f"paper: expected one of {NAMES}, got {name!r}")
    return importlib.import_module(f".{name}", __package__).PAPER


def looks_like(keys: Iterable[str]) -> str | None:
    """The paper that a state_dict's keys belong to, if they tell."""
    keys = list(keys)
    for name in NAMES:
        if any(mark in key for mark in find(name).marks for key in keys):
            return name
    return None


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
    config = configure(paper.config, head["config"])
    networks = paper.networks(config)
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
        states = [checkpoint.weights(part) for part in (content.values() if several else [content])]
        guess = looks_like([key for state in states for key in state])
        if guess not in (None, paper.name):
            raise ValueError(f"{error}; it looks like a checkpoint of {guess}") from None
        told = {name: value for state in states for name, value in paper.options(state).items()}
        other = [f"--set {n}={value}" for n, value in told.items() if getattr(config, n) != value]
        if not other:
            raise
        raise ValueError(
            f"{error}; its shapes are those of other options than the given ones: {' '.join(other)}"
        ) from None


def configure(config: type, values: Mapping[str, Any]) -> Any:
    """A configuration from names and values: as JSON gives them, or as text from a command line.

    Raises:
        ValueError: an unknown name, or a value of the wrong kind.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    hints = typing.get_type_hints(config)
    if unknown := [name for name in values if name not in fields]:
        raise ValueError(f"{unknown[0]}: expected one of the options {sorted(fields)}")
    return config(**{name: _convert(name, value, hints[name]) for name, value in values.items()})


def _convert(name: str, value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        for choice in arguments:
            if value == choice or str(choice) == value:
                return choice
        raise ValueError(f"{name}: expected one of {arguments}, got {value!r}")
    if origin in (typing.Union, types.UnionType):  # X | None
        if value is None or value in ("none", "None"):
            return None
        return _convert(name, value, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else list(value)
        return tuple(_convert(name, item, arguments[0]) for item in items)
    if kind is bool and isinstance(value, str):
        if value.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{name}: expected true or false, got {value!r}")
        return value.lower() in ("true", "1")
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected {kind.__name__}, got {value!r}") from None


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
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # There the convolutions inside our ops are PyTorch's own, which the counter knows.
    with torch.no_grad(), backend.use("reference"), counter:
        network(*inputs)
    return counter.get_total_flops()
