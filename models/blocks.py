"""Blocks and initialisers that several papers share."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import remove_spectral_norm, spectral_norm
from torch.nn.utils.spectral_norm import SpectralNorm


def spectral(module: nn.Module, enabled: bool = True) -> nn.Module:
    """Spectral normalisation with the keys of published files: weight_orig, weight_u, weight_v.

    One power iteration for every forward in training, v before u; evaluation uses the stored ones.
    """
    return spectral_norm(module) if enabled else module


def is_spectral(module: nn.Module) -> bool:
    return any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())


def folded(network: nn.Module) -> nn.Module:
    """A copy for inference, its spectrally normalised weights divided by their norms once."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in network.modules():
        if is_spectral(module):
            remove_spectral_norm(module)
    return network


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


def instance_norm(channels: int, affine: bool = False) -> nn.InstanceNorm2d:
    return nn.InstanceNorm2d(channels, affine=affine)


class ResidualBlock(nn.Module):
    """x + norm(conv(pad(relu(norm(conv(pad(x))))))), reflection padded, 3x3, no ReLU after the sum.

    Args:
        dim: C.
        norm: makes a normalisation of C channels.
        dilation: of the first convolution, and its padding.
        use_spectral_norm: on both convolutions, which then have no bias.

    Shape: (N,C,H,W), H and W above the dilation -> (N,C,H,W).
    """

    def __init__(
        self,
        dim: int,
        norm: Callable[[int], nn.Module] = instance_norm,
        *,
        dilation: int = 1,
        use_spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        bias = not use_spectral_norm

        def convolution(dilation: int) -> nn.Module:
            layer = nn.Conv2d(dim, dim, kernel_size=3, dilation=dilation, bias=bias)
            return spectral(layer, use_spectral_norm)

        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(dilation),
            convolution(dilation),
            norm(dim),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            convolution(1),
            norm(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)
