"""Losses and optimisers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from ..blocks import initialise as fill_weights
from ..discriminators import halves
from ..losses import AdversarialLoss, feature_matching, kl_divergence, perceptual
from ..recipe import AdversarialRecipe, Batch, Terms
from ..schedules import constant_then_linear
from ..vgg import SYNTHESIS_TAPS, VGGFeatures
from .labels import one_hot
from .networks import Config


class DualAttention(AdversarialRecipe):
    """The published training: the generator's step, then the discriminator's on a fresh fake.

    Args:
        networks: "generator", "discriminator" and, with the option vae, "encoder", which is
            trained with the generator.
        config: its options.
        pretrained: "vgg19"; see `vgg.VGGFeatures.load`. It sees images in [-1,1] as they are, and
            is not needed where its loss has the weight 0.
        initialise: names of the networks whose weights are filled as the published script does:
            Xavier-normal times 0.02, biases 0.
    """

    first = "generator"
    fresh_fakes = True
    averaged = ("generator",)

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        self.adversarial = AdversarialLoss(config.loss.adversarial)
        self.vgg = None
        if config.loss.vgg_weight:
            self.vgg = VGGFeatures(19, SYNTHESIS_TAPS).load(self.pretrained.get("vgg19"))
        for name, network in networks.items():
            if name in self.fresh:
                fill_weights(network, lambda weight: nn.init.xavier_normal_(weight, 0.02))
        given = config.schedule
        learning = {
            "generator": [n for name, n in networks.items() if name != "discriminator"],
            "discriminator": [networks["discriminator"]],
        }
        for name, trained in learning.items():
            parameters = [p for network in trained for p in network.parameters()]
            self.optimizers[name] = Adam(parameters, given.rate, (given.beta1, given.beta2))

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        given = self.config.schedule
        fall = constant_then_linear(epoch, given.constant_epochs, given.decay_epochs)
        return {"generator": given.rate / 2 * fall, "discriminator": given.rate * 2 * fall}

    def _condition(self, batch: Batch) -> Tensor:
        """As the discriminator sees the label map."""
        return one_hot(batch["labels"], self.config.network, batch.get("instances"))

    def fakes(self, batch: Batch) -> Any:
        """Photos in (-1,1); with an image encoder also the codes' means and log-variances."""
        # Classes are looked up, which is faster; edges have to be channels.
        labels = self._condition(batch) if self.config.network.instances else batch["labels"]
        generator = self.networks["generator"]
        if not self.config.network.vae:
            return generator(labels)
        mean, log_variance = self.networks["encoder"](batch["image"] * 2 - 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return generator(labels, z), mean, log_variance

    def _scores(self, fake: Tensor, batch: Batch) -> tuple[list, list]:
        """The discriminator's outputs for fakes and for photos, from one pass."""
        condition, real = self._condition(batch).to(fake), batch["image"] * 2 - 1
        images = torch.cat((fake, real.to(fake)))
        return halves(
            self.networks["discriminator"](torch.cat((condition.repeat(2, 1, 1, 1), images), dim=1))
        )

    def generator_loss(self, batch: Batch, fakes: Any) -> Terms:
        given = self.config.loss
        fake, *code = fakes if isinstance(fakes, tuple) else (fakes,)
        of_fake, of_real = self._scores(fake, batch)
        terms = {
            "adversarial": self.adversarial.generator([scale[-1] for scale in of_fake]),
            "matching": given.matching_weight * feature_matching(of_fake, of_real),
        }
        if self.vgg is not None:
            with torch.no_grad():
                wanted = self.vgg(batch["image"] * 2 - 1)
            terms["vgg"] = given.vgg_weight * perceptual(self.vgg(fake), wanted, SYNTHESIS_TAPS)
        if code:
            terms["kld"] = given.kld_weight * kl_divergence(*code)
        return terms

    def discriminator_loss(self, batch: Batch, fakes: Any) -> Terms:
        fake = fakes[0] if isinstance(fakes, tuple) else fakes
        of_fake, of_real = self._scores(fake, batch)
        return {
            "discriminator_fake": self.adversarial.fake([scale[-1] for scale in of_fake]),
            "discriminator_real": self.adversarial.real([scale[-1] for scale in of_real]),
        }

    def samples(self, batch: Batch) -> list[Tensor]:
        fakes = self.fakes(batch)
        fake = fakes[0] if isinstance(fakes, tuple) else fakes
        # Any colours that differ.
        shown = torch.cat([batch["labels"] * k % 256 for k in (67, 151, 211)], dim=1) / 255
        return [shown, batch["image"], (fake + 1) / 2]
