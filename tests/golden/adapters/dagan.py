"""DAGAN. Published keys throughout; networks load through the paper's checkpoint loader."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from golden.recipe import Golden
from torchext.models import checkpoint
from torchext.models.dagan import AttentionTail, SPADEGenerator
from torchext.models.dagan.checkpoint import with_right_vectors
from torchext.models.dagan.labels import instance_edges
from torchext.models.discriminators import MultiscaleDiscriminator
from torchext.models.losses import AdversarialLoss, feature_matching, perceptual
from torchext.models.vgg import SYNTHESIS_TAPS, VGGFeatures
from torchext.nn import SPADE, ChannelAttention, SPADEResnetBlock, SpatialAttention

from .base import Adapter


class SpadeAdapter(Adapter):
    """x and the label map in the file's order; running statistics after the call."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        condition = next(value for name, value in inputs.items() if name not in ("x", "cotangent"))
        outputs = {"y": module(inputs["x"], condition)}
        for name in golden.wanted("out"):
            if name != "y":  # a buffer, by its key or the key's end
                (buffer,) = (value for key, value in module.named_buffers() if key.endswith(name))
                outputs[name] = buffer.clone()
        return outputs


class AttentionAdapter(Adapter):
    """A module of one result; its inputs alone, or in a list."""

    def __init__(self, make: type[nn.Module], *, listed: bool = False) -> None:
        super().__init__(make)
        self.listed = listed

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        given = [value for name, value in inputs.items() if name != "cotangent"]
        return {"y": module(given) if self.listed else module(*given)}


class StrictAdapter(Adapter):
    """Loads as the paper's checkpoint loader does."""

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        checkpoint.load_strictly(module, with_right_vectors(state), "golden file")


def kept(module: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Outputs of children in the next forward, by name."""
    results: dict[str, Tensor] = {}
    for name in names:
        child = module.get_submodule(name)

        def keep(child: nn.Module, given: Any, result: Tensor, name: str = name) -> None:
            results[name] = result

        child.register_forward_hook(keep)
    return results


class TailAdapter(StrictAdapter):
    """Both attention modules' results on their own, and the image."""

    def outputs(
        self, module: AttentionTail, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        high, x = module.conv_64(inputs["x128"]), inputs["x"]
        return {
            "y": module.tail(inputs["x128"], x),
            "x_tmp": high,
            "cam": module.cab([high, x]),
            "sam": module.spatialAtt(x),
        }


class GeneratorAdapter(StrictAdapter):
    """What some children give is stored in part; out.pre_tanh is the image before the tanh."""

    def outputs(
        self, module: SPADEGenerator, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        inner = kept(module, ("head_0", "G_middle_1", "conv_64", "up_3", "conv_img"))
        results = {"y": module(inputs["seg"]), "pre_tanh": inner["conv_img"]}
        high, low = inner["conv_64"], inner["up_3"]
        results |= {"head_0": inner["head_0"][:, ::8], "mid_1": inner["G_middle_1"][:, ::8]}
        whole = {"x_tmp": high, "up_3": low}
        whole |= {"cam": module.cab([high, low]), "sam": module.spatialAtt(low)}
        return results | {name: value[:, ::8, ::4, ::4] for name, value in whole.items()}


class DiscriminatorAdapter(StrictAdapter):
    """The input's channels are the label map's and the image's; out.d<scale>_<layer>."""

    def build(self, golden: Golden) -> nn.Module:
        given = dict(golden.config["args"])
        channels = given.pop("label_nc") + given.pop("output_nc")
        channels += given.pop("contain_dontcare_label") + (not given.pop("no_instance"))
        return MultiscaleDiscriminator(input_nc_D=channels, **given)

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scales = module(inputs["x"])
        results = {f"d{i}_{j}": x for i, scale in enumerate(scales) for j, x in enumerate(scale)}
        return results | {"score": torch.stack([scale[-1].mean() for scale in scales]).sum()}


class EdgesAdapter(Adapter):
    """Instances of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__(nn.Module)

    def build(self, golden: Golden) -> nn.Module:
        return nn.Module()

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        instances = torch.floor(golden.config["args"]["levels"] * inputs["u"]).long()
        instances = instances.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
        return {"edge": instance_edges(instances).to(inputs["u"].dtype)}


class LossesAdapter(Adapter):
    """Inputs f (fake) and r (real), then the scale, then a (feature) or b (score)."""

    def __init__(self) -> None:
        super().__init__(nn.Module)

    def build(self, golden: Golden) -> nn.Module:
        return nn.Module()

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scales = sorted({name[1] for name in inputs if len(name) == 3})
        fake, real = ([[inputs[f"{k}{i}{m}"] for m in "ab"] for i in scales] for k in "fr")
        fakes, reals = ([scale[-1] for scale in maps] for maps in (fake, real))
        hinge = AdversarialLoss("hinge")
        results = {
            "g_gan": hinge.generator(fakes),
            "g_feat": golden.config["args"]["lambda_feat"] * feature_matching(fake, real),
            "d_fake": hinge.fake(fakes),
            "d_real": hinge.real(reals),
        }
        results["g_total"] = results["g_gan"] + results["g_feat"]
        forms = {"ls": "least_squares", "w": "wasserstein", "original": "non_saturating"}
        for name, form in forms.items():
            loss = AdversarialLoss(form)
            results |= {f"{name}_real": loss.real(reals), f"{name}_fake": loss.fake(fakes)}
        return results


class VGGLossAdapter(Adapter):
    """The file's keys are those of VGG-19."""

    def __init__(self) -> None:
        super().__init__(nn.Module)

    def build(self, golden: Golden) -> nn.Module:
        return VGGFeatures(19, SYNTHESIS_TAPS)

    def load(self, module: VGGFeatures, state: dict[str, Tensor]) -> None:
        module.load_torchvision(state, "golden file")

    def outputs(
        self, module: VGGFeatures, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        assert golden.config["args"]["weights"] == list(SYNTHESIS_TAPS.values())
        features = module(inputs["x"]), module(inputs["y"].detach())
        return {"loss": perceptual(*features, SYNTHESIS_TAPS)}


ADAPTERS: dict[str, Adapter] = {
    "SPADE": SpadeAdapter(SPADE),
    "SPADEResnetBlock": SpadeAdapter(SPADEResnetBlock),
    "SpatialAttention": AttentionAdapter(SpatialAttention),
    "ChannelAttention": AttentionAdapter(ChannelAttention, listed=True),
    "tail of SPADEGenerator (same sub-module names)": TailAdapter(AttentionTail),
    "SPADEGenerator": GeneratorAdapter(SPADEGenerator),
    "MultiscaleDiscriminator": DiscriminatorAdapter(MultiscaleDiscriminator),
    "Pix2PixModel.get_edges": EdgesAdapter(),
    "GANLoss + feature matching": LossesAdapter(),
    "VGGLoss": VGGLossAdapter(),
}
