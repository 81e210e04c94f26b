"""MichiGAN. Published keys throughout; networks load through the paper's checkpoint loader."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import torchext
from golden import statements
from golden.recipe import Golden, draw
from torchext import orientation
from torchext.models import checkpoint
from torchext.models.discriminators import MultiscaleDiscriminator
from torchext.models.losses import colour_difference, feature_matching, perceptual
from torchext.models.michigan import hair, inpainting, losses
from torchext.models.michigan.networks import (
    AppearanceEncoder,
    BackgroundEncoder,
    HairGenerator,
    background_mask,
    expansions,
)
from torchext.models.vgg import SYNTHESIS_TAPS, VGGFeatures
from torchext.nn import SPADEResnetBlock
from torchext.ops.gabor_orientation import BANKS, grey_image

from .base import Adapter

# Filters whose responses lie closer than this (`gap`) change places by rounding.
LOSS_GAP = 1e-3
STROKE_GAP = 1e-4
# Files of a published float32 run without a noise figure: share of the array's largest value.
FLOAT32_RUN = 2e-4


def stored(golden: Golden, key: str, like: Tensor) -> Tensor:
    return torch.from_numpy(golden.arrays[key].astype(np.float64)).to(like)


def clear(golden: Golden, key: str, result: Tensor, threshold: float) -> Tensor:
    """The result where the best filter is clear, what the file holds where it is not."""
    decided = stored(golden, "out.gap", result) > threshold
    assert decided.any() or not golden.arrays["out.strength"].any()
    while decided.dim() < result.dim():
        decided = decided.unsqueeze(1) if key != "out.rgb" else decided.unsqueeze(-1)
    return torch.where(decided, result, stored(golden, key, result))


def rectified(image: Tensor, bank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Index, maximum and its distance to the second best, each (N,H,W)."""
    index, strength = torchext.oriented_filter_max(image, bank)
    best = torchext.reference.filter_responses(image, bank).relu().topk(2, dim=1).values
    return index[:, 0], strength[:, 0], best[:, 0] - best[:, 1]


class OrientationLossAdapter(Adapter):
    """Inputs drawn, or a picture (`image.u8`) with hair everywhere."""

    def __init__(self) -> None:
        super().__init__(torchext.nn.OrientationLoss)

    def build(self, golden: Golden) -> nn.Module:
        return self.make(golden.config["args"]["orient_filter"])

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        arguments = golden.config["args"]
        like = next(iter(inputs.values()))
        if "image.u8" in golden.data:
            picture = torch.from_numpy(golden.data["image.u8"]).to(like)
            image = picture.permute(2, 0, 1)[None] / 255 * 2 - 1
            hair = torch.ones_like(image[:, :1])
        else:
            scale, offset = arguments.get("image_scale", 1), arguments.get("image_offset", 0)
            image = scale * inputs["image"].detach() + offset
            hair = 1 - inputs["mask"]
            hair[golden.config.get("empty", {}).get("hair", [])] = 0
        if arguments["use_ig"]:
            angle = torch.pi * inputs["angle"]
            label = torch.cat((angle.sin(), angle.cos()), dim=1) * hair
        else:
            label = torch.floor(255 * inputs["label"])
        inputs["image"] = image = image.requires_grad_()
        orient_loss, confidence_loss = module(image, label, hair)
        with torch.no_grad():
            two_channel, confidence = torchext.nn.GaborOrientation(module.bank)(image, hair)
            bank = BANKS[module.bank](dtype=image.dtype, device=image.device)
            index, strength, gap = rectified(grey_image(image, "published", (-1, 1)), bank)
        found = {
            "orient_loss": orient_loss,
            "confidence_loss": confidence_loss,
            "two_channel": clear(golden, "out.two_channel", two_channel, LOSS_GAP),
            "confidence": confidence,
            "index": clear(golden, "out.index", index.to(image.dtype), LOSS_GAP),
            "strength": strength,
            "gap": gap,
            "bank": bank,
        }
        return {name: found[name] for name in golden.wanted("out")}

    def objective(
        self, golden: Golden, outputs: dict[str, Tensor], inputs: dict[str, Tensor]
    ) -> Tensor:
        return statements.evaluate(
            golden.config.get("grad_of", "orient_loss + confidence_loss"), outputs
        )

    def tolerance(self, golden: Golden, key: str) -> float:
        if key in ("out.strength", "out.gap"):  # sums of 289 terms of up to 255; the gap of two
            return FLOAT32_RUN * float(np.abs(golden.arrays["out.strength"]).max(initial=0))
        if "fp32_noise_maxabs" in golden.config:
            return super().tolerance(golden, key)
        return FLOAT32_RUN * float(np.abs(golden.arrays[key]).max(initial=0))


