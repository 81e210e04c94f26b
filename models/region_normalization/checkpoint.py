"""Published files: one state_dict of a wrapper that holds both networks."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..checkpoint import MisfitError, load_strictly, part, weights
from .networks import Config, networks

# Constants of the published loss module.
_CONSTANTS = ("adversarial_loss.real_label", "adversarial_loss.fake_label")


def load_published(
    content: Mapping[str, Any], config: Config, source: object
) -> dict[str, nn.Module]:
    """Both networks from `generator.*` and `discriminator.*`, or a generator from its own keys.

    The released file stores the discriminator's first convolution twice, as `conv1.0.*` and as
    `features.0.*`: both must agree.

    Raises:
        ValueError: an entry is missing, unexpected, or of another shape.
    """
    built = networks(config)
    state = {k: v for k, v in weights(content, built.values()).items() if k not in _CONSTANTS}
    if not part(state, "generator"):
        load_strictly(built["generator"], state, source)
        return {"generator": built["generator"]}
    states = {name: part(state, name) for name in built if part(state, name)}
    discriminator = states.get("discriminator", {})
    for key in [key for key in discriminator if key.startswith("features.0.")]:
        alias = discriminator.pop(key)
        original = discriminator.get(key.replace("features.0.", "conv1.0."))
        if original is None or not alias.equal(original):
            raise ValueError(f"{source}: discriminator.{key} differs from the entry of conv1")
    rest = [key for key in state if key.split(".")[0] not in states]
    if rest:
        raise MisfitError(f"{source}: holds unexpected entries, such as {rest[0]}")
    for name, own in states.items():
        load_strictly(built[name], own, source)
    return {name: built[name] for name in states}


def options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Width and residual blocks, from the generator's first convolution and keys."""
    generator = part(state, "generator") or state
    first = generator.get("encoder_conv1.weight")
    blocks = {key.split(".")[1] for key in generator if key.startswith("middle.")}
    told = {"width": first.shape[0]} if isinstance(first, Tensor) else {}
    return told | ({"residual_blocks": len(blocks)} if blocks else {})
