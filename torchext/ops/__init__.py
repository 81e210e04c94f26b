"""Functional API: checks, autograd and dispatch of every op."""

from .diversity_map import diversity_map, soft_diversity_map
from .dual_attention import dual_attention, dual_attention_pools
from .filter_banks import (
    difference_of_gaussians,
    difference_of_gaussians_bank,
    gabor_bank,
    gabor_kernel_bank,
)
from .gabor_orientation import (
    gabor_orientation,
    orientation_angle,
    orientation_map,
    oriented_filter_max,
    oriented_filter_statistics,
)
from .label_conv2d import label_conv2d
from .label_windows import LabelWindows, label_windows
from .modulated_norm import modulated_norm
from .op import install, install_triton
from .partial_conv import mask_window, partial_conv2d, partial_conv3d, partial_upsample_conv2d
from .region_norm import region_norm, region_statistics
from .self_aware_affine import self_aware_affine
from .self_aware_region_norm import self_aware_region_norm
from .spade_modulation_table import spade_modulation_table
from .upsample_conv import upsample_conv2d
from .winograd_conv import explain_convolution, winograd_conv2d

__all__ = [
    "LabelWindows",
    "difference_of_gaussians",
    "difference_of_gaussians_bank",
    "diversity_map",
    "dual_attention",
    "dual_attention_pools",
    "explain_convolution",
    "gabor_bank",
    "gabor_kernel_bank",
    "gabor_orientation",
    "install",
    "label_conv2d",
    "label_windows",
    "mask_window",
    "modulated_norm",
    "orientation_angle",
    "orientation_map",
    "oriented_filter_max",
    "oriented_filter_statistics",
    "partial_conv2d",
    "partial_conv3d",
    "partial_upsample_conv2d",
    "region_norm",
    "region_statistics",
    "self_aware_affine",
    "self_aware_region_norm",
    "soft_diversity_map",
    "spade_modulation_table",
    "upsample_conv2d",
    "winograd_conv2d",
]

install("torchext")
install_triton()
