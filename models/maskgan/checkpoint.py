"""Published files: one state_dict for each network."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import MisfitError, by_network, load_strictly
from .mask_vae import GRID
from .networks import Config, networks
from .parser import WIDTHS

# Files in a folder, by network.
FILES = {
    "generator": "*_net_G.pth",
    "blender": "*_net_B.pth",
    "discriminator": "*_net_D.pth",
    "parser": "model.pth",
}
# An entry by which the network in a single file is known; the first that is there counts.
_ENTRIES = {
    "generator": "enc_style.model.0.conv.weight",
    "discriminator": "scale0_layer0.0.weight",
    "mask_vae": "fc1.weight",
    "parser": "center.conv1.0.weight",
    "blender": "model.1.weight",
}
_PLACE = re.compile(r"model\.(\d+)\.weight")
# Of a discriminator: with the features of all layers, or of the score alone.
_LAYER = re.compile(r"(?:scale(\d+)_layer(\d+)\.0|layer(\d+)\.(\d+))\.(weight|bias)")


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
    with torch.device("meta"):  # their keys alone: MaskVAE is large
        known = networks(config)
    states = by_network(content, known, FILES, _ENTRIES, "generator")
    found = networks(config, states)
    for name, state in states.items():
        if name == "discriminator":
            layers = config.network.discriminator_layers
            state = discriminator_state(state, config.network.discriminators, layers, source)
        load_strictly(found[name], state, source)
    return found


def discriminator_key(key: str, scales: int, layers: int) -> str | None:
    """Our key of a published one; None of a bias before an instance norm, which takes it away.

    Published files count the scales from the coarsest one on.

    Args:
        key: as it is if it is no published one.
        scales: of the discriminator.
        layers: convolutions of each before the last two.
    """
    found = _LAYER.fullmatch(key)
    if not found:
        return key
    scale, layer, alone, place, kind = found.groups()
    if alone is not None:  # in one sequence: convolutions at 0, 2, 5, 8, ...
        scale, layer = alone, (int(place) + 1) // 3
    layer = int(layer)
    normalised = 0 < layer <= layers
    if normalised and kind == "bias":
        return None
    inner = "0.0" if normalised else "0"
    return f"discriminator_{scales - 1 - int(scale)}.model{layer}.{inner}.{kind}"


def discriminator_state(
    state: Mapping[str, Any], scales: int, layers: int, source: object
) -> dict[str, Any]:
    """A published state_dict by our keys.

    Raises:
        MisfitError: a bias that is left out is not there, or does not fit its weight.
    """
    for key, weight in state.items():
        if not (key.endswith(".weight") and isinstance(weight, Tensor)):
            continue
        bias = f"{key.removesuffix('weight')}bias"
        if discriminator_key(bias, scales, layers) is not None:
            continue
        if not isinstance(state.get(bias), Tensor) or state[bias].shape != weight.shape[:1]:
            raise MisfitError(
                f"{source}: does not fit the discriminator: expected {bias} of the shape"
                f" {tuple(weight.shape[:1])}"
            )
    keys = {key: discriminator_key(key, scales, layers) for key in state}
    return {keys[key]: value for key, value in state.items() if keys[key] is not None}


def options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Widths, depths and classes, as far as the network in a file has them."""
    told: dict[str, Any] = {}
    shapes = {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
    if "model.1.weight" in shapes:
        width, channels = shapes["model.1.weight"][:2]
        places = [int(found[1]) for key in shapes if (found := _PLACE.fullmatch(key))]
        depth = len(places) // 2 - 1
        first = "conv_block.0.conv.weight"
        blocks = sum(key.startswith("model.") and key.endswith(first) for key in shapes)
        if "enc_style.model.0.conv.weight" in shapes:
            told |= {"width": width, "labels": channels, "downsamplings": depth}
            told["residual_blocks"] = blocks
        else:
            told |= {"blender_width": width, "blender_downsamplings": depth}
            told["blender_blocks"] = blocks
            told["blender_weights"] = shapes[f"model.{max(places)}.weight"][0]
    layers = [found for key in shapes if (found := _LAYER.fullmatch(key))]
    if "scale0_layer0.0.weight" in shapes:
        told["discriminator_width"], channels = shapes["scale0_layer0.0.weight"][:2]
        told["labels"] = channels - 3
        told["discriminators"] = 1 + max(int(found[1]) for found in layers)
        told["discriminator_layers"] = max(int(found[2]) for found in layers) - 1
    if "fc1.weight" in shapes and "e1.weight" in shapes:
        told["code"], inner = shapes["fc1.weight"]
        told["vae_width"], told["labels"] = shapes["e1.weight"][:2]
        told["size"] = round((inner / (64 * told["vae_width"])) ** 0.5) * GRID
    if "center.conv1.0.weight" in shapes:
        told["parser_scale"] = WIDTHS[-1] // shapes["center.conv1.0.weight"][0]
        told["labels"] = shapes["final.weight"][0]
    return told
