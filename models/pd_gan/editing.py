"""Several fills of one hole."""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import inpainting, pictures
from ..blocks import folded
from ..checks import check_image_and_mask
from .first_stage import Decoder, Encoder, restore
from .networks import Config, SPDNormGenerator


class Sampler:
    """Draws fills. Spectral norms are folded into copies of the weights once.

    Args:
        encoder, decoder: the first stage, trained.
        generator: trained.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, generator: SPDNormGenerator) -> None:
        self.encoder = encoder.eval()
        self.decoder = decoder.eval()
        self.generator = folded(generator)

    @torch.no_grad()
    def __call__(
        self, image: Tensor, known: Tensor, n: int = 1, *, noise: Tensor | None = None
    ) -> Tensor:
        """Fill the holes n times. Mask: 1 known, 0 hole.

        What depends on the image and its mask alone is computed once.

        Args:
            image: (N,3,H,W) in [0,1], of the generator's size; what the holes hold is not read.
            known: (N or 1,1,H,W).
            n: samples.
            noise: (n,N,z_dim), standard normal; drawn without it.

        Returns:
            (n,N,3,H,W): the image where it is known.

        Raises:
            TypeError: an image that is not floating point.
            ValueError: a shape that does not fit, or a value outside 0 to 1.
        """
        check_image_and_mask(image, known)
        shape = (n, len(image), self.generator.fc.in_features)
        if n < 1:
            raise ValueError(f"n: expected at least 1, got {n}")
        if noise is None:
            noise = torch.randn(shape, device=image.device, dtype=image.dtype)
        elif noise.shape != shape:
            raise ValueError(f"noise: expected the shape {shape}, got {tuple(noise.shape)}")
        known = known.expand(len(image), -1, -1, -1).to(image.dtype)
        prior = restore(self.encoder, self.decoder, image * 2 - 1, known)
        conditions = self.generator.conditions(prior, known)
        fills = [(self.generator(z, conditions=conditions) + 1) / 2 for z in noise]
        return torch.stack([pictures.composite(image, known, fill) for fill in fills])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    inpainting.add_arguments(parser)
    parser.add_argument("--samples", type=int, default=1, help="fills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")


def edit(networks: dict[str, nn.Module], config: Config, options: argparse.Namespace) -> None:
    """Fill a photo of any size: at the networks' size, scaled back, pasted into the holes.

    Without a generator (its weights were never published) the first stage's fill is written.
    """
    if "encoder" not in networks or "decoder" not in networks:
        raise ValueError(f"{options.checkpoint}: expected the first stage, encoder and decoder")
    if options.samples < 1:
        raise ValueError(f"--samples: expected at least 1, got {options.samples}")
    if "generator" not in networks and options.samples != 1:
        raise ValueError("--samples: expected 1, as the checkpoint has no generator")

    def fills(image: Tensor, known: Tensor) -> list[Tensor]:
        size = (config.network.size, config.network.size)
        small = F.interpolate(image, size=size, mode="bilinear", antialias=True)
        small_known = (F.interpolate(known, size=size, mode="area") == 1).to(known)
        if "generator" in networks:
            sampler = Sampler(networks["encoder"], networks["decoder"], networks["generator"])
            generator = torch.Generator().manual_seed(options.seed)
            noise = torch.randn(options.samples, 1, config.network.noise, generator=generator)
            drawn = sampler(small, small_known, options.samples, noise=noise.to(image))[:, 0]
        else:
            prior = restore(networks["encoder"], networks["decoder"], small * 2 - 1, small_known)
            drawn = (prior + 1) / 2
        drawn = F.interpolate(drawn, size=image.shape[2:], mode="bicubic").clamp(0, 1)
        return [pictures.composite(image, known, fill[None]) for fill in drawn]

    inpainting.edit(options, fills)
