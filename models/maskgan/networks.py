"""Dense mapping network, alpha blender, and every option."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchext
from torchext.nn import AdaptiveInstanceNorm2d, Conv2d
from torchext.ops.labels import check_label_map

from ..checks import check_images
from ..discriminators import MultiscaleDiscriminator
from ..paper import chosen
from .mask_vae import GRID, MaskVAE
from .parser import FaceParser

# The two encoders have fixed widths, whatever the generator's.
ENCODER_WIDTH = 16
ENCODER_HALVINGS = 5


@dataclass(frozen=True)
class Network:
    """All networks: the published values.

    Attributes:
        size: height and width of photos and label maps.
        labels: classes.
        width: channels of the generator's first map; published files need 64.
        downsamplings: halvings of the generator.
        residual_blocks: of the generator.
        blender_width, blender_downsamplings, blender_blocks: the same of the alpha blender.
        blender_weights: of the alpha blender for each pixel: 3, one for each colour (published
            code), or 1 (paper).
        discriminator_width: channels of the discriminator's first map.
        discriminators: scales of the discriminator.
        discriminator_layers: convolutions of each before the last two.
        vae_width: channels of MaskVAE's first and last maps.
        code: length of its codes.
        parser_scale: divides the face parser's widths.
    """

    size: int = 512
    labels: int = 19
    width: int = 64
    downsamplings: int = 4
    residual_blocks: int = 4
    blender_width: int = 32
    blender_downsamplings: int = 3
    blender_blocks: int = 3
    blender_weights: int = 3
    discriminator_width: int = 64
    discriminators: int = 2
    discriminator_layers: int = 3
    vae_width: int = 32
    code: int = 1024
    parser_scale: int = 4

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.blender_weights not in (1, 3):
            raise ValueError(f"blender_weights: expected 1 or 3, got {self.blender_weights}")
        halvings = max(self.downsamplings, self.blender_downsamplings)
        step = max(GRID, 2 ** (halvings + 1))
        if self.size % step:
            raise ValueError(f"size: expected a multiple of {step}, got {self.size}")


@dataclass(frozen=True)
class Loss:
    """Weights of the terms.

    Attributes:
        matching_weight: of the discriminator's features.
        vgg_weight: of VGG-19's features; with 0 its file is not needed.
        kl_weight: of the divergence of MaskVAE's codes.
        lambda_inter: of stage 2: codes are moved by 1/lambda_inter of the way to another mask's,
            and away from it.
        vae_noise: stage 2 moves codes that are drawn; else their means.
    """

    matching_weight: float = 10.0
    vgg_weight: float = 10.0
    kl_weight: float = 1e-5
    lambda_inter: float = 2.5
    vae_noise: bool = False

    def __post_init__(self) -> None:
        if self.lambda_inter <= 0:
            raise ValueError(f"lambda_inter: expected above 0, got {self.lambda_inter}")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. MaskVAE's rate and the epochs of each stage were not published.

    Attributes:
        rate: of Adam, for generator, blender and discriminator.
        vae_rate: of MaskVAE.
        parser_rate: of the face parser, whose batches were of 8.
        beta1, beta2: of Adam; MaskVAE takes PyTorch's.
        constant_epochs: before the rates fall; those of MaskVAE and the parser do not.
        decay_epochs: in which they fall to 0, in equal steps.
        joint_decay: stage 2's rate of generator and blender together falls, too; the published
            script forgets it.
        flip: probability of a mirror image, in which left and right parts change places.
        batch, epochs, iterations: of training.
    """

    rate: float = 5e-5
    vae_rate: float = 1e-4
    parser_rate: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    constant_epochs: int = 100
    decay_epochs: int = 100
    joint_decay: bool = True
    flip: float = 0.0
    batch: int = 1
    epochs: int | None = 200
    iterations: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("constant_epochs", 0), ("decay_epochs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip: expected a probability from 0 to 1, got {self.flip}")


@dataclass(frozen=True)
class Config:
    """Every option, with the published values; the names of all differ."""

    network: Network = Network()
    loss: Loss = Loss()
    schedule: Schedule = Schedule()


# --- layers ---------------------------------------------------------------------------------------


