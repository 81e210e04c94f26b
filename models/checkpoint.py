"""Checkpoint files: published ones, loaded strictly, and our own.

Our format is one safetensors file: tensors by name, and a JSON text in its header. It is written
under another name, flushed to the disk and renamed, so a file that is there is whole. What a file
is, its first bytes say, not its name.
"""

import argparse
import hashlib
import io
import json
import pickle
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import whole_or_nothing

State = dict[str, Tensor]
FORMAT = "torchext.models"
_TORCH = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # in the first pickle of torch.save
_JITTOR = b"HCAJSLHD"  # behind a pickle and its SHA-1
VERSION = 1


class MisfitError(ValueError):
    """Weights that do not fit a network; the text names the entries."""


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
    with whole_or_nothing(path) as partial:
        save_file(plain, partial, metadata={FORMAT: text})


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
        ValueError: it is cut off, or no checkpoint.
    """
    path = Path(path)
    if _kind(path) != "safetensors":
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return FORMAT in (file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path}: cut off ({error})") from None


# --- published files ------------------------------------------------------------------------------


def load_published(path: Path) -> dict[str, Any]:
    """What a published file holds: torch.save of tensors in dictionaries, or safetensors.

    A plain pickle of NumPy arrays by name will do, too, such as Jittor writes.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is cut off, holds code, or no dictionary.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: cut off ({error})") from None
    try:
        if kind == "pickle":
            content = _unpickled(path.read_bytes())
        else:
            # Of a name, torch.load would go by the suffix.
            with path.open("rb") as file, torch.serialization.safe_globals(_harmless()):
                content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is cut off or no pickle at all can raise anything
        raise ValueError(f"{path}: {_reason(error)}") from None
    if isinstance(content, Tensor) or not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    return dict(content)


def _kind(path: Path) -> str:
    """ "safetensors", "pickle" (without torch.save) or "torch", by a file's first bytes.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a folder, or something that is downloaded in place of a checkpoint.
    """
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
        shown = ", ".join(inside[:4]) + (", ..." if len(inside) > 4 else "")
        raise ValueError(
            f"{path}: expected a checkpoint file, got a folder ({shown or 'nothing in it'})"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no such file")
    with path.open("rb") as file:
        begin = file.read(256)
    text = begin.lstrip().lower()
    if not begin:
        raise ValueError(f"{path}: is empty; download or copy it again")
    if text.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path}: is a pointer of git-lfs, not the file itself; `git lfs pull` fetches it"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ValueError(
            f"{path}: is a web page, not a checkpoint; the link that was downloaded asks for a"
            " log-in or a confirmation, which a browser shows"
        )
    # A length of eight bytes, then JSON.
    is_safetensors = begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") < 1 << 32
    if is_safetensors:
        return "safetensors"
    return "pickle" if begin[:1] == b"\x80" and _TORCH not in begin[:16] else "torch"


