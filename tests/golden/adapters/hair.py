"""Orientation maps of NeuralHaircut, GaussianHaircut, MonoHair and Im2Haircut, and their banks.

Where the two best filters lie closer than rounding (`gap`) the index is not compared, and what
follows from an index only where it is the file's. `f64.NAME` is the same as `out.NAME`, in float64.
"""

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import torchext
from golden.recipe import Golden
from torchext.ops.filter_banks import gabor_kernels

from .base import Adapter
from .michigan import Tool

GAP = 1e-5
# Arrays that do not follow from an index.
SMOOTH = ("gap", "dog", "grey", "responses", "file_filtered")
WEIGHTS = (0.2989, 0.587, 0.114)


def grey(module: Tool, golden: Golden) -> Tensor:
    """(1,1,H,W), 0 to 255."""
    image = module.tensor(golden.data["image.u8"])[..., :3]
    return (image * torch.tensor(WEIGHTS).to(image)).sum(-1)[None, None]


def stored(golden: Golden, key: str, like: Tensor) -> Tensor:
    return torch.from_numpy(golden.arrays[key].astype(np.float64)).to(like)


def gap_of(image: Tensor, bank: Tensor) -> Tensor:
    """How far the second best response is from the best one, as a share of it."""
    responses = torchext.reference.filter_responses(image, bank).abs()
    best, second = responses.topk(2, dim=1).values[0]
    return torch.where(best > 0, (best - second) / best, 0)


