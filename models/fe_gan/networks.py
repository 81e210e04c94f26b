"""Both stages' networks, and every option.

What stage one sees (26 channels) and what stage two sees (29) is put together in `inputs`.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchext.nn import ANLs, Conv2d, PartialConv2d

from ..blocks import ResidualBlock, instance_norm, spectral
from ..checks import check_images
from ..discriminators import MultiscaleDiscriminator
from ..paper import chosen

CONDITION = 5  # channels that the attention layers see: noise, colour, sketch
GUIDANCE = 6  # of stage one beside the classes: mask, sketch, noise, colour
SEEN = 9  # of stage two beside the classes: image, composed mask, noise, colour, sketch
HALVINGS = 2  # of stage two


@dataclass(frozen=True)
class Network:
    """All networks, with the published values.

    Attributes:
        width: channels of the first layers (ngf, ndf); published files need 64.
        size: height and width of the photos.
        classes: of the parsing; 0 is the background.
        face: the class of faces, which one of the losses weighs.
        downsamplings: how often the parsing network halves its input.
        parsing_blocks: its residual blocks.
        inpainting_blocks: dilated residual blocks of the inpainting network.
        dilation: of them.
        one_plus: attention layers scale by 1 + alpha, as published; off, by alpha, the paper's.
        discriminators: scales of the parsing's discriminator.
        discriminator_layers: its convolutions before the score's.

    Raises:
        ValueError: a number out of range.
    """

    width: int = 64
    size: tuple[int, int] = (512, 320)
    classes: int = 20
    face: int = 13
    downsamplings: int = 4
    parsing_blocks: int = 9
    inpainting_blocks: int = 8
    dilation: int = 2
    one_plus: bool = True
    discriminators: int = 2
    discriminator_layers: int = 3

    def __post_init__(self) -> None:
        least = {"width": 1, "classes": 2, "downsamplings": 1, "parsing_blocks": 0}
        least |= {"inpainting_blocks": 0, "dilation": 1, "discriminators": 1}
        least |= {"discriminator_layers": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name}: expected at least {value}, got {getattr(self, name)}")
        if not 0 <= self.face < self.classes:
            raise ValueError(f"face: expected 0 to {self.classes - 1}, got {self.face}")
        if len(self.size) != 2 or any(side < 1 or side % self.step for side in self.size):
            raise ValueError(
                f"size: expected a height and width that are multiples of {self.step}, got"
                f" {self.size}"
            )

    @property
    def step(self) -> int:
        """What heights and widths must be multiples of."""
        return 2 ** max(self.downsamplings, HALVINGS)


@dataclass(frozen=True)
class Loss:
    """Weights of the losses, with the values of the published scripts.

    Attributes:
        matching_weight, l1_weight, ce_weight: stage one: features of the discriminator, L1 and
            cross entropy of the parsing.
        mask_weight: stage two: L1 in the hole.
        foreground_weight: of the known person; the paper's seems to be 50.
        face_weight: of the face; the paper's seems to be 1.
        variation_weight: total variation of the face, where a part of it is new; the published
            code's default, and the paper's, is 0.1.
        vgg_weight: features of VGG-19.
        style_weight: their Gram matrices, in the hole.
        adversarial_weight: of the hinge loss.
    """

    matching_weight: float = 10.0
    l1_weight: float = 10.0
    ce_weight: float = 10.0
    mask_weight: float = 5.0
    foreground_weight: float = 1.0
    face_weight: float = 50.0
    variation_weight: float = 10.0
    vgg_weight: float = 0.05
    style_weight: float = 200.0
    adversarial_weight: float = 0.001


@dataclass(frozen=True)
class Schedule:
    """Training.

    Attributes:
        rate, discriminator_rate, beta1, beta2: of Adam; the rates do not fall.
        batch: published on one GPU: 4 for stage "inpainting", 5 for stage "parsing".
        epochs: of FashionE; published with 50 for DeepFashion and MPV.
        iterations: instead of epochs.
    """

    rate: float = 1e-4
    discriminator_rate: float = 4e-4
    beta1: float = 0.0
    beta2: float = 0.9
    batch: int = 4
    epochs: int = 20
    iterations: int | None = None


@dataclass(frozen=True)
class Config:
    network: Network = field(default_factory=Network)
    loss: Loss = field(default_factory=Loss)
    schedule: Schedule = field(default_factory=Schedule)


def _check_size(name: str, x: Tensor, step: int) -> None:
    if x.shape[2] % step or x.shape[3] % step:
        raise ValueError(
            f"{name}: expected a height and width that are multiples of {step}, got"
            f" {x.shape[2]} x {x.shape[3]}"
        )


# --- stage one: the parsing -----------------------------------------------------------------------


def _normed(layer: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(layer, nn.BatchNorm2d(channels))


class ParsingBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), 3x3, reflection padded, batch norms.

    Shape: (N,dim,H,W) -> (N,dim,H,W).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            _normed(Conv2d(dim, dim, 3, bias=False), dim),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            _normed(Conv2d(dim, dim, 3, bias=False), dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class ParsingGenerator(nn.Module):
    """The free-form parsing network: an encoder and decoder with residual blocks between.

    The paper describes skip connections; the published code has none.

    Args:
        input_nc: channels of the input.
        output_nc: classes.
        ngf: channels behind the first layer; doubled by each halving.
        downsamplings: how often height and width are halved.
        blocks: residual blocks.

    Shape: (N,input_nc,H,W), H and W multiples of 2**downsamplings -> (N,output_nc,H,W) in (-1,1);
    the largest is the class.

    Raises:
        TypeError, ValueError: the input does not fit.
    """

    def __init__(
        self,
        input_nc: int = 26,
        output_nc: int = 20,
        ngf: int = 64,
        downsamplings: int = 4,
        blocks: int = 9,
    ) -> None:
        super().__init__()
        self.input_nc = input_nc
        self.step = 2**downsamplings
        channels = ngf
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            _normed(Conv2d(input_nc, channels, 7, bias=False), channels),
            nn.ReLU(inplace=True),
        ]
        for _ in range(downsamplings):
            convolution = Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
            channels *= 2
            layers += [_normed(convolution, channels), nn.ReLU(inplace=True)]
        layers += [ParsingBlock(channels) for _ in range(blocks)]
        for _ in range(downsamplings):
            convolution = nn.ConvTranspose2d(
                channels, channels // 2, 3, stride=2, padding=1, output_padding=1, bias=False
            )
            channels //= 2
            layers += [_normed(convolution, channels), nn.ReLU(inplace=True)]
        layers += [nn.ReflectionPad2d(3), Conv2d(channels, output_nc, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        check_images("x", x, self.input_nc)
        _check_size("x", x, self.step)
        return self.model(x)


# --- stage two: the photo -------------------------------------------------------------------------


class DownBlock(nn.Module):
    """Partial convolution without bias, instance norm, ReLU. Mask: **1 valid, 0 not**.

    A kernel of 7 pads photo and mask by reflection; others pad by zeros.

    Shape: x (N,in_planes,H,W), mask (N,1,H,W), of all channels alike -> (N,out_planes,h,w) and the
    new mask (N,1,h,w).
    """

    def __init__(
        self, in_planes: int, out_planes: int, kernel_size: int, stride: int, padding: int
    ) -> None:
        super().__init__()
        self.reflected = 3 if kernel_size == 7 else 0
        self.conv = PartialConv2d(
            in_planes,
            out_planes,
            kernel_size,
            stride,
            padding,
            bias=False,
            multi_channel=True,
            return_mask=True,
        )
        self.norm = instance_norm(out_planes)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.reflected:
            x, mask = (F.pad(value, (self.reflected,) * 4, mode="reflect") for value in (x, mask))
        # One channel of the mask stands for all of x's.
        y, updated = self.conv(x, mask, mask_channels=(self.conv.in_channels,))
        return F.relu(self.norm(y), inplace=True), updated[:, :1]


class ReducingBlock(nn.Module):
    """Convolution 3x3, reflection padded, and instance norm: (N,dim_in,H,W) -> (N,dim_out,H,W)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1), Conv2d(dim_in, dim_out, 3), instance_norm(dim_out)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_block(x)


