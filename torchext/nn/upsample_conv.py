"""Nearest up-sampling and a convolution in one layer."""

from torch import Tensor, nn

from ..ops.upsample_conv import upsample_conv2d


class UpsampleConv2d(nn.Conv2d):
    """Nearest up-sampling by two, then a convolution that keeps the size, by phases.

    Stands for `nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(..., padding=k // 2))`;
    parameters and state keys are those of `torch.nn.Conv2d`. See `torchext.upsample_conv2d`.

    Args:
        in_channels, out_channels, bias: as for `torch.nn.Conv2d`.
        kernel_size: odd.

    Shape: x (N,Ci,H,W) -> (N,Co,2H,2W).

    Raises: what `torchext.upsample_conv2d` raises.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )

    def forward(self, input: Tensor) -> Tensor:
        return upsample_conv2d(input, self.weight, self.bias)
