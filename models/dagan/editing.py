"""A photo from a label map that was painted or changed."""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import pictures
from ..geometry import Geometry
from ..label_maps import LABELS, add_palette, read_numbers, read_palette
from .labels import check_instances, classes, one_hot
from .networks import Config, Network, SPADEGenerator


@torch.no_grad()
def synthesise(
    generator: SPADEGenerator,
    labels: Tensor,
    network: Network,
    *,
    instances: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """Photos of label maps.

    Args:
        generator: trained, in evaluation mode.
        labels: (N,1,h,w), integers as in files, of any size.
        network: the options that the generator was built with.
        instances: (N,1,h,w), integers; where the generator sees their edges, and only there.
        z: (N,code), of a generator that begins with a code; drawn without it.

    Returns:
        (N,3,H,W) in [0,1], of the generator's size.

    Raises:
        TypeError: labels or instances are no integers.
        ValueError: a shape that does not fit, or a number that is no label.
    """
    for name, value in (("labels", labels), ("instances", instances)):
        if value is None:
            continue
        if value.dim() != 4 or value.shape[1] != 1 or 0 in value.shape[2:]:
            raise ValueError(f"{name}: expected the shape (N, 1, h, w), got {tuple(value.shape)}")
        if value.is_floating_point() or value.is_complex():
            raise TypeError(f"{name}: expected integers, got {value.dtype}")
        if value.shape != labels.shape:
            raise ValueError(
                f"{name}: expected the labels' shape {tuple(labels.shape)}, got"
                f" {tuple(value.shape)}"
            )
    check_instances(network, instances is not None)
    found = classes(labels, network)
    if network.instances:
        found = one_hot(found, network, instances).to(generator.conv_img.weight)
    return (generator(found, z) + 1) / 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "labels",
        type=Path,
        help="a label map: a picture of numbers, or of colours with --palette",
    )
    add_palette(parser)
    parser.add_argument("--instances", type=Path, help="a picture of instances' numbers")
    parser.add_argument("--style", type=Path, help="a photo to encode (networks with vae)")
    parser.add_argument("--seed", type=int, default=0, help="of the code without --style")


def edit(networks: dict[str, nn.Module], config: Config, options: argparse.Namespace) -> None:
    """Write the photo of a label map, stretched to the generator's size by nearest neighbour."""
    given = config.network
    if "generator" not in networks:
        raise ValueError(f"{options.checkpoint}: expected a generator, found {[*networks]}")
    check_instances(given, options.instances is not None)
    if options.style is not None and "encoder" not in networks:
        raise ValueError(
            "--style: expected none, as the checkpoint holds no image encoder (option vae)"
        )
    palette = None if options.palette is None else read_palette(options.palette)
    height, width = given.height_and_width
    numbers = read_numbers(options.labels, palette)
    whole = Geometry(numbers.size, None, (width, height), None, False)
    labels = LABELS.tensor(numbers, whole)[None].to(options.device)
    classes(labels, given, str(options.labels))
    instances = None
    if options.instances is not None:
        picture = read_numbers(options.instances)
        if picture.size != numbers.size:
            raise ValueError(
                f"{options.instances}: expected the label map's size, {numbers.size[0]} x"
                f" {numbers.size[1]} pixels, got {picture.size[0]} x {picture.size[1]}"
            )
        instances = LABELS.tensor(picture, whole)[None].to(options.device)
    if abs(numbers.size[0] * height / (numbers.size[1] * width) - 1) > 0.01:
        print(
            f"warning: {options.labels}: {numbers.size[0]} x {numbers.size[1]} pixels are stretched"
            f" to the networks' {width} x {height}",
            file=sys.stderr,
        )
    z = None
    if options.style is not None:
        photo = pictures.to_tensor(pictures.read_image(options.style))[None].to(options.device)
        z = networks["encoder"](photo * 2 - 1)[0]
    elif given.vae:
        random = torch.Generator().manual_seed(options.seed)
        z = torch.randn(1, given.code, generator=random).to(options.device)
    photo = synthesise(networks["generator"], labels, given, instances=instances, z=z)
    pictures.write(pictures.to_picture(photo[0]), options.output)
    print(f"wrote {options.output}")
