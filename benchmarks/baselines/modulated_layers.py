"""Whole modulated layers with the published structure and operation sequence, in pure PyTorch.

SPADE (CVPR 2019) as DAGAN has it, PD-GAN's SPDNorm and hard map (CVPR 2021), FE-GAN's attention
normalisation (CVPR 2020), AdaIN with parameters set from outside, ProGAN's pixel norm.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HIDDEN = 128


def _resized(value: Tensor, x: Tensor) -> Tensor:
    return F.interpolate(value, size=x.shape[2:], mode="nearest")


class SPADE(nn.Module):
    """x (N,C,H,W), segmap (N,label_nc,h,w)."""

    def __init__(self, norm: str, norm_nc: int, label_nc: int, kernel_size: int = 3) -> None:
        super().__init__()
        kinds = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d}
        self.param_free_norm = kinds[norm](norm_nc, affine=False)
        padding = kernel_size // 2
        self.mlp_shared = nn.Sequential(
            nn.Conv2d(label_nc, _HIDDEN, kernel_size, padding=padding), nn.ReLU()
        )
        self.mlp_gamma = nn.Conv2d(_HIDDEN, norm_nc, kernel_size, padding=padding)
        self.mlp_beta = nn.Conv2d(_HIDDEN, norm_nc, kernel_size, padding=padding)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        normalized = self.param_free_norm(x)
        hidden = self.mlp_shared(_resized(segmap, x))
        return normalized * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class PositionalNorm2d(nn.Module):
    """Mean and unbiased variance over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        std = x.var(dim=1, keepdim=True).add(1e-5).sqrt()
        return (x - x.mean(dim=1, keepdim=True)) / std


class SPDNorm(nn.Module):
    """x (N,C,H,W), prior (N,3,h,w), weight (N,1 or C,H,W)."""

    def __init__(self, norm_channel: int, norm_type: str) -> None:
        super().__init__()
        if norm_type == "position":
            self.param_free_norm = PositionalNorm2d()
        elif norm_type == "instance":
            self.param_free_norm = nn.InstanceNorm2d(norm_channel, affine=False)
        else:
            self.param_free_norm = nn.BatchNorm2d(norm_channel, affine=False)
        self.mlp_activate = nn.Sequential(nn.Conv2d(3, _HIDDEN, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(_HIDDEN, norm_channel, 3, padding=1)
        self.mlp_beta = nn.Conv2d(_HIDDEN, norm_channel, 3, padding=1)

    def forward(self, x: Tensor, prior: Tensor, weight: Tensor) -> Tensor:
        normalized = self.param_free_norm(x)
        hidden = self.mlp_activate(_resized(prior, x))
        gamma, beta = self.mlp_gamma(hidden), self.mlp_beta(hidden)
        return normalized * (1 + gamma * weight) + beta * weight


class HardMap(nn.Module):
    """PD-GAN's hard diversity map of a mask (N,1,H,W), 1 known: one convolution for each ring."""

    def __init__(self, steps: int, window: int, base: float = math.e) -> None:
        super().__init__()
        self.steps = steps
        self.base = base
        self.mask_conv = nn.Conv2d(1, 1, window, padding=window // 2, bias=False)
        nn.init.ones_(self.mask_conv.weight)
        self.mask_conv.weight.requires_grad_(False)

    def forward(self, mask: Tensor) -> Tensor:
        known, weights = mask, mask
        for step in range(1, self.steps + 1):
            grown = (self.mask_conv(known) != 0).to(mask.dtype)
            weights = weights + (grown - known) * self.base**-step
            known = grown
        return weights + (1 - known) * self.base**-self.steps


class ANLs(nn.Module):
    """x (N,C,H,W), condition (N,label_nc,h,w)."""

    def __init__(self, norm_nc: int, label_nc: int) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm2d(norm_nc, affine=False)
        self.conv = nn.utils.spectral_norm(nn.Conv2d(norm_nc, norm_nc, 3, padding=1))
        self.shared = nn.Sequential(nn.Conv2d(label_nc, _HIDDEN, 3, padding=1), nn.ReLU())
        self.gamma = nn.Conv2d(_HIDDEN, norm_nc, 3, padding=1)
        self.beta = nn.Conv2d(_HIDDEN, norm_nc, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        hidden = self.shared(_resized(condition, x))
        normalized = self.batch_norm(x)
        modulated = normalized * (1 + torch.sigmoid(self.gamma(hidden))) + self.beta(hidden)
        return x + self.conv(F.leaky_relu(modulated, 0.2))


class AdaptiveInstanceNorm2d(nn.Module):
    """Scale and shift of each image and channel are set before the call, as `weight` and `bias`."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = x.shape
        planes = F.batch_norm(
            x.reshape(1, N * C, H, W),
            self.running_mean.repeat(N),
            self.running_var.repeat(N),
            self.weight.reshape(-1),
            self.bias.reshape(-1),
            True,
            self.momentum,
            self.eps,
        )
        return planes.view(N, C, H, W)


class PixelNorm(nn.Module):
    """x over the root of the mean square of a pixel's channels."""

    def __init__(self, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x**2).mean(dim=1, keepdim=True) + self.epsilon)
