"""MichiGAN: Multi-Input-Conditioned Hair Image Generation for Portrait Editing (SIGGRAPH 2020)."""

from ..paper import Paper, Stage
from .checkpoint import FILES, load_published, options
from .data import HairPhotos, dataset, orientation_of, train_arguments
from .editing import Hair, HairEditor, add_arguments, check_options, edit, edited, guidance_of
from .hair import complete_orientation, draw_noise
from .inpainting import OrientationInpainter, colour_code, fill_orientation, fill_strokes
from .networks import (
    AppearanceEncoder,
    BackgroundEncoder,
    Config,
    HairGenerator,
    example,
    networks,
)
from .training import Michigan, OrientationFilling

__all__ = [
    "PAPER",
    "AppearanceEncoder",
    "BackgroundEncoder",
    "Config",
    "Hair",
    "HairEditor",
    "HairGenerator",
    "HairPhotos",
    "Michigan",
    "OrientationFilling",
    "OrientationInpainter",
    "colour_code",
    "complete_orientation",
    "draw_noise",
    "edited",
    "fill_orientation",
    "fill_strokes",
    "guidance_of",
    "load_published",
    "networks",
    "orientation_of",
]

PAPER = Paper(
    name="michigan",
    title="MichiGAN: Multi-Input-Conditioned Hair Image Generation (SIGGRAPH 2020)",
    does="edit the hair of a portrait",
    config=Config,
    networks=networks,
    stages=(
        Stage("orientation", OrientationFilling.trained, OrientationFilling),
        Stage(
            "hair",
            ("generator", "discriminator"),
            Michigan,
            needs=OrientationFilling.fillers,
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
    published="generator and both networks of orientations (no discriminator exists)",
    check_options=check_options,
)
