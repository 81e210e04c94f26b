"""Region normalisation as published, op by op: "Region Normalization for Image Inpainting" (2020).

The statistics of a region come from batch norm, of a tensor whose other pixels are filled with the
region's mean; the square root takes the filling's effect on the variance back. Parameter names are
the published ones, so that state_dicts pass between these modules and `torchext.nn`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def per_channel(value: Tensor) -> Tensor:
    """(C,) to a shape that broadcasts over (N,C,H,W)."""
    return value[None, :, None, None]


class RN_binarylabel(nn.Module):
    """Both regions of a binary label (N,1,H,W) or (N,C,H,W), each normalised on its own."""

    def __init__(self, feature_channels: int) -> None:
        super().__init__()
        self.bn_norm = nn.BatchNorm2d(feature_channels, affine=False, track_running_stats=False)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        foreground = self.region(x * label, label)
        background = self.region(x * (1 - label), 1 - label)
        return foreground + background

    def region(self, region: Tensor, label: Tensor) -> Tensor:
        N, _, H, W = region.shape
        size = label.sum(dim=(0, 2, 3)).clamp(min=1)
        mean = region.sum(dim=(0, 2, 3)) / size
        filled = region + (1 - label) * per_channel(mean)
        return self.bn_norm(filled) * per_channel(torch.sqrt(size / (N * H * W)))


class RN_B(nn.Module):
    """Regions from the mask (1 = hole), an affine per region; both betas at every pixel."""

    def __init__(self, feature_channels: int) -> None:
        super().__init__()
        self.rn = RN_binarylabel(feature_channels)
        self.foreground_gamma = nn.Parameter(torch.zeros(feature_channels))
        self.foreground_beta = nn.Parameter(torch.zeros(feature_channels))
        self.background_gamma = nn.Parameter(torch.zeros(feature_channels))
        self.background_beta = nn.Parameter(torch.zeros(feature_channels))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mask = F.interpolate(mask, size=x.shape[2:], mode="nearest")
        r = self.rn(x, mask)
        foreground = r * mask * (1 + per_channel(self.foreground_gamma))
        background = r * (1 - mask) * (1 + per_channel(self.background_gamma))
        foreground = foreground + per_channel(self.foreground_beta)
        return foreground + (background + per_channel(self.background_beta))


class SelfAware_Affine(nn.Module):
    """Saliency, gamma and beta, each (N,1,H,W), from the channels' mean and maximum."""

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv1 = nn.Conv2d(2, 1, kernel_size, padding=padding, bias=False)
        self.gamma_conv = nn.Conv2d(1, 1, kernel_size, padding=padding)
        self.beta_conv = nn.Conv2d(1, 1, kernel_size, padding=padding)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean(dim=1, keepdim=True)
        maximum, _ = x.max(dim=1, keepdim=True)
        saliency = torch.sigmoid(self.conv1(torch.cat((mean, maximum), dim=1)))
        return saliency, self.gamma_conv(saliency), self.beta_conv(saliency)


class RN_L(nn.Module):
    """Regions from the features: where the saliency reaches the threshold."""

    def __init__(self, feature_channels: int, threshold: float = 0.8) -> None:
        super().__init__()
        self.threshold = threshold
        self.sa = SelfAware_Affine()
        self.rn = RN_binarylabel(feature_channels)

    def forward(self, x: Tensor) -> Tensor:
        saliency, gamma, beta = self.sa(x)
        label = (saliency.detach() >= self.threshold).to(x.dtype).expand_as(x)
        return self.rn(x, label) * (1 + gamma) + beta
