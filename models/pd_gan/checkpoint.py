"""Published files: one for each network, a dictionary with the entries net and optimize."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..checkpoint import by_network, load_strictly
from .networks import Config, networks

# Files in a folder, by network.
FILES = {
    "encoder": "*_net_EN.pth",
    "decoder": "*_net_DE.pth",
    "generator": "*_net_PDGAN.pth",
    "discriminator": "*_net_D.pth",
}
# An entry by which the network in a single file is known.
_ENTRIES = {
    "encoder": "Encoder_1.conv.input_conv.weight",
    "decoder": "Decoder_1.model.1.weight",
    "generator": "fc.weight",
    "discriminator": "discriminator_0.model0.0.weight",
}


def load_published(
    content: Mapping[str, Any], config: Config, source: object
) -> dict[str, nn.Module]:
    """The networks of one file, or of several given by name.

    The stored mask kernels of the first stage are used, whatever they are.

    Args:
        content: of a file, or of the files by the names in `FILES`.
        config: of the networks.
        source: named in errors.

    Raises:
        ValueError: an entry is missing, unexpected, or of another shape.
    """
    built = networks(config)
    found = {}
    for name, state in by_network(content, built, FILES, _ENTRIES, "encoder").items():
        load_strictly(built[name], state, source)
        found[name] = built[name]
    return found


def options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Width, length of the noise and size, as far as the network in a file has them."""
    shapes = {key: value.shape for key, value in state.items() if isinstance(value, Tensor)}
    first = {
        "Encoder_1.conv.input_conv.weight": lambda shape: shape[0],
        "Decoder_5.model.1.weight": lambda shape: shape[1],
        "conv_img.weight": lambda shape: shape[1],
        "discriminator_0.model0.0.weight": lambda shape: shape[0],
    }
    widths = [of(shapes[key]) for key, of in first.items() if key in shapes]
    told = {"width": widths[0]} if widths else {}
    if "fc.weight" in shapes and "width" in told:
        units, told["noise"] = shapes["fc.weight"]
        told["size"] = 64 * math.isqrt(units // (16 * told["width"]))
    return told
