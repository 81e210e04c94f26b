"""Published files: one for each network, a dictionary with the entries net and optimize."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..checkpoint import load_strictly, without_module
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
        config: its stage must be 2 for the generator and the discriminator.
        source: named in errors.

    Raises:
        ValueError: an entry is missing, unexpected, or of another shape.
    """
    built = networks(config)
    several = bool(content) and content.keys() <= FILES.keys()
    found = {}
    for name, part in (content if several else {"": content}).items():
        state = without_module(part.get("net", part))
        name = name or next((n for n, entry in _ENTRIES.items() if entry in state), "encoder")
        if name not in built:
            raise ValueError(f"{source}: holds the {name}, which is trained in stage 2")
        load_strictly(built[name], state, source)
        found[name] = built[name]
    return found
