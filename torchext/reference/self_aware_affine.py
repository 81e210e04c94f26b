"""The self-aware affine of RN-L: "Region Normalization for Image Inpainting" (AAAI 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def channel_mean_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum over channels (N,2,H,W), and the maximum's channel (N,1,H,W)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    maximum, argmax = x.max(dim=1, keepdim=True)
    return torch.cat((x.mean(dim=1, keepdim=True), maximum), dim=1), argmax.to(torch.int32)


def self_aware_maps(
    pooled: Tensor,
    conv_weight: Tensor,
    gamma_weight: Tensor,
    gamma_bias: Tensor,
    beta_weight: Tensor,
    beta_bias: Tensor,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """saliency = sigmoid(conv(pooled)), gamma = conv(saliency), beta = conv(saliency), labels."""
    padding = conv_weight.shape[-1] // 2
    saliency = torch.sigmoid(F.conv2d(pooled, conv_weight, padding=padding))
    gamma = F.conv2d(saliency, gamma_weight, gamma_bias, padding=padding)
    beta = F.conv2d(saliency, beta_weight, beta_bias, padding=padding)
    return saliency, gamma, beta, (saliency >= threshold).to(torch.uint8)