class MapsAdapter(Adapter):
    """Maps of one photograph; `maps` gives them without the comparison's exceptions."""

    def __init__(self) -> None:
        super().__init__(Tool)

    def build(self, golden: Golden) -> Tool:
        return Tool()

    def maps(self, module: Tool, golden: Golden) -> dict[str, Tensor]:
        """Every NAME of the file (H,W), among them index, gap and strength."""
        raise NotImplementedError

    def outputs(self, module: Tool, golden: Golden, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {name: value.double() for name, value in self.maps(module, golden).items()}
        decided = (found["gap"] > GAP) | (found["strength"] == 0)
        clear_choice = found.get("choice_gap", torch.tensor(math.inf)) > GAP
        results = {}
        for kind in ("out", "f64"):
            index = found["index"]
            if f"{kind}.index" in golden.arrays:
                index = stored(golden, f"{kind}.index", index)
            steps = (found["index"] - index + 1).remainder(self.count(golden))
            same = steps == 1
            tied = ~(decided & clear_choice) & ((steps <= 2) | ~clear_choice)
            assert decided.any()
            for name in golden.wanted(kind):
                key, value = f"{kind}.{name}", found[name]
                if name == "index":
                    value = torch.where(same | tied, index, value)
                elif name == "choice":
                    value = torch.where(clear_choice, value, stored(golden, key, value))
                elif name == "choice_gap":  # of two combinations, each with an index of its own
                    clear = found["least_gap"] > GAP
                    value = torch.where(clear, value, stored(golden, key, value))
                elif name not in SMOOTH:
                    settled = same & clear_choice
                    settled = settled if value.dim() == 2 else settled[..., None]
                    value = torch.where(settled, value, stored(golden, key, value))
                results[name if kind == "out" else key] = value
        return results

    def count(self, golden: Golden) -> int:
        arguments = golden.config["args"]
        return arguments.get("num_filters", arguments.get("numKernels"))

    def tolerance(self, golden: Golden, key: str) -> float:
        array = golden.arrays[key]
        if array.dtype == np.float16:  # a unit in the last place
            largest = np.abs(array[np.isfinite(array)]).max(initial=0)
            return max(float(np.spacing(np.float16(largest))), super().tolerance(golden, key))
        if array.dtype == np.uint8:  # truncated, some of them: a step
            return 1.0 if key in ("out.file_filtered", "out.file_ori") else 0.0
        return super().tolerance(golden, key)


def half_angles(count: int) -> Tensor:
    """NeuralHaircut's: the share of the half turn and the product with pi in float16."""
    share = torch.from_numpy((np.arange(count) / count).astype(np.float16))
    return share * torch.tensor(math.pi).half()


class NeuralHaircutAdapter(MapsAdapter):
    def maps(self, module: Tool, golden: Golden) -> dict[str, Tensor]:
        arguments = golden.config["args"]
        image = torchext.difference_of_gaussians(grey(module, golden), 0.4, 10)
        count = arguments["num_filters"]
        bank = torchext.gabor_kernel_bank(
            count, frequency=arguments["freq"], sigma_x=arguments["sigma_x"],
            sigma_y=arguments["sigma_y"], dtype=image.dtype, device=image.device,
        )  # fmt: skip
        index, strength, variance = (
            value[0, 0]
            for value in torchext.oriented_filter_statistics(
                image, bank, angles=half_angles(count).to(image.device), border="wrap"
            )
        )
        half = bank.shape[-1] // 2
        H, W = image.shape[2:]
        rows = torch.arange(-half, H + half, device=image.device) % H
        columns = torch.arange(-half, W + half, device=image.device) % W
        wrapped = image[:, :, rows][..., columns]
        inner = (slice(half, -half), slice(half, -half))
        responses = torchext.reference.filter_responses(wrapped, bank).abs()[0]
        return {
            "index": index,
            "strength": strength,
            "variance": variance,
            "dog": image[0, 0],
            "gap": gap_of(wrapped, bank)[inner],
            "responses": responses[:, half:-half:8, half:-half:8],
            "file_orient": index,
            "file_conf": variance.half(),
        }


class GaussianHaircutAdapter(MapsAdapter):
    """The combination of filters with the smallest variance wins at each pixel."""

    def maps(self, module: Tool, golden: Golden) -> dict[str, Tensor]:
        arguments = golden.config["args"]
        image = torchext.difference_of_gaussians(
            grey(module, golden), arguments["dog_low"], arguments["dog_high"]
        )

        def several(number: int, one: float, base: float) -> list[float]:
            return [one] if number == 1 else [base**i for i in range(number)]

        found = []
        for sigma_x, sigma_y, offset, frequency in itertools.product(
            several(arguments["num_sigmas_x"], 1.8, 2.0),
            several(arguments["num_sigmas_y"], 2.4, 2.0),
            [math.pi * k / arguments["num_offsets"] for k in range(arguments["num_offsets"])],
            several(arguments["num_frequencies"], 0.23, 0.5),
        ):
            bank = torchext.gabor_kernel_bank(
                arguments["num_filters"], sigma_x=sigma_x, sigma_y=sigma_y, phase=offset,
                frequency=frequency, device=image.device, dtype=image.dtype,
            )  # fmt: skip
            statistics = torchext.oriented_filter_statistics(image, bank, eps=1e-12)
            maps = [value[0, 0].to(image.dtype) for value in statistics]
            found.append(torch.stack([*maps, gap_of(image, bank)]))
        found = torch.stack(found)  # (combinations, 4, H, W)
        choice = found[:, 2].argmin(0)
        index, strength, variance, gap = found.gather(
            0, choice.expand(1, 4, *choice.shape)
        )[0]  # fmt: skip
        hair = module.tensor(golden.data["mask.u8"]).double()
        low, high = image.min(), image.max()
        maps = {
            "index": index,
            "strength": strength,
            "variance": variance,
            "gap": gap,
            "choice": choice,
            "file_conf": variance.half(),
            "file_filtered": ((image[0, 0] - low) / (high - low) * 255).floor(),
            "file_vis": self.picture(index.double(), hair),
        }
        if len(found) > 1:
            smallest = found[:, 2].topk(2, dim=0, largest=False).values
            maps |= {"choice_gap": smallest[1] - smallest[0], "least_gap": found[:, 3].amin(0)}
        return maps

    def picture(self, index: Tensor, hair: Tensor) -> Tensor:
        """(H,W,3) as B, G, R."""

        def near(angle: float) -> Tensor:
            return (1 - (index - angle).abs() / 45).clamp(0, 1)

        blue, green = near(45) + near(135), near(90) + near(135)
        red = near(0) + near(180) + near(45)
        colours = torch.stack((blue, green, red), -1).clamp(0, 1)
        return (colours * (hair / 255)[..., None] * 255).floor()


class Im2HaircutAdapter(MapsAdapter):
    """The variance is measured from the 8-bit code taken for degrees, as published."""

    def maps(self, module: Tool, golden: Golden) -> dict[str, Tensor]:
        arguments = golden.config["args"]
        image = torchext.difference_of_gaussians(
            grey(module, golden) / 255, arguments["low_sigma"], arguments["high_sigma"]
        )
        count = arguments["num_filters"]
        bank = torchext.gabor_kernel_bank(
            count, frequency=arguments["freq"], sigma_x=arguments["sigma_x"],
            sigma_y=arguments["sigma_y"], dtype=image.dtype, device=image.device,
        )  # fmt: skip
        wrong = torch.deg2rad(torch.arange(count, device=image.device) * (255 / count))
        index, strength, confidence = torchext.oriented_filter_statistics(
            image, bank, angles=wrong.double()
        )
        _, _, intended = torchext.oriented_filter_statistics(image, bank)
        hair = torch.from_numpy(golden.data["mask.u8"]).float() / 255
        code = torch.round(hair * ((index[0, 0].cpu().float() / 180) * 255))
        return {
            "index": index[0, 0],
            "strength": strength[0, 0],
            "confidence": confidence[0, 0],
            "variance_intended": intended[0, 0],
            "gap": gap_of(image, bank),
            "file_orient": code.to(image.device),
            "file_conf": confidence[0, 0].half(),
        }


class MonoHairAdapter(MapsAdapter):
    """Confidence: the spread as a share of the image's largest, clamped, over .2."""

    def maps(self, module: Tool, golden: Golden) -> dict[str, Tensor]:
        arguments = golden.config["args"]
        red, green, blue = torch.from_numpy(golden.data["image.u8"]).long().unbind(-1)
        values = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16  # Pillow's "L"
        values = values.to(torch.uint8).to(module.like.device)
        image = torchext.difference_of_gaussians(values[None, None], 0.4, 10).to(module.like)
        bank = torchext.gabor_kernel_bank(
            arguments["numKernels"], definition="monohair", frequency=1 / arguments["Lambda"],
            sigma_x=arguments["sigma_x"], sigma_y=arguments["sigma_y"],
            size=arguments["kernel_size"], dtype=image.dtype, device=image.device,
        )  # fmt: skip
        index, strength, spread = (
            value[0, 0]
            for value in torchext.oriented_filter_statistics(image, bank, confidence="spread")
        )
        low, high = arguments["clamp"]
        confidence = ((spread / spread.max()).clamp(low, high) - low) / (high - low)
        angle = torch.deg2rad(index.double())
        colours = torch.stack((angle.cos(), angle.sin(), torch.ones_like(angle)), -1)
        colours[..., :2] = (colours[..., :2] + 1) / 2
        return {
            "grey": values,
            "dog": image[0, 0],
            "index": index,
            "strength": strength,
            "confidence": confidence,
            "spread_raw": spread,
            "gap": gap_of(image, bank),
            "file_best": index,
            "file_conf": (255 * confidence + 0.5).floor(),
            "file_ori": (255 * colours).round(),
        }

    def tolerance(self, golden: Golden, key: str) -> float:
        if key == "out.file_conf":  # rounded from float32: the next step at most
            return 1.0
        return super().tolerance(golden, key)


class BankAdapter(Adapter):
    """Filters chosen from a bank, centred in 17 x 17, and sums over each of all filters."""

    def __init__(self, definition: str) -> None:
        super().__init__(Tool)
        self.definition = definition

    def build(self, golden: Golden) -> Tool:
        return Tool()

    def outputs(self, module: Tool, golden: Golden, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        arguments = golden.config["args"]
        given: dict[str, Any] = {"sigma_x": arguments["sigma_x"], "sigma_y": arguments["sigma_y"]}
        if self.definition == "monohair":
            given |= {"frequency": 1 / arguments["Lambda"], "size": arguments["kernel_size"]}
        else:
            given |= {"frequency": arguments["freq"]}
        count = arguments.get("num_filters", arguments.get("numKernels"))
        bank = torchext.gabor_kernel_bank(
            count, definition=self.definition, dtype=module.like.dtype, device=module.like.device,
            **given,
        )  # fmt: skip
        selected = torch.from_numpy(golden.arrays["out.selected"]).to(bank.device)
        taken = (bank != 0).double()
        shapes = torch.stack((taken.amax(2).sum(1), taken.amax(1).sum(1)), 1)
        found = {
            "selected": selected,
            "kernels": bank[selected],
            "shapes": shapes,
            "sum": bank.sum((1, 2)),
            "l1": bank.abs().sum((1, 2)),
            "l2": bank.square().sum((1, 2)).sqrt(),
        }
        general: dict[str, tuple[float, dict[str, Any]]] = {
            "general1": (0.7, {"frequency": 0.23}),
            "general2": (2.2, {"frequency": 0.1, "bandwidth": 1.5, "phase": 0.4, "stds": 2}),
        }
        for name, (theta, options) in general.items():
            angle = torch.tensor([theta], dtype=torch.float64, device=bank.device)
            phase = options.pop("phase", 0.0)
            found[f"{name}.re"] = gabor_kernels(angle, phase=phase, **options)[0]
            found[f"{name}.im"] = gabor_kernels(angle, phase=phase - math.pi / 2, **options)[0]
        return {
            key.removeprefix("out."): found[key.split(".", 1)[1]] for key in golden.arrays
        }  # fmt: skip


class CalcOrientationMapsAdapter(Adapter):
    """NeuralHaircut and GaussianHaircut gave their scripts the same name."""

    def __init__(self) -> None:
        super().__init__(Tool)
        self.neural, self.gaussian = NeuralHaircutAdapter(), GaussianHaircutAdapter()

    def _of(self, golden: Golden) -> MapsAdapter:
        return self.gaussian if "dog_low" in golden.config["args"] else self.neural

    def build(self, golden: Golden) -> Tool:
        return Tool()

    def outputs(self, module: Tool, golden: Golden, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._of(golden).outputs(module, golden, inputs)

    def tolerance(self, golden: Golden, key: str) -> float:
        return self._of(golden).tolerance(golden, key)


ADAPTERS = {
    "calc_orientation_maps": CalcOrientationMapsAdapter(),
    "generate_gabor_filters": BankAdapter("scikit-image"),
    "gabor_fn": BankAdapter("monohair"),
    "GaborFilter": Im2HaircutAdapter(),
    "calOrientationGabor": MonoHairAdapter(),
}
