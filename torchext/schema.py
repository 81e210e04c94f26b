"""Every op's schema: the only place that defines ops.

The native libraries implement these under `torchext`; the Triton launchers (and any further
backend, see `torchext.backend.register`) get the same text under a namespace of their own.

Shapes and meanings are documented with the public functions in `torchext.ops`. Shorthand used by
all of them: x (N,C,H,W); labels uint8 (N or 1,1,H,W) holding 0..K-1; statistics tensors (R,K,C)
with R = N for per-instance statistics and 1 for statistics over the batch.
"""

from collections.abc import Callable
from typing import Any

import torch

SCHEMAS = {
    "region_labels": (
        "(Tensor mask, SymInt height, SymInt width, int num_regions, bool check_values) -> Tensor"
    ),
    "region_statistics": (
        "(Tensor x, Tensor labels, int num_regions, bool per_instance, bool ignore_holes)"
        " -> (Tensor count, Tensor mean, Tensor variance)"
    ),
    "region_norm": (
        "(Tensor x, Tensor labels, Tensor? weight, Tensor? bias,"
        " Tensor? spatial_weight, Tensor? spatial_bias, int num_regions, bool per_instance,"
        " float eps, bool scale_eps, bool ignore_holes)"
        " -> (Tensor y, Tensor count, Tensor mean, Tensor rstd)"
    ),
    "region_norm_apply": (
        "(Tensor x, Tensor labels, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias,"
        " Tensor? spatial_weight, Tensor? spatial_bias, int num_regions, bool per_instance,"
        " bool ignore_holes) -> Tensor"
    ),
    "region_norm_backward": (
        "(Tensor grad, Tensor x, Tensor labels, Tensor count, Tensor mean, Tensor rstd,"
        " Tensor? weight, Tensor? spatial_weight, int num_regions, bool per_instance,"
        " bool ignore_holes) -> (Tensor grad_x, Tensor sums,"
        " Tensor grad_spatial_weight, Tensor grad_spatial_bias)"
    ),
    "region_norm_backward_sums": (
        "(Tensor grad, Tensor x, Tensor labels, Tensor mean, Tensor rstd, Tensor? spatial_weight,"
        " int num_regions, bool per_instance, bool ignore_holes)"
        " -> (Tensor sums, Tensor grad_spatial_weight, Tensor grad_spatial_bias)"
    ),
    "region_norm_backward_apply": (
        "(Tensor grad, Tensor x, Tensor labels, Tensor count, Tensor mean, Tensor rstd,"
        " Tensor sums, Tensor? weight, Tensor? spatial_weight, Tensor? pooled_gradient,"
        " Tensor? argmax, int num_regions, bool per_instance, bool ignore_holes) -> Tensor"
    ),
    "channel_mean_max": "(Tensor x) -> (Tensor pooled, Tensor argmax)",
    "self_aware_maps": (
        "(Tensor pooled, Tensor conv_weight, Tensor gamma_weight, Tensor gamma_bias,"
        " Tensor beta_weight, Tensor beta_bias, float threshold)"
        " -> (Tensor saliency, Tensor gamma, Tensor beta, Tensor labels)"
    ),
    "self_aware_maps_backward": (
        "(Tensor grad_saliency, Tensor grad_gamma, Tensor grad_beta, Tensor pooled,"
        " Tensor saliency, Tensor conv_weight, Tensor gamma_weight, Tensor beta_weight)"
        " -> (Tensor grad_pooled, Tensor grad_conv_weight, Tensor grad_gamma_weight,"
        " Tensor grad_gamma_bias, Tensor grad_beta_weight, Tensor grad_beta_bias)"
    ),
    "self_aware_region_norm": (
        "(Tensor x, Tensor conv_weight, Tensor gamma_weight, Tensor gamma_bias,"
        " Tensor beta_weight, Tensor beta_bias, float threshold, bool per_instance, float eps,"
        " bool scale_eps) -> (Tensor y, Tensor pooled, Tensor argmax, Tensor saliency,"
        " Tensor gamma, Tensor labels, Tensor count, Tensor mean, Tensor rstd)"
    ),
    "self_aware_region_norm_backward": (
        "(Tensor grad, Tensor x, Tensor pooled, Tensor argmax, Tensor saliency, Tensor gamma,"
        " Tensor labels, Tensor count, Tensor mean, Tensor rstd, Tensor conv_weight,"
        " Tensor gamma_weight, Tensor beta_weight, bool per_instance)"
        " -> (Tensor grad_x, Tensor grad_conv_weight, Tensor grad_gamma_weight,"
        " Tensor grad_gamma_bias, Tensor grad_beta_weight, Tensor grad_beta_bias)"
    ),
    "mask_window": (
        "(Tensor mask, int[] mask_channels, int[] kernel_size, int[] stride, int[] padding,"
        " int[] dilation, SymInt[] output_size, bool ratio, bool bias, float eps)"
        " -> (Tensor scale, Tensor updated)"
    ),
    "mask_product": "(Tensor x, Tensor mask, int[] mask_channels) -> Tensor",
    "mask_product_": "(Tensor(a!) x, Tensor mask, int[] mask_channels) -> ()",
    "partial_conv_epilogue": (
        "(Tensor raw, Tensor scale, Tensor updated, Tensor? bias, Tensor? norm_weight,"
        " Tensor? norm_bias, float negative_slope, bool mask_output) -> Tensor"
    ),
    "partial_conv_epilogue_": (
        "(Tensor(a!) raw, Tensor scale, Tensor updated, Tensor? bias, Tensor? norm_weight,"
        " Tensor? norm_bias, float negative_slope, bool mask_output) -> ()"
    ),
    "gather_tiles": (
        "(Tensor x, Tensor? mask, int[] mask_channels, Tensor slots, int count,"
        " int[] extent, int[] stride, int[] padding) -> Tensor"
    ),
    "scatter_tiles": (
        "(Tensor tiles, Tensor slots, Tensor scale, Tensor updated, Tensor? bias,"
        " Tensor? norm_weight, Tensor? norm_bias, float negative_slope, bool mask_output)"
        " -> Tensor"
    ),
    "partial_conv": (
        "(Tensor x, Tensor? mask, int[] mask_channels, Tensor scale, Tensor updated,"
        " Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias,"
        " float negative_slope, bool mask_output, SymInt[] stride, SymInt[] padding,"
        " SymInt[] dilation, SymInt groups) -> Tensor"
    ),
    "partial_conv_backward": (
        "(Tensor grad, Tensor? y, Tensor x, Tensor? mask, int[] mask_channels, Tensor scale,"
        " Tensor updated, Tensor weight, Tensor? bias, Tensor? norm_weight, float negative_slope,"
        " bool mask_output, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups,"
        " bool[3] wanted) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias,"
        " Tensor grad_norm_weight, Tensor grad_norm_bias)"
    ),
    "partial_conv_epilogue_backward": (
        "(Tensor grad, Tensor? y, Tensor? raw, Tensor scale, Tensor updated, Tensor? norm_weight,"
        " float negative_slope, bool mask_output) -> (Tensor grad_raw, Tensor sums)"
    ),
    "modulated_norm": (
        "(Tensor x, Tensor? gamma, Tensor? beta, Tensor? weight, Tensor? mean, Tensor? rstd,"
        " Tensor? index, str statistics, bool unbiased, float eps, str gain, float slope)"
        " -> (Tensor y, Tensor mean, Tensor rstd)"
    ),
    "modulated_norm_backward": (
        "(Tensor grad, Tensor? y, Tensor x, Tensor? gamma, Tensor? beta, Tensor? weight,"
        " Tensor? mean, Tensor? rstd, Tensor? index, str statistics, bool given, bool unbiased,"
        " str gain, float slope, bool weight_gradient)"
        " -> (Tensor grad_x, Tensor grad_gamma, Tensor grad_beta, Tensor grad_weight)"
    ),
    "modulated_norm_backward_sums": (
        "(Tensor grad, Tensor? y, Tensor x, Tensor? gamma, Tensor? beta, Tensor? weight,"
        " Tensor mean, Tensor rstd, Tensor? index, str gain, float slope, bool weight_gradient)"
        " -> (Tensor sums, Tensor grad_gamma, Tensor grad_beta, Tensor grad_weight)"
    ),
    "modulated_norm_backward_apply": (
        "(Tensor grad, Tensor? y, Tensor x, Tensor? gamma, Tensor? weight, Tensor mean,"
        " Tensor rstd, Tensor? index, Tensor mean_sums, str gain, float slope) -> Tensor"
    ),
    "segmented_sum": (
        "(Tensor values, Tensor index, Tensor? order, Tensor? offsets, int rows) -> Tensor"
    ),
    "number_windows": (
        "(Tensor values, int kernel_size) -> (Tensor index, Tensor windows, Tensor count)"
    ),
    "label_windows": (
        "(Tensor values, int kernel_size, SymInt? capacity)"
        " -> (Tensor index, Tensor windows, Tensor count)"
    ),
    "spade_modulation_table": (
        "(Tensor? vectors, Tensor windows, Tensor wide_windows, Tensor weight, Tensor? bias,"
        " Tensor modulation_weight, Tensor? modulation_bias) -> (Tensor table, Tensor hidden)"
    ),
    "spade_modulation_table_backward": (
        "(Tensor grad, Tensor hidden, Tensor? vectors, Tensor windows, Tensor wide_windows,"
        " Tensor weight, Tensor modulation_weight) -> (Tensor grad_weight, Tensor grad_bias,"
        " Tensor grad_modulation_weight, Tensor grad_modulation_bias)"
    ),
    "dual_attention_pools": (
        "(Tensor high, Tensor low) -> (Tensor averages, Tensor pooled, Tensor argmax)"
    ),
    "dual_attention": (
        "(Tensor high, Tensor low, Tensor gate, Tensor attention, float slope) -> Tensor"
    ),
    "dual_attention_backward": (
        "(Tensor grad, Tensor y, Tensor low, Tensor gate, Tensor attention, float slope)"
        " -> (Tensor grad_high, Tensor grad_low, Tensor grad_gate, Tensor grad_attention)"
    ),
    "diversity_maps": (
        "(Tensor labels, int[] steps, int[] windows, SymInt[] heights, SymInt[] widths,"
        " float base, ScalarType dtype) -> Tensor"
    ),
    "soft_diversity_map": "(Tensor logits, Tensor labels) -> Tensor",
    "soft_diversity_map_backward": "(Tensor grad, Tensor y, Tensor labels) -> Tensor",
    "oriented_filter_max": (
        "(Tensor image, Tensor bank, bool absolute) -> (Tensor response, Tensor index)"
    ),
    "oriented_filter_max_backward_image": "(Tensor grad, Tensor index, Tensor bank) -> Tensor",
    "oriented_filter_max_backward_bank": (
        "(Tensor grad, Tensor index, Tensor image, int count, int size) -> Tensor"
    ),
    "oriented_filter_statistics": (
        "(Tensor image, Tensor bank, Tensor positions, bool spread, float eps)"
        " -> (Tensor strength, Tensor confidence, Tensor index)"
    ),
    "oriented_filter_statistics_backward": (
        "(Tensor grad_strength, Tensor grad_confidence, Tensor image, Tensor bank,"
        " Tensor positions, Tensor index, bool spread, float eps, bool[2] wanted)"
        " -> (Tensor grad_image, Tensor grad_bank)"
    ),
    "label_conv2d": (
        "(Tensor labels, Tensor weight, Tensor? bias, ScalarType dtype, bool check_values)"
        " -> Tensor"
    ),
    "label_conv2d_backward": "(Tensor grad, Tensor labels, int classes, int kernel) -> Tensor",
    "winograd_conv2d": (
        "(Tensor x, Tensor weight, Tensor? bias, int[] padding, int[] dilation) -> Tensor"
    ),
    "winograd_conv2d_backward": (
        "(Tensor grad, Tensor x, Tensor weight, int[] padding, int[] dilation, bool[] wanted)"
        " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)"
    ),
    "winograd_weight": "(Tensor weight, bool transposed) -> Tensor",
    "winograd_weight_gradient": (
        "(Tensor grad, Tensor x, int kernel, int[] padding, int[] dilation) -> Tensor"
    ),
    "winograd_apply": (
        "(Tensor x, Tensor? mask, Tensor panels, int out_channels, Tensor? scale, Tensor? updated,"
        " Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, float negative_slope,"
        " bool mask_output, int[] padding, int[] dilation) -> Tensor"
    ),
    "interleave_phases": ("(Tensor phases, Tensor? bias, Tensor? addend, int[] offsets) -> Tensor"),
    "interleave_phases_backward": (
        "(Tensor grad, int[] offsets, SymInt height, SymInt width) -> Tensor"
    ),
}

