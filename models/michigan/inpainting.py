"""Orientation where it is not known: networks that fill it, with or without strokes.

Masks: **1 hair, hole or stroke, 0 not**.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchext.nn import Conv2d

from ..blocks import ResidualBlock, instance_norm, spectral
from ..checks import check_images

SLOPE = 0.2


class SelfAttention(nn.Module):
    """Every position looks at all others: softmax over keys of the unscaled products.

    Args:
        channels: C; a quarter of it for queries and keys.

    Shape: (N,C,H,W) -> (N,2*C,H,W): x itself, then what it saw.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv = Conv2d(channels, channels // 4, 1)
        self.key_conv = Conv2d(channels, channels // 4, 1)
        self.value_conv = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).flatten(2).transpose(1, 2)
            for layer in (self.query_conv, self.key_conv, self.value_conv)
        )
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return torch.cat((x, seen.transpose(1, 2).unflatten(2, x.shape[2:])), dim=1)


def _stage(*layers: nn.Module, norm: int = 0, activation: type[nn.Module] | None = None) -> list:
    """Layers, an instance norm of so many channels, an activation."""
    last = [] if activation is None else [activation()]
    return [*layers, *([instance_norm(norm)] if norm else []), *last]


class _Leaky(nn.LeakyReLU):
    def __init__(self) -> None:
        super().__init__(SLOPE)


class OrientationInpainter(nn.Module):
    """Fills holes of a colour-coded orientation map.

    Args:
        in_channels: 4 (colours, hole) or 5 (and strokes).
        width: channels behind the first convolution; published files need 64.
        blocks: residual blocks in the middle.
        skips: from encoder to decoder; no published file has them.

    Shape: (N,in_channels,H,W), H and W multiples of 4, at least 8 -> (N,3,H,W) in (0,1).

    Raises:
        TypeError, ValueError: x does not fit.
    """

    def __init__(
        self, in_channels: int = 4, width: int = 64, blocks: int = 12, skips: bool = False
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.skips = skips

        def down(fin: int, fout: int) -> list[nn.Module]:
            layer = spectral(Conv2d(fin, fout, 4, stride=2, padding=1))
            return _stage(layer, norm=fout, activation=_Leaky)

        def up(fin: int, fout: int) -> list[nn.Module]:
            layer = spectral(nn.ConvTranspose2d(fin, fout, 4, stride=2, padding=1))
            return _stage(layer, norm=fout, activation=nn.ReLU)

        first = spectral(Conv2d(in_channels, width, 7))
        encoder = [
            _stage(nn.ReflectionPad2d(3), first, norm=width, activation=_Leaky),
            down(width, 2 * width),
            down(2 * width, 4 * width),
        ]
        more = (4, 2, 1) if skips else (0, 0, 0)  # channels that come from the encoder
        last = Conv2d((1 + more[2]) * width, 3, 7)
        decoder = [
            up((8 + more[0]) * width, 2 * width),
            up((2 + more[1]) * width, width),
            _stage(nn.ReflectionPad2d(3), last),
        ]
        residual = [
            ResidualBlock(4 * width, dilation=2, use_spectral_norm=True, bias=True)
            for _ in range(blocks)
        ]
        self.middle = nn.Sequential(*residual, SelfAttention(4 * width))
        if skips:
            for i, (down_, up_) in enumerate(zip(encoder, decoder[::-1], strict=True), start=1):
                self.add_module(f"encoder_{i}", nn.Sequential(*down_))
                self.add_module(f"decoder_{i}", nn.Sequential(*up_))
        else:
            self.encoder = nn.Sequential(*(layer for stage in encoder for layer in stage))
            self.decoder = nn.Sequential(*(layer for stage in decoder for layer in stage))

    def forward(self, x: Tensor) -> Tensor:
        check_images("x", x, self.in_channels)
        H, W = x.shape[2:]
        if H % 4 or W % 4 or min(H, W) < 8:
            raise ValueError(
                f"x: expected a height and a width of 8 or more, multiples of 4, got {H} x {W}"
            )
        if not self.skips:
            return (torch.tanh(self.decoder(self.middle(self.encoder(x)))) + 1) / 2
        passed = []
        for i in (1, 2, 3):
            x = self.get_submodule(f"encoder_{i}")(x)
            passed.append(x)
        x = self.middle(x)
        for i in (3, 2, 1):
            x = self.get_submodule(f"decoder_{i}")(torch.cat((x, passed[i - 1]), dim=1))
        return (torch.tanh(x) + 1) / 2


def colour_code(code: Tensor) -> Tensor:
    """The colours of angles, in whole steps of 1/255 as in 8-bit files.

    Args:
        code: (N,1,H,W), integers 0..255 for 0..pi.

    Returns:
        float32 (N,3,H,W): (cos 2o + 1) / 2, (sin 2o + 1) / 2, 1/2, each cut off.
    """
    doubled = torch.arange(256, dtype=torch.float64, device=code.device) * (2 * math.pi / 255)
    half = torch.full_like(doubled, 0.5)
    colours = torch.stack(((doubled.cos() + 1) / 2, (doubled.sin() + 1) / 2, half), dim=1)
    table = (255 * colours).floor().float() / 255
    return table[code[:, 0].long()].movedim(-1, 1)


def two_channel(rgb: Tensor, hair: Tensor) -> Tensor:
    """(N,2,H,W): sine and cosine of the doubled angle in the hair, from its colours (N,3,H,W).

    As published, not brought back to length 1.
    """
    return (2 * rgb[:, (1, 0)] - 1) * hair


def fill_orientation(
    network: OrientationInpainter,
    hole: Tensor,
    rgb: Tensor,
    noise: Tensor,
    size: int = 256,
) -> Tensor:
    """The colours of an orientation map, with its holes filled.

    Args:
        network: of 4 channels.
        hole: (N,1,H,W).
        rgb: (N,3,H,W) in [0,1], colours where they are known; see `colour_code`.
        noise: (N,3,H,W) in about [0,1], for the holes.
        size: height and width at which the network works; nearest neighbours there and back.

    Returns:
        (N,3,H,W): rgb itself outside the holes.
    """
    x = torch.cat((rgb * (1 - hole) + noise * hole, hole), dim=1)
    return _run(network, x, size) * hole + rgb * (1 - hole)


def fill_strokes(
    network: OrientationInpainter,
    hole: Tensor,
    rgb: Tensor,
    noise: Tensor,
    stroke: Tensor,
    stroke_rgb: Tensor,
    size: int = 256,
) -> Tensor:
    """The colours of an orientation map, with its holes filled along strokes.

    Args:
        network: of 5 channels.
        hole, rgb, noise, size: as for `fill_orientation`.
        stroke: (N,1,H,W), inside the holes.
        stroke_rgb: (N,3,H,W), the strokes' colours; see `torchext.orientation.stroke_guidance`.

    Returns:
        (N,3,H,W): rgb itself outside the holes.
    """
    x = rgb * (1 - hole) + noise * (hole - stroke) + stroke_rgb * stroke
    x = torch.cat((x, hole, stroke), dim=1)
    return _run(network, x, size) * hole + rgb * (1 - hole)


def _run(network: OrientationInpainter, x: Tensor, size: int) -> Tensor:
    before = x.shape[2:]
    if before == (size, size):
        return network(x)
    y = network(F.interpolate(x, (size, size), mode="nearest"))
    return F.interpolate(y, before, mode="nearest")
