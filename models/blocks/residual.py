"""Residual blocks, and the norms inside."""

from collections.abc import Callable

from torch import Tensor, nn

from torchext.nn import Conv2d

from .spectral import spectral


def instance_norm(channels: int, affine: bool = False) -> nn.InstanceNorm2d:
    return nn.InstanceNorm2d(channels, affine=affine)


class ResidualBlock(nn.Module):
    """x + norm(conv(pad(relu(norm(conv(pad(x))))))), reflection padded, 3x3, no ReLU after the sum.

    Args:
        dim: C.
        norm: makes a normalisation of C channels.
        dilation: of the first convolution, and its padding.
        use_spectral_norm: on both convolutions.
        bias: of both; by default where there is no spectral norm.

    Shape: (N,C,H,W), H and W above the dilation -> (N,C,H,W).
    """

    def __init__(
        self,
        dim: int,
        norm: Callable[[int], nn.Module] = instance_norm,
        *,
        dilation: int = 1,
        use_spectral_norm: bool = False,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        bias = not use_spectral_norm if bias is None else bias

        def convolution(dilation: int) -> nn.Module:
            layer = Conv2d(dim, dim, kernel_size=3, dilation=dilation, bias=bias)
            return spectral(layer, use_spectral_norm)

        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(dilation),
            convolution(dilation),
            norm(dim),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            convolution(1),
            norm(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)
