"""MaskGAN: Towards Diverse and Interactive Facial Image Manipulation (CVPR 2020)."""

from .checkpoint import FILES, load_published, options
from .mask_vae import MaskVAE
from .networks import (
    AlphaBlender,
    Config,
    DenseMappingNetwork,
    LabelEncoder,
    SFTLayer,
    StyleEncoder,
    networks,
)
from .parser import FaceParser

__all__ = [
    "FILES",
    "AlphaBlender",
    "Config",
    "DenseMappingNetwork",
    "FaceParser",
    "LabelEncoder",
    "MaskVAE",
    "SFTLayer",
    "StyleEncoder",
    "load_published",
    "networks",
    "options",
]