class _ArrayUnpickler(pickle.Unpickler):
    """Makes NumPy arrays and plain containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        if (module, name) == ("_codecs", "encode"):
            return _encode
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module == "collections" and name == "OrderedDict":
            return dict
        multiarray = getattr(np, "_core", None) or np.core
        inside = module.removeprefix("numpy.").removeprefix("_").removeprefix("core.")
        if (inside, name) == ("multiarray", "_reconstruct"):
            return multiarray.multiarray._reconstruct
        if (inside, name) == ("numeric", "_frombuffer"):
            return multiarray.numeric._frombuffer
        raise pickle.UnpicklingError(f"Unsupported class {module}.{name}")


def _unpickled(data: bytes) -> Any:
    """What a pickle of arrays holds, as tensors. A checksum that Jittor leaves behind is checked.

    Raises:
        Exception: the bytes are cut off, changed, or hold something else.
    """
    import numpy as np

    if data.endswith(_JITTOR):
        data, checksum = data[: -20 - len(_JITTOR)], data[-20 - len(_JITTOR) : -len(_JITTOR)]
        if hashlib.sha1(data, usedforsecurity=False).digest() != checksum:
            raise ValueError("its checksum is another")
    content = _ArrayUnpickler(io.BytesIO(data)).load()
    if not isinstance(content, Mapping):
        return content
    return {
        key: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        for key, value in content.items()
    }


def _harmless() -> list[Any]:
    """Classes that hold numbers and settings, which training scripts store beside the weights."""
    import numpy as np

    multiarray = getattr(np, "_core", None) or np.core
    scalar, array = multiarray.multiarray.scalar, multiarray.multiarray._reconstruct
    kinds = [np.dtype(code) for code in "?bBhHiIlLqQefd"]
    return [
        argparse.Namespace,
        np.dtype,
        np.ndarray,
        *{kind.type for kind in kinds},
        *{type(kind) for kind in kinds},
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        (_encode, "_codecs.encode"),
    ]


def _encode(text: str, encoding: str) -> bytes:
    """How pickle writes the bytes of a NumPy number."""
    return text.encode(encoding)


def _reason(error: Exception) -> str:
    text = str(error)
    if found := re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", text):
        return (
            f"holds an object of the class {found[1]}, whose loading runs code. Where that class is"
            " at home, save the network's state_dict() alone"
        )
    if "TorchScript" in text:
        return (
            "is a TorchScript archive, a program. Save the state_dict() of `torch.jit.load` of it"
        )
    first = re.split(r"\n|\. ", text, maxsplit=1)[0]
    return f"cut off, or no checkpoint of PyTorch ({first or type(error).__name__})"


# Entries that hold what is looked for, averaged weights first: they are what is meant for use.
_WRAPPERS = (
    *(
        "ema",
        "model_ema",
        "ema_model",
        "ema_state_dict",
        "state_dict_ema",
        "params_ema",
        "averaged",
    ),
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights"),
)
_MODULES = ("module", "_orig_mod")  # of DistributedDataParallel, AveragedModel; torch.compile
_HOLDERS = ("model.", "net.", "network.", "ema_model.")  # of Lightning and the like


def weights(content: Mapping[str, Any], networks: Iterable[nn.Module] = ()) -> dict[str, Any]:
    """The weights in what a file holds, by the network's own keys: the one rule for every paper.

    - Wrapping dictionaries (`state_dict`, `model`, `ema`, ...) are opened, averaged weights first.
      Several networks side by side, {"generator": {...}, "discriminator": {...}}, become one
      state_dict with their names in front.
    - Parts `module` and `_orig_mod`, and a `model.` or `net.` before all keys, are taken out.
    - What has no dot in its name and no dimensions is no weight: epochs, scores, `n_averaged`.

    Args:
        content: of a file.
        networks: that the weights are for; a `model.` that their own keys begin with stays.
    """
    own = [key for network in networks for key in network.state_dict()]
    state = _opened(content)
    state = {
        ".".join(part for part in str(key).split(".") if part not in _MODULES): value
        for key, value in state.items()
        if _is_weight(str(key), value)
    }
    for holder in _HOLDERS:
        is_own = any(key.startswith(holder) for key in own)
        if state and not is_own and all(key.startswith(holder) for key in state):
            state = {key[len(holder) :]: value for key, value in state.items()}
    return state


def _is_weight(key: str, value: Any) -> bool:
    return "." in key or (isinstance(value, Tensor) and value.dim() > 0)


def _holds_weights(content: Any) -> bool:
    return isinstance(content, Mapping) and any(
        isinstance(value, Tensor) and _is_weight(str(key), value) for key, value in content.items()
    )


def _opened(content: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in _WRAPPERS:
        if isinstance(content.get(name), Mapping) and (inner := _opened(content[name])):
            return inner
    if _holds_weights(content):
        return content
    return {
        f"{name}.{key}": value
        for name, networks in content.items()
        if _holds_weights(networks)
        for key, value in networks.items()
    }


def part(state: Mapping[str, Tensor], prefix: str) -> State:
    """The entries below a prefix, which is taken off."""
    start = prefix + "."
    return {key[len(start) :]: value for key, value in state.items() if key.startswith(start)}


def by_network(
    content: Mapping[str, Any],
    networks: Mapping[str, nn.Module],
    files: Collection[str],
    entries: Mapping[str, str],
    default: str,
) -> dict[str, dict[str, Any]]:
    """The states in what one file holds, or several files given by the network's name.

    Args:
        content: of a file, or of the files by the names in `files`.
        networks: that they are for.
        files: names of the networks that have a file each.
        entries: for each name a key by which the network in a single file is known.
        default: the network that a single file without any of these keys is taken for.
    """
    if content and content.keys() <= set(files):
        return {name: weights(state, networks.values()) for name, state in content.items()}
    whole = weights(content, networks.values())
    states = {name: part(whole, name) for name in files if part(whole, name)}
    found = next((name for name, entry in entries.items() if entry in whole), default)
    return states or {found: whole}


def load_strictly(network: nn.Module, state: Mapping[str, Any], source: object) -> None:
    """Load a state_dict; every key and shape must fit.

    Batch norms count their batches for nothing that is used here: old files lack the count.

    Args:
        network: to be filled.
        state: by the network's keys.
        source: named in errors.

    Raises:
        MisfitError: keys are missing, unexpected or of another shape; the text names them.
    """
    own = network.state_dict()
    counts = {key: value for key, value in own.items() if key.endswith(".num_batches_tracked")}
    state = {**counts, **state}
    problems = []
    if missing := [key for key in own if key not in state]:
        problems.append(f"lacks {_some(missing)}")
    if unexpected := [key for key in state if key not in own]:
        problems.append(f"holds unexpected {_some(unexpected)}")
    for key in own:
        if key not in state:
            continue
        if not isinstance(state[key], Tensor):
            problems.append(f"{key} is no tensor but {type(state[key]).__name__}")
        elif state[key].shape != own[key].shape:
            expected, got = tuple(own[key].shape), tuple(state[key].shape)
            problems.append(f"{key} has the shape {got}, expected {expected}")
    if not problems:
        network.load_state_dict(state)
        return
    shown = "; ".join(problems[:4]) + ("; ..." if len(problems) > 4 else "")
    raise MisfitError(f"{source}: does not fit {type(network).__name__}: {shown}")


def _some(keys: list[str], count: int = 3) -> str:
    shown = ", ".join(keys[:count])
    return shown if len(keys) <= count else f"{shown} and {len(keys) - count} more"
