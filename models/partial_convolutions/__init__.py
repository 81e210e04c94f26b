"""Image Inpainting for Irregular Holes Using Partial Convolutions (ECCV 2018), and padding."""

from ..inpainting import add_arguments
from ..papers import Paper
from . import classifiers
from .checkpoint import load_published, options
from .editing import edit, fill
from .losses import InpaintingLoss, VGG16PartialLoss
from .networks import Config, PCBActiv, PConvUNet, example, networks
from .training import PartialConvolutions, dataset

__all__ = [
    "PAPER",
    "Config",
    "InpaintingLoss",
    "PCBActiv",
    "PConvUNet",
    "PartialConvolutions",
    "VGG16PartialLoss",
    "classifiers",
    "fill",
    "load_published",
    "networks",
]

PAPER = Paper(
    name="partial_convolutions",
    title="Image Inpainting for Irregular Holes Using Partial Convolutions (ECCV 2018)",
    config=Config,
    networks=networks,
    recipe=PartialConvolutions,
    dataset=dataset,
    load_published=load_published,
    example=example,
    edit=edit,
    edit_arguments=add_arguments,
    options=options,
    marks=("enc_1.conv.", "dec_1.conv."),
)
