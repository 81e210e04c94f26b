"""Parts of residual networks for recognition, whose weights are published."""

import torch.nn.functional as F
from torch import Tensor, nn

from torchext.nn import Conv2d


class PointwiseConv2d(Conv2d):
    """A 1x1 convolution with a stride, as one without it of the pixels that it sees.

    PyTorch's own (2.14, oneDNN 3.12 with AVX-512) writes out of bounds in the weight's gradient if
    the input is channels_last with 3 to 15 channels, as in narrow encoders.

    Args:
        in_channels, out_channels, stride, bias: of the convolution.

    Shape: (N,C_in,H,W) -> (N,C_out,H/stride,W/stride), rounded up.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)
        self.step = stride

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input[:, :, :: self.step, :: self.step])


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norms, and a shortcut (He et al., 2016).

    The shortcut is a 1x1 convolution where channels or size change.

    Shape: (N,C_in,H,W) -> (N,C_out,H/stride,W/stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                PointwiseConv2d(in_channels, out_channels, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))
