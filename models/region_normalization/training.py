"""Losses and optimisers."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Adam

from ..blocks import initialise as fill_weights
from ..checks import check_images, check_mask
from ..data import MaskedImages, Preparation
from ..losses import AdversarialLoss
from ..masks import MaskSource
from ..pictures import composite
from ..training import Batch, Phase, Recipe, Terms
from .networks import Config


def dataset(images: Path, masks: MaskSource, config: Config, *, seed: int = 0) -> MaskedImages:
    """Squares from the middle, mirrored together with their masks."""
    preparation = Preparation(config.size, fit="square", flip=config.flip, flip_mask="with")
    return MaskedImages(images, masks, preparation, seed=seed)


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


class RegionNormalization(Recipe):
    """The published training: L1 over the holes and 0.1 of a GAN loss on the raw prediction.

    Args:
        networks: "generator" and "discriminator".
        config: its options.
        vgg: no loss here uses it; the same argument for every paper.
        initialise: names of the networks whose weights are filled as the published script does:
            He-normal times 0.1, biases normal with mean 1e-4 and deviation 1.
    """

    averaged = ("generator",)

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        config: Config,
        *,
        vgg: Path | None = None,
        initialise: Collection[str] | None = None,
    ) -> None:
        super().__init__(networks, initialise)
        self.config = config
        self.adversarial = AdversarialLoss(config.adversarial)
        betas = (config.beta1, config.beta2)
        for name, network in networks.items():
            if name in self.fresh:
                fill_weights(network, _he_normal, lambda bias: nn.init.normal_(bias, 1e-4, 1.0))
            self.optimizers[name] = Adam(network.parameters(), config.learning_rate, betas)

    def phases(self, iteration: int) -> Sequence[Phase]:
        leftover = ("discriminator",) if self.config.keep_leftover else ()
        return (
            Phase(("discriminator",), self.discriminator_loss),
            Phase(("generator",), self.generator_loss, leftover),
        )

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        rate = self.config.learning_rate * self.config.decay ** max(0, epoch - 1)
        return {"generator": rate, "discriminator": rate * self.config.discriminator_rate}

    def predict(self, batch: Batch) -> Tensor:
        if "prediction" not in batch:
            batch["prediction"] = self.networks["generator"](batch["image"], 1 - batch["known"])
        return batch["prediction"]

    def discriminator_loss(self, batch: Batch) -> Terms:
        discriminator = self.networks["discriminator"]
        prediction = self.predict(batch).detach()
        real = self.adversarial.real(discriminator(batch["image"])[0])
        fake = self.adversarial.fake(discriminator(prediction)[0])
        return {"discriminator": (real + fake) / 2}

    def generator_loss(self, batch: Batch) -> Terms:
        image, hole = batch["image"], 1 - batch["known"]
        prediction = self.predict(batch)
        score, _ = self.networks["discriminator"](prediction)
        merged = composite(image, batch["known"], prediction)
        return {
            "l1": self.config.l1_weight * l1_in_holes(image, merged, hole),
            "adversarial": self.config.adversarial_weight * self.adversarial.generator(score),
        }

    def samples(self, batch: Batch) -> list[Tensor]:
        image, known = batch["image"], batch["known"]
        prediction = self.networks["generator"](image, 1 - known)
        return [image, image * known, prediction, composite(image, known, prediction)]


def _he_normal(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight)
    with torch.no_grad():
        weight.mul_(0.1)
