"""Label map to photo: the generator, its optional image encoder, and every option."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchext
from torchext.nn import Conv2d, DualAttention, SPADEResnetBlock
from torchext.nn.plain import plain
from torchext.ops.labels import check_label_map

from ..blocks import instance_norm, spectral
from ..checks import check_images
from ..discriminators import MultiscaleDiscriminator
from ..losses import Adversarial
from ..paper import chosen

Upsampling = Literal["normal", "more"]
Scales = Literal["two", "all"]
DOUBLINGS: dict[str, int] = {"normal": 5, "more": 6}
PHOTO = 256  # height and width of what the image encoder sees
# Options of the published networks, by data set; batches are those of all processes together.
DATA_SETS: dict[str, dict[str, Any]] = {
    "ade20k": {"labels": 150, "dont_care": True, "first_label": 1},
    "cityscapes": {
        "labels": 35, "dont_care": False, "instances": True, "first_label": 0,
        "size": 512, "aspect": 2.0, "upsampling": "more", "margin": 0,
    },
    "celeba": {
        "labels": 19, "dont_care": False, "first_label": 0, "size": 512,
        "batch": 16, "epochs": 100, "constant_epochs": 50, "decay_epochs": 50,
    },
    "coco": {
        "labels": 182, "instances": True, "first_label": 0,
        "batch": 32, "epochs": 100, "constant_epochs": 50, "decay_epochs": 50,
    },
    "deepfashion": {
        "labels": 20, "dont_care": False, "first_label": 0,
        "batch": 32, "epochs": 100, "constant_epochs": 50, "decay_epochs": 50,
    },
    "facades": {
        "labels": 13, "dont_care": False, "first_label": 0, "size": 1024,
        "batch": 4, "epochs": 100, "constant_epochs": 50, "decay_epochs": 50,
    },
}  # fmt: skip


def start_size(size: int, aspect: float, upsampling: Upsampling) -> tuple[int, int]:
    """Height and width of the generator's first feature map.

    Raises:
        ValueError: there is none, or an unknown way of up-sampling.
    """
    if upsampling not in DOUBLINGS:
        hint = "; 'most' does not fit the published attention" if upsampling == "most" else ""
        raise ValueError(
            f"upsampling: expected one of {tuple(DOUBLINGS)}, got {upsampling!r}{hint}"
        )
    if not (math.isfinite(aspect) and aspect > 0):
        raise ValueError(f"aspect: expected width / height, above 0, got {aspect}")
    doubled = 2 ** DOUBLINGS[upsampling]
    width = size // doubled
    height = round(width / aspect)
    if height < 1 or width < 1:
        raise ValueError(
            f"size: expected at least {math.ceil(max(1, aspect)) * doubled} for up-sampling"
            f" {upsampling!r} and the aspect {aspect:g}, got {size}"
        )
    return height, width


@dataclass(frozen=True)
class Network:
    """Generator, discriminator and what their label maps hold: the published values for ADE20K.

    `DATA_SETS` has those for the other published data sets.

    Attributes:
        width: channels (ngf, ndf) of all networks; published files need 64.
        labels: classes.
        dont_care: a further class for unknown pixels, 255 in files; without it they are an error.
        instances: a further channel, the edges of instances.
        first_label: the number of the first class in files; numbers below it are unknown.
        size: width of the images.
        aspect: width / height.
        upsampling: "more" starts from half the size.
        norm: `norm_G` of `torchext.nn.SPADEResnetBlock`.
        scales: of the channel attention: "two" (published code) or "all" (paper).
        attention_kernel: of the spatial attention, 3 or 7.
        vae: begin with a code of a photo (off in all published runs), by an image encoder.
        code: length of it.
        discriminators: scales of the discriminator.
        discriminator_layers: convolutions of each before the last.
    """

    width: int = 64
    labels: int = 150
    dont_care: bool = True
    instances: bool = False
    first_label: int = 1
    size: int = 256
    aspect: float = 1.0
    upsampling: Upsampling = "normal"
    norm: str = "spectralspadesyncbatch3x3"
    scales: Scales = "two"
    attention_kernel: int = 3
    vae: bool = False
    code: int = 256
    discriminators: int = 2
    discriminator_layers: int = 4

    def __post_init__(self) -> None:
        for name in ("width", "labels", "code", "discriminators", "discriminator_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.first_label < 0:
            raise ValueError(f"first_label: expected at least 0, got {self.first_label}")
        start_size(self.size, self.aspect, self.upsampling)

    @property
    def classes(self) -> int:
        """Labels, and the one for unknown pixels."""
        return self.labels + self.dont_care

    @property
    def channels(self) -> int:
        """Of a label map as the networks see it."""
        return self.classes + self.instances

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Of the images."""
        doubled = 2 ** DOUBLINGS[self.upsampling]
        height, width = start_size(self.size, self.aspect, self.upsampling)
        return height * doubled, width * doubled


