"""The generator, and everything that a configuration trains. Mask: **1 known, 0 hole**."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchext
from torchext.nn import Conv2d, SPDNormResnetBlock
from torchext.nn.modulated_norm import SPDNormConditions
from torchext.ops.checks import check_mask_values

from ..checks import check_images
from ..discriminators import MultiscaleDiscriminator
from ..losses import Adversarial
from ..paper import chosen
from .first_stage import Decoder, Encoder

# Channels in and out (times ngf), dilations of the hard map and their window, of each unit.
UNITS = ((16, 16, 2, 3), (16, 16, 3, 3), (16, 8, 4, 3), (8, 4, 5, 3), (4, 2, 6, 5), (2, 1, 7, 5))


@dataclass(frozen=True)
class Network:
    """All four networks, with the published values.

    Attributes:
        width: channels (ngf, ndf) of all networks.
        noise: length of z.
        size: of the images, a multiple of 64, at least 128.
        norm: statistics of SPDNorm.
        form: of SPDNorm: "published" code, or the paper's, which scales the whole modulation.
        base: of the hard map: e in the published code, 4 in the paper.
        spectral: normalise the weights of the generator.
        random_mask_kernels: draw the first stage's mask kernels, as the published initialiser does
            by oversight, instead of ones.
    """

    width: int = 64
    noise: int = 256
    size: int = 256
    norm: Literal["position", "instance", "batch"] = "position"
    form: Literal["published", "paper"] = "published"
    base: float = math.e
    spectral: bool = True
    random_mask_kernels: bool = False

    def __post_init__(self) -> None:
        if self.size % 64 or self.size < 128:
            raise ValueError(
                f"size: expected a multiple of 64 that is at least 128, got {self.size}"
            )


@dataclass(frozen=True)
class Loss:
    """The terms of both stages.

    Attributes:
        adversarial: form of the GAN loss.
        variation_rows: "published": the vertical term of total variation compares the first and the
            last row, as the code does by a slip; "neighbours".
        l1_hole_weight, l1_known_weight, prior_perceptual_weight, style_weight: of stage 1.
        matching_weight, perceptual_weight, diversity_weight: of stage 2.
        variation_weight: of both.
    """

    adversarial: Adversarial = "hinge"
    variation_rows: Literal["published", "neighbours"] = "published"
    l1_hole_weight: float = 6.0
    l1_known_weight: float = 1.0
    prior_perceptual_weight: float = 0.05
    style_weight: float = 120.0
    matching_weight: float = 10.0
    perceptual_weight: float = 10.0
    diversity_weight: float = 1.0
    variation_weight: float = 0.1


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        rate_1, rate_2: Adam's, by stage; stage 2 takes half of it for the generator and twice for
            the discriminator.
        batch, epochs, iterations: of training.
    """

    rate_1: float = 1e-3
    rate_2: float = 1e-3
    batch: int = 8
    epochs: int | None = 120
    iterations: int | None = None


@dataclass(frozen=True)
class Config:
    """Every option, with the published values; the names of all differ."""

    network: Network = Network()
    loss: Loss = Loss()
    schedule: Schedule = Schedule()


class Unit(nn.Module):
    """A residual block, then a transposed convolution that doubles the size."""

    def __init__(self, block: SPDNormResnetBlock, channels: int) -> None:
        super().__init__()
        self.block = block
        self.up = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor, conditions: SPDNormConditions) -> Tensor:
        return self.up(self.block(x, conditions=conditions))


