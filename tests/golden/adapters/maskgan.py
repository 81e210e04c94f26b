"""MaskGAN. Published keys throughout, but for the discriminator's, which its loader renames."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from golden.recipe import Golden
from torchext.models import checkpoint, pictures
from torchext.models.discriminators import MultiscaleDiscriminator
from torchext.models.face_labels import NAMES
from torchext.models.geometry import Field, Preparation
from torchext.models.losses import AdversarialLoss
from torchext.models.maskgan import (
    AlphaBlender,
    Config,
    DenseMappingNetwork,
    EditingSimulation,
    FaceParser,
    LabelEncoder,
    MaskVAE,
    SFTLayer,
    Stroke,
    StyleEncoder,
    coloured,
    merge_parts,
    networks,
    paint,
)
from torchext.models.maskgan.checkpoint import discriminator_key, discriminator_state
from torchext.models.maskgan.editing import as_bytes, label_tensor, photo_tensor
from torchext.models.maskgan.labels import LABELS, published_values
from torchext.models.maskgan.losses import matching, parsing_loss
from torchext.models.maskgan.networks import AdaIN, ResidualBlock
from torchext.models.paper import configure

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
    labels = torch.floor(number(r"floor\((\d+)\*(?!image)", golden) * values.detach()).long()
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


class ToolAdapter(Adapter):
    """What has no weights."""

    def __init__(self) -> None:
        super().__init__(nn.Module)

    def build(self, golden: Golden) -> nn.Module:
        return nn.Module()


class LossesAdapter(ToolAdapter):
    """Inputs by kind (f, b, r), scale and layer; the last layer of a scale is the score."""

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


class ParsingLossAdapter(ToolAdapter):
    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        logits = inputs["logits"]
        ignored = number(r"target = floor.*?, (\d+) where ignore", golden)
        limit = float(re.search(r"ignore < ([\d.]+\d)", golden.config["call"])[1])
        labels = torch.floor(logits.shape[1] * inputs["label"]).long()
        labels[inputs["ignore"] < limit] = ignored
        return {"loss": parsing_loss(logits, labels, ignored=ignored)}


# By the names in the files of stage 2.
NETWORKS = {"netG": "generator", "netB": "blender", "netD": "discriminator"}


class Stage2Adapter(Adapter):
    """The recipe on masks decoded beforehand; keys netG, netB, netD."""

    def __init__(self) -> None:
        super().__init__(EditingSimulation)

    def build(self, golden: Golden) -> nn.Module:
        arguments = golden.config["args"]
        assert not arguments["vgg"]
        sizes = {
            "width": "ngf",
            "downsamplings": "n_downsampling",
            "residual_blocks": "n_blocks",
            "blender_width": "ngf_blender",
            "blender_downsamplings": "n_downsampling_blender",
            "blender_blocks": "n_blocks_blender",
            "discriminator_width": "ndf",
            "discriminator_layers": "n_layers_D",
            "discriminators": "num_D",
            "matching_weight": "lambda_feat",
        }
        options = {name: arguments[theirs] for name, theirs in sizes.items()}
        config = configure(Config, {**options, "vgg_weight": 0})
        return EditingSimulation(networks(config, set(NETWORKS.values())), config)

    def load(self, module: EditingSimulation, state: dict[str, Tensor]) -> None:
        given = module.config.network
        shape = (given.discriminators, given.discriminator_layers)
        for name, ours in NETWORKS.items():
            part = checkpoint.part(state, name)
            if ours == "discriminator":
                part = discriminator_state(part, *shape, "golden file")
            checkpoint.load_strictly(module.networks[ours], part, "golden file")
        module.published = {
            f"netD.{key}": f"networks.discriminator.{discriminator_key(key, *shape)}"
            for key in checkpoint.part(state, "netD")
        }

    def parameters(self, module: EditingSimulation) -> Mapping[str, Tensor]:
        own = dict(module.named_parameters())
        found = {key: own[name] for key, name in module.published.items() if name in own}
        for name, ours in NETWORKS.items():
            if ours != "discriminator":
                part = checkpoint.part(own, f"networks.{ours}")
                found |= {f"{name}.{key}": value for key, value in part.items()}
        return found

    def outputs(
        self, module: EditingSimulation, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        names = {"labels": "label", "inter": "inter_1", "outer": "inter_2"}
        batch = {
            ours: labels_of(inputs[name], golden, repeated=False) for ours, name in names.items()
        }
        batch["image"] = (inputs["image"] + 1) / 2
        fake = module.fake(batch)
        blend, alpha, inter, outer = module.blend(batch)
        results = {"fake_inter_1": inter, "fake": fake, "fake_inter_2": outer}
        results |= {"blend": blend, "alpha": alpha}
        # As in a step of the generator's: of g_all the discriminator gets no gradient.
        discriminator = module.networks["discriminator"].requires_grad_(False)
        for ours, picture in (("g", fake), ("gb", blend)):
            terms = module.picture_loss(batch, picture)
            results |= {f"{ours}_gan": terms["adversarial"], f"{ours}_feat": terms["matching"]}
        discriminator.requires_grad_(True)
        for name, picture in (("fake", fake), ("blend", blend)):
            terms = module.discriminator_loss(batch, picture, name)
            # The recipe halves both.
            results[f"d_{name}"] = 2 * terms[f"discriminator_{name}"]
            results["d_real"] = 2 * terms[f"discriminator_real_{name}"]
        results["g_all"] = sum(results[name] for name in ("g_gan", "g_feat", "gb_gan", "gb_feat"))
        results["d_all"] = sum(results[name] for name in ("d_real", "d_fake", "d_blend"))
        return results

    def objective(
        self, golden: Golden, outputs: dict[str, Tensor], inputs: dict[str, Tensor]
    ) -> Tensor:
        return torch.sum((outputs["g_all"] + outputs["d_all"]) * inputs["cotangent"])


def pictures_of(golden: Golden, inputs: dict[str, Tensor]) -> tuple[Image.Image, Image.Image]:
    """The photo, 8 bits, and the label map, a picture of numbers."""
    levels = number(r"image = floor\((\d+)\*image", golden)
    photo = torch.floor(levels * inputs["image"].double()).to(torch.uint8)
    labels = labels_of(inputs["label"].double(), golden, repeated=False)
    return (
        Image.fromarray(photo.cpu().numpy()),
        Image.fromarray(labels.cpu().numpy().astype(np.int32)),
    )


class DemoAdapter(ToolAdapter):
    """Photos and labels as they are prepared, and how the result is written."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        arguments = golden.config["args"]
        assert arguments["resize_or_crop"] == "scale_width"
        photo, picture = pictures_of(golden, inputs)
        width, height = photo.size
        size = (arguments["loadSize"], int(arguments["loadSize"] * height / width))
        labels = label_tensor(picture, size)
        values = published_values(labels)
        cut = values.long()
        like = inputs["result"]
        results = {
            "image": photo_tensor(photo, size)[0].to(like) * 2 - 1,
            "mask_float_minus_round": (values - values.round())[0].expand(3, -1, -1),
            "label_published": cut[0].expand(3, -1, -1),
            "label_rounded": values.round().long()[0].expand(3, -1, -1),
            "dataset_label": labels[0],
            "class_count_published": cut.flatten().bincount(minlength=len(NAMES)),
            "class_count_rounded": labels.flatten().bincount(minlength=len(NAMES)),
            "result_u8": as_bytes((inputs["result"] + 1) / 2)[0],
        }
        return {name: value.to(like) for name, value in results.items()}


