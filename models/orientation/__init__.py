"""Orientation maps of photographs, and guidance maps of drawn strokes. Masks: 1 hair, 0 not.

`python -m torchext.orientation PHOTO -o OUT.png` writes the 8-bit angle map that MichiGAN
("Multi-Input-Conditioned Hair Image Generation", SIGGRAPH 2020) trains on; `--preset` the files of
NeuralHaircut, GaussianHaircut, MonoHair or Im2Haircut; `--help` says more.
"""

from ..files import PictureError
from .flow import BLUR_SIGMA, orientation_code, orientation_flow
from .photos import MASK_THRESHOLD, colour_wheel, convert_photo, shown_path
from .preset_files import map_paths, write_maps
from .presets import BAND_PIXELS, PRESETS, UNSURE, Filters, Preset, orientation_maps
from .strokes import (
    HOLE_DIAMETER,
    STROKE_THICKNESS,
    StrokeGuidance,
    draw_strokes,
    stroke_guidance,
    stroke_hole,
    stroke_orientation,
)

__all__ = [
    "BAND_PIXELS",
    "BLUR_SIGMA",
    "HOLE_DIAMETER",
    "MASK_THRESHOLD",
    "PRESETS",
    "STROKE_THICKNESS",
    "UNSURE",
    "Filters",
    "PictureError",
    "Preset",
    "StrokeGuidance",
    "colour_wheel",
    "convert_photo",
    "draw_strokes",
    "map_paths",
    "orientation_code",
    "orientation_flow",
    "orientation_maps",
    "shown_path",
    "stroke_guidance",
    "stroke_hole",
    "stroke_orientation",
    "write_maps",
]