# The tiles of a partial convolution that are not all hole, as no other backend looks at a mask;
# windows by a hash table, which others number by sorting; and Winograd's convolution, since GPU
# libraries have theirs.
CPU_ONLY = (
    "gather_tiles",
    "scatter_tiles",
    "number_windows",
    "winograd_weight",
    "winograd_weight_gradient",
    "winograd_apply",
)


def arguments(name: str) -> tuple[str, ...]:
    """The names of an op's arguments, in order."""
    return tuple(
        argument.name for argument in torch._C.parse_schema(name + SCHEMAS[name]).arguments
    )


def outputs(name: str) -> tuple[str, ...]:
    """The names of an op's outputs, in order; "y" where there is one without a name."""
    return tuple(
        output.name or "y" for output in torch._C.parse_schema(name + SCHEMAS[name]).returns
    )


# A Library that is collected takes its ops with it.
_libraries: list[torch.library.Library] = []
_defined: set[str] = set()


def define(namespace: str) -> None:
    """Define every op of `SCHEMAS` under `namespace`, unless that has been done."""
    if namespace in _defined:
        return
    _defined.add(namespace)
    library = torch.library.Library(namespace, "DEF")
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _libraries.append(library)


def implement(namespace: str, name: str, function: Callable[..., Any], key: str) -> None:
    """Implement an op in Python under a dispatch key."""
    library = torch.library.Library(namespace, "IMPL")
    library.impl(name, function, key)
    _libraries.append(library)
