"""PD-GAN: Probabilistic Diverse GAN for Image Inpainting (CVPR 2021)."""

from ..inpainting import add_train_arguments, check_options
from ..paper import Paper, Stage
from .checkpoint import FILES, load_published, options
from .editing import Sampler, add_arguments, edit
from .first_stage import Decoder, Encoder
from .networks import Config, SPDNormGenerator, example, networks
from .training import FirstStage, SecondStage, dataset

__all__ = [
    "PAPER",
    "Config",
    "Decoder",
    "Encoder",
    "FirstStage",
    "SPDNormGenerator",
    "Sampler",
    "SecondStage",
    "load_published",
    "networks",
]

PAPER = Paper(
    name="pd_gan",
    title="PD-GAN: Probabilistic Diverse GAN for Image Inpainting (CVPR 2021)",
    does="several fills of a hole",
    config=Config,
    networks=networks,
    stages=(
        Stage("1", ("encoder", "decoder"), FirstStage, pretrained=("vgg16",)),
        Stage(
            "2",
            ("generator", "discriminator"),
            SecondStage,
            needs=("encoder", "decoder"),
            pretrained=("vgg16",),
        ),
    ),
    dataset=dataset,
    train_arguments=add_train_arguments,
    check_options=check_options,
    load_published=load_published,
    files=FILES,
    example=example,
    edit=edit,
    edit_arguments=add_arguments,
    options=options,
    published="the first stage's files (none of the generator exist)",
)