class Tool(nn.Module):
    """A function of stored arrays; knows the dtype and device to compute in."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self.like)


class PhotoAdapter(Adapter):
    """A photograph's 8-bit angle map. The angle is circular with period 255."""

    def __init__(self) -> None:
        super().__init__(Tool)

    def build(self, golden: Golden) -> nn.Module:
        assert golden.config["args"]["filter"] == "dog"
        return Tool()

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        arguments = golden.config["args"]
        image = module.tensor(golden.data["image.u8"]).permute(2, 0, 1)[None]
        mask = module.tensor(golden.data["mask.u8"])[None, None]
        if mask.max() > 1:
            mask = (mask > arguments["mask_threshold"]).to(mask)
        flow = orientation.orientation_flow(image, mask, sigma=arguments["blur_sigma"])
        code = orientation.orientation_code(flow, mask)[0, 0].to(flow.dtype)
        angle = (torchext.orientation_angle(flow, "cos_sin") * mask)[0, 0] * (255 / torch.pi)
        expected = stored(golden, "out.angle", angle)
        # Truncation: next to a step, the side is rounding's to choose.
        noise = self.tolerance(golden, "out.angle")
        at_step = (expected - expected.round()).abs() <= noise
        code = torch.where(at_step, stored(golden, "out.code", code), code)
        angle = angle + 255 * ((expected - angle) / 255).round()
        return {"code": code, "angle": angle, "flow_x": flow[0, 0], "flow_y": flow[0, 1]}


class StrokeAdapter(Adapter):
    """The colour code of drawn strokes."""

    def __init__(self) -> None:
        super().__init__(Tool)

    def build(self, golden: Golden) -> nn.Module:
        assert golden.config["args"]["filter"] == "dog"
        return Tool()

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        stroke = module.tensor(golden.data["stroke.u8"])[None, None]
        bank = torchext.difference_of_gaussians_bank(dtype=stroke.dtype, device=stroke.device)
        index, strength, gap = (value[0] for value in rectified(stroke, bank))
        rgb = 255 * orientation.stroke_orientation(stroke)[0].permute(1, 2, 0)
        return {
            "rgb": clear(golden, "out.rgb", rgb, STROKE_GAP),
            "index": clear(golden, "out.index", index.to(stroke.dtype), STROKE_GAP),
            "strength": strength,
            "gap": gap,
            "hole": orientation.stroke_hole(stroke)[0, 0],
        }

    def tolerance(self, golden: Golden, key: str) -> float:
        return golden.tolerance("out.strength" if key == "out.gap" else key)  # of two strengths


# --- networks -------------------------------------------------------------------------------------


