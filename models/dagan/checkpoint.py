"""Published files: one state_dict for each network."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import MisfitError, by_network, load_strictly
from .networks import DATA_SETS, Config, Network, networks

# Files in a folder, by network.
FILES = {"generator": "*_net_G.pth", "discriminator": "*_net_D.pth", "encoder": "*_net_E.pth"}
# An entry by which the network in a single file is known.
_ENTRIES = {
    "generator": "fc.weight",
    "discriminator": "discriminator_0.model0.0.weight",
    "encoder": "fc_mu.weight",
}


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
    built = networks(config)
    found = {}
    for name, state in by_network(content, built, FILES, _ENTRIES, "generator").items():
        if name not in built:
            raise MisfitError(f"{source}: holds an image encoder, which needs the option vae")
        load_strictly(built[name], with_right_vectors(state), source)
        found[name] = built[name]
    return found


def with_right_vectors(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state_dict in which each spectrally normalised weight has its weight_v.

    Files from before PyTorch 1.0 lack it; some hold the normalised weight instead, by which the
    spectral norm that they were used with is met.
    """
    whole = dict(state)
    for key, u in state.items():
        if not key.endswith(".weight_u") or f"{key[:-2]}_v" in state:
            continue
        weight = state.get(f"{key[:-2]}_orig")
        if not (isinstance(u, Tensor) and isinstance(weight, Tensor) and u.dim() == 1):
            continue  # a misfit, which is named where the state is loaded
        if weight.shape[:1] != u.shape:
            continue
        matrix = weight.double().flatten(1)
        product = matrix.T @ u.double()
        v = F.normalize(product, dim=0, eps=1e-12)
        normalised = whole.pop(key[:-2], None)
        if isinstance(normalised, Tensor) and normalised.shape == weight.shape:
            entry = normalised.double().flatten()
            sigma = (weight.double().flatten() @ entry) / (entry @ entry)
            v = v * (sigma / torch.dot(product, v))
        whole[f"{key[:-2]}_v"] = v.to(weight.dtype)
    return whole


def options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Width, label map and attention, as far as the network in a file has them.

    Where the label map's channels are those of a published data set, its options are told.
    """
    told: dict[str, Any] = {}
    shapes = {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
    if "conv_img.weight" in shapes:
        told["width"] = shapes["conv_img.weight"][1]
    if "discriminator_0.model0.0.weight" in shapes:
        told["width"], channels = shapes["discriminator_0.model0.0.weight"][:2]
        told |= _of_channels(channels - 3)
        told["discriminators"] = len(
            {k.split(".")[0] for k in shapes if k[:14] == "discriminator_"}
        )
    shared = shapes.get("head_0.norm_0.mlp_shared.0.weight")
    if shared is not None:
        told |= _of_channels(shared[1])
        kind = "syncbatch" if "head_0.norm_0.param_free_norm.running_mean" in shapes else "instance"
        first = "spectral" if "head_0.conv_0.weight_orig" in shapes else ""
        told["norm"] = f"{first}spade{kind}{shared[2]}x{shared[2]}"
    if "spatialAtt.conv.weight" in shapes:
        told["attention_kernel"] = shapes["spatialAtt.conv.weight"][2]
    if "cab.conv1.weight" in shapes:
        inner, pooled = shapes["cab.conv1.weight"][:2]
        told["scales"] = "two" if pooled == 2 * inner else "all"
    if "fc.weight" in shapes:
        told["vae"] = len(shapes["fc.weight"]) == 2
        if told["vae"]:
            told["code"] = shapes["fc.weight"][1]
    return told


def _of_channels(channels: int) -> dict[str, Any]:
    fields = Network.__dataclass_fields__
    for values in DATA_SETS.values():
        given = {name: value for name, value in values.items() if name in fields}
        if Network(**given).channels == channels:
            network = Network(**given)
            names = ("labels", "dont_care", "instances", "first_label", "size", "aspect")
            return {name: getattr(network, name) for name in (*names, "upsampling")}
    return {"labels": channels, "dont_care": False, "instances": False}
