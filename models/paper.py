"""What a paper must say of itself, and how its options are read."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from .recipe import Recipe

Networks = dict[str, nn.Module]
Pretrained = Mapping[str, Path]
# A resume may change the schedule, and nothing else.
BINDING = ("network", "loss")


@dataclass(frozen=True)
class Stage:
    """A part of a paper's training that runs by itself.

    Attributes:
        name: what `train --stage` calls it.
        trains: names of the networks that it changes.
        recipe: of (networks, config, pretrained=..., initialise=...): losses and optimisers.
        needs: names of networks of earlier stages that it uses as they are.
        pretrained: names of the files of others' weights that it needs; see `pretrained.KNOWN`.
    """

    name: str
    trains: tuple[str, ...]
    recipe: Callable[..., Recipe]
    needs: tuple[str, ...] = ()
    pretrained: tuple[str, ...] = ()

    @property
    def networks(self) -> tuple[str, ...]:
        return (*self.needs, *self.trains)


@dataclass(frozen=True)
class Paper:
    """A paper as the command line, the trainer and the checkpoint files see it.

    Attributes:
        name: of its folder.
        title: of the publication.
        does: what its edits do, in a few words.
        config: a frozen dataclass of the published values, in up to three parts, dataclasses too:
            `network` (what decides shapes), `loss`, and `schedule` (rates, batch, epochs,
            iterations). The names of all options differ.
        networks: builds networks: all that a configuration has, or those of the names given.
        stages: of the training; the last is the default.
        dataset: of the training's samples: dataset(options, config, stage).
        train_arguments: adds what `dataset` reads of its options to a parser.
        load_published: networks from what a published file holds, strictly.
        example: inputs of networks at the paper's size, for `info`.
        edit: the edit of the command line: networks, configuration and the parsed options.
        edit_arguments: adds what `edit` needs to a parser.
        options: what the shapes in a published state_dict tell of its configuration, by option.
        published: which published files load, in a few words.
        files: patterns of the published files in a folder, by network, where each has its own.
        check_options: raises ValueError for bad values of the paper's own arguments.
    """

    name: str
    title: str
    does: str
    config: type
    networks: Callable[..., Networks]
    stages: tuple[Stage, ...]
    dataset: Callable[[argparse.Namespace, Any, Stage], Dataset]
    train_arguments: Callable[[argparse.ArgumentParser], None]
    load_published: Callable[[Mapping[str, Any], Any, object], Networks]
    example: Callable[[Any], dict[str, tuple]]
    edit: Callable[[Networks, Any, argparse.Namespace], None]
    edit_arguments: Callable[[argparse.ArgumentParser], None]
    options: Callable[[Mapping[str, Any]], dict[str, Any]]
    published: str
    files: Mapping[str, str] = field(default_factory=dict)
    check_options: Callable[[argparse.Namespace], None] = lambda options: None

    def stage(self, name: str | None = None) -> Stage:
        """A stage by its name; the last one without.

        Raises:
            ValueError: there is none of this name.
        """
        if name is None:
            return self.stages[-1]
        for stage in self.stages:
            if stage.name == str(name):
                return stage
        known = ", ".join(f"{stage.name} ({', '.join(stage.trains)})" for stage in self.stages)
        raise ValueError(f"stage: expected one of {known}, got {name!r}")


def chosen(
    builders: Mapping[str, Callable[[], nn.Module]], names: Collection[str] | None
) -> Networks:
    """Build the networks of these names, in the builders' order; all without names."""
    return {name: make() for name, make in builders.items() if names is None or name in names}


# --- options --------------------------------------------------------------------------------------


def _parts(config: type) -> dict[str, type]:
    hints = typing.get_type_hints(config)
    return {part.name: hints[part.name] for part in dataclasses.fields(config)}


def _homes(config: type) -> dict[str, str]:
    """The part that each option stands in."""
    return {
        option.name: name
        for name, part in _parts(config).items()
        for option in dataclasses.fields(part)
    }


def options_of(config: Any, parts: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Names and values of a configuration's options, of these parts alone if given."""
    for part in dataclasses.fields(config):
        if parts is None or part.name in parts:
            values = getattr(config, part.name)
            for option in dataclasses.fields(values):
                yield option.name, getattr(values, option.name)


def configure(config: type, values: Mapping[str, Any]) -> Any:
    """A configuration from names and values: as JSON gives them, or as text from a command line.

    Args:
        config: of a paper.
        values: options by name, or in dictionaries by part.

    Raises:
        ValueError: an unknown name, or a value of the wrong kind.
    """
    parts, homes = _parts(config), _homes(config)
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= value if name in parts and isinstance(value, Mapping) else {name: value}
    if unknown := [name for name in flat if name not in homes]:
        raise ValueError(f"{unknown[0]}: expected one of the options {sorted(homes)}")
    built = {}
    for part, kind in parts.items():
        hints = typing.get_type_hints(kind)
        own = {name: value for name, value in flat.items() if homes[name] == part}
        built[part] = kind(**{n: _convert(n, value, hints[n]) for n, value in own.items()})
    return config(**built)


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
        if isinstance(value, str):  # also as Python shows a tuple of texts
            parts = (part.strip(" '\"") for part in value.strip("()[] ").split(","))
            value = [part for part in parts if part]
        items = list(value)
        return tuple(_convert(name, item, arguments[0]) for item in items)
    if kind is bool and isinstance(value, str):
        if value.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{name}: expected true or false, got {value!r}")
        return value.lower() in ("true", "1")
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected {kind.__name__}, got {value!r}") from None
