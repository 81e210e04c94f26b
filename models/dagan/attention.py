"""DAGAN's attention modules: of positions, and of channels across scales."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_images

SLOPE = 0.2


class SpatialAttention(nn.Module):
    """Position-wise attention (SAM): F * A, A = sigmoid(conv([mean, max over channels])).

    Where several channels share the maximum, its gradient goes to the one that `torch.max` reports.

    Args:
        kernel_size: 3 (published networks) or 7.

    Shape: (N,C,H,W) -> (N,C,H,W).

    Raises:
        TypeError, ValueError: another kernel size; x is no feature map.
    """

    def __init__(self, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size not in (3, 7):
            raise ValueError(f"kernel_size: expected 3 or 7, got {kernel_size!r}")
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def attention(self, x: Tensor) -> Tensor:
        """A, (N,1,H,W) in (0,1)."""
        check_images("x", x)
        mean, largest = x.mean(dim=1, keepdim=True), x.max(dim=1, keepdim=True).values
        return torch.sigmoid(self.conv(torch.cat((mean, largest), dim=1)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


class ChannelAttention(nn.Module):
    """Scale-wise channel attention (CAM): delta * low + high.

    delta = sigmoid(conv2(relu(conv1(averages of all maps)))). Repeating the pixels of a map, to
    bring all to one size, leaves its average as it is: nothing is resized.

    Args:
        in_channels: of all maps together: 2 * out_channels for the published two.
        out_channels: of the last two maps.

    Shape: [..., high, low], (N,C_i,H_i,W_i) each, the last two (N,out_channels,H,W)
    -> (N,out_channels,H,W).

    Raises:
        TypeError, ValueError: a map that does not fit.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 1)

    def gate(self, maps: Sequence[Tensor]) -> Tensor:
        """delta, (N,out_channels,1,1) in (0,1)."""
        if len(maps) < 2:
            raise ValueError(f"maps: expected at least two, got {len(maps)}")
        for i, x in enumerate(maps):
            check_images(f"maps[{i}]", x)
        if maps[-1].shape != maps[-2].shape or maps[-1].shape[1] != self.conv2.out_channels:
            shapes = " and ".join(str(tuple(x.shape)) for x in maps[-2:])
            raise ValueError(
                f"maps: expected the last two of the shape (N, {self.conv2.out_channels}, H, W),"
                f" got {shapes}"
            )
        channels = sum(x.shape[1] for x in maps)
        if channels != self.conv1.in_channels:
            raise ValueError(
                f"maps: expected {self.conv1.in_channels} channels together, got {channels}"
            )
        averages = torch.cat([x.mean(dim=(2, 3), keepdim=True) for x in maps], dim=1)
        return torch.sigmoid(self.conv2(F.relu(self.conv1(averages))))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        gate = self.gate(maps)
        return torch.addcmul(maps[-2], gate, maps[-1])


def dual_attention(
    high: Tensor, low: Tensor, gate: Tensor, attention: Tensor, slope: float = SLOPE
) -> Tensor:
    """Both modules' results, summed: leaky(gate * low + high + low * attention).

    Seven passes over a map instead of twelve; backward keeps one map beside low and the result.

    Args:
        high, low: (N,C,H,W).
        gate: (N,C,1,1), of `ChannelAttention.gate`.
        attention: (N,1,H,W), of `SpatialAttention.attention`.
        slope: of the leaky ReLU.

    Returns:
        (N,C,H,W).
    """
    mixed = torch.addcmul(high, low, gate + attention)
    return F.leaky_relu(mixed, slope, inplace=True)
