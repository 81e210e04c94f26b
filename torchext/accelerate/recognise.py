"""Which published layer a module is, by its class name and what it holds."""

import re
from dataclasses import dataclass, replace

from torch import nn

from .convolution import Convolution
from .copied_partial_conv import AveragingPartialConv, CopiedPartialConv
from .diversity_map import HardDiversityMap
from .family import Family, UnsupportedError
from .modulated_norm import (
    SPADE,
    AdaptiveInstanceNorm,
    AttentionNorm,
    CopiedSPADE,
    PixelNorm,
    SPADEGroupNorm,
    SPDNorm,
    ZeroSFT,
)
from .partial_conv import (
    PaddedPartialConv,
    PortPartialConv,
    PublishedPartialConv,
    WeightedPartialConv,
)
from .region_norm import BinaryRegionNorm, SelfAwareRegionNorm
from .resampled_conv import ResampledPartialConv
from .sparse import (
    SparseBatchNorm,
    SparseBlock,
    SparseConv,
    SparseInstanceNorm,
    SparseLayerNorm,
)

FAMILIES: dict[str, Family] = {
    "published partial convolution": PublishedPartialConv(),
    "U-Net partial convolution": PortPartialConv(),
    "partial convolution with a mask kernel of its own": WeightedPartialConv(),
    "partial convolution that pads by itself": PaddedPartialConv(),
    "partial convolution of its own form": CopiedPartialConv(),
    "partial convolution that averages its mask": AveragingPartialConv(),
    "partial convolution behind its activation": ResampledPartialConv(),
    "sparse block": SparseBlock(),
    "sparse convolution": SparseConv(),
    "sparse batch norm": SparseBatchNorm(),
    "sparse instance norm": SparseInstanceNorm(),
    "sparse layer norm": SparseLayerNorm(),
    "binary region norm": BinaryRegionNorm(),
    "self-aware region norm": SelfAwareRegionNorm(),
    "hard diversity map": HardDiversityMap(),
    "SPADE": SPADE(),
    "SPADE with a group norm": SPADEGroupNorm(),
    "SPADE with other names": CopiedSPADE(),
    "zero SFT": ZeroSFT(),
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
    "PConvBlock": "partial convolution that pads by itself",
    "Conv2dLayerPartial": "partial convolution behind its activation",
    "SparseConv2d": "sparse convolution",
    "SparseConv3d": "sparse convolution",
    "SparseBatchNorm2d": "sparse batch norm",
    "SparseSyncBatchNorm2d": "sparse batch norm",
    "SparseInstanceNorm3d": "sparse instance norm",
    "SparseConvNeXtLayerNorm": "sparse layer norm",
    "SparseConvNeXtBlock": "sparse block",
    "RN_B": "binary region norm",
    "RN_L": "self-aware region norm",
    "SPADE": "SPADE",
    "ZeroSFT": "zero SFT",
    "SPADEGroupNorm": "SPADE with a group norm",
    "SPDNorm": "SPDNorm",
    "ANLs": "attention norm",
    "AdaptiveInstanceNorm2d": "AdaIN",
    "PixelNorm": "pixel norm",
    "PixelNormLayer": "pixel norm",
    "PixelwiseNorm": "pixel norm",
}
# Hooks that make a weight before its layer's call, and do nothing else.
_OF_WEIGHTS = ("SpectralNorm", "WeightNorm")


# Partial convolutions whose formula is found by trial.
_COPIES = ("partial convolution of its own form", "partial convolution that averages its mask")
# Families by what a layer holds, where its class has another name, the most special first.
_STRUCTURES = (
    "attention norm",
    "SPDNorm",
    "SPADE",
    "zero SFT",
    "SPADE with a group norm",
    "SPADE with other names",
    "partial convolution that pads by itself",
    "U-Net partial convolution",
    "partial convolution behind its activation",
    *_COPIES,
    "sparse block",
    "sparse convolution",
    "sparse batch norm",
    "sparse instance norm",
    "sparse layer norm",
    "self-aware region norm",
    "binary region norm",
)
# Class names like those of our layers, for what no family takes.
_NAMES = (
    (r"partial_?conv|(?-i:(^|_|[a-z])PConv)|^pconv|conv\w*partial", "partial convolution"),
    (r"sparse_?(conv|sync|batch|instance|layer|group)|minkowski", "masked layer"),
    (r"spade|zero_?sft|spatially_?adaptive", "SPADE"),
    (r"spd_?norm", "SPDNorm"),
    (r"adain|adaptive_?instance", "AdaIN"),
    (r"pixel_?(wise)?_?norm", "pixel norm"),
    (r"region_?norm|^rn_[bl]$", "region norm"),
)


