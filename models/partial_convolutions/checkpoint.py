"""Published files of the U-Net: a dictionary with the entries model, optimizer and n_iter."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..checkpoint import load_strictly, weights
from .networks import Config, networks


def load_published(
    content: Mapping[str, Any], config: Config, source: object
) -> dict[str, nn.Module]:
    """The U-Net from a published file, or from its bare state_dict.

    `mask_conv.weight` may be missing; where it is there it must be ones (half of a published file).

    Raises:
        ValueError: an entry is missing, unexpected, of another shape, or a mask kernel is not ones.
    """
    built = networks(config)
    state = weights(content, built.values())
    for key, value in built["generator"].state_dict().items():
        if key.endswith("mask_conv.weight") and key.replace("mask_conv", "input_conv") in state:
            stored = state.setdefault(key, value)
            if isinstance(stored, Tensor) and not (stored == 1).all():
                raise ValueError(f"{source}: {key}: expected only ones")
    load_strictly(built["generator"], state, source)
    return built


def options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Stages and width, from the keys and the first convolution."""
    stages = [key.split(".")[0].removeprefix("enc_") for key in state if key.startswith("enc_")]
    first = state.get("enc_1.conv.input_conv.weight")
    told = {"layers": max(int(stage) for stage in stages if stage.isdecimal())} if stages else {}
    return told | ({"width": first.shape[0]} if isinstance(first, Tensor) else {})
