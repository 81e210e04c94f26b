"""Functional API: checks, autograd and dispatch of every op."""

from . import region_norm as _region_norm
from . import schema
from . import self_aware_affine as _self_aware_affine
from . import self_aware_region_norm as _self_aware_region_norm
from .region_norm import region_norm, region_statistics
from .self_aware_affine import self_aware_affine
from .self_aware_region_norm import self_aware_region_norm

__all__ = [
    "install",
    "region_norm",
    "region_statistics",
    "self_aware_affine",
    "self_aware_region_norm",
]

_FAMILIES = (_region_norm, _self_aware_affine, _self_aware_region_norm)


def install(namespace: str) -> None:
    """Define every op under a namespace, with fakes, autograd and vmap; kernels come separately."""
    schema.define(namespace)
    for family in _FAMILIES:
        family.register_ops(namespace)


install("torchext")
