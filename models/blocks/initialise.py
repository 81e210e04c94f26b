"""Weights as published scripts fill them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .spectral import is_spectral


def initialise(
    network: nn.Module,
    weight: Callable[[Tensor], object],
    bias: Callable[[Tensor], object] = nn.init.zeros_,
) -> None:
    """Fill the weights and biases of all convolutions and linear layers but frozen ones, in place.

    Args:
        network: spectrally normalised weights are filled before their normalisation.
        weight, bias: fill a tensor.
    """
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, kinds):
                values = module.weight_orig if is_spectral(module) else module.weight
                if not values.requires_grad:  # a mask kernel
                    continue
                weight(values)
                if module.bias is not None:
                    bias(module.bias)
