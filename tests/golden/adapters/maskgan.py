"""MaskGAN. Published keys throughout, but for the discriminator's, which its loader renames."""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden.recipe import Golden
from torchext.models import checkpoint
from torchext.models.discriminators import MultiscaleDiscriminator
from torchext.models.losses import AdversarialLoss
from torchext.models.maskgan import (
    AlphaBlender,
    DenseMappingNetwork,
    FaceParser,
    LabelEncoder,
    MaskVAE,
    SFTLayer,
    StyleEncoder,
)
from torchext.models.maskgan.checkpoint import discriminator_key, discriminator_state
from torchext.models.maskgan.losses import matching, parsing_loss
from torchext.models.maskgan.networks import AdaIN, ResidualBlock

from .base import Adapter

# What the published constructors take and these networks do not have a choice of.
FIXED = {
    "norm_layer": "instance (no affine)",
    "padding_type": "reflect",
    "norm": "none",
    "activ": "relu",
    "pad_type": "reflect",
    "is_deconv": True,
    "use_sigmoid": False,
}


def given(golden: Golden, *left_out: str) -> dict[str, Any]:
    """The arguments that are not fixed."""
    arguments = dict(golden.config["args"])
    for name, value in FIXED.items():
        assert arguments.pop(name, value) == value, name
    return {name: value for name, value in arguments.items() if name not in left_out}


def number(pattern: str, golden: Golden) -> int:
    """A number in the call's prose."""
    found = re.search(pattern, golden.config["call"])
    assert found, golden.config["call"]
    return int(found[1])


def labels_of(values: Tensor, golden: Golden, *, repeated: bool) -> Tensor:
    """Classes, int64, from values in [0,1)."""
    labels = torch.floor(number(r"floor\((\d+)\*", golden) * values.detach()).long()
    if not repeated:
        return labels
    times = number(r"repeated (\d+)x", golden)
    return labels.repeat_interleave(times, -2).repeat_interleave(times, -1)


def one_hot(labels: Tensor, golden: Golden, like: Tensor) -> Tensor:
    """(N,1,H,W) -> (N,classes,H,W)."""
    classes = number(r"one-hot \((\d+)\)", golden)
    return F.one_hot(labels[:, 0], classes).movedim(-1, 1).to(like)


def watch(module: nn.Module, results: dict[str, Tensor], names: Mapping[str, str]) -> None:
    """What children give in the next forward, by the names wanted."""
    for name, child in names.items():

        def keep(child: nn.Module, arguments: Any, result: Tensor, name: str = name) -> None:
            results[name] = result

        module.get_submodule(child).register_forward_hook(keep)


class StrictAdapter(Adapter):
    """Without the fixed arguments; loads as the paper's checkpoint loader does."""

    def __init__(self, make: type[nn.Module], *left_out: str) -> None:
        super().__init__(make)
        self.left_out = left_out

    def build(self, golden: Golden) -> nn.Module:
        return self.make(**given(golden, *self.left_out))

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        checkpoint.load_strictly(module, state, "golden file")


class AdaInAdapter(StrictAdapter):
    def outputs(
        self, module: AdaIN, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"y": module(inputs["x"], inputs["std"], inputs["mean"])}


class SFTAdapter(StrictAdapter):
    def outputs(
        self, module: SFTLayer, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"y": module(inputs["x"], inputs["cond"])}


