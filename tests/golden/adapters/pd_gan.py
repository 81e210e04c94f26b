"""PD-GAN: SPDNorm, its residual block and the hard map. Published keys throughout."""

import re
from typing import Any

import torch
from torch import Tensor, nn

import torchext
from golden import statements
from golden.recipe import Golden
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


ADAPTERS: dict[str, Adapter] = {
    "SPDNorm": Adapter(SPDNorm, "spdnorm"),
    "SPDNormResnetBlock": BlockAdapter(SPDNormResnetBlock),
    "hard map of SPDNormResnetBlock": HardMapAdapter(),
}
