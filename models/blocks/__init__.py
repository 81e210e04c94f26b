"""Blocks and initialisers that several papers share, a file for each kind."""

from .initialise import initialise
from .residual import ResidualBlock, instance_norm
from .resnet import BasicBlock, PointwiseConv2d
from .spectral import folded, is_spectral, iterated, spectral

__all__ = [
    "BasicBlock",
    "PointwiseConv2d",
    "ResidualBlock",
    "folded",
    "initialise",
    "instance_norm",
    "is_spectral",
    "iterated",
    "spectral",
]