class PrePostAdapter(ToolAdapter):
    """What the face parser sees, and how its labels are shown."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        size = (golden.config["args"]["imsize"],) * 2
        photo, labels = pictures_of(golden, inputs)
        logits = inputs["logits"]
        geometry = Preparation(size[0], "stretch").draw(photo.size, np.random.default_rng(0))
        found = logits.argmax(dim=1)
        shown = pictures.to_tensor(photo.resize(size, Image.Resampling.NEAREST))
        results = {
            "test_image": shown.to(logits) * 2 - 1,
            "train_image": Field().tensor(photo, geometry).to(logits) * 2 - 1,
            "train_label": LABELS.tensor(labels, geometry),
            "pred_label": found,
            "pred_color": coloured(found),
        }
        return {name: value.to(logits) for name, value in results.items()}


class StrokesAdapter(ToolAdapter):
    """Strokes as (class, thickness, points), a higher class over a lower."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        values = inputs["label"]
        labels = labels_of(values.double(), golden, repeated=True)[None, None]
        given = golden.config["args"]["strokes"]
        strokes = [Stroke(label, points, thickness) for label, thickness, points in given]
        painted = paint(labels, strokes, order="label")
        changed = painted != labels
        return {"mask": painted[0, 0].to(values), "changed": changed[0, 0].to(values)}


class MergeAdapter(ToolAdapter):
    """Masks of parts, 1 where the drawn one has a hole; every other one is fainter."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        bright = number(r"times (\d+) for the 1st", golden)
        faint = number(r"and (\d+) for the others", golden)
        parts = {}
        for i, name in enumerate(golden.config["args"]["parts_present"]):
            part = (1 - inputs[name][0, 0]) * (faint if i % 2 else bright)
            parts[name] = part.cpu().numpy().astype(np.uint8)
        merged = torch.from_numpy(merge_parts(parts))
        counts = merged.flatten().long().bincount(minlength=len(NAMES))
        like = next(iter(inputs.values()))
        return {"label": merged.to(like), "count": counts.to(like)}


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
    "stage-2 forward (netG, netB, netD)": Stage2Adapter(),
    "demo pre- and post-processing": DemoAdapter(),
    "face parser pre- and post-processing": PrePostAdapter(),
    "demo stroke editing": StrokesAdapter(),
    "part-mask merge": MergeAdapter(),
}
