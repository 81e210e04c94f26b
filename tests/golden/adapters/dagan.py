"""DAGAN: SPADE and its residual block. Published keys and calls, but for remarks behind a call."""

from torch import Tensor, nn

from golden.recipe import Golden
from torchext.nn import SPADE, SPADEResnetBlock

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


ADAPTERS: dict[str, Adapter] = {
    "SPADE": SpadeAdapter(SPADE),
    "SPADEResnetBlock": SpadeAdapter(SPADEResnetBlock),
}
