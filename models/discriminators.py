"""Discriminators that several papers share."""

import torch.nn.functional as F
from torch import Tensor, nn

from torchext.nn import Conv2d

from .blocks import instance_norm, spectral
from .checks import check_images

NORMS = ("spectralinstance", "spectral", "instance", "none")


class PatchDiscriminator(nn.Module):
    """A score for each patch: strided 4x4 convolutions, padding 2, leaky ReLU 0.2.

    The first layer has no normalisation, the last but one has a stride of its own, the last gives
    the score.

    Args:
        input_nc: channels of the input.
        ndf: channels behind the first layer; doubled by each further one, at most 512.
        n_layers: convolutions before the last.
        norm: of the layers between: "spectral" weights, "instance" norm without affine, both
            ("spectralinstance") or "none".
        last_stride: of the last but one, where it is not the first.

    Shape: (N,input_nc,H,W) -> [features of each layer, ..., score (N,1,h,w)].
    """

    def __init__(
        self,
        input_nc: int,
        ndf: int = 64,
        n_layers: int = 4,
        norm: str = "spectralinstance",
        *,
        last_stride: int = 1,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm: expected one of {NORMS}, got {norm!r}")
        self.input_nc = input_nc
        channels = ndf
        self.model0 = nn.Sequential(
            Conv2d(input_nc, channels, 4, stride=2, padding=2), nn.LeakyReLU(0.2)
        )
        for i in range(1, n_layers):
            wider = min(2 * channels, 512)
            stride = last_stride if i == n_layers - 1 else 2
            bias = norm in ("spectral", "none")  # an instance norm removes it
            layer = Conv2d(channels, wider, 4, stride=stride, padding=2, bias=bias)
            layer = spectral(layer, norm.startswith("spectral"))
            if norm.endswith("instance"):
                layer = nn.Sequential(layer, instance_norm(wider))
            self.add_module(f"model{i}", nn.Sequential(layer, nn.LeakyReLU(0.2)))
            channels = wider
        last = nn.Sequential(Conv2d(channels, 1, 4, padding=2))
        self.add_module(f"model{n_layers}", last)

    def forward(self, x: Tensor) -> list[Tensor]:
        check_images("x", x, self.input_nc)
        outputs = []
        for layer in self.children():
            x = layer(x)
            outputs.append(x)
        return outputs


class MultiscaleDiscriminator(nn.Module):
    """Patch discriminators at halved resolutions (keys `discriminator_{i}.model{j}`).

    Args:
        num_D: scales. Each sees the average of 3x3 pixels of the one before, stride 2, padding not
            counted.
        n_layers_D, ndf, input_nc_D, norm_D, last_stride: of each `PatchDiscriminator`.

    Shape: (N,input_nc_D,H,W) -> for each scale the list of its features and its score.
    """

    def __init__(
        self,
        num_D: int = 2,
        n_layers_D: int = 4,
        ndf: int = 64,
        input_nc_D: int = 6,
        norm_D: str = "spectralinstance",
        *,
        last_stride: int = 1,
    ) -> None:
        super().__init__()
        for i in range(num_D):
            scale = PatchDiscriminator(input_nc_D, ndf, n_layers_D, norm_D, last_stride=last_stride)
            self.add_module(f"discriminator_{i}", scale)

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        outputs = []
        for i, scale in enumerate(self.children()):
            if i > 0:
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            outputs.append(scale(x))
        return outputs


def halves(outputs: list[list[Tensor]]) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """The two halves of a batch, such as fake and real that went through together."""
    first = [[x[: len(x) // 2] for x in scale] for scale in outputs]
    second = [[x[len(x) // 2 :] for x in scale] for scale in outputs]
    return first, second
