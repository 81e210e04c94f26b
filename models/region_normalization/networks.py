"""Generator and discriminator. Mask: **1 hole, 0 valid** (the paper's convention)."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchext.nn import RN_B, RN_L, Conv2d

from ..blocks import ResidualBlock, spectral
from ..checks import check_images, check_mask
from ..losses import Adversarial
from ..paper import chosen

Scope = Literal["batch", "instance"]
Betas = Literal["everywhere", "region"]


@dataclass(frozen=True)
class Network:
    """Generator and discriminator, with the published values.

    Attributes:
        width: channels behind the first convolution.
        residual_blocks: in the middle.
        threshold: of the RN-L in the residual blocks.
        decoder_threshold: of the two RN-L in the decoder (the published constructor's threshold
            does not reach them).
        scope: of the statistics: the batch (published code and checkpoint) or each image (paper).
        betas: of RN-B: both added everywhere (published code) or each in its region (paper).
        sigmoid: behind the discriminator's score; "probability" needs it.
        spectral: normalise the discriminator's weights.
        size: of the training images.
    """

    width: int = 64
    residual_blocks: int = 8
    threshold: float = 0.8
    decoder_threshold: float = 0.8
    scope: Scope = "batch"
    betas: Betas = "everywhere"
    sigmoid: bool = True
    spectral: bool = True
    size: int = 256


@dataclass(frozen=True)
class Loss:
    """The generator's terms.

    Attributes:
        adversarial: form of the GAN loss.
        l1_weight, adversarial_weight: of the generator's terms.
        keep_leftover: leave the gradients that the generator's loss has in the discriminator for
            its next step, as the published script does by oversight.
    """

    adversarial: Adversarial = "probability"
    l1_weight: float = 1.0
    adversarial_weight: float = 0.1
    keep_leftover: bool = False


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        learning_rate, discriminator_rate: of Adam; the second relative to the first.
        beta1, beta2: of Adam.
        decay: of the learning rates per epoch, from the third on.
        flip: probability of a mirror image.
        batch, epochs, iterations: of training.
    """

    learning_rate: float = 1e-4
    discriminator_rate: float = 0.1
    beta1: float = 0.0
    beta2: float = 0.9
    decay: float = 0.8
    flip: float = 0.5
    batch: int = 14
    epochs: int | None = 10
    iterations: int | None = None


@dataclass(frozen=True)
class Config:
    """Every option, with the published values; the names of all differ."""

    network: Network = Network()
    loss: Loss = Loss()
    schedule: Schedule = Schedule()

    def __post_init__(self) -> None:
        if self.loss.adversarial == "probability" and not self.network.sigmoid:
            raise ValueError("adversarial: 'probability' needs the option sigmoid")


class saRN_ResnetBlock(ResidualBlock):
    """A residual block with RN-L.

    Args:
        dim: C.
        dilation: of the first convolution.
        threshold: of both RN-L.
        use_spectral_norm: on both convolutions.
        scope: see `torchext.nn.RN_L`.

    Shape: (N,C,H,W) -> (N,C,H,W).
    """

    def __init__(
        self,
        dim: int,
        dilation: int = 1,
        threshold: float = 0.8,
        use_spectral_norm: bool = False,
        *,
        scope: Scope = "batch",
    ) -> None:
        norm = partial(RN_L, threshold=threshold, scope=scope)
        super().__init__(dim, norm, dilation=dilation, use_spectral_norm=use_spectral_norm)


