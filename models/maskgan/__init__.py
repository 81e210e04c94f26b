"""MaskGAN: Towards Diverse and Interactive Facial Image Manipulation (CVPR 2020)."""

import argparse

from ..face_labels import coloured, from_bisenet
from ..paper import Paper, Stage
from . import editing, labels
from .checkpoint import FILES, load_published, options
from .editing import FaceEditor, parse
from .labels import LabelledFaces, merge_files, merge_parts
from .mask_vae import MaskVAE
from .networks import (
    AlphaBlender,
    Config,
    DenseMappingNetwork,
    LabelEncoder,
    SFTLayer,
    StyleEncoder,
    example,
    networks,
)
from .parser import FaceParser
from .strokes import Stroke, paint, read_strokes
from .training import DenseMapping, EditingSimulation, Parsing, interpolated

__all__ = [
    "PAPER",
    "AlphaBlender",
    "Config",
    "DenseMapping",
    "DenseMappingNetwork",
    "EditingSimulation",
    "FaceEditor",
    "FaceParser",
    "LabelEncoder",
    "LabelledFaces",
    "MaskVAE",
    "Parsing",
    "SFTLayer",
    "Stroke",
    "StyleEncoder",
    "coloured",
    "from_bisenet",
    "interpolated",
    "load_published",
    "merge_files",
    "merge_parts",
    "networks",
    "paint",
    "parse",
    "read_strokes",
]


def _check_options(given: argparse.Namespace) -> None:
    labels.check_options(given)
    editing.check_options(given)


PAPER = Paper(
    name="maskgan",
    title="MaskGAN: Towards Diverse and Interactive Facial Image Manipulation (CVPR 2020)",
    does="edit a photo of a face by its label map",
    config=Config,
    networks=networks,
    stages=(
        Stage("parser", ("parser",), Parsing),
        Stage("1", ("generator", "discriminator", "mask_vae"), DenseMapping, pretrained=("vgg19",)),
        Stage(
            "2",
            ("generator", "blender", "discriminator"),
            EditingSimulation,
            needs=("mask_vae",),
            pretrained=("vgg19",),
        ),
    ),
    dataset=labels.dataset,
    train_arguments=labels.train_arguments,
    load_published=load_published,
    files=FILES,
    example=example,
    edit=editing.edit,
    edit_arguments=editing.add_arguments,
    options=options,
    published="generator and face parser (none of discriminator and blender exist)",
    check_options=_check_options,
)
