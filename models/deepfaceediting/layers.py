"""Normalised convolutions and residual blocks, with the names of published entries."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

import torchext
from torchext.nn import AdaptiveInstanceNorm2d, Conv2d

Norm = Literal["in", "bn", "adain", "none"]
Activation = Literal["relu"] | None
Style = tuple[Tensor, Tensor]  # scale and shift of an AdaIN layer, (N,C) each


class InstanceNorm(nn.InstanceNorm2d):
    """With an affine, and the ReLU behind it in the same pass. (N,C,H,W) -> (N,C,H,W)."""

    def __init__(self, num_features: int, activation: Activation = None) -> None:
        super().__init__(num_features, affine=True)
        self.activation: Activation = activation

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = (value.expand(len(x), -1) for value in (self.weight, self.bias))
        return torchext.modulated_norm(x, scale, shift, gain="plain", activation=self.activation)


class BatchNorm(nn.BatchNorm2d):
    """And the ReLU behind it.

    Args:
        num_features: C.
        activation: behind it.
        momentum: of the running statistics.
        of_batch: take the batch's statistics in evaluation, too, and leave the running ones as they
            are there. The published program never evaluates its drawing networks otherwise.

    Shape: (N,C,H,W) -> (N,C,H,W); of the batch's statistics above one value for each channel.
    """

    def __init__(
        self,
        num_features: int,
        activation: Activation = None,
        momentum: float = 0.1,
        *,
        of_batch: bool = False,
    ) -> None:
        super().__init__(num_features, momentum=momentum)
        self.activation: Activation = activation
        self.of_batch = of_batch

    def forward(self, x: Tensor) -> Tensor:
        if self.of_batch and not self.training:
            y = F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        else:
            y = super().forward(x)
        return y if self.activation is None else F.relu(y)


class AdaIN(AdaptiveInstanceNorm2d):
    """And the ReLU behind it. x (N,C,H,W), scale and shift (N,C) -> (N,C,H,W)."""

    def __init__(self, num_features: int, activation: Activation = None) -> None:
        super().__init__(num_features)
        self.activation: Activation = activation

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return super().forward(x, scale, shift, self.activation)


class _Plain(nn.Module):
    """No norm."""

    def __init__(self, num_features: int, activation: Activation = None) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return x if self.activation is None else F.relu(x)


MakeNorm = Callable[[int, Activation], nn.Module]
NORMS: dict[str, MakeNorm] = {"in": InstanceNorm, "bn": BatchNorm, "adain": AdaIN, "none": _Plain}


def normalisation(norm: Norm | MakeNorm) -> MakeNorm:
    """What makes a norm, by its published name.

    Raises:
        ValueError: an unknown one.
    """
    if callable(norm):
        return norm
    if norm not in NORMS:
        raise ValueError(f"norm: expected one of {tuple(NORMS)}, got {norm!r}")
    return NORMS[norm]


def reflecting(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution, reflection padded, that keeps the size or halves it."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=(kernel_size - 1) // 2,
        padding_mode="reflect",
    )


class ConvBlock(nn.Module):
    """A convolution, a norm, and a ReLU or none."""

    def __init__(
        self, conv: nn.Conv2d, norm: Norm | MakeNorm = "none", activation: Activation = "relu"
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = normalisation(norm)(conv.out_channels, activation)

    def forward(self, x: Tensor, *style: Tensor) -> Tensor:
        return self.norm(self.conv(x), *style)


class ResnetBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), 3x3, reflection padded, no ReLU after the sum.

    Args:
        dim: C.
        norm_type: "in" (instance norm with affine), "bn" or "adain"; or what makes a norm.

    Shape: x (N,C,H,W), H and W at least 2, and the styles of both AdaIN layers -> (N,C,H,W).
    """

    def __init__(self, dim: int, norm_type: Norm | MakeNorm = "in") -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            ConvBlock(reflecting(dim, dim, 3), norm_type),
            ConvBlock(reflecting(dim, dim, 3), norm_type, None),
        )

    def forward(self, x: Tensor, *styles: Style) -> Tensor:
        first, second = styles or ((), ())
        return x + self.conv_block[1](self.conv_block[0](x, *first), *second)


# --- networks of numbered layers ------------------------------------------------------------------


def numbered(layers: Mapping[int, nn.Module]) -> nn.Sequential:
    """Layers under the numbers of published entries."""
    model = nn.Sequential()
    for number, layer in layers.items():
        model.add_module(str(number), layer)
    return model


def encoding(
    input_nc: int, ngf: int, n_downsampling: int, n_blocks: int, norm: Norm | MakeNorm = "in"
) -> dict[int, nn.Module]:
    """A 7x7 convolution, halvings that double the channels, residual blocks."""
    make = normalisation(norm)
    layers: dict[int, nn.Module] = {1: reflecting(input_nc, ngf, 7), 2: make(ngf, "relu")}
    for i in range(n_downsampling):
        channels = 2**i * ngf
        layers[3 * i + 4] = Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        layers[3 * i + 5] = make(2 * channels, "relu")
    first = 3 * n_downsampling + 4
    channels = 2**n_downsampling * ngf
    return layers | {first + i: ResnetBlock(channels, norm) for i in range(n_blocks)}


def decoding(
    first: int, ngf: int, output_nc: int, n_upsampling: int, norm: Norm | MakeNorm = "in"
) -> dict[int, nn.Module]:
    """Doublings that halve the channels down to ngf, a 7x7 convolution, tanh; from a number on."""
    make = normalisation(norm)
    layers: dict[int, nn.Module] = {}
    for i in range(n_upsampling):
        channels = 2 ** (n_upsampling - i) * ngf
        layers[first + 3 * i] = nn.ConvTranspose2d(
            channels, channels // 2, 3, stride=2, padding=1, output_padding=1
        )
        layers[first + 3 * i + 1] = make(channels // 2, "relu")
    last = first + 3 * n_upsampling
    return layers | {last + 1: reflecting(ngf, output_nc, 7), last + 2: nn.Tanh()}
