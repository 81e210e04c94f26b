"""Drop-in modules: the published constructors and state_dict keys, on the fused ops."""

from .dual_attention import ChannelAttention, DualAttention, SpatialAttention
from .gabor_orientation import GaborOrientation, OrientationLoss
from .masked_norm import (
    MaskedBatchNorm2d,
    MinkowskiGRN,
    SparseBatchNorm2d,
    SparseConvNeXtLayerNorm,
    SparseInstanceNorm2d,
    SparseInstanceNorm3d,
    SparseSyncBatchNorm2d,
)
from .mat_conv import Conv2dLayerPartial
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
from .sparse_conv import (
    SparseAvgPool3d,
    SparseAvgPooling,
    SparseConv2d,
    SparseConv3d,
    SparseConvNeXtBlock,
    SparseMaxPool3d,
    SparseMaxPooling,
    to_sparse,
)
from .upsample_conv import UpsampleConv2d
from .visible import visible
from .winograd_conv import Conv2d

__all__ = [
    "RN_B",
    "RN_L",
    "SPADE",
    "ANLs",
    "AdaptiveInstanceNorm2d",
    "ChannelAttention",
    "Conv2d",
    "Conv2dLayerPartial",
    "DualAttention",
    "GaborOrientation",
    "MaskedBatchNorm2d",
    "MinkowskiGRN",
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
    "SparseAvgPool3d",
    "SparseAvgPooling",
    "SparseBatchNorm2d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseConvNeXtBlock",
    "SparseConvNeXtLayerNorm",
    "SparseInstanceNorm2d",
    "SparseInstanceNorm3d",
    "SparseMaxPool3d",
    "SparseMaxPooling",
    "SparseSyncBatchNorm2d",
    "SpatialAttention",
    "UpsampleConv2d",
    "to_sparse",
    "visible",
]
