"""PD-GAN. Published keys throughout; networks load through the paper's checkpoint loader."""

import re
from typing import Any

import torch
from torch import Tensor, nn

import torchext
from golden import statements
from golden.recipe import Golden
from torchext.models import checkpoint
from torchext.models.discriminators import MultiscaleDiscriminator
from torchext.models.losses import AdversarialLoss, perceptual, style, total_variation_in_holes
from torchext.models.pd_gan import Decoder, Encoder, SPDNormGenerator, first_stage, training
from torchext.models.pictures import composite
from torchext.models.vgg import VGGFeatures
from torchext.nn import SPDNorm, SPDNormResnetBlock

from .base import Adapter


class BlockAdapter(Adapter):
    """A call is prose behind its first statement: both maps, and u and v after a training call."""

    def outputs(
        self, module: SPDNormResnetBlock, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        given = inputs["x"], inputs["prior"], inputs["mask"]
        outputs = {"y": module(*given)}
        outputs["soft"], outputs["hard"] = module.maps(*given)
        for name in golden.wanted("out"):
            if name.endswith(("weight_u", "weight_v")):
                outputs[name] = module.get_buffer(name).clone()
        return outputs


class HardMapAdapter(Adapter):
    """Maps for every n, window and size: out.n<n>k<k>_<h>x<w>. A mask may be built by the call."""

    def __init__(self) -> None:
        super().__init__(nn.Module)

    def build(self, golden: Golden) -> nn.Module:
        return nn.Module()

    def mask(self, golden: Golden, inputs: dict[str, Tensor]) -> Tensor:
        if "mask" in inputs:
            return inputs["mask"]
        prose = golden.config["call"].split("; outputs")[0]
        shape = re.match(r"mask \(([\d,]+)\) ones", prose).group(1)
        some = next(iter(inputs.values()))
        mask = torch.ones([int(size) for size in shape.split(",")], device=some.device)
        assignments = re.findall(r"(\[[^\]]*\])=(\S+?)(?=;|\s|$)", prose)
        program = "; ".join(f"mask{index} = {value}" for index, value in assignments)
        statements.run(program, {"mask": mask})
        return mask.to(some.dtype)

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        mask = self.mask(golden, inputs)
        outputs: dict[str, Any] = {}
        for name in golden.wanted("out"):
            n, k, height, width = map(int, re.fullmatch(r"n(\d+)k(\d+)_(\d+)x(\d+)", name).groups())
            outputs[name] = torchext.diversity_map(mask, n, k, size=(height, width))
        return outputs


class StrictAdapter(Adapter):
    """Loads as the paper's checkpoint loader does."""

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        checkpoint.load_strictly(module, state, "golden file")


class GeneratorAdapter(StrictAdapter):
    """What each unit gives is stored in part: out.unit<i>, and out.pre_tanh before the tanh."""

    def outputs(
        self, module: SPDNormGenerator, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        results: dict[str, Tensor] = {}

        def keep(unit: nn.Module, given: Any, result: Tensor) -> None:
            i = list(module.generated).index(unit)
            step = max(1, result.shape[3] // 8)
            results[f"unit{i}"] = result[:, ::32, ::step, ::step]

        mask = self._mask(golden, inputs)
        handles = [unit.register_forward_hook(keep) for unit in module.generated]
        results["y"] = module(inputs["z"], inputs["prior"], mask)
        for handle in handles:
            handle.remove()
        conditions = module.conditions(inputs["prior"], mask)
        results["pre_tanh"] = module.features(inputs["z"], conditions)[..., ::4, ::4]
        return results

    def _mask(self, golden: Golden, inputs: dict[str, Tensor]) -> Tensor:
        """The mask is an input, or made by the statements in front of the generator's."""
        if "mask" in inputs:
            return inputs["mask"]

        def zeros(*shape: int) -> Tensor:
            return inputs["z"].new_zeros(shape)

        names = {**inputs, "cat": torch.cat, "zeros": zeros}
        return statements.run(golden.config["call"].split("; y = ")[0], names)["mask"]


class DiscriminatorAdapter(StrictAdapter):
    """out.d<i> are the scores of the scales, out.d<i>_f<j> their features in part."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scales = module(torch.cat((1 - inputs["mask"], inputs["image"]), dim=1))
        results = {f"d{i}": scale[-1] for i, scale in enumerate(scales)}
        for i, scale in enumerate(scales):
            results |= {f"d{i}_f{j}": x[:, ::16] for j, x in enumerate(scale[:-1])}
        return results


class ListAdapter(StrictAdapter):
    """Layers of the first stage: a list in, and two results, of which mask_out is out.mask."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        call = golden.config["call"].replace("mask_out", "mask_")
        names = {"cat": torch.cat, **dict.fromkeys(self.names, module), **inputs}
        assigned = statements.run(call, names)
        results = {"y": assigned["y"], "mask": assigned["mask_"]}
        if "y2" in assigned:
            results |= {"y2": assigned["y2"], "mask2": assigned["mask_2"]}
        if "src" in assigned:
            results["mutated_input"] = assigned["src"][0]
        return results


class FirstStage(nn.Module):
    """Both networks, under the prefixes of the file."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.EN = Encoder(**arguments)
        self.DE = Decoder(**arguments)


class FirstStageAdapter(StrictAdapter):
    """Encoder, then decoder with the encoder's results in the opposite order."""

    def outputs(
        self, module: FirstStage, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        mask = inputs["mask"]
        encoded = module.EN([inputs["image"] * mask, mask])
        return {
            "y": module.DE(*reversed(encoded)),
            "enc1": encoded[-1][:, ::8, ::4, ::4],
            "enc6": encoded[0],
        }


class LossesAdapter(Adapter):
    """The losses of both stages; the file's keys are those of VGG-16."""

    def __init__(self) -> None:
        super().__init__(nn.Module)

    def build(self, golden: Golden) -> nn.Module:
        return VGGFeatures(16, (*training.PRIOR_TAPS, *training.STYLE_TAPS))

    def load(self, module: VGGFeatures, state: dict[str, Tensor]) -> None:
        module.load_torchvision(state, "golden file")

    def outputs(
        self, module: VGGFeatures, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        gt, a, b, known = (inputs[name] for name in ("gt", "fake_A", "fake_B", "mask"))
        real, fake = ([inputs[f"d{kind}{i}"] for i in (0, 1)] for kind in "rf")
        hinge = AdversarialLoss("hinge")
        ours, wanted = module(a), module(gt)
        merged = composite(gt, known, a)
        variations = {
            f"tv_{kind}": total_variation_in_holes(merged, known, rows="published", reduction=kind)
            for kind in ("mean", "sum")
        }
        distance = training.diversity(module, a, b, 1 - known)
        results = {
            **variations,
            "style": style(ours, wanted, training.STYLE_TAPS),
            "perceptual5": perceptual(ours, wanted, dict.fromkeys(training.PRIOR_TAPS, 1.0)),
            "perceptual4": perceptual(ours, wanted, dict.fromkeys(training.PERCEPTUAL_TAPS, 1.0)),
            "diversity": distance,
            "diversity_loss": training.diversity_loss(distance),
            "hinge_d_real": hinge.real(real),
            "hinge_d_fake": hinge.fake(fake),
            "hinge_g": hinge.generator(fake),
        }
        results["sum"] = (
            0.1 * results["tv_mean"]
            + 10 * results["perceptual4"]
            + 1e-3 * results["diversity_loss"]
            + 120 * results["style"]
            + results["hinge_g"]
        )
        return results


ADAPTERS: dict[str, Adapter] = {
    "SPDNorm": Adapter(SPDNorm, "spdnorm"),
    "SPDNormResnetBlock": BlockAdapter(SPDNormResnetBlock),
    "hard map of SPDNormResnetBlock": HardMapAdapter(),
    "SPDNormGenerator": GeneratorAdapter(SPDNormGenerator),
    "MultiscaleDiscriminator": DiscriminatorAdapter(MultiscaleDiscriminator),
    "pconvblocks.PartialConv": ListAdapter(first_stage.PartialConv, "layer"),
    "pconvblocks.PCBActiv": ListAdapter(first_stage.PCBActiv, "block"),
    "pconvblocks.ResnetBlock": ListAdapter(first_stage.ResnetBlock, "block"),
    "Encoder + Decoder": FirstStageAdapter(FirstStage),
    "losses": LossesAdapter(),
}
