"""Whether a layer may read its child's weights instead of calling the child."""

from torch import nn


def plain(child: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether calling `child` does what its class does and nothing else.

    Spectral and weight norm, pruning, parametrisations, LoRA wrappers and hooks act in the child's
    own call. A layer asks in every forward, since all of these may come after it was built, and
    calls a child that is not plain as the published layer does.

    Args:
        child: a module that a layer holds.
        kinds: the classes that the layer's fused form knows; a subclass is none of them.
    """
    return (
        type(child) in kinds
        and "forward" not in child.__dict__
        and not (child._forward_hooks or child._forward_pre_hooks)
        and not (child._backward_hooks or child._backward_pre_hooks)
    )
