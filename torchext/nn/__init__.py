"""Drop-in modules: the published constructors and state_dict keys, on the fused ops."""

from .partial_conv import PartialConv, PartialConv2d, PartialConv3d
from .region_norm import RN_B, RN_L, RegionNorm2d, RN_binarylabel, SelfAware_Affine
from .upsample_conv import UpsampleConv2d

__all__ = [
    "RN_B",
    "RN_L",
    "PartialConv",
    "PartialConv2d",
    "PartialConv3d",
    "RN_binarylabel",
    "RegionNorm2d",
    "SelfAware_Affine",
    "UpsampleConv2d",
]
