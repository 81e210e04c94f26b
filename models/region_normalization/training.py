"""Losses and optimisers."""

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from .. import inpainting
from ..blocks import initialise as fill_weights
from ..checks import check_images, check_mask
from ..data import MaskedImages
from ..geometry import Preparation
from ..losses import AdversarialLoss
from ..paper import Stage
from ..pictures import composite
from ..recipe import AdversarialRecipe, Batch, Terms
from ..schedules import exponential
from .networks import Config


def dataset(options: argparse.Namespace, config: Config, stage: Stage) -> MaskedImages:
    """Squares from the middle, mirrored together with their masks."""
    flip = config.schedule.flip
    preparation = Preparation(config.network.size, fit="square", flip=flip, flip_mask="with")
    return inpainting.dataset(options, preparation)


def l1_in_holes(image: Tensor, merged: Tensor, hole: Tensor) -> Tensor:
    """Mean absolute difference over the hole's pixels. Mask: 1 hole.

    `merged` is `image` outside the holes. Without any hole the result is 0.

    Raises:
        TypeError, ValueError: image or hole does not fit.
    """
    check_images("image", image)
    check_mask("hole", hole, image)
    share = hole.to(image.dtype).mean()
    return (image - merged).abs().mean() / torch.where(share > 0, share, 1)


class RegionNormalization(AdversarialRecipe):
    """The published training: L1 over the holes and 0.1 of a GAN loss on the raw prediction.

    Args:
        networks: "generator" and "discriminator".
        config: its options.
        pretrained: no loss here uses any; the same argument for every paper.
        initialise: names of the networks whose weights are filled as the published script does:
            He-normal times 0.1, biases normal with mean 1e-4 and deviation 1.
    """

    averaged = ("generator",)

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        self.adversarial = AdversarialLoss(config.loss.adversarial)
        self.leftover = config.loss.keep_leftover
        betas = (config.schedule.beta1, config.schedule.beta2)
        for name, network in networks.items():
            if name in self.fresh:
                fill_weights(network, _he_normal, lambda bias: nn.init.normal_(bias, 1e-4, 1.0))
            self.optimizers[name] = Adam(network.parameters(), config.schedule.learning_rate, betas)

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        given = self.config.schedule
        rate = given.learning_rate * exponential(epoch, given.decay, constant=1)
        return {"generator": rate, "discriminator": rate * given.discriminator_rate}

    def fakes(self, batch: Batch) -> Tensor:
        """The raw prediction."""
        return self.networks["generator"](batch["image"], 1 - batch["known"])

    def discriminator_loss(self, batch: Batch, fakes: Tensor) -> Terms:
        discriminator = self.networks["discriminator"]
        real = self.adversarial.real(discriminator(batch["image"])[0])
        fake = self.adversarial.fake(discriminator(fakes)[0])
        return {"discriminator": (real + fake) / 2}

    def generator_loss(self, batch: Batch, fakes: Tensor) -> Terms:
        image, hole = batch["image"], 1 - batch["known"]
        score, _ = self.networks["discriminator"](fakes)
        merged = composite(image, batch["known"], fakes)
        return {
            "l1": self.config.loss.l1_weight * l1_in_holes(image, merged, hole),
            "adversarial": self.config.loss.adversarial_weight * self.adversarial.generator(score),
        }

    def samples(self, batch: Batch) -> list[Tensor]:
        image, known = batch["image"], batch["known"]
        prediction = self.networks["generator"](image, 1 - known)
        return [image, image * known, prediction, composite(image, known, prediction)]


def _he_normal(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight)
    with torch.no_grad():
        weight.mul_(0.1)
