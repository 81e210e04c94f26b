"""Functional API: checks, autograd and dispatch of every op."""

import importlib
from collections.abc import Callable
from typing import Any

from .. import schema
from . import diversity_map as _diversity_map
from . import gabor_orientation as _gabor_orientation
from . import hole_tiles as _hole_tiles
from . import label_conv2d as _label_conv2d
from . import modulated_norm as _modulated_norm
from . import partial_conv as _partial_conv
from . import region_norm as _region_norm
from . import self_aware_affine as _self_aware_affine
from . import self_aware_region_norm as _self_aware_region_norm
from . import upsample_conv as _upsample_conv
from .diversity_map import diversity_map, soft_diversity_map
from .gabor_orientation import (
    difference_of_gaussians_bank,
    gabor_bank,
    gabor_orientation,
    orientation_angle,
    orientation_map,
    oriented_filter_max,
)
from .label_conv2d import label_conv2d
from .modulated_norm import modulated_norm
from .partial_conv import mask_window, partial_conv2d, partial_conv3d, partial_upsample_conv2d
from .region_norm import region_norm, region_statistics
from .self_aware_affine import self_aware_affine
from .self_aware_region_norm import self_aware_region_norm
from .upsample_conv import upsample_conv2d

__all__ = [
    "difference_of_gaussians_bank",
    "diversity_map",
    "gabor_bank",
    "gabor_orientation",
    "install",
    "label_conv2d",
    "mask_window",
    "modulated_norm",
    "orientation_angle",
    "orientation_map",
    "oriented_filter_max",
    "partial_conv2d",
    "partial_conv3d",
    "partial_upsample_conv2d",
    "region_norm",
    "region_statistics",
    "self_aware_affine",
    "self_aware_region_norm",
    "soft_diversity_map",
    "upsample_conv2d",
]

_FAMILIES = (
    _region_norm,
    _self_aware_affine,
    _self_aware_region_norm,
    _hole_tiles,
    _partial_conv,
    _modulated_norm,
    _diversity_map,
    _gabor_orientation,
    _label_conv2d,
    _upsample_conv,
)
# The Triton launchers of each file of torchext.kernels.
_TRITON_LAUNCHERS = {
    "region_norm": (
        "region_labels",
        "region_statistics",
        "region_norm",
        "region_norm_apply",
        "region_norm_backward",
        "region_norm_backward_sums",
        "region_norm_backward_apply",
    ),
    "self_aware_affine": ("channel_mean_max", "self_aware_maps", "self_aware_maps_backward"),
    "upsample_conv": ("interleave_phases", "interleave_phases_backward"),
    "partial_conv": (
        "mask_window",
        "mask_product",
        "mask_product_",
        "partial_conv_epilogue",
        "partial_conv_epilogue_",
        "partial_conv_epilogue_backward",
    ),
    "modulated_norm": (
        "modulated_norm",
        "modulated_norm_backward",
        "modulated_norm_backward_sums",
        "modulated_norm_backward_apply",
    ),
    "diversity_map": (
        "diversity_maps",
        "soft_diversity_map",
        "soft_diversity_map_backward",
    ),
    "gabor_orientation": (
        "oriented_filter_max",
        "oriented_filter_max_backward_image",
        "oriented_filter_max_backward_bank",
    ),
    "label_conv2d": ("label_conv2d", "label_conv2d_backward"),
}


def install(namespace: str) -> None:
    """Define every op under a namespace, with fakes, autograd and vmap; kernels come separately."""
    schema.define(namespace)
    for family in _FAMILIES:
        family.register_ops(namespace)


def _triton_launcher(module: str, name: str) -> Callable[..., Any]:
    def launcher(*args: Any) -> Any:  # triton is imported by the first call that needs it
        return getattr(importlib.import_module(f"torchext.kernels.{module}"), name)(*args)

    return launcher


def _install_triton() -> None:
    install("torchext_triton")
    for module, names in _TRITON_LAUNCHERS.items():
        for name in names:
            for key in ("CUDA", "CPU"):  # CPU tensors run under Triton's interpreter
                schema.implement("torchext_triton", name, _triton_launcher(module, name), key)


install("torchext")
_install_triton()
