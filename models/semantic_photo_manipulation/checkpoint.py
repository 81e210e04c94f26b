"""Published files: one state_dict for each network, of the generator in three formats."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import MisfitError, by_network, load_strictly, weights
from .networks import ENCODED, SIZES, WIDTH, Config, ProgressiveGenerator, networks

# Files in a folder, by network.
FILES = {"generator": "*proggan_*.pth", "encoder": "*_invert_*.pth"}
_ENTRIES = {"encoder": "resnet.conv1.weight"}  # by which the network in a single file is known
_TENSORFLOW = re.compile(r"(?:.*/)?(\d+)x\1/(Dense|Conv|Conv0_up|Conv1)/(weight|bias)$")
_COLOURS = re.compile(r"(?:.*/)?ToRGB_lod(\d+)/(weight|bias)$")


def load_published(
    content: Mapping[str, Any], config: Config, source: object
) -> dict[str, nn.Module]:
    """The networks of one file, or of several given by name.

    Args:
        content: of a file, or of the files by the names in `FILES`.
        config: of the networks.
        source: named in errors.

    Raises:
        ValueError: an entry is missing, unexpected, or of another shape.
    """
    given = FILES if config.network.resolution in ENCODED else ("generator",)
    built = networks(config, given)
    if is_tensorflow(content):
        content = from_tensorflow(content, source)
    found = {}
    for name, state in by_network(content, built, FILES, _ENTRIES, "generator").items():
        if name not in built:
            raise MisfitError(f"{source}: holds an {name}, which needs another option resolution")
        load_strictly(built[name], _present_keys(state) if name == "generator" else state, source)
        found[name] = built[name]
    return found


def load_generator(content: Mapping[str, Any], source: object = "file") -> ProgressiveGenerator:
    """A generator of any sizes, which its entries tell, from what a file holds.

    Raises:
        ValueError: an entry is missing, unexpected, or of another shape.
    """
    tensorflow = is_tensorflow(content)
    state = from_tensorflow(content, source) if tensorflow else weights(content)
    state = _present_keys(state)
    sizes = sizes_of(state)
    if sizes is None:
        raise ValueError(f"{source}: expected the generator's entries layer1.conv.weight, ...")
    generator = ProgressiveGenerator(sizes=sizes)
    load_strictly(generator, state, source)
    return generator


def sizes_of(state: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Channels of the code and of each resolution, by the present keys; None of no generator."""
    found = []
    for i in range(1, 2 * 16, 2):
        weight = state.get(f"layer{i}.conv.weight")
        if not isinstance(weight, Tensor) or weight.dim() != 4:
            break
        found += [weight.shape[1]] if i == 1 else []
        found.append(weight.shape[0])
    return tuple(found) or None


def _present_keys(state: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of older files, features.<i> and output, as they are called now."""
    if not any(key.startswith("features.") for key in state):
        return dict(state)
    renamed, count = {}, 0
    for key, value in state.items():
        if match := re.fullmatch(r"features\.(\d+)\.(.+)", key):
            count = max(count, int(match[1]) + 1)
            key = f"layer{int(match[1]) + 1}.{match[2]}"
        renamed[key] = value
    side = 2 ** (count // 2 + 1)
    start = "output."
    return {
        f"output_{side}x{side}.{key[len(start) :]}" if key.startswith(start) else key: value
        for key, value in renamed.items()
    }


# --- TensorFlow -----------------------------------------------------------------------------------


def is_tensorflow(content: Mapping[str, Any]) -> bool:
    """Whether these are variables of the original TensorFlow networks, by name."""
    return any(_TENSORFLOW.match(str(key)) for key in content)


def from_tensorflow(variables: Mapping[str, Any], source: object = "file") -> dict[str, Tensor]:
    """The generator's state_dict from variables of the original TensorFlow networks.

    Args:
        variables: arrays or tensors by name: `4x4/Dense/weight` (in, 16 * out), `4x4/Conv/weight`
            (k,k,in,out), `8x8/Conv0_up/weight` (k,k,out,in), `8x8/Conv1/weight`, ...,
            `ToRGB_lod0/weight`, each with its `bias`. Other levels of detail are passed over.
        source: named in errors.

    Raises:
        ValueError: a weight of another number of dimensions, or an unknown variable.
    """
    state: dict[str, Tensor] = {}
    side = max(
        (int(match[1]) for key in variables if (match := _TENSORFLOW.match(str(key)))), default=4
    )
    for name, given in variables.items():
        colours, match = _COLOURS.match(str(name)), _TENSORFLOW.match(str(name))
        if str(name).rsplit("/", 1)[-1] == "lod" or (colours and colours[1] != "0"):
            continue  # the state of progressive growing, and its images of lower resolutions
        if not (colours or match):
            raise MisfitError(f"{source}: holds unexpected {name}")
        if colours:
            layer, kind, part = f"output_{side}x{side}", "ToRGB", colours[2]
        else:
            first = 2 * int(np.log2(int(match[1]))) - 3
            kind, part = match[2], match[3]
            layer = f"layer{first + (kind in ('Conv', 'Conv1'))}"
        value = torch.as_tensor(given)
        if value.dim() != (1 if part == "bias" else 2 if kind == "Dense" else 4):
            raise MisfitError(f"{source}: {name} has the shape {tuple(value.shape)}")
        if part == "bias":
            state[f"{layer}.wscale.b"] = value.clone()
            continue
        if kind == "Dense":
            value = value.reshape(len(value), -1, 4, 4).transpose(0, 1).flip(2, 3)
        elif kind == "Conv0_up":
            value = value.permute(2, 3, 0, 1).flip(2, 3)
        else:
            value = value.permute(3, 2, 0, 1)
        state[f"{layer}.conv.weight"] = value.contiguous()
    return state


# --- what shapes tell -----------------------------------------------------------------------------


def options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Resolution and widths, as far as the network in a file has them."""
    told: dict[str, Any] = {}
    if is_tensorflow(state):
        state = from_tensorflow(state)
    state = _present_keys(state)
    sizes = sizes_of(state)
    if sizes is not None and 2 ** len(sizes) in SIZES and "resnet.conv1.weight" not in state:
        told = {"resolution": 2 ** len(sizes), "width": sizes[0]}
    first = state.get("resnet.conv1.weight")
    if isinstance(first, Tensor) and first.dim() == 4:
        told["encoder_width"] = first.shape[0]
        last = state.get("resnet.layer5.conv5.weight")
        if isinstance(last, Tensor) and last.dim() == 4:
            told["width"] = last.shape[0] * WIDTH // SIZES[256][2]
    return told
