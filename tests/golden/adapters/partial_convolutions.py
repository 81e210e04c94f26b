"""Partial convolutions. State keys are used as published; a call's mask_out is the file's mask."""

from dataclasses import replace

from torch import Tensor, nn

from golden.recipe import Golden
from torchext.nn import PartialConv, PartialConv2d, PartialConv3d

from .base import Adapter


class MaskAdapter(Adapter):
    """A layer that returns its output and the updated mask."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        call = golden.config["call"].replace("mask_out", "mask")
        golden = replace(golden, config={**golden.config, "call": call})
        return super().outputs(module, golden, inputs)


class CachingAdapter(MaskAdapter):
    """The published layers, which reuse the last mask in a call without one."""

    def build(self, golden: Golden) -> nn.Module:
        return self.make(**golden.config["args"], published_cache=True)


ADAPTERS: dict[str, Adapter] = {
    "PartialConv": MaskAdapter(PartialConv, "layer"),
    "PartialConv2d": CachingAdapter(PartialConv2d, "layer"),
    "PartialConv3d": CachingAdapter(PartialConv3d, "layer"),
}