class UpBlock(nn.Module):
    """Transposed convolution, instance norm, ReLU; with a kernel of 7 the image's own layer.

    Both are there, as in published files: `up`, and `last_up`, which makes three channels.

    Shape: (N,in_planes,H,W) -> (N,out_planes,h,w); with a kernel of 7 (N,3,H,W) in (-1,1).
    """

    def __init__(
        self, in_planes: int, out_planes: int, kernel_size: int, stride: int, padding: int
    ) -> None:
        super().__init__()
        self.is_last = kernel_size == 7
        self.up = nn.Sequential(
            nn.ConvTranspose2d(in_planes, out_planes, kernel_size, stride, padding),
            instance_norm(out_planes),
            nn.ReLU(inplace=True),
        )
        self.last_up = nn.Sequential(nn.ReflectionPad2d(3), Conv2d(in_planes, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.last_up(x) if self.is_last else self.up(x)


def _parsing_encoder(classes: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.ReflectionPad2d(3), Conv2d(classes, width, 7)]
    for channels in (width, 2 * width):
        layers += [instance_norm(channels), nn.ReLU(inplace=True)]
        layers.append(Conv2d(channels, 2 * channels, 4, stride=2, padding=1))
    return nn.Sequential(*layers, instance_norm(4 * width), nn.ReLU(inplace=True))


class InpaintingGenerator(nn.Module):
    """The parsing-aware inpainting network. Composed mask: **1 known person, 0 all else**.

    The known part of the person goes through partial convolutions, the parsing through an encoder
    of its own; noise, colour and sketch steer the decoder's attention normalisation layers.

    Args:
        ngf: channels of the first layers; published files need 64.
        input_ANLs_nc: channels of the condition.
        classes: of the parsing.
        blocks, dilation: of the residual blocks.
        one_plus: see `torchext.nn.ANLs`.

    Shape: (N,classes + 4 + input_ANLs_nc,H,W), H and W multiples of 4, at least 16: parsing, photo
    in [-1,1], composed mask, condition -> photo (N,3,H,W) in (-1,1).

    Raises:
        TypeError, ValueError: the input does not fit.
    """

    def __init__(
        self,
        ngf: int = 64,
        input_ANLs_nc: int = CONDITION,
        *,
        classes: int = 20,
        blocks: int = 8,
        dilation: int = 2,
        one_plus: bool = True,
    ) -> None:
        super().__init__()
        self.sizes = (classes, 3, 1, input_ANLs_nc)
        self.least = 4 * (dilation + 1)
        self.down1 = DownBlock(3, ngf, 7, 1, 0)
        self.down2 = DownBlock(ngf, 2 * ngf, 4, 2, 1)
        self.down3 = DownBlock(2 * ngf, 4 * ngf, 4, 2, 1)
        self.parsing_encoder = _parsing_encoder(classes, ngf)
        self.middle = nn.Sequential(
            *(ResidualBlock(8 * ngf, dilation=dilation) for _ in range(blocks))
        )
        self.tmp_block = ReducingBlock(8 * ngf, 4 * ngf)
        self.up_1 = ANLs(4 * ngf, input_ANLs_nc, one_plus=one_plus)
        self.up2 = UpBlock(4 * ngf, 2 * ngf, 4, 2, 1)
        self.up_2 = ANLs(2 * ngf, input_ANLs_nc, one_plus=one_plus)
        self.up3 = UpBlock(2 * ngf, ngf, 4, 2, 1)
        self.up_3 = ANLs(ngf, input_ANLs_nc, one_plus=one_plus)
        self.up4 = UpBlock(ngf, 3, 7, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        check_images("x", x, sum(self.sizes))
        _check_size("x", x, 2**HALVINGS)
        if min(x.shape[2:]) < self.least:  # reflection needs more than it pads
            raise ValueError(
                f"x: expected a height and width of at least {self.least}, got {x.shape[2]} x"
                f" {x.shape[3]}"
            )
        parsing, image, mask, condition = x.split(self.sizes, dim=1)
        for block in (self.down1, self.down2, self.down3):
            image, mask = block(image, mask)
        y = torch.cat((image, self.parsing_encoder(parsing)), dim=1)
        y = self.up_1(self.tmp_block(self.middle(y)), condition)
        y = self.up_2(self.up2(y), condition)
        y = self.up_3(self.up3(y), condition)
        return self.up4(y)


class InpaintingDiscriminator(nn.Module):
    """A score for each patch: five 4x4 convolutions with spectral norm, without bias.

    Args:
        in_channels: of the condition and the photo.
        ndf: channels behind the first; published files need 64.

    Shape: (N,in_channels,H,W), H and W at least 24 -> a list of one scale: the features of each
    layer and the score (N,1,H/8 - 2,W/8 - 2).

    Raises:
        TypeError, ValueError: the input does not fit.
    """

    def __init__(self, in_channels: int = 32, ndf: int = 64) -> None:
        super().__init__()
        self.in_channels = in_channels

        def layer(channels: int, wider: int, stride: int) -> nn.Sequential:
            convolution = Conv2d(channels, wider, 4, stride=stride, padding=1, bias=False)
            return nn.Sequential(spectral(convolution), nn.LeakyReLU(0.2, inplace=True))

        # Published files hold the first layer under both names.
        self.conv1 = self.features = layer(in_channels, ndf, 2)
        self.conv2 = layer(ndf, 2 * ndf, 2)
        self.conv3 = layer(2 * ndf, 4 * ndf, 2)
        self.conv4 = layer(4 * ndf, 8 * ndf, 1)
        self.conv5 = layer(8 * ndf, 1, 1)[:1]

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        check_images("x", x, self.in_channels)
        if min(x.shape[2:]) < 24:
            raise ValueError(
                f"x: expected a height and width of at least 24, got {x.shape[2]} x {x.shape[3]}"
            )
        outputs = []
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            x = layer(x)
            outputs.append(x)
        return [outputs]


# --- all networks ---------------------------------------------------------------------------------


def networks(config: Config, names: Collection[str] | None = None) -> dict[str, nn.Module]:
    """By name: the parsing network, its discriminator, the inpainting network, its own."""
    given = config.network

    def parsing() -> ParsingGenerator:
        return ParsingGenerator(
            given.classes + GUIDANCE,
            given.classes,
            given.width,
            given.downsamplings,
            given.parsing_blocks,
        )

    def parsing_discriminator() -> MultiscaleDiscriminator:
        return MultiscaleDiscriminator(
            given.discriminators,
            given.discriminator_layers,
            given.width,
            2 * given.classes + GUIDANCE,
            last_stride=2,
        )

    def generator() -> InpaintingGenerator:
        return InpaintingGenerator(
            given.width,
            classes=given.classes,
            blocks=given.inpainting_blocks,
            dilation=given.dilation,
            one_plus=given.one_plus,
        )

    def discriminator() -> InpaintingDiscriminator:
        return InpaintingDiscriminator(given.classes + SEEN + 3, given.width)

    builders = {
        "parsing": parsing,
        "parsing_discriminator": parsing_discriminator,
        "generator": generator,
        "discriminator": discriminator,
    }
    return chosen(builders, names)


def example(config: Config) -> dict[str, tuple]:
    """Inputs at the paper's size."""
    given = config.network
    channels = {
        "parsing": given.classes + GUIDANCE,
        "parsing_discriminator": 2 * given.classes + GUIDANCE,
        "generator": given.classes + SEEN,
        "discriminator": given.classes + SEEN + 3,
    }
    return {name: (torch.rand(1, count, *given.size),) for name, count in channels.items()}
