"""Drop-in modules: the published constructors and state_dict keys, on the fused ops."""

from .dual_attention import ChannelAttention, DualAttention, SpatialAttention
from .gabor_orientation import GaborOrientation, OrientationLoss
from .modulated_norm import (
    SPADE,
    AdaptiveInstanceNorm2d,
    ANLs,
    PixelNorm,
    SPADEResnetBlock,
    SPDNorm,
    SPDNormResnetBlock,
)
from .partial_conv import PartialConv, PartialConv2d, PartialConv3d
from .region_norm import RN_B, RN_L, RegionNorm2d, RN_binarylabel, SelfAware_Affine
from .upsample_conv import UpsampleConv2d
from .winograd_conv import Conv2d

__all__ = [
    "RN_B",
    "RN_L",
    "SPADE",
    "ANLs",
    "AdaptiveInstanceNorm2d",
    "ChannelAttention",
    "Conv2d",
    "DualAttention",
    "GaborOrientation",
    "OrientationLoss",
    "PartialConv",
    "PartialConv2d",
    "PartialConv3d",
    "PixelNorm",
    "RN_binarylabel",
    "RegionNorm2d",
    "SPADEResnetBlock",
    "SPDNorm",
    "SPDNormResnetBlock",
    "SelfAware_Affine",
    "SpatialAttention",
    "UpsampleConv2d",
]
