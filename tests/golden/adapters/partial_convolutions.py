"""Partial convolutions. State keys are used as published; a call's mask_out is the file's mask."""

import re
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from golden import statements
from golden.recipe import Golden
from torchext.models.paper import configure
from torchext.models.partial_convolutions import (
    Config,
    InpaintingLoss,
    PCBActiv,
    PConvUNet,
    VGG16PartialLoss,
    classifiers,
    load_published,
)
from torchext.models.partial_convolutions.losses import TAPS
from torchext.models.vgg import VGGFeatures
from torchext.nn import PartialConv, PartialConv2d, PartialConv3d

from .base import Adapter


class MaskAdapter(Adapter):
    """A layer that returns its output and the updated mask."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        call = golden.config["call"].replace("mask_out", "mask")
        # A call may say that the mask is stored in part.
        cut = re.search(r"out\.mask is mask(\[[^\]]*\])", call)
        golden = replace(golden, config={**golden.config, "call": call})
        outputs = super().outputs(module, golden, inputs)
        if cut:
            outputs["mask"] = statements.evaluate(f"mask{cut[1]}", outputs)
        return outputs


class CachingAdapter(MaskAdapter):
    """The published layers, which reuse the last mask in a call without one."""

    def build(self, golden: Golden) -> nn.Module:
        return self.make(**golden.config["args"], published_cache=True)


class UNetAdapter(MaskAdapter):
    """Loads through the paper's checkpoint loader."""

    def load(self, module: PConvUNet, state: dict[str, Tensor]) -> None:
        shape = {"layers": module.layer_size, "upsampling": module.upsampling_mode}
        config = configure(Config, shape)
        loaded = load_published({"model": state}, config, "golden file")["generator"]
        module.load_state_dict(loaded.to(next(iter(state.values()))).state_dict())


class ClassifierAdapter(Adapter):
    """Loads through the classifiers' checkpoint loader."""

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        classifiers.load_published(module, {"state_dict": state})


class LossAdapter(Adapter):
    """A loss on VGG features; the file's keys are those of the features."""

    def build(self, golden: Golden) -> nn.Module:
        return self.make(vgg=VGGFeatures(16, TAPS), **golden.config["args"])

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        module.vgg.load_torchvision(state, "golden file")


class InpaintingLossAdapter(LossAdapter):
    """The terms, and their weighted sum."""

    def outputs(
        self, module: InpaintingLoss, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        gt, mask = inputs["gt"], inputs["mask"]
        terms = module(gt * mask, mask, inputs["output"], gt)
        weights = re.findall(r"([\d.]+) (\w+)", golden.config["call"].split("total = ")[1])
        total = sum(float(weight) * terms[name] for weight, name in weights)
        return {"total": total, **terms}


ADAPTERS: dict[str, Adapter] = {
    "PartialConv": MaskAdapter(PartialConv, "layer"),
    "PartialConv2d": CachingAdapter(PartialConv2d, "layer"),
    "PartialConv3d": CachingAdapter(PartialConv3d, "layer"),
    "PCBActiv": MaskAdapter(PCBActiv, "layer"),
    "PConvUNet": UNetAdapter(PConvUNet, "net"),
    "InpaintingLoss": InpaintingLossAdapter(InpaintingLoss),
    "VGG16PartialLoss": LossAdapter(VGG16PartialLoss, "loss"),
    **{
        name: ClassifierAdapter(partial(classifiers.build, name), "net")
        for name in classifiers.NAMES
    },
}
