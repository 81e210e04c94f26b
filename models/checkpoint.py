"""Checkpoint files: published ones, loaded strictly, and our own.

Our format is one safetensors file: tensors by name, and a JSON text in its header. It is written
under another name, flushed to the disk and renamed, so a file that is there is whole.
"""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
FORMAT = "torchext.models"
VERSION = 1


# --- our format -----------------------------------------------------------------------------------


def save(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a file of our format, at once or not at all.

    Args:
        path: a file there is replaced.
        tensors: on any device.
        header: what JSON can hold.
    """
    from safetensors.torch import save_file

    text = json.dumps({"version": VERSION, **header})
    # safetensors takes neither strided nor shared memory.
    plain = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(plain, unfinished, metadata={FORMAT: text})
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name too
    finally:
        os.close(folder)


def load(path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors and the header of a file of our format.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is cut off, or no file of ours.
    """
    if not is_ours(path):
        raise ValueError(f"{path}: expected a file written by torchext.models, got another")
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[FORMAT])
        if header["version"] > VERSION:
            raise ValueError(
                f"{path}: written by a newer torchext (format {header['version']}, known {VERSION})"
            )
        return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118


def is_ours(path: Path) -> bool:
    """Whether a file is of our format.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a safetensors file that is cut off.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no such file")
    if path.suffix != ".safetensors":
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return FORMAT in (file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path}: cut off, or no safetensors file ({error})") from None


# --- published files ------------------------------------------------------------------------------


def load_published(path: Path) -> dict[str, Any]:
    """What a published file holds: torch.save of tensors in dictionaries, or safetensors.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is cut off, holds code, or no dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: cut off, or no safetensors file ({error})") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ValueError(f"{path}: cut off, or no checkpoint of PyTorch ({reason})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dictionary, got {type(content).__name__}")
    return content


def without_module(state: Mapping[str, Tensor]) -> State:
    """Without the parts "module" that wrappers for several GPUs leave in keys."""
    return {
        ".".join(part for part in key.split(".") if part != "module"): value
        for key, value in state.items()
    }


def part(state: Mapping[str, Tensor], prefix: str) -> State:
    """The entries below a prefix, which is taken off."""
    start = prefix + "."
    return {key[len(start) :]: value for key, value in state.items() if key.startswith(start)}


def load_strictly(network: nn.Module, state: Mapping[str, Any], source: object) -> None:
    """Load a state_dict; every key and shape must fit.

    Args:
        network: to be filled.
        state: by the network's keys.
        source: named in errors.

    Raises:
        ValueError: keys are missing, unexpected or of another shape; the text names them, and the
            paper that the file looks like.
    """
    own = network.state_dict()
    problems = []
    if missing := [key for key in own if key not in state]:
        problems.append(f"lacks {_some(missing)}")
    if unexpected := [key for key in state if key not in own]:
        problems.append(f"holds unexpected {_some(unexpected)}")
    for key in own.keys() & state.keys():
        if not isinstance(state[key], Tensor):
            problems.append(f"{key} is no tensor but {type(state[key]).__name__}")
        elif state[key].shape != own[key].shape:
            expected, got = tuple(own[key].shape), tuple(state[key].shape)
            problems.append(f"{key} has the shape {got}, expected {expected}")
    if not problems:
        network.load_state_dict(state)
        return
    from .papers import looks_like  # it imports the papers, which import this module

    guess = looks_like(state)
    hint = f"; it looks like a checkpoint of {guess}" if guess else ""
    shown = "; ".join(problems[:4]) + ("; ..." if len(problems) > 4 else "")
    raise ValueError(f"{source}: does not fit {type(network).__name__}: {shown}{hint}")


def _some(keys: list[str], count: int = 3) -> str:
    shown = ", ".join(keys[:count])
    return shown if len(keys) <= count else f"{shown} and {len(keys) - count} more"
