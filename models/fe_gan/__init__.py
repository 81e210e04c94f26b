"""Fashion Editing with Adversarial Parsing Learning (CVPR 2020)."""

from ..paper import Paper, Stage
from .checkpoint import FILES, load_published, options
from .data import FashionPhotos, colour_map, dataset, sketch_of, train_arguments
from .editing import Edit, FashionEditor, add_arguments, check_options, edit
from .inputs import Guidance, composed_mask, guidance, inpainting_input, parsing_input
from .labels import COLOURS, NAMES, coloured, read_parsing
from .networks import (
    Config,
    InpaintingDiscriminator,
    InpaintingGenerator,
    ParsingGenerator,
    example,
    networks,
)
from .training import Inpainting, ParsingCompletion

__all__ = [
    "COLOURS",
    "NAMES",
    "PAPER",
    "Config",
    "Edit",
    "FashionEditor",
    "FashionPhotos",
    "Guidance",
    "Inpainting",
    "InpaintingDiscriminator",
    "InpaintingGenerator",
    "ParsingCompletion",
    "ParsingGenerator",
    "colour_map",
    "coloured",
    "composed_mask",
    "guidance",
    "inpainting_input",
    "load_published",
    "networks",
    "parsing_input",
    "read_parsing",
    "sketch_of",
]

PAPER = Paper(
    name="fe_gan",
    title="FE-GAN: Fashion Editing with Adversarial Parsing Learning (CVPR 2020)",
    does="edit clothes by sketch and colours",
    config=Config,
    networks=networks,
    stages=(
        Stage("parsing", ("parsing", "parsing_discriminator"), ParsingCompletion),
        Stage(
            "inpainting",
            ("generator", "discriminator"),
            Inpainting,
            needs=("parsing",),
            pretrained=("vgg19",),
        ),
    ),
    dataset=dataset,
    train_arguments=train_arguments,
    load_published=load_published,
    files=FILES,
    example=example,
    edit=edit,
    edit_arguments=add_arguments,
    options=options,
    published="each network by its published keys (no file was published)",
    check_options=check_options,
)
