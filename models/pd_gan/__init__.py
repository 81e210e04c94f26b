"""PD-GAN: Probabilistic Diverse GAN for Image Inpainting (CVPR 2021)."""

from ..papers import Paper
from .checkpoint import FILES, load_published, options
from .editing import Sampler, add_arguments, edit
from .first_stage import Decoder, Encoder
from .networks import Config, SPDNormGenerator, example, networks
from .training import PDGAN, dataset

__all__ = [
    "PAPER",
    "PDGAN",
    "Config",
    "Decoder",
    "Encoder",
    "SPDNormGenerator",
    "Sampler",
    "load_published",
    "networks",
]

PAPER = Paper(
    name="pd_gan",
    title="PD-GAN: Probabilistic Diverse GAN for Image Inpainting (CVPR 2021)",
    config=Config,
    networks=networks,
    recipe=PDGAN,
    dataset=dataset,
    load_published=load_published,
    files=FILES,
    example=example,
    edit=edit,
    edit_arguments=add_arguments,
    options=options,
    marks=("Encoder_1.conv.", "Decoder_1.model.", ".mlp_activate.0.", ".conv_to_f."),
)