class MapConv2d(Conv2d):
    """A convolution of a label map, reflection padded, that keeps the size.

    Shape: (N,in_channels,H,W), floating point (one-hot classes), or integers (N,1,H,W) or (N,H,W)
    of classes, which give the same and take much less time -> (N,out_channels,H,W).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 7) -> None:
        padding = kernel_size // 2
        super().__init__(
            in_channels, out_channels, kernel_size, padding=padding, padding_mode="reflect"
        )

    def forward(self, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            check_images("labels", labels, self.in_channels)
            return super().forward(labels)
        border = self.padding[0]
        labels = check_label_map(labels)[:, None].float()  # integers have no reflection padding
        padded = F.pad(labels, (border,) * 4, mode="reflect").int()
        y = torchext.label_conv2d(padded, self.weight, self.bias)
        return y[..., border:-border, border:-border]


def _reflecting(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> nn.Conv2d:
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=(kernel_size - 1) // 2,
        padding_mode="reflect",
    )


class InstanceNormReLU(nn.Module):
    """Instance norm without affine, then ReLU. (N,C,H,W) -> (N,C,H,W)."""

    def forward(self, x: Tensor) -> Tensor:
        return torchext.modulated_norm(x, activation="relu")


class AdaIN(AdaptiveInstanceNorm2d):
    """AdaIN with the running statistics that published files hold, and nothing reads."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))


class ConvBlock(nn.Module):
    """A convolution, an instance norm (plain, adaptive or none) and a ReLU (or none)."""

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: Literal["none", "instance", "adaptive"] = "none",
        *,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = AdaIN(conv.out_channels) if norm == "adaptive" else None
        self.normalised = norm != "none"
        self.activation: Literal["relu"] | None = "relu" if relu else None

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            return self.norm(x, scale, shift, self.activation)
        if self.normalised:
            return torchext.modulated_norm(x, activation=self.activation)
        return x if self.activation is None else F.relu(x)


class ResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), 3x3, reflection padded, no ReLU after the sum.

    Args:
        dim: C.
        adaptive: AdaIN instead of instance norm.

    Shape: x (N,C,H,W), H and W at least 2; styles of AdaIN (N,2,2,C): of each convolution the
    shift, then the scale -> (N,C,H,W).
    """

    def __init__(self, dim: int, adaptive: bool = False) -> None:
        super().__init__()
        norm = "adaptive" if adaptive else "instance"
        self.conv_block = nn.ModuleList(
            ConvBlock(_reflecting(dim, dim, 3), norm, relu=relu) for relu in (True, False)
        )

    def forward(self, x: Tensor, styles: Tensor | None = None) -> Tensor:
        y = x
        for i, block in enumerate(self.conv_block):
            y = block(y) if styles is None else block(y, styles[:, i, 1], styles[:, i, 0])
        return x + y


class SFTLayer(nn.Module):
    """Spatial feature transform: x * scale + shift, maps that 1x1 convolutions give of a condition.

    Args:
        channels: C; published files need 64.

    Shape: x and condition (N,C,H,W) -> (N,C,H,W).
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        for name in ("scale", "shift"):
            for i in (1, 2):
                self.add_module(f"SFT_{name}_conv{i}", Conv2d(channels, channels, 1))

    def _map(self, name: str, condition: Tensor) -> Tensor:
        x = self.get_submodule(f"SFT_{name}_conv1")(condition)
        return self.get_submodule(f"SFT_{name}_conv2")(F.leaky_relu(x, 0.1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x * self._map("scale", condition) + self._map("shift", condition)


# --- spatial-aware style encoder ------------------------------------------------------------------


def _halvings(channels: int, count: int, *, last_relu: bool = True) -> list[nn.Module]:
    return [
        ConvBlock(_reflecting(channels, channels, 4, stride=2), relu=last_relu or i < count - 1)
        for i in range(count)
    ]


class LabelEncoder(nn.Module):
    """Two feature maps of a label map, by which the style encoder sees which part is where.

    Args:
        n_downsample: halvings, at least 3.
        input_dim: classes.
        dim: channels of the first map, a quarter of those of the results.

    Shape: labels as for `MapConv2d` -> (N,4*dim,H/4,W/4) and (N,4*dim,h,w), halved n_downsample
    times, rounded down.
    """

    def __init__(self, n_downsample: int = 5, input_dim: int = 19, dim: int = 16) -> None:
        super().__init__()
        self.model = nn.Sequential(
            ConvBlock(MapConv2d(input_dim, dim)),
            ConvBlock(_reflecting(dim, 2 * dim, 4, stride=2)),
            ConvBlock(_reflecting(2 * dim, 4 * dim, 4, stride=2), relu=False),
        )
        self.model_last = nn.Sequential(
            nn.ReLU(), *_halvings(4 * dim, n_downsample - 2, last_relu=False)
        )

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        first = self.model(labels)
        return first, self.model_last(first)


class StyleEncoder(nn.Module):
    """A style vector of a photo, aware of its parts.

    Args:
        n_downsample: halvings, at least 3.
        input_dim: channels of the photo.
        dim: channels of the first map; published files need 16.
        style_dim: length P of the vector.

    Shape: image (N,input_dim,H,W) in [-1,1] and the maps of `LabelEncoder` -> (N,P,1,1).
    """

    def __init__(
        self, n_downsample: int = 5, input_dim: int = 3, dim: int = 16, style_dim: int = 16384
    ) -> None:
        super().__init__()
        self.model = nn.Sequential(
            ConvBlock(_reflecting(input_dim, dim, 7)),
            ConvBlock(_reflecting(dim, 2 * dim, 4, stride=2)),
            ConvBlock(_reflecting(2 * dim, 4 * dim, 4, stride=2)),
        )
        self.model_middle = nn.Sequential(*_halvings(4 * dim, n_downsample - 2))
        self.model_last = nn.Sequential(nn.AdaptiveAvgPool2d(1), Conv2d(4 * dim, style_dim, 1))
        self.sft1 = SFTLayer(4 * dim)
        self.sft2 = SFTLayer(4 * dim)

    def forward(self, image: Tensor, first: Tensor, last: Tensor) -> Tensor:
        x = self.sft1(self.model(image), first)
        return self.model_last(self.sft2(self.model_middle(x), last))


# --- image translation ----------------------------------------------------------------------------


def _translation(
    first: nn.Module,
    ngf: int,
    output_nc: int,
    n_downsampling: int,
    n_blocks: int,
    adaptive: bool,
    last: nn.Module,
) -> nn.Sequential:
    """Halvings, residual blocks and doublings; the names are the numbers in published files."""
    layers: dict[int, nn.Module] = {1: first, 2: InstanceNormReLU()}
    place, channels = 4, ngf
    for _ in range(n_downsampling):
        layers[place] = Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        layers[place + 1] = InstanceNormReLU()
        place, channels = place + 3, 2 * channels
    for _ in range(n_blocks):
        layers[place] = ResidualBlock(channels, adaptive)
        place += 1
    for _ in range(n_downsampling):
        layers[place] = nn.ConvTranspose2d(
            channels, channels // 2, 3, stride=2, padding=1, output_padding=1
        )
        layers[place + 1] = InstanceNormReLU()
        place, channels = place + 3, channels // 2
    layers[place + 1] = _reflecting(channels, output_nc, 7)
    layers[place + 2] = last
    model = nn.Sequential()
    for number, layer in layers.items():
        model.add_module(str(number), layer)
    return model


def _check_size(name: str, size: tuple[int, ...], halvings: int) -> None:
    step = 2**halvings
    if any(side % step or side < 2 * step for side in size):
        raise ValueError(
            f"{name}: expected sides that are multiples of {step}, at least {2 * step}, got"
            f" {tuple(size)}"
        )


class DenseMappingNetwork(nn.Module):
    """A photo of a face from a label map, in the style of another photo with its own label map.

    The style vector holds, for each AdaIN layer in order, C shifts and then C scales.

    Args:
        input_nc: classes.
        output_nc: channels of the result.
        ngf: channels of the first map; published files need 64.
        n_downsampling: halvings.
        n_blocks: residual blocks.

    Shape: labels, the layout, and style_labels, those of the style's photo, as for `MapConv2d`;
    style_image (N,3,h,w) in [-1,1] -> (N,output_nc,H,W) in (-1,1). H and W are multiples of
    2^n_downsampling, at least twice that; h and w, of style_labels too, at least 32.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    def __init__(
        self,
        input_nc: int = 19,
        output_nc: int = 3,
        ngf: int = 64,
        n_downsampling: int = 4,
        n_blocks: int = 4,
    ) -> None:
        super().__init__()
        self.n_downsampling = n_downsampling
        self.n_blocks = n_blocks
        self.style_shape = (n_blocks, 2, 2, ngf * 2**n_downsampling)
        self.model = _translation(
            *(MapConv2d(input_nc, ngf), ngf, output_nc, n_downsampling, n_blocks, True, nn.Tanh())
        )
        self.enc_style = StyleEncoder(
            ENCODER_HALVINGS, 3, ENCODER_WIDTH, torch.Size(self.style_shape).numel()
        )
        self.enc_label = LabelEncoder(ENCODER_HALVINGS, input_nc, ENCODER_WIDTH)

    def encode_style(self, labels: Tensor, image: Tensor) -> Tensor:
        """Style vectors (N,P) of photos and their label maps; one serves any number of layouts."""
        check_images("style_image", image, 3)
        least = 2**ENCODER_HALVINGS
        if labels.shape[-2:] != image.shape[-2:] or min(image.shape[2:]) < least:
            raise ValueError(
                f"style_labels: expected the height and width of style_image, at least {least},"
                f" got {tuple(labels.shape[-2:])} and {tuple(image.shape[2:])}"
            )
        return self.enc_style(image, *self.enc_label(labels)).flatten(1)

    def generate(self, labels: Tensor, style: Tensor) -> Tensor:
        """Photos (N,output_nc,H,W) of layouts in styles (N or 1,P)."""
        _check_size("labels", labels.shape[-2:], self.n_downsampling)
        styles = style.unflatten(1, self.style_shape).expand(len(labels), *(-1,) * 4)
        blocks = iter(styles.unbind(1))
        x = labels
        for layer in self.model:
            x = layer(x, next(blocks)) if isinstance(layer, ResidualBlock) else layer(x)
        return x

    def forward(self, labels: Tensor, style_labels: Tensor, style_image: Tensor) -> Tensor:
        return self.generate(labels, self.encode_style(style_labels, style_image))


class AlphaBlender(nn.Module):
    """Blends two photos by weights that it finds of both.

    Args:
        input_nc: channels of both photos together.
        output_nc: of the weights: one for each colour, as published, or 1 for all.
        ngf: channels of the first map; published: 32.
        n_downsampling: halvings.
        n_blocks: residual blocks.

    Shape: first and second (N,input_nc/2,H,W), H and W multiples of 2^n_downsampling, at least
    twice that -> blend (N,input_nc/2,H,W) and the weights (N,output_nc,H,W) of `first`, in (0,1).

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    def __init__(
        self,
        input_nc: int = 6,
        output_nc: int = 3,
        ngf: int = 32,
        n_downsampling: int = 3,
        n_blocks: int = 3,
    ) -> None:
        super().__init__()
        self.input_nc = input_nc
        self.n_downsampling = n_downsampling
        first = _reflecting(input_nc, ngf, 7)
        self.model = _translation(
            *(first, ngf, output_nc, n_downsampling, n_blocks, False, nn.Sigmoid())
        )

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        for name, image in (("first", first), ("second", second)):
            check_images(name, image, self.input_nc // 2)
        if first.shape != second.shape:
            raise ValueError(
                f"second: expected the shape of first, {tuple(first.shape)}, got"
                f" {tuple(second.shape)}"
            )
        _check_size("first", first.shape[2:], self.n_downsampling)
        alpha = self.model(torch.cat((first, second), dim=1))
        return first * alpha + second * (1 - alpha), alpha


# --- all together ---------------------------------------------------------------------------------


def networks(config: Config, names: Collection[str] | None = None) -> dict[str, nn.Module]:
    given = config.network
    builders = {
        "generator": lambda: DenseMappingNetwork(
            given.labels, 3, given.width, given.downsamplings, given.residual_blocks
        ),
        "blender": lambda: AlphaBlender(
            6,
            given.blender_weights,
            given.blender_width,
            given.blender_downsamplings,
            given.blender_blocks,
        ),
        "discriminator": lambda: MultiscaleDiscriminator(
            given.discriminators,
            given.discriminator_layers + 1,
            given.discriminator_width,
            given.labels + 3,
            "instance",
        ),
        "mask_vae": lambda: MaskVAE(
            given.labels, given.vae_width, given.vae_width, given.code, size=given.size
        ),
        "parser": lambda: FaceParser(given.parser_scale, given.labels),
    }
    return chosen(builders, names)


def example(config: Config) -> dict[str, tuple]:
    """Inputs at the paper's size."""
    given = config.network
    labels = torch.zeros(1, given.labels, given.size, given.size)
    image = torch.rand(1, 3, given.size, given.size)
    return {
        "generator": (labels, labels, image),
        "blender": (image, image),
        "discriminator": (torch.cat((labels, image), dim=1),),
        "mask_vae": (labels,),
        "parser": (image,),
    }