class BlockAdapter(StrictAdapter):
    """Means and deviations of each AdaIN layer."""

    def build(self, golden: Golden) -> nn.Module:
        arguments = given(golden)
        kind = arguments.pop("norm_type")
        assert kind in ("in", "adain")
        return ResidualBlock(**arguments, adaptive=kind == "adain")

    def outputs(
        self, module: ResidualBlock, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        styles = None
        if "mean0" in inputs:
            layers = [torch.stack((inputs[f"mean{i}"], inputs[f"std{i}"]), dim=1) for i in (0, 1)]
            styles = torch.stack(layers, dim=1)
        return {"y": module(inputs["x"], styles)}


class LabelEncoderAdapter(StrictAdapter):
    def outputs(
        self, module: LabelEncoder, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        first, last = module(inputs["mask"])
        return {"y": first, "fea2": last}


class StyleEncoderAdapter(StrictAdapter):
    def outputs(
        self, module: StyleEncoder, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        results: dict[str, Tensor] = {}
        names = {"model": "model", "sft1": "sft1", "middle": "model_middle", "sft2": "sft2"}
        watch(module, results, {f"after_{name}": child for name, child in names.items()})
        results["y"] = module(inputs["image"], inputs["fea1"], inputs["fea2"])
        return results


class GeneratorAdapter(StrictAdapter):
    """One-hot maps as integers, by both ways of the first convolutions."""

    def outputs(
        self, module: DenseMappingNetwork, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if "label" in inputs:
            mask, reference = (
                labels_of(inputs[name], golden, repeated=True) for name in ("label", "label_ref")
            )
        else:
            mask, reference = inputs["mask"], inputs["mask_ref"]
        first = 4 + 3 * module.n_downsampling
        last = first + module.n_blocks - 1
        results: dict[str, Tensor] = {}
        image = inputs["image_ref"]
        names = {"adain_params": "enc_style", "down": f"model.{first - 2}"}
        names |= {"blocks": f"model.{last}"}
        names["pre_tanh"] = f"model.{last + 1 + 3 * module.n_downsampling + 1}"
        watch(module, results, names)
        results["y"] = module(mask, reference, image)
        return results


class BlenderAdapter(StrictAdapter):
    def outputs(
        self, module: AlphaBlender, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        blend, alpha = module(inputs["inner"], inputs["outer"])
        return {"y": blend, "alpha": alpha}


class MaskVAEAdapter(StrictAdapter):
    """Labels by one-hot maps, or soft maps as drawn; running statistics after the call."""

    def outputs(
        self, module: MaskVAE, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        eps = inputs["eps"]
        if "x" in inputs:
            y, mean, log_variance = module(inputs["x"], eps)
        else:
            mean, log_variance = module.encode(labels_of(inputs["label"], golden, repeated=True))
            y = module.decode(module.sample(mean, log_variance, eps))
        results = {"y": y, "mu": mean, "logvar": log_variance}
        results |= {"std": (log_variance / 2).exp(), "z": module.sample(mean, log_variance, eps)}
        results |= {name.replace(".", "_"): x.clone() for name, x in module.named_buffers()}
        if "dec0" in golden.wanted("out"):
            results["dec0"] = module.decode(torch.zeros_like(eps))
        return results


class DiscriminatorAdapter(StrictAdapter):
    """Published keys and outputs of both kinds: features of all layers, or the score alone."""

    def build(self, golden: Golden) -> nn.Module:
        arguments = given(golden)
        scales, layers = arguments["num_D"], arguments["n_layers"]
        module = MultiscaleDiscriminator(
            scales, layers + 1, arguments["ndf"], arguments["input_nc"], "instance"
        )
        module.published = {key: discriminator_key(key, scales, layers) for key in golden.shapes}
        module.shape = (scales, layers)
        return module

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        super().load(module, discriminator_state(state, *module.shape, "golden file"))

    def parameters(self, module: nn.Module) -> Mapping[str, Tensor]:
        own = dict(module.named_parameters())
        return {key: own[name] for key, name in module.published.items() if name is not None}

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scales = module(inputs["x"])
        shown = scales if golden.config["args"]["getIntermFeat"] else [[s[-1]] for s in scales]
        results = {f"d{i}_{j}": x for i, scale in enumerate(shown) for j, x in enumerate(scale)}
        return results | {"score": torch.stack([scale[-1].mean() for scale in scales]).sum()}


class LossesAdapter(Adapter):
    """Inputs by kind (f, b, r), scale and layer; the last layer of a scale is the score."""

    def __init__(self) -> None:
        super().__init__(nn.Module)

    def build(self, golden: Golden) -> nn.Module:
        return nn.Module()

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        arguments = golden.config["args"]
        assert arguments["use_lsgan"]
        maps = {}
        for kind in "fbr":
            scales = [
                [inputs[name] for name in inputs if name.startswith(f"{kind}{i}_")]
                for i in range(arguments["num_D"])
            ]
            maps[kind] = scales
        scores = {kind: [scale[-1] for scale in scales] for kind, scales in maps.items()}
        gan = AdversarialLoss("least_squares", scales="sum")
        results = {}
        for name, kind in (("g", "f"), ("gb", "b")):
            results[f"{name}_gan"] = gan.generator(scores[kind])
            results[f"{name}_feat"] = arguments["lambda_feat"] * matching(
                maps[kind], maps["r"], arguments["n_layers_D"]
            )
            results[f"{name}_total"] = results[f"{name}_gan"] + results[f"{name}_feat"]
        results |= {"d_real": gan.real(scores["r"]), "d_fake": gan.fake(scores["f"])}
        results["d_blend"] = gan.fake(scores["b"])
        results["all"] = results["g_total"] + 2 * results["gb_total"]
        return results


class ParserAdapter(StrictAdapter):
    def outputs(
        self, module: FaceParser, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        results: dict[str, Tensor] = {}
        blocks = ("conv1", "conv4", "center", "up_concat4", "up_concat1")
        watch(module, results, dict(zip(blocks, blocks, strict=True)))
        results["y"] = module(inputs["x"])
        return results | {
            name.replace(".", "_"): value.clone() for name, value in module.named_buffers()
        }


class ParsingLossAdapter(Adapter):
    def __init__(self) -> None:
        super().__init__(nn.Module)

    def build(self, golden: Golden) -> nn.Module:
        return nn.Module()

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        logits = inputs["logits"]
        ignored = number(r"target = floor.*?, (\d+) where ignore", golden)
        limit = float(re.search(r"ignore < ([\d.]+\d)", golden.config["call"])[1])
        labels = torch.floor(logits.shape[1] * inputs["label"]).long()
        labels[inputs["ignore"] < limit] = ignored
        return {"loss": parsing_loss(logits, labels, ignored=ignored)}


ADAPTERS: dict[str, Adapter] = {
    "AdaptiveInstanceNorm2d": AdaInAdapter(AdaIN),
    "SFTLayer": SFTAdapter(SFTLayer),
    "ResnetBlock": BlockAdapter(ResidualBlock),
    "LabelEncoder": LabelEncoderAdapter(LabelEncoder, "style_dim"),
    "StyleEncoder": StyleEncoderAdapter(StyleEncoder),
    "GlobalGenerator": GeneratorAdapter(DenseMappingNetwork),
    "BlendGenerator": BlenderAdapter(AlphaBlender),
    "VAE (MaskVAE)": MaskVAEAdapter(MaskVAE),
    "MultiscaleDiscriminator": DiscriminatorAdapter(MultiscaleDiscriminator),
    "GANLoss + feature matching": LossesAdapter(),
    "unet": ParserAdapter(FaceParser),
    "cross_entropy2d": ParsingLossAdapter(),
}