@dataclass(frozen=True)
class Loss:
    """The generator's terms.

    Attributes:
        adversarial: form of the GAN loss.
        matching_weight: of the discriminator's features.
        vgg_weight: of VGG-19's features; with 0 its file is not needed.
        kld_weight: of the code's divergence from a normal distribution.
    """

    adversarial: Adversarial = "hinge"
    matching_weight: float = 10.0
    vgg_weight: float = 10.0
    kld_weight: float = 0.05


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: the published values for ADE20K.

    Attributes:
        rate: of Adam; half of it for the generator, twice for the discriminator.
        beta1, beta2: of Adam.
        margin: by how much wider than the images photos are stretched, before a random window is
            cut out of them.
        flip: probability of a mirror image.
        constant_epochs: before the rates fall.
        decay_epochs: in which they fall to 0, in equal steps.
        batch, epochs, iterations: of training.
    """

    rate: float = 2e-4
    beta1: float = 0.0
    beta2: float = 0.9
    margin: int = 30
    flip: float = 0.5
    constant_epochs: int = 100
    decay_epochs: int = 100
    batch: int = 8
    epochs: int | None = 200
    iterations: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("margin", 0), ("constant_epochs", 0), ("decay_epochs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Config:
    """Every option, with the published values; the names of all differ."""

    network: Network = Network()
    loss: Loss = Loss()
    schedule: Schedule = Schedule()


class AttentionTail(DualAttention):
    """What follows the last SPADE block: both attention modules and the last convolution.

    Args:
        ngf: channels of the last block's output.
        earlier: channels of the further maps that the channel attention sees.
        kernel_size: of the spatial attention.
    """

    def __init__(self, ngf: int = 64, *, earlier: int = 0, kernel_size: int = 3) -> None:
        super().__init__(ngf, earlier=earlier, kernel_size=kernel_size)
        self.conv_img = Conv2d(ngf, 3, 3, padding=1)
        self.conv_64 = Conv2d(2 * ngf, ngf, 3, padding=1)

    def tail(self, wide: Tensor, x: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        """The image in (-1,1).

        Args:
            wide: (N,2*ngf,H,W), input of the last block.
            x: (N,ngf,H,W), its output.
            earlier: further maps, of any size.
        """
        mixed = self.attend(self.conv_64(wide).to(x.dtype), x, earlier)
        return torch.tanh(self.conv_img(mixed))


class SPADEGenerator(AttentionTail):
    """A SPADE generator with dual attention on its last two scales.

    Args:
        ngf: channels of the last block; published files need 64.
        semantic_nc: channels of the label map, or classes.
        crop_size: width of the images.
        aspect_ratio: width / height.
        num_upsampling_layers: "normal" (5 doublings) or "more" (6).
        norm_G: of the blocks, see `torchext.nn.SPADEResnetBlock`.
        use_vae: begin with a code instead of the label map.
        z_dim: length of the code.
        kernel_size: of the spatial attention, 3 or 7.
        scales: of which the channel attention sees averages: the last "two", as in the published
            code, or those of "all" blocks, as in the paper.

    Shape: labels (N,semantic_nc,h,w), floating point (one-hot classes, then edges), or integers
    (N,1,h,w) or (N,h,w) of classes, which give the same as their one-hot form and take much less
    time; of any size, resized by nearest neighbour. z (N,z_dim), drawn without it.
    -> (N,3,H,W) in (-1,1).

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    def __init__(
        self,
        ngf: int = 64,
        semantic_nc: int = 151,
        crop_size: int = 256,
        aspect_ratio: float = 1.0,
        num_upsampling_layers: Upsampling = "normal",
        norm_G: str = "spectralspadesyncbatch3x3",
        use_vae: bool = False,
        *,
        z_dim: int = 256,
        kernel_size: int = 3,
        scales: Scales = "two",
    ) -> None:
        if scales not in ("two", "all"):
            raise ValueError(f"scales: expected 'two' or 'all', got {scales!r}")
        channels = (16, 16, 16, 8, 4)  # of the blocks before the last two scales
        earlier = ngf * sum(channels) if scales == "all" else 0
        super().__init__(ngf, earlier=earlier, kernel_size=kernel_size)
        self.semantic_nc = semantic_nc
        self.z_dim = z_dim
        self.scales = scales
        self.more = num_upsampling_layers == "more"
        self.start = start_size(crop_size, aspect_ratio, num_upsampling_layers)

        def block(fin: int, fout: int) -> SPADEResnetBlock:
            return SPADEResnetBlock(fin * ngf, fout * ngf, norm_G, semantic_nc)

        if use_vae:
            self.fc = nn.Linear(z_dim, 16 * ngf * math.prod(self.start))
        else:
            self.fc = Conv2d(semantic_nc, 16 * ngf, 3, padding=1)
        self.head_0 = block(16, 16)
        self.G_middle_0 = block(16, 16)
        self.G_middle_1 = block(16, 16)
        self.up_0 = block(16, 8)
        self.up_1 = block(8, 4)
        self.up_2 = block(4, 2)
        self.up_3 = block(2, 1)

    def forward(self, labels: Tensor, z: Tensor | None = None) -> Tensor:
        if labels.is_floating_point():
            check_images("labels", labels, self.semantic_nc)
        else:
            labels = check_label_map(labels)
        x = self._first(labels, z)
        outputs = [self.head_0(x, labels)]
        blocks = (self.G_middle_0, self.G_middle_1, self.up_0, self.up_1, self.up_2)
        for i, block in enumerate(blocks):
            x = outputs[-1] if i == 1 and not self.more else _doubled(outputs[-1])
            outputs.append(block(x, labels))
        wide = _doubled(outputs.pop())
        x = self.up_3(wide, labels)
        return self.tail(wide, x, outputs if self.scales == "all" else ())

    def _first(self, labels: Tensor, z: Tensor | None) -> Tensor:
        """(N,16*ngf,*start)."""
        if isinstance(self.fc, nn.Linear):
            shape = (len(labels), self.z_dim)
            if z is None:
                like = self.fc.weight
                z = torch.randn(shape, dtype=like.dtype, device=like.device)
            elif z.shape != shape:
                raise ValueError(f"z: expected the shape {shape}, got {tuple(z.shape)}")
            return self.fc(z).unflatten(1, (-1, *self.start))
        if z is not None:
            raise ValueError("z: expected None, as this generator begins with its label map")
        if labels.is_floating_point():
            return self.fc(F.interpolate(labels, size=self.start, mode="nearest"))
        small = F.interpolate(labels[:, None].double(), size=self.start, mode="nearest")
        small = small[:, 0].long()
        if plain(self.fc, nn.Conv2d, Conv2d):
            return torchext.label_conv2d(small, self.fc.weight, self.fc.bias)
        one_hot = F.one_hot(small, self.semantic_nc).movedim(-1, 1)
        return self.fc(one_hot.to(self.conv_img.weight.dtype))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class ConvEncoder(nn.Module):
    """An image encoder for `use_vae`, by SPADE's description: DAGAN publishes no weights of one.

    Six 3x3 convolutions of stride 2 with spectral and instance norm, then two linear layers.

    Args:
        ndf: channels of the first; 8 times as many at the end.
        z_dim: length of the code.

    Shape: (N,3,H,W) in [-1,1], resized to 256 x 256 -> mean and log-variance, (N,z_dim) each.
    """

    def __init__(self, ndf: int = 64, z_dim: int = 256) -> None:
        super().__init__()
        channels = 3
        for i, factor in enumerate((1, 2, 4, 8, 8, 8), start=1):
            layer = Conv2d(channels, factor * ndf, 3, stride=2, padding=1, bias=False)
            channels = factor * ndf
            layer = nn.Sequential(spectral(layer), instance_norm(channels))
            self.add_module(f"layer{i}", layer)
        inner = channels * (PHOTO // 2**6) ** 2
        self.fc_mu = nn.Linear(inner, z_dim)
        self.fc_var = nn.Linear(inner, z_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        check_images("image", image, 3)
        x = F.interpolate(image, size=(PHOTO, PHOTO), mode="bilinear", align_corners=False)
        for i in range(1, 7):
            x = F.leaky_relu(self.get_submodule(f"layer{i}")(x), 0.2)
        x = x.flatten(1)
        return self.fc_mu(x), self.fc_var(x)


def networks(config: Config, names: Collection[str] | None = None) -> dict[str, nn.Module]:
    given = config.network

    def generator() -> SPADEGenerator:
        return SPADEGenerator(
            given.width,
            given.channels,
            given.size,
            given.aspect,
            given.upsampling,
            given.norm,
            given.vae,
            z_dim=given.code,
            kernel_size=given.attention_kernel,
            scales=given.scales,
        )

    def discriminator() -> MultiscaleDiscriminator:
        return MultiscaleDiscriminator(
            given.discriminators, given.discriminator_layers, given.width, given.channels + 3
        )

    builders = {"generator": generator, "discriminator": discriminator}
    if given.vae:
        builders["encoder"] = lambda: ConvEncoder(given.width, given.code)
    return chosen(builders, names)


def example(config: Config) -> dict[str, tuple]:
    """Inputs at the paper's size."""
    given = config.network
    size = given.height_and_width
    labels = torch.rand(1, given.channels, *size)
    image = torch.rand(1, 3, *size)
    return {
        "generator": (labels, torch.rand(1, given.code)) if given.vae else (labels,),
        "discriminator": (torch.cat((labels, image), dim=1),),
        "encoder": (image,),
    }
