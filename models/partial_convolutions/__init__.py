"""Image Inpainting for Irregular Holes Using Partial Convolutions (ECCV 2018), and padding."""

from ..inpainting import add_arguments, add_train_arguments, check_options
from ..paper import Paper, Stage
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
    does="fills holes",
    config=Config,
    networks=networks,
    stages=(Stage("1", ("generator",), PartialConvolutions, pretrained=("vgg16",)),),
    dataset=dataset,
    train_arguments=add_train_arguments,
    check_options=check_options,
    load_published=load_published,
    example=example,
    edit=edit,
    edit_arguments=add_arguments,
    options=options,
    published="the U-Net's files, ImageNet classifiers with partial padding",
)
