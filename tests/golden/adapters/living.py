"""Layers of projects in use, written in plain PyTorch, then accelerated: the fused forms must give
what the projects give. Where the file's source is MONAI, `SPADE` is MONAI's.
"""

from collections.abc import Callable

from support import living_layers as layers
from torch import Tensor, nn

import torchext
from golden import statements
from golden.recipe import Golden
from torchext.models.dagan.checkpoint import with_right_vectors

from .base import FUNCTIONS, Adapter


class AcceleratedAdapter(Adapter):
    """Fails unless all SPADE layers of the module run the fused form."""

    def build(self, golden: Golden) -> nn.Module:
        module, report = torchext.accelerate(super().build(golden))
        assert report.swapped, str(report)
        assert not report.left, str(report)
        return module

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        module.load_state_dict(with_right_vectors(state))

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Buffers too, by their keys."""
        names = {**FUNCTIONS, **self.bindings(module), **inputs}
        assigned = statements.run(golden.config["call"], names)
        return {
            name: assigned[name] if name in assigned else module.get_buffer(name).clone()
            for name in golden.wanted("out")
        }


def _spade(norm_nc: int, label_nc: int, **options: object) -> nn.Module:
    """MONAI's has more arguments."""
    kind = layers.MonaiSPADE if options else layers.SPADE
    return kind(norm_nc=norm_nc, label_nc=label_nc, **options)


def _sdm_block(use_scale_shift_norm: bool, **options: int) -> nn.Module:
    assert use_scale_shift_norm
    return layers.SDMResBlock(**options)


def _accelerated(make: Callable[..., nn.Module]) -> Adapter:
    return AcceleratedAdapter(make, "layer", "block", "net")


ADAPTERS: dict[str, Adapter] = {
    "SPADE": _accelerated(_spade),
    "SPADENetResBlock": _accelerated(layers.SPADENetResBlock),
    "SPADEResBlock": _accelerated(layers.SPADEResBlock),
    "SPADEDiffResBlock": _accelerated(layers.SPADEDiffResBlock),
    "SPADEResnetBlock": _accelerated(layers.SPADEResnetBlock),
    "SPADEDecoder": _accelerated(layers.SPADEDecoder),
    "SPADEGroupNorm": _accelerated(layers.SPADEGroupNorm),
    "SDMResBlock": _accelerated(_sdm_block),
}
