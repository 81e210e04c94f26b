"""Region Normalization for Image Inpainting (AAAI 2020)."""

from ..inpainting import add_arguments
from ..papers import Paper
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
    config=Config,
    networks=networks,
    recipe=RegionNormalization,
    dataset=dataset,
    load_published=load_published,
    example=example,
    edit=edit,
    edit_arguments=add_arguments,
    options=options,
    marks=("foreground_gamma", ".sa.gamma_conv."),
)
