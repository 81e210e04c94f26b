"""The definition of every op in plain PyTorch: any dtype, any device, differentiable twice.

Written to read like the formulas, not to be fast. The kernels are compared with these in float64.
"""

from .diversity_map import diversity_map, soft_diversity_map
from .label_conv2d import label_conv2d
from .modulated_norm import modulated_norm
from .partial_conv import (
    mask_product,
    mask_window,
    partial_conv,
    partial_conv_epilogue,
    partial_conv_epilogue_backward,
)
from .region_norm import region_labels, region_norm, region_statistics
from .self_aware_affine import channel_mean_max, self_aware_affine, self_aware_maps
from .self_aware_region_norm import self_aware_region_norm
from .upsample_conv import interleave_phases, upsample_conv2d

__all__ = [
    "channel_mean_max",
    "diversity_map",
    "interleave_phases",
    "label_conv2d",
    "mask_product",
    "mask_window",
    "modulated_norm",
    "partial_conv",
    "partial_conv_epilogue",
    "partial_conv_epilogue_backward",
    "region_labels",
    "region_norm",
    "region_statistics",
    "self_aware_affine",
    "self_aware_maps",
    "self_aware_region_norm",
    "soft_diversity_map",
    "upsample_conv2d",
]