class SPDNormGenerator(nn.Module):
    """Noise to image, modulated by a prior image. Mask: 1 known, 0 hole.

    Args:
        ngf: channels behind the last unit.
        z_dim: length of the noise.
        latent_sh, latent_sw: a 64th of the image's height and width.
        norm_G: "spectral" normalises the weights of the residual blocks.
        norm_type, form, base: see `torchext.nn.SPDNormResnetBlock`.

    Shape: z (N,z_dim), prior (N,3,H,W) in [-1,1], mask (N,1 or more,H,W), channel 0 counts
    -> (N,3,H,W) in (-1,1).

    Raises:
        ValueError: another shape.
    """

    def __init__(
        self,
        ngf: int = 64,
        z_dim: int = 256,
        latent_sh: int = 4,
        latent_sw: int = 4,
        norm_G: str = "spectral",
        *,
        norm_type: Literal["position", "instance", "batch"] = "position",
        form: Literal["published", "paper"] = "published",
        base: float = math.e,
    ) -> None:
        super().__init__()
        if latent_sh < 1 or latent_sw < 1 or latent_sh * latent_sw < 2:
            raise ValueError(
                f"latent_sh, latent_sw: expected at least 1 x 2, got {latent_sh} x {latent_sw}"
            )
        self.latent = (latent_sh, latent_sw)
        self.base = base
        self.fc = nn.Linear(z_dim, 16 * ngf * latent_sh * latent_sw)
        units = []
        for fin, fout, steps, window in UNITS:
            block = SPDNormResnetBlock(
                fin * ngf,
                fout * ngf,
                steps,
                window,
                norm_G,
                norm_type=norm_type,
                form=form,
                base=base,
            )
            units.append(Unit(block, fout * ngf))
        self.generated = nn.Sequential(*units)
        self.conv_img = Conv2d(ngf, 3, 3, padding=1)

    def conditions(
        self, prior: Tensor, mask: Tensor, *, shared: bool = True
    ) -> list[SPDNormConditions]:
        """What the units derive from prior and mask: three fifths of the work, for all samples.

        `shared` as for `torchext.nn.SPDNormResnetBlock.conditions`.
        """
        H, W = (64 * side for side in self.latent)
        check_images("prior", prior)
        N = len(prior)
        if prior.shape != (N, 3, H, W):
            raise ValueError(
                f"prior: expected the shape (N, 3, {H}, {W}), got {tuple(prior.shape)}"
            )
        if mask.dim() != 4 or mask.shape[0] != N or mask.shape[2:] != prior.shape[2:]:
            raise ValueError(
                f"mask: expected the shape ({N}, 1 or more, {H}, {W}), got {tuple(mask.shape)}"
            )
        check_mask_values("mask", mask)
        sizes = [tuple(side * 2**i for side in self.latent) for i in range(len(UNITS))]
        steps, windows = ([unit[i] for unit in UNITS] for i in (2, 3))
        maps = torchext.diversity_map(mask[:, :1], steps, windows, self.base, sizes)
        return [
            unit.block.conditions(prior, mask, size, hard.to(prior.dtype), shared=shared)
            for unit, size, hard in zip(self.generated, sizes, maps, strict=True)
        ]

    def features(self, z: Tensor, conditions: list[SPDNormConditions]) -> Tensor:
        """The image before tanh."""
        x = self.fc(z).unflatten(1, (-1, *self.latent))
        for unit, given in zip(self.generated, conditions, strict=True):
            x = unit(x, given)
        return self.conv_img(F.leaky_relu(x, 0.2))

    def forward(
        self,
        z: Tensor,
        prior: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        conditions: list[SPDNormConditions] | None = None,
    ) -> Tensor:
        if conditions is None:
            conditions = self.conditions(prior, mask, shared=False)
        return torch.tanh(self.features(z, conditions))


def networks(config: Config, names: Collection[str] | None = None) -> dict[str, nn.Module]:
    given = config.network

    def generator() -> SPDNormGenerator:
        side = given.size // 64
        return SPDNormGenerator(
            given.width,
            given.noise,
            side,
            side,
            "spectral" if given.spectral else "",
            norm_type=given.norm,
            form=given.form,
            base=given.base,
        )

    builders = {
        "encoder": lambda: Encoder(ngf=given.width),
        "decoder": lambda: Decoder(ngf=given.width),
        "generator": generator,
        "discriminator": lambda: MultiscaleDiscriminator(ndf=given.width),
    }
    return chosen(builders, names)


def example(config: Config) -> dict[str, tuple]:
    """Inputs at the paper's size."""
    image = torch.rand(1, 3, config.network.size, config.network.size)
    mask = torch.ones(1, 1, config.network.size, config.network.size)
    return {
        "encoder": ([image, mask],),
        "generator": (torch.randn(1, config.network.noise), image, mask),
        "discriminator": (torch.cat((image, image), dim=1),),
    }