def hair_masks(golden: Golden, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """1 - mask of every drawn mask: mask_NAME as NAME, mask as "hair"."""
    masks = {
        name.removeprefix("mask_").replace("mask", "hair"): (1 - value).detach()
        for name, value in inputs.items()
        if name.startswith("mask")
    }
    for given, indices in golden.config.get("empty", {}).items():
        masks[given.removeprefix("hair_")][indices] = 0
    for given, indices in golden.config.get("sparse", {}).items():
        for i in indices:
            masks[given.removeprefix("hair_")][i, 0, ::32, ::32] = 0
    return masks


def two_channel(angle: Tensor, mask: Tensor) -> Tensor:
    return torch.cat(((torch.pi * angle).sin(), (torch.pi * angle).cos()), dim=1) * mask


def code(label: Tensor) -> Tensor:
    return torch.floor(255 * label)


def colours(label: Tensor) -> Tensor:
    return inpainting.colour_code(code(label).long()).to(label.dtype)


def cotangent(like: Tensor, number: int) -> Tensor:
    values = draw(f"cotangent{number}", tuple(like.shape))
    return torch.from_numpy(values.astype(np.float64)).to(like)


class StrictAdapter(Adapter):
    """Loads as the paper's checkpoint loader does."""

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        checkpoint.load_strictly(module, state, "golden file")


class BlockAdapter(StrictAdapter):
    """A SPADE block on the composed map, whose gradient is stored; buffers after the call."""

    def build(self, golden: Golden) -> nn.Module:
        return SPADEResnetBlock(**self._arguments(golden))

    def _arguments(self, golden: Golden) -> dict[str, Any]:
        given = dict(golden.config["args"])
        given["semantic_nc"] = given.pop("label_nc") + given.pop("orient_nc")
        return given

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        mask = hair_masks(golden, inputs)["tag"]
        seg = torch.cat((1 - mask, mask, two_channel(inputs["angle"], mask)), dim=1)
        inputs["seg"] = seg.detach().requires_grad_()
        outputs = {"y": module(inputs["x"], inputs["seg"])}
        for name in golden.wanted("out"):
            if name != "y":
                outputs[name] = module.get_buffer(name).clone()
        return outputs


class AppearanceAdapter(StrictAdapter):
    """out.layer<i> and out.mask<i> are a partial convolution's results."""

    def build(self, golden: Golden) -> nn.Module:
        given = golden.config["args"]
        return AppearanceEncoder(given["ngf"], given["norm_ref_encode"])

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        masks, given = hair_masks(golden, inputs), golden.config["args"]
        results: dict[str, Tensor] = {}

        def keep(layer: nn.Module, _: Any, result: Any) -> None:
            i = list(module.children()).index(layer) + 1
            results[f"layer{i}"], results[f"mask{i}"] = result

        handles = [layer.register_forward_hook(keep) for layer in module.children()]
        size = (given["sh"], given["sw"])
        results["y"] = module(inputs["image"], masks["ref"], masks["tag"], size)
        for handle in handles:
            handle.remove()
        return results


def background_side(given: dict[str, Any], height: int) -> int:
    """The side of the square by which a file's hair grows."""
    if given["isTrain"]:
        if not given["random_expand_mask"]:
            return 1
        sides = expansions(height, given["random_expand_th"])
        return sides[given["random_choice_index"]]
    return given["expand_th"] if given["expand_mask_be"] else 1


class BackgroundAdapter(StrictAdapter):
    """Features and masks of all levels; with add_feat_zeros all is padded."""

    def build(self, golden: Golden) -> nn.Module:
        given = golden.config["args"]
        assert not given["random_noise_background"]
        return BackgroundEncoder(given["ngf"], given["num_upsampling_layers"])

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        given, mask = golden.config["args"], hair_masks(golden, inputs)["hair"]
        known = background_mask(mask, background_side(given, mask.shape[2]))
        p = given["add_th"] // 2 if given["add_feat_zeros"] else 0
        image, noise = (
            torch.nn.functional.pad(inputs[name], (p, p, p, p)) for name in ("image", "noise")
        )
        known = torch.nn.functional.pad(known, (p, p, p, p), value=1)
        results = {}
        for i, feature in enumerate(module(image, known, noise)):
            results[f"feat{i}"] = feature
            results[f"mask{i}"] = losses.resized(known, feature)
        return results

    def objective(
        self, golden: Golden, outputs: dict[str, Tensor], inputs: dict[str, Tensor]
    ) -> Tensor:
        features = [outputs[name] for name in outputs if name.startswith("feat")]
        terms = [(x * cotangent(x, i)).sum() for i, x in enumerate(features)]
        return torch.stack(terms).sum()


def generator_of(given: dict[str, Any]) -> HairGenerator:
    assert given.get("expand_mask_be", True)
    assert given.get("use_encoder", True)
    assert given.get("noise_background", True)
    return HairGenerator(
        given["ngf"],
        given["num_upsampling_layers"],
        given.get("norm_G", "spectralspadesyncbatch3x3"),
        given["norm_ref_encode"],
        padding=given["add_th"] // 2 if given["add_feat_zeros"] else 0,
        expand=given["expand_th"],
        random_expand=given.get("random_expand_th", 0.05),
        direct_add=given.get("bf_direct_add", False),
    )


class GeneratorAdapter(StrictAdapter):
    """out.BLOCK are the blocks' results before the blend, out.fc the appearance map.

    Blocks are those of a pass that computes everywhere; out.y of evaluation, and the gradients, are
    those of one that computes near hair alone.
    """

    def build(self, golden: Golden) -> nn.Module:
        return generator_of(golden.config["args"])

    def outputs(
        self, module: HairGenerator, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        given, masks = golden.config["args"], hair_masks(golden, inputs)
        if given["use_ig"]:
            inputs["orient"] = two_channel(inputs["angle"], masks["tag"]).requires_grad_()
        else:
            inputs["orient"] = code(inputs["label"])
        arguments = (
            *(inputs["image_ref"], masks["ref"], inputs["image_tag"], masks["tag"]),
            *(inputs["orient"], inputs["noise"]),
        )
        side = background_side(given, masks["tag"].shape[2])
        results: dict[str, Tensor] = {}

        def image() -> Tensor:
            return torch.tanh(module.decode(module.conditions(*arguments, expand=side)))

        handles = []
        for name, child in module.named_children():

            def keep(_: nn.Module, __: Any, result: Any, name: str = name) -> None:
                results[name] = result

            handles.append(child.register_forward_hook(keep))
        module.near_hair = False
        results["y"] = image()
        results["pre_tanh"] = results["conv_img"]
        for handle in handles:
            handle.remove()
        if not module.training:
            module.near_hair = True
            results["y"] = image()
        return {name: results[name] for name in golden.wanted("out")}


class DiscriminatorAdapter(StrictAdapter):
    """out.s<scale>_m<layer>."""

    def build(self, golden: Golden) -> nn.Module:
        given = dict(golden.config["args"])
        channels = sum(given.pop(name) for name in ("label_nc", "orient_nc", "output_nc"))
        return MultiscaleDiscriminator(input_nc_D=channels, **given)

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scales = module(inputs["x"])
        return {f"s{i}_m{j}": x for i, scale in enumerate(scales) for j, x in enumerate(scale)}

    def objective(
        self, golden: Golden, outputs: dict[str, Tensor], inputs: dict[str, Tensor]
    ) -> Tensor:
        last = golden.config["args"]["n_layers_D"]
        scores = [value for name, value in outputs.items() if name.endswith(f"m{last}")]
        return torch.stack([(x * cotangent(x, i)).sum() for i, x in enumerate(scores)]).sum()


class InpaintAdapter(StrictAdapter):
    """The attention's input, and the half of its result that it saw."""

    def __init__(self, channels: int) -> None:
        super().__init__(inpainting.OrientationInpainter)
        self.channels = channels

    def build(self, golden: Golden) -> nn.Module:
        return self.make(self.channels, **golden.config["args"])

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        results: dict[str, Tensor] = {}

        def keep(_: nn.Module, given: tuple[Tensor], result: Tensor) -> None:
            results["attention_in"] = given[0]
            results["attention"] = result[:, given[0].shape[1] :]

        handle = module.middle[-1].register_forward_hook(keep)
        results["y"] = module(inputs["x"])
        handle.remove()
        return results


class Networks(nn.Module):
    """Those of an edit, under the prefixes of the files."""

    def __init__(self, golden: Golden) -> None:
        super().__init__()
        given = golden.config["args"]
        prefixes = {key.split(".")[0] for key in golden.shapes}
        self.size = given["crop_size"]
        options = {"blocks": given["blocks"], "skips": given["skips"]}
        if "netG" in prefixes:
            self.netG = generator_of(given)
        self.netIG = inpainting.OrientationInpainter(4, **options)
        if "netSIG" in prefixes:
            self.netSIG = inpainting.OrientationInpainter(5, **options)


class FillAdapter(StrictAdapter):
    """A hole of the orientation map filled, along strokes where the file has them."""

    def build(self, golden: Golden) -> nn.Module:
        return Networks(golden)

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        masks = hair_masks(golden, inputs)
        area = masks["tag"]
        smaller = golden.config["args"]["orient_smaller"]
        known = area * inputs["mask_orient"] if smaller else area
        rgb = colours(inputs["label"]) * known
        rgb, orient = filled(module, inputs, masks, rgb, known, "stroke" in inputs)
        return {"rgb": rgb, "orient": orient}


def filled(
    module: nn.Module,
    inputs: dict[str, Tensor],
    masks: dict[str, Tensor],
    rgb: Tensor,
    known: Tensor,
    strokes: bool,
) -> tuple[Tensor, Tensor]:
    """The colours and the two channels of what `hair.complete_orientation` gives."""
    area = masks["tag"]
    guidance = None
    if strokes:
        hole = masks["hole4"] * area
        stroke = masks["stroke"] * hole
        guidance = orientation.StrokeGuidance(stroke, inputs["stroke"] * stroke, hole)
    elif "hole" in masks:
        known = known * (1 - masks["hole"])
    rgb = hair.complete_orientation(
        rgb,
        known,
        area,
        inputs["noise"],
        module.netIG,
        guidance=guidance,
        strokes_network=getattr(module, "netSIG", None),
    )
    return rgb, inpainting.two_channel(rgb, area)


class PipelineAdapter(StrictAdapter):
    """A whole edit from tensors; out.border are rows of the padding."""

    def build(self, golden: Golden) -> nn.Module:
        return Networks(golden)

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        masks = hair_masks(golden, inputs)
        strokes = golden.config["args"]["inpaint_mode"] == "stroke"
        known = masks["orient"] * masks["tag"]
        rgb = colours(inputs["label"]) * known
        rgb, orient = filled(module, inputs, masks, rgb, known, strokes)
        arguments = (
            *(inputs["image_ref"], masks["ref"], inputs["image_tag"], masks["tag"]),
            *(orient, inputs["noise"]),
        )
        whole = torch.tanh(module.netG.decode(module.netG.conditions(*arguments)))
        return {
            "y": module.netG(*arguments),
            "border": whole[..., : module.netG.padded, :],
            "orient_rgb": (255 * rgb[0]).floor().permute(1, 2, 0),
        }


# --- losses ---------------------------------------------------------------------------------------


class NothingToLoad(Adapter):
    def __init__(self) -> None:
        super().__init__(nn.Module)

    def build(self, golden: Golden) -> nn.Module:
        return nn.Module()


class LossesAdapter(NothingToLoad):
    """Inputs f (fake) and r (real), then the scale, then a (feature) or b (score)."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        given, masks = golden.config["args"], hair_masks(golden, inputs)
        area, reference = masks["hair"], masks["ref"]
        only = given["remove_background"]
        hinge = losses.HairHinge(given["wide_edge"], only)
        fake, real = (
            [[inputs[f"{kind}{i}{m}"] for m in "ab"] for i in range(given["num_D"])]
            for kind in "fr"
        )
        fakes, reals = ([scale[-1] for scale in maps] for maps in (fake, real))
        matching = losses.matching_inside(fake, real, area) if only else None
        matching = feature_matching(fake, real) if matching is None else matching
        a, b = inputs["fake"], inputs["real"]
        results = {
            "g_gan": hinge.generator(fakes, area),
            "d_fake": hinge.fake(fakes, area),
            "d_real": hinge.real(reals, area),
            "g_feat": given["lambda_feat"] * matching,
            "lab": colour_difference(a, b),
            "background": losses.background(a, b, area),
            "hair_avg_lab": losses.average_colour(a, b, area, reference),
            "rgb": (a - b).abs().mean(),
            "rgb_l2": (a - b).square().mean(),
            "Lab": losses.lab(a),
        }
        weights = {f"weight{i}": hinge.weight(area, x) for i, x in enumerate(fakes)}
        return results | weights

    def objective(
        self, golden: Golden, outputs: dict[str, Tensor], inputs: dict[str, Tensor]
    ) -> Tensor:
        order = golden.config["grad_of"].split("order ")[1].split(", ")
        terms = torch.stack([outputs[name] for name in order])
        return (terms * inputs["cotangent"]).sum()


class FeatureLossesAdapter(Adapter):
    """The file's keys are those of VGG-19; the published script swaps the masks of the style."""

    def __init__(self) -> None:
        super().__init__(nn.Module)

    def build(self, golden: Golden) -> nn.Module:
        return VGGFeatures(19, SYNTHESIS_TAPS)

    def load(self, module: VGGFeatures, state: dict[str, Tensor]) -> None:
        module.load_torchvision(state, "golden file")

    def outputs(
        self, module: VGGFeatures, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        masks = hair_masks(golden, inputs)
        area, reference = masks["hair"], masks["ref"]
        fake, wanted = module(inputs["fake"]), module(inputs["content"].detach())
        of_style = module(inputs["style"].detach())
        last = list(SYNTHESIS_TAPS)[-1]
        if golden.config["args"]["remove_background"]:
            return {
                "content": losses.content(fake[last], wanted[last], area),
                "style": losses.style(fake, of_style, reference, area),
                "vgg": losses.perceptual_inside(fake, wanted, SYNTHESIS_TAPS, area),
            }
        return {
            "content": losses.content(fake[last], wanted[last]),
            "style": losses.style(fake, of_style),
            "vgg": perceptual(fake, wanted, SYNTHESIS_TAPS),
        }

    def objective(
        self, golden: Golden, outputs: dict[str, Tensor], inputs: dict[str, Tensor]
    ) -> Tensor:
        terms = torch.stack([outputs[name] for name in ("content", "style", "vgg")])
        return (terms * inputs["cotangent"]).sum()


class DataAdapter(NothingToLoad):
    """What a training sample is made of."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        given, masks = golden.config["args"], hair_masks(golden, inputs)
        area, known = masks["tag"], masks["orient"] * masks["tag"]
        rgb = (255 * colours(inputs["label"])).round()
        levels = [inputs[name] for name in inputs if name.startswith("level")]
        levels = [0.5 + 0.25 * level.permute(2, 0, 1) for level in levels]
        size = given["size"]
        centre = int(given["hole_centre"] * (int(known.sum()) - 1))
        hole = hair.round_hole(area[0, 0], known[0, 0], given["hole_th"], centre)
        return {
            "rgb": (rgb * area)[0].permute(1, 2, 0),
            "rgb_orient": (rgb * known)[0].permute(1, 2, 0),
            "noise": hair.mean_of_levels(levels, (size, size)).permute(1, 2, 0),
            "hole": hole,
        }


ADAPTERS: dict[str, Adapter] = {
    "L1OLoss": OrientationLossAdapter(),
    "cal_orientation": PhotoAdapter(),
    "stroke_to_orient": StrokeAdapter(),
    "SPADEResnetBlock": BlockAdapter(SPADEResnetBlock),
    "ImageEncoder3": AppearanceAdapter(AppearanceEncoder),
    "BackgroundEncode2": BackgroundAdapter(BackgroundEncoder),
    "SPADEBGenerator": GeneratorAdapter(HairGenerator),
    "MultiscaleDiscriminator": DiscriminatorAdapter(MultiscaleDiscriminator),
    "InpaintGenerator": InpaintAdapter(4),
    "SInpaintGenerator": InpaintAdapter(5),
    "inpainting_orient": FillAdapter(Networks),
    "inpainting_stroke_orient": FillAdapter(Networks),
    "demo_inference": PipelineAdapter(Networks),
    "losses": LossesAdapter(),
    "StyleContentLoss+VGGLoss": FeatureLossesAdapter(),
    "data": DataAdapter(),
}
