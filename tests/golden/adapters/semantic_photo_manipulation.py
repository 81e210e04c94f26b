"""Semantic photo manipulation. Published keys; a generator of several in a file is named G."""

from typing import Any

import torch
from torch import Tensor, nn

from golden.recipe import Golden
from torchext.models import checkpoint
from torchext.models.loop import Loop
from torchext.models.semantic_photo_manipulation import fitting, strokes
from torchext.models.semantic_photo_manipulation.losses import cosine_error, kept_l1
from torchext.models.semantic_photo_manipulation.networks import (
    CODE_LAYER,
    Config,
    FreeMaps,
    HybridLayerNormEncoder,
    LayerNormEncoder,
    NormConvBlock,
    NormUpscaleConvBlock,
    OutputConvBlock,
    ProgressiveGenerator,
)

from .base import Adapter
from .dagan import kept


class OutputAdapter(Adapter):
    """A remark stands behind the call."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"y": module(inputs["x"])}


def generator(sizes: list[int]) -> ProgressiveGenerator:
    return ProgressiveGenerator(sizes=sizes)


class GeneratorAdapter(Adapter):
    """Outputs of layers are stored in part."""

    def __init__(self) -> None:
        super().__init__(generator)

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        checkpoint.load_strictly(module, state, "golden file")

    def outputs(
        self, module: ProgressiveGenerator, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        wanted = [name for name in golden.wanted("out") if name.startswith("layer")]
        inner = kept(module, wanted)
        results = {"y": module(inputs["z"])}
        for name in wanted:
            step = max(1, inner[name].shape[-1] // 8)
            channels = max(1, inner[name].shape[1] // 8)
            results[name] = inner[name][:, ::channels, ::step, ::step]
        return results


class HeldGeneratorAdapter(GeneratorAdapter):
    """Keys with the generator's name in front; further arguments are those of the call."""

    def build(self, golden: Golden) -> nn.Module:
        return generator(golden.config["args"]["sizes"])

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        super().load(module, checkpoint.part(state, "G"))


class PerturbationAdapter(HeldGeneratorAdapter):
    def outputs(
        self, module: ProgressiveGenerator, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scale, layers = golden.config["args"]["scale"], golden.config["args"]["layers"]
        deltas = {layer: scale * inputs[f"d{layer}"] for layer in layers}
        first = CODE_LAYER + 1
        return {
            "y": module.run(inputs["z8"], first, deltas=deltas),
            "y0": module.run(inputs["z8"], first),
        }


class ResidualAdapter(HeldGeneratorAdapter):
    def outputs(
        self, module: ProgressiveGenerator, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scale = golden.config["args"]["scale"]
        offsets = {layer: scale * inputs[f"d{layer}"] for layer in fitting.OFFSET_LAYERS}
        z = inputs["z"] + scale * inputs["dz"]
        last = CODE_LAYER
        return {
            "r4": module.run(z, last=last, offsets=offsets),
            "r4_init": module.run(inputs["z"], last=last),
        }


class AdaptationAdapter(HeldGeneratorAdapter):
    """The recipe's steps with maps that are fitted themselves."""

    def outputs(
        self, module: ProgressiveGenerator, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        given = golden.config["args"]
        maps = FreeMaps(module, given["layers"])
        frozen = fitting.frozen(module)
        how = {"rate": given["lr"], "weight": given["lambda_reg"]}
        recipe = fitting.Adaptation(frozen, Config(), maps, **how)
        batch = {"photo": inputs["img"], "code": inputs["z8"], "keep": inputs["keep"]}
        batch = recipe.prepared(batch)
        loop = Loop(recipe, device=inputs["z8"].device)
        terms = recipe.terms(batch)
        gradients = torch.autograd.grad(sum(terms.values()), list(maps.parameters()))
        names = [name for name, _ in maps.named_parameters()]
        results = {f"grad0_{k}": g for k, g in zip(names, gradients, strict=True)}
        results["x0"] = recipe.render(batch["below"], maps())
        history = []
        for step in range(given["steps"] + 1):
            terms = recipe.terms(batch)
            match = kept_l1(recipe.render(batch["below"], maps()), inputs["img"], inputs["keep"])
            history.append(torch.stack([torch.stack([*terms.values()]).sum(), match]).detach())
            if step < given["steps"]:
                loop.step([batch], epoch=0)
        results["loss"], results["loss_pix"] = torch.stack(history).unbind(1)
        return results


class EncoderAdapter(Adapter):
    """Estimates of the layers' outputs, some channels of them."""

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        checkpoint.load_strictly(module, state, "golden file")

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        inner = kept(module, [name for name in golden.wanted("out") if name != "z"])
        return {"z": module(inputs["x"])} | {name: x[:, ::16] for name, x in inner.items()}


class FunctionAdapter(Adapter):
    """Functions without weights."""

    def __init__(self) -> None:
        super().__init__(nn.Module)

    def build(self, golden: Golden) -> nn.Module:
        return nn.Module()


class LossesAdapter(FunctionAdapter):
    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        a, b = inputs["a"], inputs["b"]
        return {
            "cse": cosine_error(a, b),
            "cdist": cosine_error(a, b, root=True),
            "cse_z": cosine_error(inputs["za"], inputs["zb"]),
        }


class EditAdapter(FunctionAdapter):
    """Two strokes; the first keeps each cell with a painted pixel, the second the painted share."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        channels = golden.config["args"]["C"]

        def stroke(number: int, **how: Any) -> strokes.Stroke:
            units = torch.floor(channels * inputs[f"units{number}"]).long().tolist()
            return strokes.Stroke(1 - inputs[f"hole{number}"], tuple(units), **how)

        both = [
            stroke(1, value=tuple(inputs["values1"].tolist())),
            stroke(2, alpha=0.5, pooling="average"),
        ]
        size = inputs["z"].shape[-1]
        alpha, value = strokes.compose(both, channels, size)
        return {"ze": strokes.edited(inputs["z"], both), "alpha": alpha, "value": value}


ADAPTERS: dict[str, Adapter] = {
    "NormConvBlock": Adapter(NormConvBlock, "block"),
    "NormUpscaleConvBlock": Adapter(NormUpscaleConvBlock, "block"),
    "OutputConvBlock": OutputAdapter(OutputConvBlock),
    "ProgressiveGenerator": GeneratorAdapter(),
    "SkipAdjustedSequence (mult_layer)": PerturbationAdapter(),
    "ResidualGenerator": ResidualAdapter(),
    "BaselineTunedDirectGenerator": AdaptationAdapter(),
    "LayerNormEncoder": Adapter(LayerNormEncoder, "block"),
    "HybridLayerNormEncoder": EncoderAdapter(HybridLayerNormEncoder),
    "encoder_loss": LossesAdapter(),
    "edit rule": EditAdapter(),
}
