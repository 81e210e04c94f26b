"""Both stages of the training."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from .. import inpainting
from ..blocks import initialise as fill_weights
from ..checks import check_images, check_mask
from ..data import MaskedImages
from ..discriminators import halves
from ..geometry import Preparation
from ..losses import (
    AdversarialLoss,
    feature_matching,
    perceptual,
    style,
    total_variation_in_holes,
)
from ..paper import Stage
from ..pictures import composite
from ..recipe import AdversarialRecipe, Batch, Passed, Phase, Recipe, Terms
from ..schedules import constant_then_linear
from ..vgg import VGGFeatures
from .first_stage import PartialConv, restore
from .networks import Config

PERCEPTUAL_TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")  # stage 2
PRIOR_TAPS = (*PERCEPTUAL_TAPS, "relu5_1")  # stage 1
STYLE_TAPS = ("relu2_2", "relu3_3", "relu4_3")
DIVERSITY_TAP = "relu4_1"


def dataset(options: argparse.Namespace, config: Config, stage: Stage) -> MaskedImages:
    """Squares from the middle, masks mirrored at random; in stage 2 noise for two fills."""
    preparation = Preparation(config.network.size, fit="square", flip_mask="apart")
    noise = (2, config.network.noise) if "generator" in stage.trains else ()
    return inpainting.dataset(options, preparation, noise=noise)


def diversity(vgg: VGGFeatures, a: Tensor, b: Tensor, hole: Tensor) -> Tensor:
    """How far two fills are apart: L1 of features of the holes alone. Mask: 1 hole.

    Raises:
        TypeError, ValueError: a fill or the mask does not fit.
    """
    check_images("a", a, 3)
    check_mask("hole", hole, a, (1, 3))
    features = [vgg(fill * hole)[DIVERSITY_TAP] for fill in (a, b)]
    return F.l1_loss(*features)


def diversity_loss(distance: Tensor) -> Tensor:
    return 1 / (distance + 1e-5)


class _Stage(Recipe):
    """What both stages share. VGG sees images in [-1,1] as they are.

    Args:
        networks: of the stage.
        config: its options.
        pretrained: "vgg16"; see `vgg.VGGFeatures.load`. Not needed where the weights of the stage's
            terms of it are 0.
        initialise: names of the networks which, if this stage trains them, are filled as the
            published script does: normal with deviation 0.02, biases 0.
    """

    taps: tuple[str, ...]
    weights: tuple[str, ...]  # of the terms that see features of VGG
    trains: tuple[str, ...]
    betas: tuple[float, float]

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        self.vgg = None
        if any(getattr(config.loss, weight) for weight in self.weights):
            self.vgg = VGGFeatures(16, self.taps).load(self.pretrained.get("vgg16"))
        for name in self.trains:
            if name in self.fresh:
                fill_weights(networks[name], lambda weight: nn.init.normal_(weight, 0, 0.02))
            learning = [p for p in networks[name].parameters() if p.requires_grad]
            self.optimizers[name] = Adam(learning, config.schedule.rate_1, self.betas)

    def prior(self, image: Tensor, known: Tensor) -> Tensor:
        return restore(self.networks["encoder"], self.networks["decoder"], image, known)

    def _variation(self, merged: Tensor, known: Tensor) -> Tensor:
        given = self.config.loss
        loss = total_variation_in_holes(merged, known, rows=given.variation_rows)
        return given.variation_weight * loss


class FirstStage(_Stage):
    """The published training of encoder and decoder: a single fill, the prior."""

    taps = (*PRIOR_TAPS, *STYLE_TAPS)
    weights = ("prior_perceptual_weight", "style_weight")
    trains = averaged = ("encoder", "decoder")
    betas = (0.0, 0.999)

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        if "encoder" in self.fresh and config.network.random_mask_kernels:
            for module in networks["encoder"].modules():
                if isinstance(module, PartialConv):
                    nn.init.normal_(module.mask_conv.weight, 0, 0.02)
                    module.refresh()

    def phases(self, iteration: int) -> Sequence[Phase]:
        return (Phase(("encoder", "decoder"), self.prior_loss),)

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        rate = self.config.schedule.rate_1 * constant_then_linear(epoch, 18, 101)
        return {"encoder": rate, "decoder": rate}

    def prior_loss(self, batch: Batch, passed: Passed) -> Terms:
        given, known = self.config.loss, batch["known"]
        image = batch["image"] * 2 - 1
        output = self.prior(image, known)
        merged = composite(image, known, output)
        hole = 1 - known
        terms = {
            "hole": given.l1_hole_weight * F.l1_loss(output * hole, image * hole),
            "known": given.l1_known_weight * F.l1_loss(output * known, image * known),
            "variation": self._variation(merged, known),
        }
        if self.vgg is not None:
            with torch.no_grad():
                wanted = self.vgg(image)
            ours, of_merged = self.vgg(output), self.vgg(merged)
            weights = dict.fromkeys(PRIOR_TAPS, 1.0)
            both = perceptual(ours, wanted, weights) + perceptual(of_merged, wanted, weights)
            terms["perceptual"] = given.prior_perceptual_weight * both
            terms["style"] = given.style_weight * style(ours, wanted, STYLE_TAPS)
        return terms

    def samples(self, batch: Batch) -> list[Tensor]:
        image, known = batch["image"], batch["known"]
        return [image, image * known, (self.prior(image * 2 - 1, known) + 1) / 2]


class SecondStage(AdversarialRecipe, _Stage):
    """The published training of the generator, from the prior of a frozen first stage."""

    taps = PERCEPTUAL_TAPS
    weights = ("perceptual_weight", "diversity_weight")
    trains = ("generator", "discriminator")
    averaged = ("generator",)
    betas = (0.0, 0.9)

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        self.adversarial = AdversarialLoss(config.loss.adversarial)

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        rate = self.config.schedule.rate_2 * constant_then_linear(epoch, 20, 100)
        return {"generator": rate / 2, "discriminator": rate * 2}

    def fakes(self, batch: Batch) -> tuple[Tensor, ...]:
        """Two fills of each image, from one prior, in one forward."""
        with torch.no_grad():
            prior = self.prior(batch["image"] * 2 - 1, batch["known"])
        generator = self.networks["generator"]
        conditions = generator.conditions(prior, batch["known"])
        noise = torch.cat((batch["noise"][:, 0], batch["noise"][:, 1]))
        both = generator(noise, conditions=[given.repeated(2) for given in conditions])
        return both.chunk(2)

    def _scores(self, fake: Tensor, batch: Batch) -> tuple[list, list]:
        """The discriminator's outputs for fakes and for the images, from one pass."""
        real = batch["image"] * 2 - 1
        hole = (1 - batch["known"]).expand(-1, 3, -1, -1)
        inputs = torch.cat((torch.cat((hole, fake), 1), torch.cat((hole, real.to(fake)), 1)))
        return halves(self.networks["discriminator"](inputs))

    def discriminator_loss(self, batch: Batch, fakes: tuple[Tensor, ...]) -> Terms:
        terms: list[Tensor] = []
        for fake in fakes:
            of_fake, of_real = self._scores(fake, batch)
            terms.append(self.adversarial.fake([scale[-1] for scale in of_fake]))
            terms.append(self.adversarial.real([scale[-1] for scale in of_real]))
        return {"discriminator": sum(terms)}

    def generator_loss(self, batch: Batch, fakes: tuple[Tensor, ...]) -> Terms:
        given, known = self.config.loss, batch["known"]
        image = batch["image"] * 2 - 1
        adversarial, matching, variation = [], [], []
        for fake in fakes:
            of_fake, of_real = self._scores(fake, batch)
            adversarial.append(self.adversarial.generator([scale[-1] for scale in of_fake]))
            matching.append(feature_matching(of_fake, of_real))
            variation.append(self._variation(composite(image, known, fake), known))
        terms = {
            "adversarial": sum(adversarial),
            "matching": given.matching_weight * sum(matching),
            "variation": sum(variation),
        }
        if self.vgg is not None:
            with torch.no_grad():
                wanted = self.vgg(image)
            features = sum(perceptual(self.vgg(fake), wanted) for fake in fakes)
            distance = diversity(self.vgg, *fakes, 1 - known)
            terms["perceptual"] = given.perceptual_weight * features
            terms["diversity"] = given.diversity_weight * diversity_loss(distance)
        return terms

    def samples(self, batch: Batch) -> list[Tensor]:
        image, known = batch["image"], batch["known"]
        prior = (self.prior(image * 2 - 1, known) + 1) / 2
        fills = [(fake + 1) / 2 for fake in self.fakes(batch)]
        return [image, image * known, prior, *(composite(image, known, fill) for fill in fills)]
