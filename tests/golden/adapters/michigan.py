"""MichiGAN: the orientation loss and tools."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import torchext
from golden import statements
from golden.recipe import Golden
from torchext import orientation
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


ADAPTERS: dict[str, Adapter] = {
    "L1OLoss": OrientationLossAdapter(),
    "cal_orientation": PhotoAdapter(),
    "stroke_to_orient": StrokeAdapter(),
}
