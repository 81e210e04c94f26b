"""Published files: pickled arrays by name, a file for each network of each part."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import MisfitError, by_network, load_strictly, part
from .config import Config
from .networks import builders, networks
from .parts import PARTS

# Files in a folder, by network.
_OF_EACH = {
    "sketch_encoder": "sketch_encoder/sketch_encoder",
    "image_encoder": "image_encoder/image_encoder",
    "generator": "generator/generator",
    "drawing_encoder": "Drawing/sketch_encoder",
    "drawing_decoder": "Drawing/sketch_DE",
    "coarse_encoder": "Drawing/geo_encoder",
    "coarse_generator": "Drawing/part_gen",
}
FILES = {f"{kind}_{p}": f"{file}_{p}*" for kind, file in _OF_EACH.items() for p in PARTS}
FILES |= {
    "fusion": "global_fuse*",
    "extractor": "sketch_generator*",
    "coarse_fusion": "Drawing/global_fuse*",
}
_DISCRIMINATOR = "discriminator_0.model0.0.weight"
_PART = re.compile(rf"({'|'.join(PARTS)})(?![a-z0-9])")
_WEIGHT = re.compile(r"model\.\d+\.weight")
Shapes = dict[str, tuple[int, ...]]


def load_published(
    content: Mapping[str, Any], config: Config, source: object
) -> dict[str, nn.Module]:
    """The networks of one file, or of several given by name.

    Args:
        content: of a file, or of the files by the names in `FILES`. Of a single file the entries
            tell the kind of network, its name the part.
        config: of the networks.
        source: named in errors.

    Raises:
        ValueError: an entry is missing, unexpected, or of another shape, or nothing tells the part.
    """
    with torch.device("meta"):
        known = networks(config)
    found = {}
    for given, state in by_network(content, known, known.keys(), {}, "").items():
        name = given or _name(state, config, source)
        built = networks(config, [name])[name]
        load_strictly(built, state, source)
        found[name] = built
    return found


def _shapes(state: Mapping[str, Any]) -> Shapes:
    return {key: tuple(getattr(value, "shape", ())) for key, value in state.items()}


def _kind(shapes: Shapes) -> str | None:
    """The kind of network that has these entries; both kinds of encoders are "encoder"."""
    if "enc_style.model.0.conv.weight" in shapes:
        normed = any(len(s) == 1 and _WEIGHT.fullmatch(k) for k, s in shapes.items())
        return "coarse_generator" if normed else "generator"
    if "fc_mu.0.weight" in shapes:
        return "drawing_encoder"
    if "fc.0.weight" in shapes and "conv.0.conv_block.0.conv.weight" in shapes:
        return "drawing_decoder"
    if _DISCRIMINATOR in shapes:
        return "discriminator"
    ends = [s for s in shapes.values() if len(s) == 4 and s[2:] == (7, 7)]
    first = shapes.get("model.1.weight", ())
    if len(first) == 4 and first[2:] == (7, 7):
        if len(ends) == 1:
            return "encoder" if _count(shapes, "conv_block") else "coarse_encoder"
        if "model.2.running_mean" in shapes:
            return "coarse_fusion"
        return "extractor" if first[1] == 3 else "fusion"
    return "sketch_decoder" if ends and "model.0.conv_block.0.conv.weight" in shapes else None


def _count(shapes: Shapes, inside: str) -> int:
    """How many layers have entries of a name inside."""
    return len({key.split(".")[1] for key in shapes if f".{inside}." in key})


def _name(state: Mapping[str, Any], config: Config, source: object) -> str:
    """The network that a single file holds."""
    shapes, file = _shapes(state), Path(str(source)).name
    kind = _kind(shapes)
    if kind is None:
        shown = ", ".join(list(state)[:3]) or "nothing"
        raise MisfitError(f"{source}: expected a network of DeepFaceEditing, found {shown}, ...")
    if kind == "encoder":
        blocks, given = _count(shapes, "conv_block"), config.network
        of_photos = blocks == given.image_blocks
        if given.image_blocks == given.sketch_blocks:
            of_photos = "image" in file
        kind = "image_encoder" if of_photos else "sketch_encoder"
    if kind == "discriminator" and "fusion" in file:
        return "fusion_discriminator"
    if kind in FILES:
        return kind
    match = _PART.search(file)
    if match is None:
        raise MisfitError(
            f"{source}: holds a network of the kind {kind}; expected the part in the file's name,"
            f" one of {PARTS}, such as {kind}_mouth"
        )
    return f"{kind}_{match[1]}"


def options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Widths, halvings and blocks, as far as the networks in a file have them."""
    apart = {name: part(state, name) for name in builders(Config())}
    told: dict[str, Any] = {}
    for name, inner in apart.items():
        told |= _told(_shapes(inner), name) if inner else {}
    return told or _told(_shapes(state))


