"""Spectral normalisation with the keys of published files."""

import copy

from torch import nn
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
