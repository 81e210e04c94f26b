"""DAGAN's attention modules as published (ACM MM 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchext.nn


class ChannelAttention(nn.Module):
    """high, low (N,C,H,W): delta * low + high, from the averages of both side by side."""

    def __init__(self, ours: torchext.nn.ChannelAttention) -> None:
        super().__init__()
        self.conv1, self.conv2 = ours.conv1, ours.conv2

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        averages = F.adaptive_avg_pool2d(torch.cat((high, low), dim=1), 1)
        delta = torch.sigmoid(self.conv2(F.relu(self.conv1(averages))))
        return delta * low + high


class SpatialAttention(nn.Module):
    """x (N,C,H,W), weighted at each pixel by its channels' mean and maximum."""

    def __init__(self, ours: torchext.nn.SpatialAttention) -> None:
        super().__init__()
        self.conv = ours.conv

    def forward(self, x: Tensor) -> Tensor:
        mean, largest = x.mean(dim=1, keepdim=True), x.max(dim=1, keepdim=True).values
        return x * torch.sigmoid(self.conv(torch.cat((mean, largest), dim=1)))


class DualAttention(nn.Module):
    """Both on the weights of ours, then the leaky ReLU."""

    def __init__(self, ours: torchext.nn.DualAttention) -> None:
        super().__init__()
        self.cab, self.spatialAtt = ChannelAttention(ours.cab), SpatialAttention(ours.spatialAtt)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        return F.leaky_relu(self.cab(high, low) + self.spatialAtt(low), 0.2)
