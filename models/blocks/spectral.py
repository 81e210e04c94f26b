"""Spectral normalisation with the keys of published files."""

import copy

import torch
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


@torch.no_grad()
def iterated(network: nn.Module, times: int = 10) -> nn.Module:
    """The network itself after power iterations of its spectral norms, without a forward.

    The vectors of new weights are random: evaluation would divide by far less than the norms.
    """
    for module in network.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                for _ in range(times):
                    hook.compute_weight(module, do_power_iteration=True)
    return network


def folded(network: nn.Module) -> nn.Module:
    """A copy for inference, its spectrally normalised weights divided by their norms once."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in network.modules():
        if is_spectral(module):
            remove_spectral_norm(module)
    return network
