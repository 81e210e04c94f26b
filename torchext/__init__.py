"""Fused kernels and drop-in layers for mask-aware image synthesis.

`torchext.region_norm` and the other functions are stateless; `torchext.nn` holds the modules,
`torchext.reference` the plain-PyTorch definitions, `torchext.backend` says which kernel runs.
"""

import importlib.metadata
import importlib.util

from ._version import __version__

if any(
    name.metadata["Name"] == "torchext"
    for name in importlib.metadata.distributions(name="torchext")
):
    raise ImportError(
        "another distribution named 'torchext', unrelated to this package, is installed and owns"
        " the same folder: run `pip uninstall torchext`, then `pip install --force-reinstall"
        " torchext-kernels`"
    )
if importlib.util.find_spec("torchext.kernels") is None:
    raise ImportError(
        "torchext was imported from a source checkout that is not installed: its folders kernels/"
        " and models/ become torchext.kernels and torchext.models only by an installation. Run"
        " `pip install -e . --no-build-isolation` in the checkout, or leave its folder"
    )

from . import backend, nn, reference
from ._load import build_info
from .accelerate import accelerate, fixed_condition, restore
from .ops import (
    LabelWindows,
    difference_of_gaussians,
    difference_of_gaussians_bank,
    diversity_map,
    dual_attention,
    dual_attention_pools,
    explain_convolution,
    gabor_bank,
    gabor_kernel_bank,
    gabor_orientation,
    label_conv2d,
    label_windows,
    mask_window,
    modulated_norm,
    orientation_angle,
    orientation_map,
    oriented_filter_max,
    oriented_filter_statistics,
    partial_conv2d,
    partial_conv3d,
    partial_upsample_conv2d,
    region_norm,
    region_statistics,
    self_aware_affine,
    self_aware_region_norm,
    soft_diversity_map,
    spade_modulation_table,
    upsample_conv2d,
    winograd_conv2d,
)

__all__ = [
    "LabelWindows",
    "__version__",
    "accelerate",
    "backend",
    "build_info",
    "difference_of_gaussians",
    "difference_of_gaussians_bank",
    "diversity_map",
    "dual_attention",
    "dual_attention_pools",
    "explain_convolution",
    "fixed_condition",
    "gabor_bank",
    "gabor_kernel_bank",
    "gabor_orientation",
    "label_conv2d",
    "label_windows",
    "mask_window",
    "modulated_norm",
    "nn",
    "orientation_angle",
    "orientation_map",
    "oriented_filter_max",
    "oriented_filter_statistics",
    "partial_conv2d",
    "partial_conv3d",
    "partial_upsample_conv2d",
    "reference",
    "region_norm",
    "region_statistics",
    "restore",
    "self_aware_affine",
    "self_aware_region_norm",
    "soft_diversity_map",
    "spade_modulation_table",
    "upsample_conv2d",
    "winograd_conv2d",
]
