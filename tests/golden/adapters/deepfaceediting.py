"""DeepFaceEditing: AdaIN. A call is prose: x, scale and shift."""

from torch import Tensor

from golden.recipe import Golden
from torchext.nn import AdaptiveInstanceNorm2d

from .base import Adapter


class AdaInAdapter(Adapter):
    def outputs(
        self, module: AdaptiveInstanceNorm2d, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"y": module(inputs["x"], inputs["scale"], inputs["shift"])}


ADAPTERS: dict[str, Adapter] = {"AdaptiveInstanceNorm2d": AdaInAdapter(AdaptiveInstanceNorm2d)}
