"""MagGAN, and what it stands on: STGAN, SPADE and a face parser. Published keys throughout."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from golden.recipe import Golden
from torchext.models import checkpoint
from torchext.models.blocks import BasicBlock
from torchext.models.losses import AdversarialLoss, gradient_penalty
from torchext.models.maggan import losses, parser
from torchext.models.maggan.attributes import ATTRIBUTES, CELEBA, difference
from torchext.models.maggan.checkpoint import convert_tensorflow_checkpoint
from torchext.models.maggan.classifier import AttributeClassifier
from torchext.models.maggan.config import Loss
from torchext.models.maggan.discriminators import (
    MultiLevelPatchDiscriminator,
    PatchDiscriminator,
    STGANDiscriminator,
)
from torchext.models.maggan.editing import AttributeEditor
from torchext.models.maggan.networks import ConvGRUCell, MagGANGenerator, STGANGenerator
from torchext.models.maggan.photos import stgan_input
from torchext.models.maggan.regions import influence_regions
from torchext.nn import SPADE

from .base import Adapter
from .dagan import SpadeAdapter

Outputs = dict[str, Tensor]


class NetworkAdapter(Adapter):
    """A network of one or several results, strictly loaded; gradients of all by their cotangents.

    Args:
        make: the class; called with the file's `args`.
        names: of what it returns.
    """

    def __init__(self, make: Callable[..., nn.Module], *names: str) -> None:
        super().__init__(make)
        self.results = names or ("y",)

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        if state:
            checkpoint.load_strictly(module, state, "golden file")

    def run(self, module: nn.Module, golden: Golden, inputs: Outputs) -> Outputs:
        """The results by name."""
        given = [x for name, x in inputs.items() if not name.startswith("cotangent")]
        results = module(*given)
        results = (results,) if isinstance(results, Tensor) else results
        return dict(zip(self.results, results, strict=True))

    def outputs(self, module: nn.Module, golden: Golden, inputs: Outputs) -> Outputs:
        found = self.run(module, golden, inputs)
        statistics = dict(module.named_buffers())
        wanted = golden.wanted("out")
        return {name: found[name] if name in found else statistics[name].clone() for name in wanted}

    def objective(self, golden: Golden, outputs: Outputs, inputs: Outputs) -> Tensor:
        """Every output times its cotangent; `cotangent` alone is that of y, or of the only one."""
        cotangents = {n: x for n, x in inputs.items() if n.startswith("cotangent")}
        one = "y" if "y" in outputs else next(iter(outputs))
        terms = [
            (outputs[name.removeprefix("cotangent").removeprefix("_") or one] * x).sum()
            for name, x in cotangents.items()
        ]
        return torch.stack(terms).sum()


class GeneratorAdapter(NetworkAdapter):
    """The encoder's maps, and what the units make of them, too."""

    def run(self, module: Any, golden: Golden, inputs: Outputs) -> Outputs:
        maps = module.encode(inputs["x"])
        passed = module.transfer(maps, inputs["att"])
        found = {f"enc{i}": x for i, x in enumerate(maps)}
        found |= {f"stu_level{i}": x for i, x in enumerate(passed[:-1])}
        return {"y": module.decode(maps, inputs["att"], inputs.get("condition")), **found}


class ParserAdapter(NetworkAdapter):
    """The maps inside, too."""

    def run(self, module: Any, golden: Golden, inputs: Outputs) -> Outputs:
        seen: list[tuple] = []
        hook = module.cp.register_forward_hook(lambda m, given, result: seen.append(result))
        found = super().run(module, golden, inputs)
        hook.remove()
        return found | dict(zip(("feat8", "cp8", "cp16"), seen[0], strict=True))


class LevelsAdapter(NetworkAdapter):
    """The patches' places are among the file's arguments."""

    def build(self, golden: Golden) -> nn.Module:
        given = {name: x for name, x in golden.config["args"].items() if name != "offsets"}
        return self.make(**given)

    def run(self, module: Any, golden: Golden, inputs: Outputs) -> Outputs:
        offsets = torch.tensor(golden.config["args"]["offsets"])
        views = module.views(inputs["x"], offsets)
        gan, att = module(inputs["x"], offsets)
        found = {f"gan{i}": x for i, x in enumerate(gan)}
        return {**found, "att": att, **{f"input{i}": x for i, x in enumerate(views)}}


class FunctionAdapter(NetworkAdapter):
    """A function of the file's arguments and inputs, without a module."""

    def __init__(self, function: Callable[[dict[str, Any], Outputs], Outputs]) -> None:
        super().__init__(nn.Module)
        self.function = function

    def build(self, golden: Golden) -> nn.Module:
        return nn.Module()

    def run(self, module: nn.Module, golden: Golden, inputs: Outputs) -> Outputs:
        found = self.function(golden.config["args"], inputs)
        like = next(iter(inputs.values()))
        return {name: x if x.dim() else x.reshape(1).to(like) for name, x in found.items()}


# --- functions ------------------------------------------------------------------------------------


