"""The attention modules of "Dual Attention GANs for Semantic Image Synthesis" (ACM MM 2020).

Of positions (SAM), of channels across scales (CAM), and both at the network's end.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import dual_attention, dual_attention_pools
from ..ops.checks import check_feature_map, check_integer, check_slope
from .plain import plain


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
        check_feature_map("x", x)
        mean, largest = x.mean(dim=1, keepdim=True), x.max(dim=1, keepdim=True).values
        return self.attention_of(torch.cat((mean, largest), dim=1))

    def attention_of(self, pooled: Tensor) -> Tensor:
        """A, of x's mean and maximum over channels, (N,2,H,W)."""
        return torch.sigmoid(self.conv(pooled.to(self.conv.weight.dtype)))

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
        self.check(maps)
        return self.gate_of(torch.cat([x.mean(dim=(2, 3)) for x in maps], dim=1))

    def check(self, maps: Sequence[Tensor]) -> None:
        """Raise unless these are maps that the module takes."""
        if len(maps) < 2:
            raise ValueError(f"maps: expected at least two, got {len(maps)}")
        for i, x in enumerate(maps):
            check_feature_map(f"maps[{i}]", x)
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

    def gate_of(self, averages: Tensor) -> Tensor:
        """delta, of all maps' averages, (N,in_channels)."""
        averages = averages[..., None, None].to(self.conv1.weight.dtype)
        return torch.sigmoid(self.conv2(F.relu(self.conv1(averages))))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        gate = self.gate(maps)
        return torch.addcmul(maps[-2], gate, maps[-1])


class DualAttention(nn.Module):
    """Both modules on a network's last two scales: leaky(CAM(high, low) + SAM(low)).

    Each map is read twice, once for all averages and once for the result.

    Args:
        channels: of both maps.
        earlier: channels of all further maps that the channel attention sees (paper: every scale;
            published network: none).
        kernel_size: of the spatial attention, 3 (published networks) or 7.
        negative_slope: of the leaky ReLU.

    Shape: high, low (N,channels,H,W); earlier maps (N,C_i,H_i,W_i) -> (N,channels,H,W).

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    def __init__(
        self,
        channels: int,
        *,
        earlier: int = 0,
        kernel_size: int = 3,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        check_integer("channels", channels, 1, 2**31 - 1)
        check_integer("earlier", earlier, 0, 2**31 - 1)
        check_slope("negative_slope", negative_slope)
        self.cab = ChannelAttention(earlier + 2 * channels, channels)
        self.spatialAtt = SpatialAttention(kernel_size)
        self.negative_slope = negative_slope

    def forward(self, high: Tensor, low: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        return self.attend(high, low, earlier)

    def attend(self, high: Tensor, low: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        maps = (*earlier, high, low)
        if not (plain(self.cab, ChannelAttention) and plain(self.spatialAtt, SpatialAttention)):
            return F.leaky_relu(self.cab(maps) + self.spatialAtt(low), self.negative_slope)
        self.cab.check(maps)
        averages, pooled = dual_attention_pools(high, low)
        others = (x.mean(dim=(2, 3), dtype=averages.dtype) for x in earlier)
        gate = self.cab.gate_of(torch.cat((*others, averages), dim=1))
        attention = self.spatialAtt.attention_of(pooled)
        return dual_attention(high, low, gate.flatten(1), attention, self.negative_slope)
