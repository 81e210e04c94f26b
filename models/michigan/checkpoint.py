"""Published files: a state_dict for each network, those of orientations under "generator"."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..checkpoint import by_network, load_strictly, part
from .networks import Config, networks

# Files in a folder, by network.
FILES = {
    "generator": "*_net_G.pth",
    "discriminator": "*_net_D.pth",
    "orientation": "InpaintingModel_gen.pth",
    "strokes": "SInpaintingModel_gen.pth",
}
_DISCRIMINATOR = "discriminator_0.model0.0.weight"
_FIRST = ("encoder.1.weight_orig", "encoder_1.1.weight_orig")  # of an orientation network


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
    entries = {"discriminator": _DISCRIMINATOR}
    found = {}
    for name, given in by_network(content, built, FILES, entries, "generator").items():
        state = _bare(given)
        name = _held(state) or name
        if name not in built:
            raise ValueError(
                f"{source}: holds a network of orientations, which needs the option inpainting"
            )
        load_strictly(built[name], state, source)
        found[name] = built[name]
    return found


def _bare(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the name under which the networks of orientations were saved."""
    return part(state, "generator") or state


def _held(state: Mapping[str, Any]) -> str | None:
    """The network of orientations that a state is of, by the channels that it sees."""
    for key in _FIRST:
        if isinstance(state.get(key), Tensor) and state[key].dim() == 4:
            return "strokes" if state[key].shape[1] == 5 else "orientation"
    return None


def options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Widths, blocks, norms and scales, as far as the network in a file has them."""
    state = _bare(state)
    shapes = {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
    told: dict[str, Any] = {}
    if "fc.layer1.weight" in shapes:
        told["width"] = shapes["fc.layer1.weight"][0]
        if "backgroud_enc.conv0.conv.weight" in shapes:
            told["upsampling"] = "most"
    shared = shapes.get("head_0.norm_0.mlp_shared.0.weight")
    if shared is not None:
        batch = "head_0.norm_0.param_free_norm.running_mean" in shapes
        first = "spectral" if "head_0.conv_0.weight_orig" in shapes else ""
        kind = "syncbatch" if batch else "instance"
        told["norm"] = f"{first}spade{kind}{shared[2]}x{shared[2]}"
    if _DISCRIMINATOR in shapes:
        told["width"] = shapes[_DISCRIMINATOR][0]
        scales = {key.split(".")[0] for key in shapes if key.startswith("discriminator_")}
        layers = {key.split(".")[1] for key in shapes if key.startswith("discriminator_0.")}
        told |= {"discriminators": len(scales), "discriminator_layers": len(layers) - 1}
    for key in _FIRST:
        if key in shapes:
            told["inpainting_width"] = shapes[key][0]
            told["inpainting_skips"] = key == _FIRST[1]
            blocks = {key.split(".")[1] for key in shapes if ".conv_block." in key}
            told["inpainting_blocks"] = len(blocks)
    return told