class G_Net(nn.Module):
    """The generator: an encoder with RN-B, residual blocks and a decoder with RN-L.

    Args:
        input_channels: of the image.
        residual_blocks: in the middle.
        threshold: of their RN-L.
        width, decoder_threshold, scope, betas: see `Network`.

    Shape: image (N,C,H,W) in [0,1], mask (N,1,H,W), 1 hole -> (N,3,H,W) in (0,1), the raw
    prediction. H and W are multiples of 4, at least 12.

    Raises:
        TypeError: another dtype.
        ValueError: another size or shape, or a mask with values outside 0 to 1.
    """

    def __init__(
        self,
        input_channels: int = 3,
        residual_blocks: int = 8,
        threshold: float = 0.8,
        *,
        width: int = 64,
        decoder_threshold: float = 0.8,
        scope: Scope = "batch",
        betas: Betas = "everywhere",
    ) -> None:
        super().__init__()
        first = partial(RN_B, scope=scope, betas=betas)
        later = partial(RN_L, threshold=decoder_threshold, scope=scope)
        self.input_channels = input_channels
        self.encoder_pad1 = nn.ReflectionPad2d(3)
        self.encoder_conv1 = Conv2d(input_channels, width, kernel_size=7)
        self.encoder_in1 = first(width)
        self.encoder_conv2 = Conv2d(width, 2 * width, kernel_size=4, stride=2, padding=1)
        self.encoder_in2 = first(2 * width)
        self.encoder_conv3 = Conv2d(2 * width, 4 * width, kernel_size=4, stride=2, padding=1)
        self.encoder_in3 = first(4 * width)
        self.middle = nn.Sequential(
            *(
                saRN_ResnetBlock(4 * width, dilation=2, threshold=threshold, scope=scope)
                for _ in range(residual_blocks)
            )
        )
        self.decoder = nn.Sequential(
            Conv2d(4 * width, 8 * width, kernel_size=3, padding=1),
            nn.PixelShuffle(2),
            later(2 * width),
            nn.ReLU(inplace=True),
            Conv2d(2 * width, 4 * width, kernel_size=3, padding=1),
            nn.PixelShuffle(2),
            later(width),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(3),
            Conv2d(width, 3, kernel_size=7),
        )

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """(N,4*width,H/4,W/4); holes are painted white."""
        x = self.encoder_pad1(torch.where(mask > 0, 1, image))
        x = F.relu(self.encoder_in1(self.encoder_conv1(x), mask), inplace=True)
        x = F.relu(self.encoder_in2(self.encoder_conv2(x), mask), inplace=True)
        return F.relu(self.encoder_in3(self.encoder_conv3(x), mask), inplace=True)

    def decode(self, features: Tensor) -> Tensor:
        """(N,3,H,W) in (0,1)."""
        return (torch.tanh(self.decoder(features)) + 1) / 2

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        _check_sizes(image, mask, self.input_channels)
        return self.decode(self.middle(self.encode(image, mask)))


def _check_sizes(image: Tensor, mask: Tensor, channels: int) -> None:
    check_images("image", image, channels)
    H, W = image.shape[2:]
    if H % 4 or W % 4 or min(H, W) < 12:
        raise ValueError(
            f"image: expected a height and a width of 12 or more, multiples of 4, got {H} x {W}"
        )
    check_mask("mask", mask, image)


class D_Net(nn.Module):
    """The discriminator: five 4x4 convolutions without bias.

    Args:
        in_channels: of the image.
        use_sigmoid: on the returned score.
        use_spectral_norm: on all five.
        width: channels behind the first.

    Shape: (N,in_channels,H,W) -> score (N,1,H/8-2,W/8-2) and the five features, the last of them
    the score before its sigmoid.
    """

    def __init__(
        self,
        in_channels: int = 3,
        use_sigmoid: bool = True,
        use_spectral_norm: bool = True,
        *,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.use_sigmoid = use_sigmoid
        self.in_channels = in_channels
        channels = (in_channels, width, 2 * width, 4 * width, 8 * width, 1)
        for i, (before, behind) in enumerate(pairwise(channels), start=1):
            stride = 2 if i <= 3 else 1
            layer = Conv2d(before, behind, kernel_size=4, stride=stride, padding=1, bias=False)
            activation = [nn.LeakyReLU(0.2, inplace=True)] if i < 5 else []
            stage = nn.Sequential(spectral(layer, use_spectral_norm), *activation)
            self.add_module(f"conv{i}", stage)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        check_images("x", x, self.in_channels)
        features = []
        for stage in self.children():
            x = stage(x)
            features.append(x)
        return torch.sigmoid(x) if self.use_sigmoid else x, features


def networks(config: Config, names: Collection[str] | None = None) -> dict[str, nn.Module]:
    given = config.network

    def generator() -> G_Net:
        return G_Net(
            residual_blocks=given.residual_blocks,
            threshold=given.threshold,
            width=given.width,
            decoder_threshold=given.decoder_threshold,
            scope=given.scope,
            betas=given.betas,
        )

    def discriminator() -> D_Net:
        return D_Net(use_sigmoid=given.sigmoid, use_spectral_norm=given.spectral, width=given.width)

    return chosen({"generator": generator, "discriminator": discriminator}, names)


def example(config: Config) -> dict[str, tuple[Tensor, ...]]:
    """Inputs at the paper's size."""
    image = torch.rand(1, 3, config.network.size, config.network.size)
    return {
        "generator": (image, torch.zeros(1, 1, config.network.size, config.network.size)),
        "discriminator": (image,),
    }
