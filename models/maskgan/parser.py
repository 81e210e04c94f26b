"""The face parser: a label map from a photo."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchext.nn import Conv2d

from ..checks import check_images

WIDTHS = (64, 128, 256, 512, 1024)
MULTIPLE = 16


class DoubleConv(nn.Module):
    """Twice a 3x3 convolution, batch norm (if wanted) and ReLU. (N,Ci,H,W) -> (N,Co,H,W)."""

    def __init__(self, in_channels: int, out_channels: int, is_batchnorm: bool) -> None:
        super().__init__()

        def layer(channels: int) -> nn.Sequential:
            norm = [nn.BatchNorm2d(out_channels)] if is_batchnorm else []
            convolution = Conv2d(channels, out_channels, 3, padding=1)
            return nn.Sequential(convolution, *norm, nn.ReLU(inplace=True))

        self.conv1 = layer(in_channels)
        self.conv2 = layer(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class UpConcat(nn.Module):
    """Up-sample x by a transposed convolution, join it to a map of the way down, convolve both."""

    def __init__(self, in_channels: int, out_channels: int, is_batchnorm: bool) -> None:
        super().__init__()
        self.conv = DoubleConv(2 * out_channels, out_channels, is_batchnorm)
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        return self.conv(torch.cat((skip, self.up(x)), dim=1))


class FaceParser(nn.Module):
    """A U-Net of four halvings.

    Args:
        feature_scale: divides the widths 64 to 1024; published files need 4.
        n_classes: of the label map.
        in_channels: of the image.
        is_batchnorm: behind each convolution.

    Shape: (N,in_channels,H,W) in [-1,1], H and W multiples of 16 -> logits (N,n_classes,H,W).

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    def __init__(
        self,
        feature_scale: int = 4,
        n_classes: int = 19,
        in_channels: int = 3,
        is_batchnorm: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        widths = [width // feature_scale for width in WIDTHS]
        channels = [in_channels, *widths]
        for i in range(1, 5):
            self.add_module(f"conv{i}", DoubleConv(*channels[i - 1 : i + 1], is_batchnorm))
        self.center = DoubleConv(widths[3], widths[4], is_batchnorm)
        for i in (4, 3, 2, 1):
            self.add_module(f"up_concat{i}", UpConcat(widths[i], widths[i - 1], is_batchnorm))
        self.final = Conv2d(widths[0], n_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        check_images("image", image, self.in_channels)
        if image.shape[2] % MULTIPLE or image.shape[3] % MULTIPLE:
            raise ValueError(
                f"image: expected sides that are multiples of {MULTIPLE}, got"
                f" {tuple(image.shape[2:])}"
            )
        x, skips = image, []
        for i in range(1, 5):
            skips.append(self.get_submodule(f"conv{i}")(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.center(x)
        for i in (4, 3, 2, 1):
            x = self.get_submodule(f"up_concat{i}")(skips.pop(), x)
        return self.final(x)