class PenaltyAdapter(NetworkAdapter):
    """The arguments are the discriminator's."""

    def build(self, golden: Golden) -> nn.Module:
        given = {name: x for name, x in golden.config["args"].items() if name != "dragan"}
        return STGANDiscriminator(**given)

    def run(self, module: Any, golden: Golden, inputs: Outputs) -> Outputs:
        real = inputs["real"]
        if golden.config["args"]["dragan"]:
            other = losses.scattered(real, inputs["beta"])
        else:
            other = inputs["fake"]
        score = lambda x: module.score(0, x)  # noqa: E731
        return {"gp": gradient_penalty(score, real, other, inputs["alpha"])[None]}


class EditAdapter(NetworkAdapter):
    """An edit with a label map of another size."""

    def build(self, golden: Golden) -> nn.Module:
        return MagGANGenerator(**golden.config["args"]["generator"])

    def run(self, module: Any, golden: Golden, inputs: Outputs) -> Outputs:
        given = golden.config["args"]
        photo = byte_image(inputs["u"]).movedim(-1, 0)[None] / 255
        labels = torch.floor(19 * inputs["labels_u"]).long()[None, None]
        masks = parser.one_hot(parser.resize_labels(labels, *photo.shape[2:]))
        source = (inputs["a_u"] > 0.5).to(photo)[None]
        editor = AttributeEditor(module, photo, source, masks=masks)
        made = editor(dict.fromkeys(given["attributes"], given["test_int"]))
        pictures = {"y": made.photo * 2 - 1, "pasted": editor.paste(made) * 2 - 1}
        return {"att_diff": made.difference, "edit": made.region, **pictures}


def byte_image(u: Tensor) -> Tensor:
    return torch.floor(256 * u)


def hard_examples(given: dict[str, Any], inputs: Outputs) -> Outputs:
    u = inputs["labels_u"]
    classes = torch.floor(19 * u).long()
    boost = given["boost"] * F.one_hot(classes, 19).movedim(-1, 1).to(u)
    labels = torch.where(u > 0.97, given["ignore_lb"], classes)
    loss = losses.hard_example_cross_entropy(
        *(inputs["logits"] + boost, labels, given["thresh"], given["n_min"]),
        ignored=given["ignore_lb"],
    )
    return {"loss": loss}


def labels_of(inputs: Outputs) -> tuple[Tensor, Tensor]:
    """Source and target."""
    return tuple((inputs[name] > 0.5).to(inputs[name]) for name in ("a_u", "b_u"))


