"""Region Normalization for Image Inpainting (AAAI 2020)."""

from ..inpainting import add_arguments, add_train_arguments, check_options
from ..paper import Paper, Stage
from .checkpoint import load_published, options
from .editing import edit, fill
from .networks import Config, D_Net, G_Net, example, networks, saRN_ResnetBlock
from .training import RegionNormalization, dataset

__all__ = [
    "PAPER",
    "Config",
    "D_Net",
    "G_Net",
    "RegionNormalization",
    "fill",
    "load_published",
    "networks",
    "saRN_ResnetBlock",
]

PAPER = Paper(
    name="region_normalization",
    title="Region Normalization for Image Inpainting (AAAI 2020)",
    does="fills holes",
    config=Config,
    networks=networks,
    stages=(Stage("1", ("generator", "discriminator"), RegionNormalization),),
    dataset=dataset,
    train_arguments=add_train_arguments,
    check_options=check_options,
    load_published=load_published,
    example=example,
    edit=edit,
    edit_arguments=add_arguments,
    options=options,
    published="generator and discriminator",
)
