"""Layers of projects in use, written in plain PyTorch, then accelerated: the fused forms must give
what the projects give. Where the file's source is MONAI, `SPADE` is MONAI's.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from support import living_layers as layers
from torch import Tensor, nn

import torchext
from golden import statements
from golden.recipe import Golden
from torchext.models.dagan.checkpoint import with_right_vectors

from .base import FUNCTIONS, Adapter


class AcceleratedAdapter(Adapter):
    """Fails unless all SPADE layers of the module run the fused form."""

    def build(self, golden: Golden) -> nn.Module:
        module, report = torchext.accelerate(super().build(golden))
        assert report.swapped, str(report)
        assert not report.left, str(report)
        return module

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        module.load_state_dict(with_right_vectors(state))

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Buffers too, by their keys."""
        names = {**FUNCTIONS, **self.bindings(module), **inputs}
        assigned = statements.run(golden.config["call"], names)
        return {
            name: assigned[name] if name in assigned else module.get_buffer(name).clone()
            for name in golden.wanted("out")
        }


class SpadeAdapter(AcceleratedAdapter):
    """A class of three projects."""

    def build(self, golden: Golden) -> nn.Module:
        kinds = {
            "MONAI": layers.MonaiSPADE,
            "LivePortrait": layers.SPADE,
            "StableSR": layers.StableSRSPADE,
        }
        (self.make,) = (kind for name, kind in kinds.items() if name in golden.config["source"])
        return super().build(golden)


class PartialConvAdapter(AcceleratedAdapter):
    """The mask may be two, whose channels follow one another."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        masks = [value for name, value in inputs.items() if name.startswith("mask")]
        y, mask = module(inputs["x"], torch.cat(masks, dim=1))
        found = {"y": y, "mask": mask}
        wanted = golden.wanted("out")
        return {n: found[n] if n in found else module.get_buffer(n).clone() for n in wanted}


_ACTIVATIONS = {None: lambda: None, "ReLU": nn.ReLU, "LeakyReLU(0.01)": lambda: nn.LeakyReLU(0.01)}


def _partial_conv(activation: str | None, global_padding: bool, **options: object) -> nn.Module:
    module = _ACTIVATIONS[activation]()
    return layers.PConvBlock(activation=module, around=global_padding, **options)


def _sdm_block(use_scale_shift_norm: bool, **options: int) -> nn.Module:
    assert use_scale_shift_norm
    return layers.SDMResBlock(**options)


class SparseAdapter(Adapter):
    """Our layers, that see the mask of a block; it is drawn as the call says."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        with torchext.nn.visible(_visible(golden.config["call"], inputs["u"])):
            y = module(inputs["x"])
        wanted = golden.wanted("out")
        return {n: y if n == "y" else module.get_buffer(n).clone() for n in wanted}


def _visible(call: str, u: Tensor) -> Tensor:
    """In each image that share of the patches of smallest u."""
    share = re.search(r"round\(([\d.]+) f\^[23]\) smallest of u", call)
    assert share is not None, call
    flat = u.flatten(1)
    count = round(float(share[1]) * flat.shape[1])
    mask = torch.zeros_like(flat).scatter(1, flat.argsort(dim=1)[:, :count], 1.0)
    return mask.view(u.shape)


def _sequence(layers: str) -> nn.Module:
    """Written as "Sequential(Conv2d(3,8,7,stride 2,no bias), ReLU, ...), converted"."""
    inside = layers.removeprefix("Sequential(").rpartition(")")[0]
    found = []
    for name, text in re.findall(r"(\w+)(?:\(([^)]*)\))?(?:, |$)", inside):
        numbers: list[Any] = []
        options: dict[str, Any] = {}
        for word in filter(None, text.split(",")):
            match word.split():
                case ["no", "bias"]:
                    options["bias"] = False
                case ["affine"]:
                    options["affine"] = True
                case ["stride", value]:
                    options["stride"] = int(value)
                case ["pad", value]:
                    options["padding"] = int(value)
                case [value]:
                    numbers.append(float(value) if "." in value else int(value))
        found.append(getattr(nn, name)(*numbers, **options))
    return torchext.nn.to_sparse(nn.Sequential(*found))


class KnownAdapter(Adapter):
    """The mask is an output too, where there is one; the filter is no weight."""

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        built = {k: v for k, v in module.state_dict().items() if k.endswith("resample_filter")}
        module.load_state_dict(state | built)

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        y, mask = module(inputs["x"], inputs.get("mask"))
        return {"y": y} if mask is None else {"y": y, "mask": mask}


class PointsAdapter(Adapter):
    """The features of points, without coordinates."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"y": module(inputs["f"])}


def _accelerated(make: Callable[..., nn.Module]) -> Adapter:
    return AcceleratedAdapter(make, "layer", "block", "net")


ADAPTERS: dict[str, Adapter] = {
    "SPADE": SpadeAdapter(layers.SPADE, "layer"),
    "PConvBlock": PartialConvAdapter(_partial_conv),
    "SPADENetResBlock": _accelerated(layers.SPADENetResBlock),
    "SPADEResBlock": _accelerated(layers.SPADEResBlock),
    "SPADEDiffResBlock": _accelerated(layers.SPADEDiffResBlock),
    "SPADEResnetBlock": _accelerated(layers.SPADEResnetBlock),
    "SPADEDecoder": _accelerated(layers.SPADEDecoder),
    "ZeroSFT": _accelerated(layers.ZeroSFT),
    "SPADEGroupNorm": _accelerated(layers.SPADEGroupNorm),
    "SDMResBlock": _accelerated(_sdm_block),
    "layers": SparseAdapter(_sequence),
    "SparseConvNeXtBlock": SparseAdapter(torchext.nn.SparseConvNeXtBlock),
    "Conv2dLayerPartial": KnownAdapter(torchext.nn.Conv2dLayerPartial),
    "MinkowskiGRN": PointsAdapter(torchext.nn.MinkowskiGRN),
}
