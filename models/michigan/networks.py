"""The generator with its four conditions, and every option. Masks: **1 hair, 0 not**."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchext
from torchext.nn import Conv2d, PartialConv2d, SPADEResnetBlock
from torchext.ops.gabor_orientation import BankName

from ..checks import check_images, check_mask
from ..discriminators import MultiscaleDiscriminator, PatchDiscriminator
from ..paper import chosen
from .inpainting import OrientationInpainter
from .regions import added_inside, boxes, near_hair

Upsampling = Literal["normal", "more", "most"]
ReferenceNorm = Literal["instance", "none"]
DOUBLINGS: dict[str, int] = {"normal": 5, "more": 6, "most": 7}
SLOPE = 0.2
CONDITIONS = 4  # channels of what SPADE sees: background, hair, sine, cosine


def _check_expansion(expand: int, random_expand: float) -> None:
    if expand < 1 or expand % 2 == 0:
        raise ValueError(f"expand: expected an odd number, at least 1, got {expand}")
    if not 0 <= random_expand < 1:
        raise ValueError(f"random_expand: expected 0 to below 1, got {random_expand}")


@dataclass(frozen=True)
class Network:
    """All networks, with the published values.

    Attributes:
        width: channels (ngf, ndf); published files need 64.
        size: height and width of the photos.
        upsampling: the first feature map is the photo's size halved 5 ("normal"), 6 ("more") or 7
            ("most") times.
        norm: `norm_G` of `torchext.nn.SPADEResnetBlock`.
        reference_norm: behind the layers of the appearance encoder.
        padding: pixels of zeros that evaluation adds on each side of every input.
        expand: in evaluation the background is kept this many pixels (a square's side, odd) away
            from the hair; 1 is the hair itself.
        random_expand: in training that side is near this share of the photo's height, drawn anew in
            each forward; 0 is the hair itself.
        direct_add: keep the generated features in the background too, beside the photo's.
        inpainting: the orientation's holes are filled by a network; off, there are none.
        inpainting_width: channels of those networks; published files need 64.
        inpainting_blocks: their residual blocks.
        inpainting_size: height and width at which they work.
        inpainting_skips: from encoder to decoder; no published network has them.
        discriminators: scales of the discriminator.
        discriminator_layers: convolutions of each before the last.
    """

    width: int = 64
    size: int = 512
    upsampling: Upsampling = "more"
    norm: str = "spectralspadesyncbatch3x3"
    reference_norm: ReferenceNorm = "instance"
    padding: int = 32
    expand: int = 5
    random_expand: float = 0.05
    direct_add: bool = False
    inpainting: bool = True
    inpainting_width: int = 64
    inpainting_blocks: int = 12
    inpainting_size: int = 256
    inpainting_skips: bool = False
    discriminators: int = 2
    discriminator_layers: int = 4

    def __post_init__(self) -> None:
        least = {"width": 1, "inpainting_width": 1, "inpainting_blocks": 0, "padding": 0}
        least |= {"discriminators": 1, "discriminator_layers": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name}: expected at least {number}, got {getattr(self, name)}")
        if self.upsampling not in DOUBLINGS:
            raise ValueError(
                f"upsampling: expected one of {tuple(DOUBLINGS)}, got {self.upsampling!r}"
            )
        step = 2 ** DOUBLINGS[self.upsampling]
        for name, side in (("size", self.size), ("padding", self.size + 2 * self.padding)):
            if side < step or side % step:
                raise ValueError(
                    f"{name}: expected a size of the photos, and with padding, that is a multiple"
                    f" of {step} for up-sampling {self.upsampling!r}, got {side}"
                )
        if self.inpainting_size < 8 or self.inpainting_size % 4:
            raise ValueError(
                f"inpainting_size: expected a multiple of 4, at least 8, got {self.inpainting_size}"
            )
        _check_expansion(self.expand, self.random_expand)


@dataclass(frozen=True)
class Loss:
    """The generator's terms; those of weight 0 exist in the published script and are off.

    Attributes:
        edge: weight of the discriminator's scores at the hair's edge.
        hair_only: take all losses inside the hair alone (off in the published script).
        matching_weight: of the discriminator's features.
        vgg_weight: of VGG-19's features; its file is needed unless this, style and content are 0.
        lab_weight: of the colours, a and b of Lab.
        orientation_weight, confidence_weight: of `torchext.nn.OrientationLoss`.
        bank: its filters. "gabor", published, hardly trains anything (its tanh saturates); "dog"
            has a gradient everywhere.
        content_weight, style_weight: of VGG-19's features, against the target and the reference.
        background_weight: of the background's L1.
        rgb_weight: of the photo's L1.
        average_weight: of the hair's mean colour against the reference's.
        inpainting_l1, inpainting_adversarial: of the stages that train the networks of
            orientations; ours, as the authors' are not published.
    """

    edge: float = 2.0
    hair_only: bool = False
    matching_weight: float = 1.0
    vgg_weight: float = 1.0
    lab_weight: float = 1.0
    orientation_weight: float = 10.0
    confidence_weight: float = 0.0
    bank: BankName = "gabor"
    content_weight: float = 0.0
    style_weight: float = 0.0
    background_weight: float = 0.0
    rgb_weight: float = 0.0
    average_weight: float = 0.0
    inpainting_l1: float = 1.0
    inpainting_adversarial: float = 0.1

    def __post_init__(self) -> None:
        if self.edge < 1:
            raise ValueError(f"edge: expected at least 1, got {self.edge}")
        if self.bank not in ("gabor", "dog"):
            raise ValueError(f"bank: expected 'gabor' or 'dog', got {self.bank!r}")


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, and what training does to its photos.

    Attributes:
        rate: of Adam; half of it for generators, twice for discriminators.
        beta1, beta2: of Adam.
        margin: by how much larger than their size photos are scaled, as a share, before a random
            window is cut out of them.
        flip: probability of a mirror image.
        mirror_angles: mirror orientations with the photo. The published script leaves them as they
            are, by oversight.
        fuzzy_shape: grow or shrink the hair mask that the generator sees by a random number of
            pixels up to this share of the height: the paper's fuzzy mask. The published code
            disturbs the background's mask alone (`random_expand`).
        constant_epochs: before the rates fall.
        decay_epochs: in which they fall to 0, in equal steps.
        batch, epochs, iterations: of training; the batch is that of 8 processes together.
    """

    rate: float = 2e-4
    beta1: float = 0.0
    beta2: float = 0.9
    margin: float = 56 / 512
    flip: float = 0.5
    mirror_angles: bool = True
    fuzzy_shape: float = 0.0
    constant_epochs: int = 50
    decay_epochs: int = 1
    batch: int = 8
    epochs: int | None = 50
    iterations: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("margin", 0), ("constant_epochs", 0), ("decay_epochs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not 0 <= self.fuzzy_shape < 0.5:
            raise ValueError(f"fuzzy_shape: expected 0 to below 0.5, got {self.fuzzy_shape}")


@dataclass(frozen=True)
class Config:
    """Every option, with the published values; the names of all differ."""

    network: Network = Network()
    loss: Loss = Loss()
    schedule: Schedule = Schedule()


# --- appearance -----------------------------------------------------------------------------------


class AppearanceEncoder(nn.Module):
    """The look of a reference's hair: partial convolutions inside it, one mean, spread out.

    Behind each layer an instance norm over the whole map, holes included, and a leaky ReLU.

    Args:
        ngf: channels of the first of five layers; 16 times as many at the end.
        norm: "instance" or "none".

    Shape: image (N,3,H,W) in [-1,1], hair_reference and hair_target (N,1,H,W) of 0 and 1 ->
    (N,16*ngf,h,w): the mean over the reference's hair in the target's hair, 0 elsewhere. h and w
    are H / 32 and W / 32 rounded up, or, where their heights differ, `size`, to which it is resized
    linearly. Without hair the map is 0.
    """

    def __init__(self, ngf: int = 64, norm: ReferenceNorm = "instance") -> None:
        super().__init__()
        if norm not in ("instance", "none"):
            raise ValueError(f"reference_norm: expected 'instance' or 'none', got {norm!r}")
        self.norm = norm
        channels = 3
        for i in range(5):
            layer = PartialConv2d(channels, 2**i * ngf, 3, stride=2, padding=1, return_mask=True)
            self.add_module(f"layer{i + 1}", layer)
            channels = 2**i * ngf

    def forward(
        self,
        image: Tensor,
        hair_reference: Tensor,
        hair_target: Tensor,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        x, known = image, hair_reference
        for layer in self.children():
            x, known = layer(x, known)
            if self.norm == "instance":
                x = torchext.modulated_norm(x, activation=SLOPE)
            else:
                x = F.leaky_relu(x, SLOPE)
        inside, target = (
            F.interpolate(hair, x.shape[2:], mode="nearest")
            for hair in (hair_reference, hair_target)
        )
        area = inside.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        spread = (x * inside).sum(dim=(2, 3), keepdim=True) / area * target
        if size is None or size[0] == spread.shape[2]:
            return spread
        return F.interpolate(spread, size=size, mode="bilinear", align_corners=False)


# --- background -----------------------------------------------------------------------------------


class _Convolution(nn.Module):
    """Reflection padding, convolution, ReLU."""

    def __init__(self, fin: int, fout: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = Conv2d(
            fin, fout, kernel_size, stride=stride, padding=padding, padding_mode="reflect"
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class BackgroundEncoder(nn.Module):
    """Features of the target's background, at the sizes of the generator's last levels.

    Args:
        ngf: channels of the generator's level of the photo's size ("most": twice that level's).
        upsampling: "most" adds a level.

    Shape: image and noise (N,3,H,W), background (N,1,H,W), 1 where the image is seen, noise
    elsewhere -> features, the smallest first: (N,8*ngf,H/8,W/8), ..., (N,ngf,H,W); with "most"
    from H/16 on, and (N,ngf//2,H,W) at last.
    """

    def __init__(self, ngf: int = 64, upsampling: Upsampling = "more") -> None:
        super().__init__()
        if upsampling == "most":
            self.conv0 = _Convolution(3, ngf // 2, 7, 1, 3)
            self.layer0 = _Convolution(ngf // 2, ngf, 4, 2, 1)
        else:
            self.conv1 = _Convolution(3, ngf, 7, 1, 3)
        for i in range(1, 5):
            layer = _Convolution(2 ** (i - 1) * ngf, 2**i * ngf, 4, 2, 1)
            self.add_module(f"layer{i}", layer)
        # In every published file, and never used. Frozen, since DistributedDataParallel stops where
        # a parameter gets no gradient.
        self.layer4.requires_grad_(False)

    def forward(self, image: Tensor, background: Tensor, noise: Tensor) -> list[Tensor]:
        x = image * background + noise * (1 - background)
        features: list[Tensor] = []
        for name, layer in self.named_children():
            if name != "layer4":
                x = layer(x)
                features.insert(0, x)
        return features


def expansions(height: int, share: float) -> list[int]:
    """The sides of the squares of which training draws one, for a photo of this height."""
    side = int(height * share)
    side += side % 2 == 0
    return [max(side - 4, 1), max(side - 2, 1), side, side + 2, side + 4]


def background_mask(hair: Tensor, side: int) -> Tensor:
    """(N,1,H,W): 1 where no hair is within a square of this odd side, 0 elsewhere."""
    return 1 - F.max_pool2d(hair, side, stride=1, padding=side // 2)


# --- generator ------------------------------------------------------------------------------------


class Conditions(NamedTuple):
    """What the generator's levels see of a photo, padded; see `HairGenerator.conditions`.

    Attributes:
        appearance: (N,16*ngf,h,w), the first feature map.
        segmentation: (N,4,H,W): background, hair, sine and cosine.
        features: of the background, a level each.
        background: (N,1,H,W), 0 near hair.
    """

    appearance: Tensor
    segmentation: Tensor
    features: Sequence[Tensor]
    background: Tensor


class HairGenerator(nn.Module):
    """A SPADE generator of hair from shape, structure, appearance and background.

    Shape and structure modulate, appearance is the first map, the background is blended in.

    The last levels are x = features * (1 - hair) + x * (1 - background): between the hair and its
    surroundings both are added, as published (the paper: features * M + x * (1 - M)).

    In evaluation those levels are computed near the hair alone: elsewhere they count for nothing.
    Exact but for rounding, where `norm_G` has running statistics and the masks can be looked at.

    Args:
        ngf: channels of the level of the photo's size; published files need 64.
        upsampling: see `Network`.
        norm_G: of the blocks.
        reference_norm: of the `AppearanceEncoder`.
        padding, expand, random_expand, direct_add: see `Network`.

    Attributes:
        near_hair: off, evaluation computes all levels everywhere.

    Shape: reference and target (N,3,H,W) in [-1,1]; hair_reference and hair_target (N,1,H,W) of 0
    and 1; orientation (N,2,H,W), sine and cosine of the doubled angle, or (N,1,H,W), its 8-bit code
    0..255 for 0..pi; noise (N,3,H,W) in about [0,1]; H and W multiples of 2 to the power of the
    doublings, with the padding of evaluation -> (N,3,H,W) in (-1,1).

    Raises:
        TypeError: no tensor, or one that is not floating point.
        ValueError: a shape that does not fit, or a mask with values outside 0 to 1.
    """

    def __init__(
        self,
        ngf: int = 64,
        upsampling: Upsampling = "more",
        norm_G: str = "spectralspadesyncbatch3x3",
        reference_norm: ReferenceNorm = "instance",
        *,
        padding: int = 32,
        expand: int = 5,
        random_expand: float = 0.05,
        direct_add: bool = False,
    ) -> None:
        super().__init__()
        if upsampling not in DOUBLINGS:
            raise ValueError(f"upsampling: expected one of {tuple(DOUBLINGS)}, got {upsampling!r}")
        _check_expansion(expand, random_expand)
        self.upsampling = upsampling
        self.padding = padding
        self.expand = expand
        self.random_expand = random_expand
        self.direct_add = direct_add
        self.near_hair = True

        def block(fin: int, fout: int) -> SPADEResnetBlock:
            return SPADEResnetBlock(fin, fout, norm_G, CONDITIONS)

        self.fc = AppearanceEncoder(ngf, reference_norm)
        self.head_0 = block(16 * ngf, 16 * ngf)
        self.G_middle_0 = block(16 * ngf, 16 * ngf)
        self.G_middle_1 = block(16 * ngf, 16 * ngf)
        self.up_0 = block(16 * ngf, 8 * ngf)
        self.up_1 = block(8 * ngf, 4 * ngf)
        self.up_2 = block(4 * ngf, 2 * ngf)
        self.up_3 = block(2 * ngf, ngf)
        last = ngf
        if upsampling == "most":
            last = ngf // 2
            self.up_4 = block(ngf, last)
        self.conv_img = Conv2d(last, 3, 3, padding=1)
        self.backgroud_enc = BackgroundEncoder(ngf, upsampling)  # as its published keys spell it

    def forward(
        self,
        reference: Tensor,
        hair_reference: Tensor,
        target: Tensor,
        hair_target: Tensor,
        orientation: Tensor,
        noise: Tensor,
        *,
        expand: int | None = None,
    ) -> Tensor:
        given = (reference, hair_reference, target, hair_target, orientation, noise)
        y = torch.tanh(self.decode(self.conditions(*given, expand=expand)))
        p = self.padded
        return y[..., p:-p, p:-p] if p else y

    @property
    def padded(self) -> int:
        """Pixels that are added on each side now."""
        return 0 if self.training else self.padding

    def conditions(
        self,
        reference: Tensor,
        hair_reference: Tensor,
        target: Tensor,
        hair_target: Tensor,
        orientation: Tensor,
        noise: Tensor,
        *,
        expand: int | None = None,
    ) -> Conditions:
        """What the levels see.

        Args:
            expand: the side of the square by which the hair grows; by default the one of
                evaluation, or one drawn in training.
        """
        self._check(reference, hair_reference, target, hair_target, orientation, noise)
        hair_reference, hair = (
            mask.to(target.dtype).expand(len(target), -1, -1, -1)
            for mask in (hair_reference, hair_target)
        )
        if orientation.shape[1] == 1:
            doubled = orientation * (2 * torch.pi / 255)
            orientation = torch.cat((doubled.sin(), doubled.cos()), dim=1) * hair
        background = background_mask(hair, self._side(hair) if expand is None else expand)
        segmentation = torch.cat((1 - hair, hair, orientation), dim=1)
        p = self.padded

        def pad(x: Tensor, value: float = 0.0) -> Tensor:
            return F.pad(x, (p, p, p, p), value=value) if p else x

        background = pad(background, 1.0)
        reference, hair_reference, target, hair, segmentation, noise = map(
            pad, (reference, hair_reference, target, hair, segmentation, noise)
        )
        H, W = target.shape[2:]
        step = 2 ** DOUBLINGS[self.upsampling]
        return Conditions(
            self.fc(reference, hair_reference, hair, (H // step, W // step)),
            segmentation,
            self.backgroud_enc(target, background, noise),
            background,
        )

    def _side(self, hair: Tensor) -> int:
        if not self.training:
            return self.expand
        if not self.random_expand:
            return 1
        sides = expansions(hair.shape[2], self.random_expand)
        return sides[int(torch.randint(len(sides), ()))]

    def _check(
        self,
        reference: Tensor,
        hair_reference: Tensor,
        target: Tensor,
        hair_target: Tensor,
        orientation: Tensor,
        noise: Tensor,
    ) -> None:
        check_images("target", target, 3)
        N, _, H, W = target.shape
        step = 2 ** DOUBLINGS[self.upsampling]
        tall, wide = H + 2 * self.padded, W + 2 * self.padded
        if tall % step or wide % step:
            raise ValueError(
                f"target: expected a height and width that make multiples of {step} with"
                f" {self.padded} pixels of padding on each side, got {H} x {W}"
            )
        for name, x in (("reference", reference), ("noise", noise)):
            check_images(name, x, 3)
            if x.shape != target.shape:
                raise ValueError(
                    f"{name}: expected the target's shape {tuple(target.shape)}, got"
                    f" {tuple(x.shape)}"
                )
        check_mask("hair_reference", hair_reference, reference)
        check_mask("hair_target", hair_target, target)
        check_images("orientation", orientation)
        if orientation.shape not in ((N, 1, H, W), (N, 2, H, W)):
            raise ValueError(
                f"orientation: expected the shape ({N}, 2, {H}, {W}), or one channel of codes, got"
                f" {tuple(orientation.shape)}"
            )

    def decode(self, conditions: Conditions) -> Tensor:
        """What is behind the last convolution, before the tanh: (N,3,H,W), padded."""
        x, segmentation, features, background = conditions
        near = self._near_hair(background)

        def condition(x: Tensor) -> Tensor:
            return F.interpolate(segmentation, x.shape[2:], mode="nearest")

        x = self.head_0(x, condition(x))
        x = _doubled(x)
        x = self.G_middle_0(x, condition(x))
        if self.upsampling != "normal":
            x = _doubled(x)
        x = self.G_middle_1(x, condition(x))
        for k, feature in enumerate(features):
            x = _doubled(x)
            block, seen = self.get_submodule(f"up_{k}"), condition(x)
            kept = feature * (1 - seen[:, 1:2])
            share = 1 - F.interpolate(background, x.shape[2:], mode="nearest")
            if self.direct_add:
                x = kept + block(x, seen)
            elif near is None:
                x = kept + block(x, seen) * share
            else:
                x = added_inside(kept, boxes(near, *x.shape[2:]), share, block, x, seen)
        return self.conv_img(F.leaky_relu(x, SLOPE))

    def _near_hair(self, background: Tensor) -> Tensor | None:
        """bool (H,W), on the CPU: where the last levels count; None where they all do."""
        norms = (m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        of_image = not any(True for _ in norms)  # instance norms look at the whole map
        if self.training or self.direct_add or of_image or not self.near_hair:
            return None
        return near_hair(background)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


# --- all networks ---------------------------------------------------------------------------------


def networks(config: Config, names: Collection[str] | None = None) -> dict[str, nn.Module]:
    """By name: the generator, its discriminator, and where wanted those of orientations."""
    given = config.network

    def generator() -> HairGenerator:
        return HairGenerator(
            given.width,
            given.upsampling,
            given.norm,
            given.reference_norm,
            padding=given.padding,
            expand=given.expand,
            random_expand=given.random_expand,
            direct_add=given.direct_add,
        )

    def discriminator() -> MultiscaleDiscriminator:
        return MultiscaleDiscriminator(
            given.discriminators, given.discriminator_layers, given.width, CONDITIONS + 3
        )

    def inpainter(channels: int) -> OrientationInpainter:
        return OrientationInpainter(
            channels, given.inpainting_width, given.inpainting_blocks, given.inpainting_skips
        )

    builders = {"generator": generator, "discriminator": discriminator}
    if given.inpainting:
        builders["orientation"] = lambda: inpainter(4)
        builders["strokes"] = lambda: inpainter(5)
        for name, channels in (("orientation", 4), ("strokes", 5)):
            builders[f"{name}_discriminator"] = partial(
                PatchDiscriminator, channels, given.inpainting_width
            )
    return chosen(builders, names)


def example(config: Config) -> dict[str, tuple]:
    """Inputs at the paper's size."""
    size, small = config.network.size, config.network.inpainting_size
    image, mask = torch.rand(1, 3, size, size), torch.ones(1, 1, size, size)
    return {
        "generator": (image, mask, image, mask, torch.rand(1, 2, size, size), image),
        "discriminator": (torch.rand(1, CONDITIONS + 3, size, size),),
        "orientation": (torch.rand(1, 4, small, small),),
        "strokes": (torch.rand(1, 5, small, small),),
    }
