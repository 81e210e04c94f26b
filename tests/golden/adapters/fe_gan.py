"""FE-GAN. Published keys throughout; networks load through the paper's checkpoint loader."""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden.recipe import Golden, singular_vectors
from torchext.models import checkpoint
from torchext.models.blocks import ResidualBlock
from torchext.models.discriminators import MultiscaleDiscriminator
from torchext.models.fe_gan import inputs as composition
from torchext.models.fe_gan import losses
from torchext.models.fe_gan.checkpoint import with_both_names
from torchext.models.fe_gan.networks import (
    DownBlock,
    InpaintingDiscriminator,
    InpaintingGenerator,
    ParsingGenerator,
    ReducingBlock,
    UpBlock,
)
from torchext.models.losses import AdversarialLoss
from torchext.models.vgg import VGGFeatures
from torchext.nn import ANLs

from .base import Adapter
from .dagan import SpadeAdapter, StrictAdapter, kept

REPEATS = 8  # of a label in height and width, in files of the composition


class BlockAdapter(StrictAdapter):
    """A block or network of x alone."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"y": module(inputs["x"])}


class DownAdapter(StrictAdapter):
    """The published mask has all channels, which are equal."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        y, mask = module(inputs["x"], inputs["mask"])
        return {"y": y, "mask_out": mask.expand_as(y)}


class ParsingAdapter(BlockAdapter):
    def build(self, golden: Golden) -> nn.Module:
        given = golden.config["args"]
        assert given["norm_G"] == "batch"
        names = ("input_nc", "output_nc", "ngf", "resnet_n_downsample", "resnet_n_blocks")
        return ParsingGenerator(*(given[name] for name in names))


class GeneratorAdapter(StrictAdapter):
    """out.NAME is a part of what the child of that name gives; out.mask<i> its mask's."""

    def build(self, golden: Golden) -> nn.Module:
        given = golden.config["args"]
        assert given["output_nc"] == 3
        return InpaintingGenerator(given["ngf"], given["input_ANLs_nc"])

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        order = ("parsing", "image", "mask", "noise", "color", "sketch")
        children = [name for name, _ in module.named_children()]
        results: dict[str, Any] = kept(module, children)
        y = module(torch.cat([inputs[name] for name in order], dim=1))
        outputs = {}
        for name, result in results.items():
            if isinstance(result, tuple):
                result, mask = result
                outputs[name.replace("down", "mask")] = mask
            outputs[name] = result[:, ::16, ::2, ::2]
        outputs["y"] = y
        return {name: outputs[name] for name in golden.wanted("out")}


class DiscriminatorAdapter(StrictAdapter):
    """Maps of each scale; the score is the sum over scales of the last map's mean."""

    def named(self, scale: int, layer: int) -> str:
        return f"d{scale}_{layer}"

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scales = module(inputs["x"])
        outputs = {
            self.named(s, i): x for s, scale in enumerate(scales) for i, x in enumerate(scale)
        }
        outputs["score"] = torch.stack([scale[-1].mean() for scale in scales]).sum()[None]
        return outputs


class ParsingDiscriminatorAdapter(DiscriminatorAdapter):
    def build(self, golden: Golden) -> nn.Module:
        given = golden.config["args"]
        return MultiscaleDiscriminator(
            given["num_D"],
            given["n_layers_D"],
            given["ndf"],
            given["input_nc"] + given["output_nc"],
            given["norm_D"],
            last_stride=2,
        )


class InpaintingDiscriminatorAdapter(DiscriminatorAdapter):
    """`features.0` is `conv1.0`; a file lists both, and is filled from the latter's keys.

    Its power iterations are told by its note alone.
    """

    def build(self, golden: Golden) -> nn.Module:
        module = super().build(golden)
        told = re.search(r"spectral_power_iterations (\d+)", golden.config.get("note", ""))
        done = "spectral_power_iterations" in golden.config
        self.iterations = 0 if done or told is None else int(told[1])
        return module

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        own = {key: value for key, value in state.items() if not key.startswith("features.")}
        for key in [key for key in own if self.iterations and key.endswith(".weight_u")]:
            weight, u = (own[k].cpu().numpy() for k in (key.replace("_u", "_orig"), key))
            vectors = singular_vectors(weight, u, self.iterations)
            for name, vector in zip((key, key.replace("_u", "_v")), vectors, strict=True):
                own[name] = torch.from_numpy(vector).to(own[name])
        whole = with_both_names(own, "golden file")
        assert whole.keys() == state.keys()
        checkpoint.load_strictly(module, whole, "golden file")

    def named(self, scale: int, layer: int) -> str:
        return f"c{layer + 1}"


class Tool(nn.Module):
    """No network: functions alone."""