def _told(shapes: Shapes, name: str = "") -> dict[str, Any]:
    kind = _kind(shapes)
    if kind is None:
        return {}
    blocks = _count(shapes, "conv_block")
    if kind == "discriminator":
        if shapes[_DISCRIMINATOR][1] != 3:  # another paper's, which sees more than photos
            return {}
        scales = {key.split(".")[0] for key in shapes}
        layers = {key.split(".")[1] for key in shapes if key.startswith("discriminator_0.")}
        return {
            "discriminator_width": shapes[_DISCRIMINATOR][0],
            "discriminators": len(scales),
            "discriminator_layers": len(layers) - 2,
        }
    if kind == "drawing_encoder":
        halvings = sum(key.endswith(".bn.weight") for key in shapes)
        return {
            "coarse_width": shapes["conv.0.conv.weight"][0],
            "drawing_downsamplings": halvings,
            "code": shapes["fc_mu.0.weight"][0],
        }
    if kind == "drawing_decoder":
        halvings = sum(key.endswith(".conv.1.weight") and len(s) == 1 for key, s in shapes.items())
        final = max(int(key.split(".")[1]) for key in shapes if key.startswith("conv."))
        return {
            "coarse_width": shapes[f"conv.{final}.weight"][0],
            "drawing_downsamplings": halvings,
            "code": shapes["fc.0.weight"][1],
        }
    if kind in ("generator", "coarse_generator", "sketch_decoder"):
        channels = shapes["model.0.conv_block.0.conv.weight"][0]
        [width] = {s[1] for k, s in shapes.items() if _WEIGHT.fullmatch(k) and s[2:] == (7, 7)}
        told = {
            "coarse_width" if kind == "coarse_generator" else "width": width,
            "downsamplings": (channels // width).bit_length() - 1,
        }
        if kind == "sketch_decoder":
            return told
        appearance = {key.split(".")[2] for key in shapes if key.startswith("enc_style.model.")}
        return told | {
            "generator_blocks": blocks,
            "appearance_width": shapes["enc_style.model.0.conv.weight"][0],
            "appearance_downsamplings": len(appearance) - 2,
        }
    width = shapes["model.1.weight"][0]
    widest = max(shape[0] for shape in shapes.values())
    halvings = (widest // width).bit_length() - 1
    if kind in ("encoder", "coarse_encoder"):
        told = {"coarse_width" if kind == "coarse_encoder" else "width": width}
        if kind == "encoder":
            few = name.startswith("sketch") or (not name and blocks < 3)
            told["sketch_blocks" if few else "image_blocks"] = blocks
        return told | {"downsamplings": halvings}
    names = {
        "fusion": ("width", "fusion_blocks"),
        "extractor": ("extractor_width", "extractor_blocks"),
        "coarse_fusion": ("coarse_width", "coarse_fusion_blocks"),
    }[kind]
    return {**dict(zip(names, (width, blocks), strict=True)), "downsamplings": halvings}
