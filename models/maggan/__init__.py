"""MagGAN: Face Attribute Editing with Mask-Guided Generative Adversarial Network (ACCV 2020)."""

from ..losses import gradient_penalty
from ..paper import Paper, Stage
from . import data, editing
from .attributes import ATTRIBUTES, CELEBA, difference, labels_of, read_attributes, slide, target_of
from .checkpoint import FILES, convert_tensorflow_checkpoint, load_published, options
from .classifier import AttributeClassifier
from .config import STGAN, Config
from .discriminators import MultiLevelPatchDiscriminator, PatchDiscriminator, STGANDiscriminator
from .editing import AttributeEditor, Edit, classify
from .losses import (
    hard_example_cross_entropy,
    mask_guided_reconstruction,
    scattered,
)
from .networks import ConvGRUCell, MagGANGenerator, STGANGenerator, example, networks
from .parser import BiSeNet, one_hot, overlay, parse
from .photos import stgan_input
from .regions import INFLUENCE, influence_regions, influence_table
from .training import AttributeEditing, Classifying, Parsing

__all__ = [
    "ATTRIBUTES",
    "CELEBA",
    "INFLUENCE",
    "PAPER",
    "STGAN",
    "AttributeClassifier",
    "AttributeEditing",
    "AttributeEditor",
    "BiSeNet",
    "Classifying",
    "Config",
    "ConvGRUCell",
    "Edit",
    "MagGANGenerator",
    "MultiLevelPatchDiscriminator",
    "Parsing",
    "PatchDiscriminator",
    "STGANDiscriminator",
    "STGANGenerator",
    "classify",
    "convert_tensorflow_checkpoint",
    "difference",
    "gradient_penalty",
    "hard_example_cross_entropy",
    "influence_regions",
    "influence_table",
    "labels_of",
    "load_published",
    "mask_guided_reconstruction",
    "networks",
    "one_hot",
    "overlay",
    "parse",
    "read_attributes",
    "scattered",
    "slide",
    "stgan_input",
    "target_of",
]

PAPER = Paper(
    name="maggan",
    title="MagGAN: High-Resolution Face Attribute Editing with Mask-Guided Generative Adversarial"
    " Network (ACCV 2020)",
    does="other attributes of a face, within masks",
    config=Config,
    networks=networks,
    stages=(
        Stage("parser", ("parser",), Parsing),
        Stage("classifier", ("classifier",), Classifying),
        Stage("editing", ("generator", "discriminator"), AttributeEditing),
    ),
    dataset=data.dataset,
    train_arguments=data.train_arguments,
    load_published=load_published,
    files=FILES,
    example=example,
    edit=editing.edit,
    edit_arguments=editing.add_arguments,
    options=options,
    published="STGAN's and its classifier's of TensorFlow, face parser (none of MagGAN exist)",
    check_options=editing.check_options,
)
