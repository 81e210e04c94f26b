"""Semantic Photo Manipulation with a Generative Image Prior (SIGGRAPH 2019)."""

from ..paper import Paper, Stage
from .checkpoint import FILES, from_tensorflow, load_generator, load_published, options
from .editing import PhotoEditor, add_arguments, check_options, edit
from .fitting import ImageSpecificGenerator, adapt, refine, tune
from .losses import cosine_error, kept_l1
from .networks import (
    SIZES,
    Config,
    HybridLayerNormEncoder,
    PerturbationNetwork,
    ProgressiveDiscriminator,
    ProgressiveGenerator,
    example,
    networks,
)
from .ranking import (
    UnitClass,
    class_values,
    rank_units,
    read_classes,
    unit_iou,
    unit_quantiles,
    write_classes,
)
from .strokes import Stroke, add, compose, edited, keep_mask, remove, restyle, style_values
from .training import (
    GeneratorTraining,
    JointTraining,
    LayersTraining,
    TrunkTraining,
    dataset,
    train_arguments,
)

__all__ = [
    "PAPER",
    "SIZES",
    "Config",
    "GeneratorTraining",
    "HybridLayerNormEncoder",
    "ImageSpecificGenerator",
    "JointTraining",
    "LayersTraining",
    "PerturbationNetwork",
    "PhotoEditor",
    "ProgressiveDiscriminator",
    "ProgressiveGenerator",
    "Stroke",
    "TrunkTraining",
    "UnitClass",
    "adapt",
    "add",
    "class_values",
    "compose",
    "cosine_error",
    "edited",
    "from_tensorflow",
    "keep_mask",
    "kept_l1",
    "load_generator",
    "load_published",
    "networks",
    "rank_units",
    "read_classes",
    "refine",
    "remove",
    "restyle",
    "style_values",
    "tune",
    "unit_iou",
    "unit_quantiles",
    "write_classes",
]

PAPER = Paper(
    name="semantic_photo_manipulation",
    title="Semantic Photo Manipulation with a Generative Image Prior (SIGGRAPH 2019)",
    does="add, remove or restyle things in a photo by strokes",
    config=Config,
    networks=networks,
    stages=(
        Stage("generator", ("generator", "outputs", "discriminator"), GeneratorTraining),
        Stage("resnet", ("encoder",), TrunkTraining, needs=("generator",)),
        Stage("layers", ("encoder",), LayersTraining, needs=("generator",)),
        Stage("joint", ("encoder",), JointTraining, needs=("generator",)),
    ),
    dataset=dataset,
    train_arguments=train_arguments,
    load_published=load_published,
    files=FILES,
    example=example,
    edit=edit,
    edit_arguments=add_arguments,
    options=options,
    published="generators (in three formats) and encoders",
    check_options=check_options,
)
