"""Layers of projects in use, written in plain PyTorch, then accelerated: the fused forms must give
what the projects give. Where the file's source is MONAI, `SPADE` is MONAI's.
"""

from collections.abc import Callable

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
}
