"""Which published layer a module is, by its class name and what it holds."""

from torch import nn

from .convolution import Convolution
from .diversity_map import HardDiversityMap
from .family import Family, UnsupportedError
from .modulated_norm import SPADE, AdaptiveInstanceNorm, AttentionNorm, PixelNorm, SPDNorm
from .partial_conv import PortPartialConv, PublishedPartialConv, WeightedPartialConv
from .region_norm import BinaryRegionNorm, SelfAwareRegionNorm

FAMILIES: dict[str, Family] = {
    "published partial convolution": PublishedPartialConv(),
    "U-Net partial convolution": PortPartialConv(),
    "partial convolution with a mask kernel of its own": WeightedPartialConv(),
    "binary region norm": BinaryRegionNorm(),
    "self-aware region norm": SelfAwareRegionNorm(),
    "hard diversity map": HardDiversityMap(),
    "SPADE": SPADE(),
    "SPDNorm": SPDNorm(),
    "attention norm": AttentionNorm(),
    "AdaIN": AdaptiveInstanceNorm(),
    "pixel norm": PixelNorm(),
    "convolution": Convolution(),
}
_CLASSES = {
    "PartialConv2d": "published partial convolution",
    "PartialConv3d": "published partial convolution",
    "PartialConv": "U-Net partial convolution",
    "RN_B": "binary region norm",
    "RN_L": "self-aware region norm",
    "SPADE": "SPADE",
    "SPDNorm": "SPDNorm",
    "ANLs": "attention norm",
    "AdaptiveInstanceNorm2d": "AdaIN",
    "PixelNorm": "pixel norm",
    "PixelNormLayer": "pixel norm",
    "PixelwiseNorm": "pixel norm",
}
# Hooks that make a weight before its layer's call, and do nothing else.
_OF_WEIGHTS = ("SpectralNorm", "WeightNorm")


def recognised(module: nn.Module, convolutions: bool = False) -> str | None:
    """The name in FAMILIES of the layer that a module is, None if it is none of them.

    Args:
        module: any.
        convolutions: whether PyTorch's own count.

    Raises:
        UnsupportedError: it looks like one, and is not.
    """
    name = _CLASSES.get(type(module).__name__)
    if convolutions and FAMILIES["convolution"].known(module):
        name = "convolution"
    if name is None and [child for child, _ in module.named_children()] == ["mask_conv"]:
        name = "hard diversity map"  # its class has no settled name
    if name is None:
        bases = [base.__name__ for base in type(module).__mro__[1:] if base.__name__ in _CLASSES]
        if bases:
            raise UnsupportedError(f"a subclass of {bases[0]}, which may behave otherwise")
        return None
    if not all(hasattr(module, attribute) for attribute in FAMILIES[name].attributes):
        return None  # another layer of that name
    for path, part in module.named_modules():
        if "forward" in part.__dict__:
            raise UnsupportedError(f"forward is replaced on the instance ({path or 'itself'})")
        if part is not module and any(_look_inside(part)):
            raise UnsupportedError(f"a hook looks inside ({path})")
    if name == "U-Net partial convolution" and FAMILIES[name].has_own_kernel(module):
        name = "partial convolution with a mask kernel of its own"
    FAMILIES[name].check(module)
    return name


def _look_inside(part: nn.Module) -> list[object]:
    before = part._forward_pre_hooks.values()
    return [
        *part._forward_hooks.values(),
        *part._backward_hooks.values(),
        *part._backward_pre_hooks.values(),
        *(hook for hook in before if type(hook).__name__ not in _OF_WEIGHTS),
    ]
