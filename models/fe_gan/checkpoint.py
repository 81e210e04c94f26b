"""Published files: a state_dict for each network; each is known by its keys."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..checkpoint import by_network, load_strictly
from .networks import GUIDANCE, SEEN, Config, networks

# Files in a folder that has one for each stage, by network.
FILES = {
    "parsing": "parsing/*_net_G.pth",
    "parsing_discriminator": "parsing/*_net_D.pth",
    "generator": "inpainting/*_net_G.pth",
    "discriminator": "inpainting/*_net_D.pth",
}
# An entry by which the network in a file is known.
_ENTRIES = {
    "parsing": "model.1.0.weight",
    "parsing_discriminator": "discriminator_0.model0.0.weight",
    "generator": "down1.conv.weight",
    "discriminator": "conv1.0.weight_orig",
}


def load_published(
    content: Mapping[str, Any], config: Config, source: object
) -> dict[str, nn.Module]:
    """The network of one file, several side by side in it, or several files given by name.

    The discriminator of stage two holds its first convolution twice, as `conv1.0.*` and as
    `features.0.*`: both must agree, and a file without the second will do.

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
        whole = with_both_names(state, source) if name == "discriminator" else state
        load_strictly(built[name], whole, source)
        found[name] = built[name]
    return found


def with_both_names(state: Mapping[str, Any], source: object) -> dict[str, Any]:
    """A state_dict of stage two's discriminator that has its first layer under both names.

    Raises:
        ValueError: the two differ; `source` is named.
    """
    whole = dict(state)
    for key, value in state.items():
        if not key.startswith("conv1.0."):
            continue
        alias = key.replace("conv1.", "features.")
        other = whole.setdefault(alias, value)
        if isinstance(other, Tensor) and isinstance(value, Tensor) and not other.equal(value):
            raise ValueError(f"{source}: {alias} differs from {key}, which is the same layer")
    return whole


def options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Width, classes, blocks and scales, as far as the network in a file has them."""
    shapes = {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
    told: dict[str, Any] = {}

    def first(name: str, beside: int, *, classes_per_channel: int = 1) -> None:
        shape = shapes.get(_ENTRIES[name], ())
        if len(shape) == 4:
            told["width"] = shape[0]
            told["classes"] = (shape[1] - beside) // classes_per_channel

    first("parsing", GUIDANCE)
    first("parsing_discriminator", GUIDANCE, classes_per_channel=2)
    first("discriminator", SEEN + 3)
    encoder = shapes.get("parsing_encoder.1.weight", ())
    if len(encoder) == 4:
        told |= {"width": encoder[0], "classes": encoder[1]}
        blocks = {key.split(".")[1] for key in shapes if key.startswith("middle.")}
        told["inpainting_blocks"] = len(blocks)
    if _ENTRIES["parsing"] in shapes:
        blocks = {key.split(".")[1] for key in shapes if ".conv_block." in key}
        # Three layers before the halvings and three behind the doublings, two for each of both.
        last = max(int(key.split(".")[1]) for key in shapes if key.startswith("model."))
        told |= {"parsing_blocks": len(blocks), "downsamplings": (last - 4 - len(blocks)) // 4}
    if _ENTRIES["parsing_discriminator"] in shapes:
        scales = {key.split(".")[0] for key in shapes if key.startswith("discriminator_")}
        layers = {key.split(".")[1] for key in shapes if key.startswith("discriminator_0.")}
        told |= {"discriminators": len(scales), "discriminator_layers": len(layers) - 1}
    return told