def summed(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([*terms.values()]).sum()


def stgan_losses(given: dict[str, Any], inputs: Outputs) -> Outputs:
    source, target = labels_of(inputs)
    real, fake = inputs["real_gan"], inputs["fake_gan"]
    weights = Loss(
        reconstruction_weight=given["rec_loss_weight"], attribute_weight=given["att_loss_weight"]
    )
    no_penalty = real.new_zeros(1)
    rec = F.l1_loss(inputs["x"], inputs["x_rec"])
    of_d = losses.discriminator_terms(
        [real], [fake], inputs["real_att"], source, no_penalty, weights
    )
    of_g = losses.generator_terms([fake], inputs["fake_att"], target, rec, None, weights)
    found = {
        "d_att": of_d["discriminator_attributes"],
        "g_att": of_g["attributes"] / weights.attribute_weight,
        "g_rec": rec,
        "d_total": summed(of_d),
        "g_total": summed(of_g),
    }
    forms = {"wgan": "wasserstein", "lsgan": "least_squares", "dcgan": "non_saturating"}
    for name, form in forms.items():
        loss = AdversarialLoss(form)
        found[f"d_gan_{name}"] = loss.real([real]) + loss.fake([fake])
        found[f"g_gan_{name}"] = loss.generator([fake])
    return found


class STGANLossesAdapter(FunctionAdapter):
    def objective(self, golden: Golden, outputs: Outputs, inputs: Outputs) -> Tensor:
        total = 2 * outputs["g_total"] + outputs["d_total"]
        return (total * inputs["cotangent"]).sum()


def maggan_losses(given: dict[str, Any], inputs: Outputs) -> Outputs:
    source, target = labels_of(inputs)
    real, fake = ([inputs[f"{k}{i}"] for i in range(given["levels"])] for k in ("real", "fake"))
    weights = Loss(
        penalty_weight=given["gp_weight"],
        discriminator_attribute_weight=given["d_att_weight"],
        attribute_weight=given["g_att_weight"],
        reconstruction_weight=given["rec_weight"],
        mask_weight=given["mask_weight"],
    )
    rec, mask = inputs["rec"].sum(), inputs["mask"].sum()
    of_d = losses.discriminator_terms(real, fake, inputs["real_att"], source, inputs["gp"], weights)
    of_g = losses.generator_terms(fake, inputs["fake_att"], target, rec, mask, weights)
    return {"d_total": summed(of_d), "g_total": summed(of_g)}


def mask_losses(given: dict[str, Any], inputs: Outputs) -> Outputs:
    edit = inputs["edit"]
    edit = torch.where(edit < 0.4, 0.0, torch.where(edit > 0.7, 1.0, edit))
    edit = 1 - given.get("preserve_scale", 1) * (1 - edit)
    loss = losses.mask_guided_reconstruction
    return {n: loss(inputs["x"], inputs["y"], edit, n) for n in ("mean", "area")}


def regions(given: dict[str, Any], inputs: Outputs) -> Outputs:
    att = inputs["att_u"]
    if given["soft"]:
        masks = (3 * inputs["logits"]).softmax(dim=1)
        att = torch.where(att.abs() < 0.3, 0.0, att)
    else:
        labels = torch.floor(19 * inputs["labels_u"]).long()
        masks = parser.one_hot(labels).to(att)
        att = torch.round(1.49 * att)
    found = influence_regions(masks, att, given["atts"])
    return {
        "regions": found.regions,
        "condition": found.condition,
        "edit": found.edit,
        "att": att,
    }


def attribute_edits(given: dict[str, Any], inputs: Outputs) -> Outputs:
    names = given["atts"]
    assert given["thres_int"] == 0.5
    source = (inputs["a_u"] > 0.5).to(inputs["a_u"])
    found = {}
    for intensity in (1, 2):
        rows = [difference(source, {name: intensity}, names) for name in names]
        found[f"att_diff_{intensity}"] = torch.stack(rows, dim=1)
    found["multi"] = difference(source, given["multi"], names)
    found["table"] = torch.tensor([CELEBA.index(name) for name in names]).to(source)
    assert tuple(names) == ATTRIBUTES
    return found


def published_input(given: dict[str, Any], inputs: Outputs) -> Outputs:
    image = byte_image(inputs["u"]).movedim(-1, 0)[None]
    crop = given["crop"]
    if crop is not None:
        top, left, height, width = crop
        crop = (left, top, left + width, top + height)
    return {"x": stgan_input(image, given["size"], crop)}


def parser_input(given: dict[str, Any], inputs: Outputs) -> Outputs:
    pixels = byte_image(inputs["u"]).cpu().numpy().astype(np.uint8)
    picture = np.asarray(parser.prepared(Image.fromarray(pixels), given["size"]))
    image = torch.from_numpy(picture.copy()).movedim(-1, 0).to(inputs["u"])
    return {"image": image, "x": parser.normalised(image / 255)}


def parsing_picture(given: dict[str, Any], inputs: Outputs) -> Outputs:
    """The file has blue first."""
    assert given["stride"] == 1
    photo = byte_image(inputs["u"]).movedim(-1, 0)[None] / 255
    labels = torch.floor(19 * inputs["labels_u"]).long()[None, None]
    return {"vis": (parser.overlay(photo, labels)[0] * 255).round().movedim(0, -1).flip(-1)}


class PictureAdapter(FunctionAdapter):
    """The file is exact up to a grey level."""

    def tolerance(self, golden: Golden, key: str) -> float:
        return 1.0


def converted(given: dict[str, Any], inputs: Outputs) -> Outputs:
    states = convert_tensorflow_checkpoint(inputs, image_size=given["image_size"])
    return {f"{name}.{key}": x for name, state in states.items() for key, x in state.items()}


ADAPTERS: dict[str, Adapter] = {
    "SPADE": SpadeAdapter(SPADE),
    "ConvGRUCell": NetworkAdapter(ConvGRUCell, "y", "state"),
    "STGANGenerator": GeneratorAdapter(STGANGenerator),
    "MagGANGenerator": GeneratorAdapter(MagGANGenerator),
    "STGANDiscriminator": NetworkAdapter(STGANDiscriminator, "gan", "att"),
    "PatchDiscriminator": NetworkAdapter(PatchDiscriminator),
    "MultiLevelPatchDiscriminator": LevelsAdapter(MultiLevelPatchDiscriminator),
    "AttributeClassifier": NetworkAdapter(AttributeClassifier),
    "ConvBNReLU": NetworkAdapter(parser.ConvBNReLU),
    "BasicBlock": NetworkAdapter(
        lambda in_chan, out_chan, stride=1: BasicBlock(in_chan, out_chan, stride)
    ),
    "AttentionRefinementModule": NetworkAdapter(parser.AttentionRefinementModule),
    "FeatureFusionModule": NetworkAdapter(parser.FeatureFusionModule),
    "BiSeNetOutput": NetworkAdapter(parser.BiSeNetOutput),
    "BiSeNet": ParserAdapter(parser.BiSeNet, "y", "y16", "y32"),
    "OhemCELoss": FunctionAdapter(hard_examples),
    "gradient_penalty": PenaltyAdapter(nn.Module),
    "stgan_losses": STGANLossesAdapter(stgan_losses),
    "maggan_losses": FunctionAdapter(maggan_losses),
    "mask_guided_reconstruction": FunctionAdapter(mask_losses),
    "influence_regions": FunctionAdapter(regions),
    "attribute_edits": FunctionAdapter(attribute_edits),
    "edit": EditAdapter(nn.Module),
    "stgan_preprocess": FunctionAdapter(published_input),
    "preprocess": FunctionAdapter(parser_input),
    "vis_parsing_maps": PictureAdapter(parsing_picture),
    "convert_tensorflow_checkpoint": FunctionAdapter(converted),
}