class LossAdapter(Adapter):
    """Each term unweighted; the total with the file's weights."""

    def __init__(self) -> None:
        super().__init__(Tool)

    def build(self, golden: Golden) -> nn.Module:
        return Tool()

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        fake, real, known = inputs["fake"], inputs["real"], inputs["hole"]
        hole, face = 1 - known, 1 - inputs["facehole"]
        part = known * inputs["fg"].round()
        adversarial = AdversarialLoss("hinge")
        labels = (20 * inputs["lab"].detach().float()).floor().long()[:, 0]
        terms = {
            "mask": losses.l1_inside(fake, real, hole),
            "foreground": losses.l1_inside(fake, real, part),
            "face": losses.l1_inside(fake, real, face),
            "face_tv": losses.face_variation(fake, real, face, hole),
            "gan": adversarial.generator(inputs["df"]),
        }
        given = golden.config["args"]
        weights = {name: given[f"lambda_{name.removeprefix('face_')}"] for name in terms}
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        terms |= {
            "total": total,
            "d_fake": adversarial.fake(inputs["df"]),
            "d_real": adversarial.real(inputs["dr"]),
            "parsing_ce": F.cross_entropy(inputs["pars"], labels),
        }
        return {name: term[None] for name, term in terms.items()}


class StyleAdapter(Adapter):
    def __init__(self) -> None:
        super().__init__(VGGFeatures)

    def build(self, golden: Golden) -> nn.Module:
        return VGGFeatures(19, losses.STYLE_TAPS)

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        module.load_torchvision(state, "golden file")

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"loss": losses.style_loss(module(inputs["x"]), module(inputs["y"]))[None]}


class CompositionAdapter(Adapter):
    """Inputs as the file's prose builds them; what the published data set hands on, by its names.

    Thresholds and whole numbers are taken in float32, as the inputs are drawn.
    """

    def __init__(self) -> None:
        super().__init__(Tool)

    def build(self, golden: Golden) -> nn.Module:
        return Tool()

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        dtype = inputs["image"].dtype
        drawn = {name: value.float() for name, value in inputs.items()}
        image, colours = ((256 * drawn[name]).floor()[None] / 255 for name in ("image", "color"))
        sketch = (drawn["edge"] > 0.8).to(dtype)[None]
        classes = torch.where(drawn["face"] < 0.2, 13, (20 * drawn["label"]).floor())
        labels = torch.where(drawn["bg"] < 0.4, 0, classes).long()[None]
        labels = labels.repeat_interleave(REPEATS, 2).repeat_interleave(REPEATS, 3)
        hole, strokes = 1 - inputs["hole"], 1 - inputs["scribble"]
        given = composition.guidance(
            hole, sketch, colours.to(dtype), strokes, inputs["noise"][None, :1]
        )
        seen = composition.parsing_input(labels, given, 20)
        image = image.to(dtype)
        of_two = composition.inpainting_input(labels, image, given, 20)
        outputs = {
            "label": labels.to(dtype),
            "incompleted_label": seen[:, :20].argmax(dim=1, keepdim=True).to(dtype),
            "incompleted_image_2": composition.erased(image, hole, 1.0),
            "incompleted_image": of_two[:, 20:23],
            "mask": seen[:, 20:21],
            "mask_edge": seen[:, 21:22],
            "mask_noise": seen[:, 22:23],
            "mask_color": seen[:, 23:],
            "part_mask": of_two[:, 23:24],
            "face_mask": composition.face_mask(labels, 13, image),
            "mask_onehot": hole,
        }
        assert torch.equal(of_two[:, :20].argmax(dim=1, keepdim=True), labels)
        condition = (outputs["mask_noise"], outputs["mask_color"], outputs["mask_edge"])
        assert torch.equal(of_two[:, 24:], torch.cat(condition, dim=1))
        return {name: value[0] for name, value in outputs.items()}


ADAPTERS: dict[str, Adapter] = {
    "ANLs": SpadeAdapter(ANLs),
    "DownBlock": DownAdapter(DownBlock),
    "MultiAttResnetBlock": BlockAdapter(ResidualBlock),
    "MultiAttResnetBlock2": BlockAdapter(ReducingBlock),
    "UpBlock": BlockAdapter(UpBlock),
    "ParsingGenerator": ParsingAdapter(ParsingGenerator),
    "MultiAtt3Generator": GeneratorAdapter(InpaintingGenerator),
    "MultiscaleDiscriminator": ParsingDiscriminatorAdapter(MultiscaleDiscriminator),
    "InpaintDiscriminator": InpaintingDiscriminatorAdapter(InpaintingDiscriminator),
    "StyleLoss": StyleAdapter(),
    "stage II losses": LossAdapter(),
    "Pix2pixDataset.__getitem__": CompositionAdapter(),
}
