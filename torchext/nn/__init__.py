"""Drop-in modules: the published constructors and state_dict keys, on the fused ops."""

from .gabor_orientation import GaborOrientation, OrientationLoss
from .region_norm import RN_B, RN_L, RegionNorm2d, RN_binarylabel, SelfAware_Affine

__all__ = [
    "RN_B",
    "RN_L",
    "GaborOrientation",
    "OrientationLoss",
    "RN_binarylabel",
    "RegionNorm2d",
    "SelfAware_Affine",
]