@dataclass(frozen=True)
class Candidate:
    """A layer that may be one of a family.

    Attributes:
        family: its name in FAMILIES.
        relation: "" if it is one by its class name; else only a comparison can tell, and this is
            what it has in common with one.
    """

    family: str
    relation: str = ""


def recognised(module: nn.Module, convolutions: bool = False) -> Candidate | None:
    """The layer that a module is by its class name, or may be by its structure; None if neither.

    Args:
        module: any.
        convolutions: whether PyTorch's own count.

    Raises:
        UnsupportedError: it looks like one, and is not.
    """
    candidate = _candidate(module, convolutions)
    if candidate is None:
        return None
    try:
        return replace(candidate, family=_checked(module, candidate.family))
    except UnsupportedError as problem:
        if candidate.relation:
            raise UnsupportedError(f"{candidate.relation}: {problem}") from problem
        raise


def copy_of(module: nn.Module, candidate: Candidate) -> Candidate | None:
    """What else a module may be that is not what it was taken for; None if nothing."""
    if candidate.family in _COPIES or "partial convolution" not in candidate.family:
        return None
    return next(
        (Candidate(name, candidate.relation) for name in _COPIES if FAMILIES[name].alike(module)),
        None,
    )


def _candidate(module: nn.Module, convolutions: bool) -> Candidate | None:
    if convolutions and FAMILIES["convolution"].known(module):
        return Candidate("convolution")
    name = _CLASSES.get(type(module).__name__)
    if name is not None and not missing(module, name):
        return Candidate(name)
    if [child for child, _ in module.named_children()] == ["mask_conv"]:
        return Candidate("hard diversity map")  # its class has no settled name
    for base in type(module).__mro__[1:]:
        name = _CLASSES.get(base.__name__)
        if name is not None and not missing(module, name):
            return Candidate(name, f"a subclass of {base.__name__}")
    for name in _STRUCTURES:
        if FAMILIES[name].alike(module):
            return Candidate(name, f"holds what {_article(name)} holds")
    return None


def _checked(module: nn.Module, name: str) -> str:
    """The family of that name, or a special form of it."""
    for path, part in module.named_modules():
        if "forward" in part.__dict__:
            raise UnsupportedError(f"forward is replaced on the instance ({path or 'itself'})")
        if part is not module and any(_look_inside(part)):
            raise UnsupportedError(f"a hook looks inside ({path})")
    if name == "U-Net partial convolution" and FAMILIES[name].has_own_kernel(module):
        name = "partial convolution with a mask kernel of its own"
    FAMILIES[name].check(module)
    return name


def missing(module: nn.Module, name: str) -> list[str]:
    """What a layer of a family has and a module has not."""
    return sorted(a for a in FAMILIES[name].attributes if not hasattr(module, a))


def near_miss(module: nn.Module) -> str:
    """Why a module whose class is called like one of our layers is none, "" if it is not called so.

    Args:
        module: that `recognised` does not know.
    """
    own = type(module).__name__
    name = _CLASSES.get(own)
    if name is not None:
        return f"called like {_article(name)}, and has no {', '.join(missing(module, name))}"
    for pattern, kind in _NAMES:
        if re.search(pattern, own, re.IGNORECASE):
            return f"called like {_article(kind)}, and of another structure than those known"
    return ""


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aAU' and not name.startswith('U-') else 'a'} {name}"


def _look_inside(part: nn.Module) -> list[object]:
    before = part._forward_pre_hooks.values()
    return [
        *part._forward_hooks.values(),
        *part._backward_hooks.values(),
        *part._backward_pre_hooks.values(),
        *(hook for hook in before if type(hook).__name__ not in _OF_WEIGHTS),
    ]
