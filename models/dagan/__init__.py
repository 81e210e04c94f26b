"""Dual Attention GANs for Semantic Image Synthesis (ACM MM 2020)."""

from ..paper import Paper, Stage
from .checkpoint import FILES, load_published, options
from .editing import add_arguments, edit, synthesise
from .labels import LabelledPhotos, dataset, instance_edges, train_arguments
from .networks import (
    DATA_SETS,
    AttentionTail,
    Config,
    ConvEncoder,
    SPADEGenerator,
    example,
    networks,
)
from .training import DualAttention

__all__ = [
    "DATA_SETS",
    "PAPER",
    "AttentionTail",
    "Config",
    "ConvEncoder",
    "DualAttention",
    "LabelledPhotos",
    "SPADEGenerator",
    "instance_edges",
    "load_published",
    "networks",
    "synthesise",
]

PAPER = Paper(
    name="dagan",
    title="Dual Attention GANs for Semantic Image Synthesis (ACM MM 2020)",
    does="label map to photo",
    config=Config,
    networks=networks,
    stages=(
        Stage("1", ("generator", "discriminator", "encoder"), DualAttention, pretrained=("vgg19",)),
    ),
    dataset=dataset,
    train_arguments=train_arguments,
    load_published=load_published,
    files=FILES,
    example=example,
    edit=edit,
    edit_arguments=add_arguments,
    options=options,
    published="generator and discriminator",
)
