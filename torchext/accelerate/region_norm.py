"""Region normalisation, of known regions and of those that a layer finds."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.region_norm import region_norm
from ..ops.self_aware_affine import self_aware_affine
from ..ops.self_aware_region_norm import self_aware_region_norm
from .family import Draw, Family, convolution, expect

_SIZE = (12, 14)
_ATTEMPTS = 16
_GAMMAS_AND_BETAS = ("foreground_gamma", "foreground_beta", "background_gamma", "background_beta")


def _eps(layer: nn.Module) -> float:
    """That of the batch norm inside, which has no parameters."""
    norms = (part for part in layer.modules() if isinstance(part, nn.BatchNorm2d))
    norm = next(norms, None)
    return 1e-5 if norm is None else norm.eps


def _below(layer: nn.Module) -> list[nn.Module]:
    return list(layer.modules())[1:]


class BinaryRegionNorm(Family):
    """`RN_B`."""

    saves = "both regions' statistics and the affine are one pass each"
    arity = (2, 2)

    def alike(self, layer: nn.Module) -> bool:
        return set(layer._parameters) == set(_GAMMAS_AND_BETAS)

    def check(self, layer: Any) -> None:
        expect(
            set(layer._parameters) == set(_GAMMAS_AND_BETAS),
            f"its parameters are {sorted(layer._parameters)}",
        )
        expect(layer.foreground_gamma.dim() == 1, "foreground_gamma has another shape than (C,)")

    def replaced(self, layer: nn.Module) -> Iterable[nn.Module]:
        return _below(layer)

    def takes(self, layer: Any, facts: None, x: Any, mask: Any) -> bool:
        return isinstance(mask, Tensor) and not mask.requires_grad

    def forward(self, layer: Any, facts: None, x: Tensor, mask: Tensor) -> Tensor:
        weight = torch.stack((layer.background_gamma, layer.foreground_gamma)) + 1
        bias = (layer.foreground_beta + layer.background_beta).expand_as(weight)
        return region_norm(x, mask, weight, bias, eps=_eps(layer), resize_mask=True)

    def calls(self, layer: Any, facts: None, draw: Draw) -> list[tuple[Any, ...]]:
        C = layer.foreground_gamma.numel()
        x, mask = draw.features(2, C, *_SIZE), draw.mask(2, 1, *(2 * n for n in _SIZE))
        return [
            (x, mask),
            (x, torch.zeros_like(mask)),
            (draw.features(3, C, *_SIZE), draw.mask(3, 1, *_SIZE)),
            (x, draw.mask(2, 1, 40, 23)),
        ]


class SelfAwareRegionNorm(Family):
    """`RN_L`."""

    saves = (
        "saliency, mask, statistics and affine are few passes; gamma and beta are one convolution"
    )
    attributes = frozenset({"sa", "threshold"})
    live = frozenset({"threshold"})

    def check(self, layer: Any) -> None:
        expect(
            isinstance(layer.threshold, (int, float)),
            f"threshold is {layer.threshold!r}, no number",
        )
        for name, bias in (("conv1", False), ("gamma_conv", True), ("beta_conv", True)):
            conv = convolution(layer.sa, name)
            expect(conv.padding == tuple(k // 2 for k in conv.kernel_size), f"{name} is not padded")
            expect((conv.bias is not None) == bias, f"{name} has another bias")
            expect(not conv._forward_pre_hooks, f"the weight of {name} is reparametrised")

    def replaced(self, layer: nn.Module) -> Iterable[nn.Module]:
        return _below(layer)

    def _weights(self, layer: Any) -> tuple[Tensor, ...]:
        first, gamma, beta = layer.sa.conv1, layer.sa.gamma_conv, layer.sa.beta_conv
        return first.weight, gamma.weight, gamma.bias, beta.weight, beta.bias

    def forward(self, layer: Any, facts: None, x: Tensor) -> Tensor:
        weights = self._weights(layer)
        return self_aware_region_norm(x, *weights, threshold=layer.threshold, eps=_eps(layer))

    def calls(self, layer: Any, facts: None, draw: Draw) -> list[tuple[Any, ...]]:
        return [(self._clear(layer, draw, batch),) for batch in (2, 3)]

    def _clear(self, layer: Any, draw: Draw, batch: int) -> Tensor:
        """Features whose saliency keeps away from the threshold: beside it rounding decides."""
        best, margin = None, -1.0
        for _attempt in range(_ATTEMPTS):
            x = draw.features(batch, 6, *_SIZE)
            with torch.no_grad():
                saliency = self_aware_affine(x, *self._weights(layer))[0]
            distance = float((saliency - layer.threshold).abs().min())
            if distance > margin:
                best, margin = x, distance
        return best
