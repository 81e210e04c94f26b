"""DeepFaceEditing: Deep Face Generation and Editing with Disentangled Geometry and Appearance
Control (SIGGRAPH 2021)."""

from ..paper import Paper, Stage
from .checkpoint import FILES, load_published, options
from .config import Config
from .data import FacePhotos, dataset, train_arguments
from .drawing import DrawingDecoder, DrawingEncoder, nearest_rows, project, read_bank, write_bank
from .editing import FaceEditor, Geometry, add_arguments, check_options, edit
from .networks import (
    AppearanceEncoder,
    GeometryEncoder,
    GlobalGenerator,
    PartGenerator,
    SketchDecoder,
    canvas,
    example,
    named,
    networks,
)
from .parts import BOXES, PARTS, Box, boxes, pasted
from .training import (
    AppearanceTraining,
    CoarseFusionTraining,
    CoarseTraining,
    ExtractorTraining,
    FusionTraining,
    ImageTraining,
    SketchTraining,
)

__all__ = [
    "BOXES",
    "PAPER",
    "PARTS",
    "AppearanceEncoder",
    "AppearanceTraining",
    "Box",
    "CoarseFusionTraining",
    "CoarseTraining",
    "Config",
    "DrawingDecoder",
    "DrawingEncoder",
    "ExtractorTraining",
    "FaceEditor",
    "FacePhotos",
    "FusionTraining",
    "Geometry",
    "GeometryEncoder",
    "GlobalGenerator",
    "ImageTraining",
    "PartGenerator",
    "SketchDecoder",
    "SketchTraining",
    "boxes",
    "canvas",
    "load_published",
    "nearest_rows",
    "networks",
    "pasted",
    "project",
    "read_bank",
    "write_bank",
]

_SKETCHES = (*named("sketch_encoder"), *named("sketch_decoder"))
_PHOTOS = (*_SKETCHES, *named("image_encoder"))
_PARTS = (*named("sketch_encoder"), *named("image_encoder"), *named("generator"))
_COARSE = CoarseTraining.averaged

PAPER = Paper(
    name="deepfaceediting",
    title="DeepFaceEditing: Deep Face Generation and Editing with Disentangled Geometry and"
    " Appearance Control (SIGGRAPH 2021)",
    does="edit a face part by part: geometry from a sketch or photo, appearance from a photo",
    config=Config,
    networks=networks,
    stages=(
        Stage("extractor", ("extractor",), ExtractorTraining),
        Stage("sketch", _SKETCHES, SketchTraining),
        Stage("image", named("image_encoder"), ImageTraining, needs=_SKETCHES),
        Stage(
            "appearance",
            (*named("generator"), *named("discriminator")),
            AppearanceTraining,
            needs=_PHOTOS,
            pretrained=("vgg19",),
        ),
        Stage("coarse", _COARSE, CoarseTraining, pretrained=("vgg19",)),
        Stage(
            "coarse_fusion",
            ("coarse_fusion", "fusion_discriminator"),
            CoarseFusionTraining,
            needs=_COARSE,
            pretrained=("vgg19",),
        ),
        Stage(
            "fusion",
            ("fusion", "fusion_discriminator"),
            FusionTraining,
            needs=_PARTS,
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
    published="all networks of an edit, a file for each part (no decoder or discriminator exists)",
    check_options=check_options,
)
