"""The definition of every op in plain PyTorch: any dtype, any device, differentiable twice.

Every function has the arguments and outputs of the schema of its name (`torchext.schema`).
Written to read like the formulas, not to be fast. The kernels are compared with these in float64.
"""

from .diversity_map import diversity_maps, soft_diversity_map, soft_diversity_map_backward
from .dual_attention import dual_attention, dual_attention_backward, dual_attention_pools
from .gabor_orientation import (
    filter_responses,
    oriented_filter_max,
    oriented_filter_max_backward_bank,
    oriented_filter_max_backward_image,
    oriented_filter_statistics,
    oriented_filter_statistics_backward,
)
from .label_conv2d import label_conv2d, label_conv2d_backward
from .label_windows import label_windows
from .modulated_norm import (
    modulated_norm,
    modulated_norm_backward_apply,
    modulated_norm_backward_sums,
    segmented_sum,
)
from .partial_conv import (
    mask_product,
    mask_window,
    partial_conv,
    partial_conv_epilogue,
    partial_conv_epilogue_backward,
)
from .region_norm import (
    region_labels,
    region_norm,
    region_norm_apply,
    region_norm_backward_apply,
    region_norm_backward_sums,
    region_statistics,
)
from .self_aware_affine import channel_mean_max, self_aware_maps
from .self_aware_region_norm import self_aware_region_norm
from .spade_modulation_table import spade_modulation_table
from .upsample_conv import interleave_phases, interleave_phases_backward, upsample_conv2d
from .winograd_conv import winograd_conv2d

__all__ = [
    "channel_mean_max",
    "diversity_maps",
    "dual_attention",
    "dual_attention_backward",
    "dual_attention_pools",
    "filter_responses",
    "interleave_phases",
    "interleave_phases_backward",
    "label_conv2d",
    "label_conv2d_backward",
    "label_windows",
    "mask_product",
    "mask_window",
    "modulated_norm",
    "modulated_norm_backward_apply",
    "modulated_norm_backward_sums",
    "oriented_filter_max",
    "oriented_filter_max_backward_bank",
    "oriented_filter_max_backward_image",
    "oriented_filter_statistics",
    "oriented_filter_statistics_backward",
    "partial_conv",
    "partial_conv_epilogue",
    "partial_conv_epilogue_backward",
    "region_labels",
    "region_norm",
    "region_norm_apply",
    "region_norm_backward_apply",
    "region_norm_backward_sums",
    "region_statistics",
    "segmented_sum",
    "self_aware_maps",
    "self_aware_region_norm",
    "soft_diversity_map",
    "soft_diversity_map_backward",
    "spade_modulation_table",
    "upsample_conv2d",
    "winograd_conv2d",
]
