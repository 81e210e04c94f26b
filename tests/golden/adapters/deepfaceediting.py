"""DeepFaceEditing. Published keys; several networks in a file have their names in front."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from golden.recipe import SCALE_TOLERANCE, Golden
from torchext.models import checkpoint
from torchext.models.deepfaceediting.drawing import (
    DrawingDecoder,
    DrawingEncoder,
    nearest_rows,
    project,
)
from torchext.models.deepfaceediting.layers import ResnetBlock
from torchext.models.deepfaceediting.networks import (
    AppearanceEncoder,
    GeometryEncoder,
    GlobalGenerator,
    PartGenerator,
    canvas,
)
from torchext.models.deepfaceediting.parts import PARTS, boxes
from torchext.nn import AdaptiveInstanceNorm2d

from .base import Adapter


class AdaInAdapter(Adapter):
    """A call is prose: x, scale and shift."""

    def outputs(
        self, module: AdaptiveInstanceNorm2d, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"y": module(inputs["x"], inputs["scale"], inputs["shift"])}


class NetworkAdapter(Adapter):
    """One network of one input; loads as the paper's checkpoint loader does.

    Args:
        unused: arguments of the published class that change nothing.
    """

    def __init__(self, make: type[nn.Module], *unused: str) -> None:
        super().__init__(make)
        self.unused = unused

    def build(self, golden: Golden) -> nn.Module:
        given = golden.config["args"]
        return self.make(**{k: v for k, v in given.items() if k not in self.unused})

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        checkpoint.load_strictly(module, state, "golden file")

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"y": module(inputs["x"])}


class ResnetBlockAdapter(NetworkAdapter):
    """With AdaIN, scale and shift of each convolution are inputs."""

    def outputs(
        self, module: ResnetBlock, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        styles = [
            tuple(inputs[f"{name}{i}"].flatten(1) for name in ("scale", "shift"))
            for i in range(2)
            if f"scale{i}" in inputs
        ]
        return {"y": module(inputs["x"], *styles)}


def generated(module: PartGenerator, content: Tensor, style: Tensor) -> dict[str, Tensor]:
    vector = module.appearance(style)
    feature = module.feature(content, vector)
    return {
        "y": module.picture(feature),
        "adain_params": vector[..., None, None],
        "feature": feature,
    }


class GeneratorAdapter(NetworkAdapter):
    def outputs(
        self, module: PartGenerator, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return generated(module, inputs["content"], inputs["style"])


class SeveralAdapter(Adapter):
    """Networks by name; a dot in a name becomes part of the keys."""

    def __init__(self) -> None:
        super().__init__(nn.ModuleDict)

    def networks(self, golden: Golden) -> Mapping[str, nn.Module]:
        raise NotImplementedError

    def build(self, golden: Golden) -> nn.Module:
        return self.make({name.replace(".", " "): m for name, m in self.networks(golden).items()})

    def load(self, module: nn.ModuleDict, state: dict[str, Tensor]) -> None:
        used = set()
        for name, network in module.items():
            prefix = name.replace(" ", ".")
            checkpoint.load_strictly(network, checkpoint.part(state, prefix), "golden file")
            used |= {key for key in state if key.startswith(f"{prefix}.")}
        assert used == state.keys()


class LocalAdapter(SeveralAdapter):
    """Encoder and generator of one part; some channels are stored."""

    def networks(self, golden: Golden) -> Mapping[str, nn.Module]:
        given = golden.config["args"]
        shared = {"ngf": given["ngf"], "n_downsampling": given["n_downsampling"]}
        return {
            "enc": GeometryEncoder(n_blocks=given["n_blocks_encoder"], **shared),
            "gen": PartGenerator(n_blocks=given["n_blocks_generator"], **shared),
        }

    def outputs(
        self, module: nn.ModuleDict, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        geometry = module["enc"](inputs["geo"])
        results = generated(module["gen"], geometry, inputs["app"])
        return {
            **results,
            "geometry": geometry[:, ::16],
            "feature": results["feature"][:, ::4],
        }


class CombineAdapter(SeveralAdapter):
    """All parts, pasted and fused; the canvas is stored in part."""

    def networks(self, golden: Golden) -> Mapping[str, nn.Module]:
        given = golden.config["args"]
        ngf, blocks = given["ngf"], given["n_blocks_encoder"]
        found: dict[str, nn.Module] = {"fuse": GlobalGenerator(ngf, 3, ngf)}
        for part in PARTS:
            found[f"enc.{part}"] = GeometryEncoder(ngf=ngf, n_blocks=blocks)
            found[f"gen.{part}"] = PartGenerator(ngf=ngf)
        return found

    def outputs(
        self, module: nn.ModuleDict, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        places = boxes(inputs["geo"].shape[-1])
        generators = {part: module[f"gen {part}"] for part in PARTS}
        fused = canvas(
            generators,
            places,
            lambda part: module[f"enc {part}"](places[part].crop(inputs["geo"])),
            lambda part: generators[part].appearance(places[part].crop(inputs["app"])),
        )
        return {
            "y": module["fuse"](fused),
            "fused": fused[:, :, ::8, ::8],
            "seam": fused[:, 0, 150:500:3, 100:400:3],
        }


class DrawingAdapter(SeveralAdapter):
    def networks(self, golden: Golden) -> Mapping[str, nn.Module]:
        given = golden.config["args"]
        size, length = given["image_size"], given["latent_dim"]
        return {
            "enc": DrawingEncoder(size, given["input_nc"], length),
            "dec": DrawingDecoder(size, given["output_nc"], length),
        }

    def outputs(
        self, module: nn.ModuleDict, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        code = module["enc"](inputs["x"])
        return {"z": code, "y": module["dec"](code)}


class ManifoldAdapter(Adapter):
    """No weights. Which neighbour comes first was left to chance: the file's order is taken."""

    def __init__(self) -> None:
        super().__init__(nn.Module)

    def build(self, golden: Golden) -> nn.Module:
        return self.make()

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        given, code, bank = golden.config["args"], inputs["f"], inputs["bank"]
        order = torch.from_numpy(golden.arrays["out.idx"]).to(code.device)
        found, distances = nearest_rows(code, bank, given["nearnN"])
        assert set(found[0].tolist()) == set(order.tolist())
        places = [found[0].tolist().index(row) for row in order.tolist()]
        return {
            "y": project(code, bank, float(given["w_c"]), indices=order[None]),
            "idx": found[0, places],
            "sqdist": distances[0, places],
        }

    def tolerance(self, golden: Golden, key: str) -> float:
        if key == "out.idx":
            return 0.0
        return SCALE_TOLERANCE * float(np.abs(golden.arrays[key]).max())


ADAPTERS: dict[str, Adapter] = {
    "AdaptiveInstanceNorm2d": AdaInAdapter(AdaptiveInstanceNorm2d),
    "ResnetBlock": ResnetBlockAdapter(ResnetBlock, "padding_type"),
    "StyleEncoder": NetworkAdapter(AppearanceEncoder, "norm", "activ", "pad_type"),
    "GeometryEncoder": NetworkAdapter(GeometryEncoder, "output_nc"),
    "Part_Generator": GeneratorAdapter(PartGenerator, "input_nc"),
    "GlobalGenerator": NetworkAdapter(GlobalGenerator),
    "GeometryEncoder + Part_Generator": LocalAdapter(),
    "DrawingEncoder + DrawingDecoder": DrawingAdapter(),
    "Combine_Model.inference": CombineAdapter(),
    "AE_Model.get_inter": ManifoldAdapter(),
}
