"""Losses and optimisers of both stages, which are trained apart from each other."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from ..blocks import initialise as fill_weights
from ..discriminators import halves
from ..losses import AdversarialLoss, feature_matching, perceptual
from ..recipe import AdversarialRecipe, Batch, Terms
from ..vgg import SYNTHESIS_TAPS, VGGFeatures
from . import losses
from .inputs import (
    Guidance,
    composed_mask,
    face_mask,
    guidance,
    inpainting_input,
    one_hot,
    parsing_input,
)
from .labels import coloured
from .networks import Config


def guidance_of(batch: Batch) -> Guidance:
    """What is drawn in the holes of a batch."""
    return guidance(*(batch[name] for name in ("hole", "sketch", "colours", "strokes", "noise")))


class _Stage(AdversarialRecipe):
    """A generator's step, then its discriminator's on a fresh fake; Adam with two rates.

    The discriminator sees what the generator sees, beside what it makes.

    Attributes:
        generator, discriminator: names of the networks.
    """

    first = "generator"
    fresh_fakes = True
    generator: str
    discriminator: str

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        self.adversarial = AdversarialLoss("hinge")
        given = config.schedule
        trained = {"generator": self.generator, "discriminator": self.discriminator}
        for optimizer, name in trained.items():
            if name in self.fresh:
                fill_weights(networks[name], lambda weight: nn.init.xavier_normal_(weight, 0.02))
            self.optimizers[optimizer] = Adam(
                networks[name].parameters(), given.rate, (given.beta1, given.beta2)
            )

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        given = self.config.schedule
        return {"generator": given.rate, "discriminator": given.discriminator_rate}

    def seen(self, batch: Batch) -> Tensor:
        """What the generator sees."""
        raise NotImplementedError

    def real(self, batch: Batch) -> Tensor:
        """What it should make."""
        raise NotImplementedError

    def fakes(self, batch: Batch) -> Tensor:
        return self.networks[self.generator](self.seen(batch))

    def _scores(self, fake: Tensor, batch: Batch) -> tuple[list, list]:
        """The discriminator's outputs for fakes and for what is real, from one pass."""
        condition = self.seen(batch).to(fake).repeat(2, 1, 1, 1)
        made = torch.cat((fake, self.real(batch).to(fake)))
        return halves(self.networks[self.discriminator](torch.cat((condition, made), dim=1)))

    def discriminator_loss(self, batch: Batch, fakes: Tensor) -> Terms:
        of_fake, of_real = self._scores(fakes, batch)
        return {
            "discriminator_fake": self.adversarial.fake([scale[-1] for scale in of_fake]),
            "discriminator_real": self.adversarial.real([scale[-1] for scale in of_real]),
        }


class ParsingCompletion(_Stage):
    """Stage one: the parsing, of which a hole is erased, from what is drawn in the hole.

    Args:
        networks: "parsing" and "parsing_discriminator".
        config: its options.
        initialise: names of the networks whose weights are filled as published: Xavier-normal times
            0.02, biases 0.
    """

    averaged = ("parsing",)
    generator, discriminator = "parsing", "parsing_discriminator"

    def seen(self, batch: Batch) -> Tensor:
        return parsing_input(batch["labels"], guidance_of(batch), self.config.network.classes)

    def real(self, batch: Batch) -> Tensor:
        return one_hot(batch["labels"], self.config.network.classes, batch["noise"])

    def generator_loss(self, batch: Batch, fakes: Tensor) -> Terms:
        given = self.config.loss
        of_fake, of_real = self._scores(fakes, batch)
        return {
            "adversarial": self.adversarial.generator([scale[-1] for scale in of_fake]),
            "matching": given.matching_weight * feature_matching(of_fake, of_real),
            "l1": given.l1_weight * F.l1_loss(fakes, self.real(batch).to(fakes)),
            # Of values behind a tanh, as published: it stays above 1.27 with 20 classes.
            "cross_entropy": given.ce_weight * F.cross_entropy(fakes, batch["labels"][:, 0]),
        }

    def samples(self, batch: Batch) -> list[Tensor]:
        made = self.fakes(batch).argmax(dim=1, keepdim=True)
        rows = (batch["labels"], batch["labels"] * (batch["hole"] == 0), made)
        return [batch["image"], *(coloured(labels) for labels in rows)]


class Inpainting(_Stage):
    """Stage two: the photo in the hole, from the true parsing and what is drawn.

    Args:
        networks: "generator", "discriminator" and "parsing", which stays as it is: sheets of
            samples and edits with the run's files need it.
        config: its options.
        pretrained: "vgg19"; see `vgg.VGGFeatures.load`. It sees images in [-1,1] as they are, and
            is not needed where its losses have the weight 0.
        initialise: as for `ParsingCompletion`.
    """

    averaged = ("generator",)
    generator, discriminator = "generator", "discriminator"

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        given = config.loss
        self.vgg = None
        if given.vgg_weight or given.style_weight:
            taps = sorted({*SYNTHESIS_TAPS, *losses.STYLE_TAPS})
            self.vgg = VGGFeatures(19, taps).load(self.pretrained.get("vgg19"))
        self.train()

    def train(self, mode: bool = True) -> "Inpainting":
        super().train(mode)
        self.networks["parsing"].eval()
        return self

    def seen(self, batch: Batch) -> Tensor:
        classes = self.config.network.classes
        return inpainting_input(batch["labels"], batch["image"], guidance_of(batch), classes)

    def real(self, batch: Batch) -> Tensor:
        return batch["image"] * 2 - 1

    def generator_loss(self, batch: Batch, fakes: Tensor) -> Terms:
        given = self.config.loss
        real, hole = self.real(batch), batch["hole"]
        face = face_mask(batch["labels"], self.config.network.face, real)
        known_person = composed_mask(batch["labels"], hole)
        of_fake, _ = self._scores(fakes, batch)
        score = self.adversarial.generator([scale[-1] for scale in of_fake])
        terms = {
            "mask": given.mask_weight * losses.l1_inside(fakes, real, hole),
            "foreground": given.foreground_weight * losses.l1_inside(fakes, real, known_person),
            "face": given.face_weight * losses.l1_inside(fakes, real, face),
            "variation": given.variation_weight * losses.face_variation(fakes, real, face, hole),
            "adversarial": given.adversarial_weight * score,
        }
        if given.vgg_weight:
            compared = self._features(fakes, real)
            terms["vgg"] = given.vgg_weight * perceptual(*compared, SYNTHESIS_TAPS)
        if given.style_weight:
            compared = self._features(fakes * hole, real * hole)
            terms["style"] = given.style_weight * losses.style_loss(*compared)
        return terms

    def _features(self, fake: Tensor, real: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with torch.no_grad():
            wanted = self.vgg(real)
        return self.vgg(fake), wanted

    def samples(self, batch: Batch) -> list[Tensor]:
        """With the true parsing, and as an edit makes it: with that of stage one."""
        drawn, hole, classes = guidance_of(batch), batch["hole"], self.config.network.classes
        parsing = self.networks["parsing"](parsing_input(batch["labels"], drawn, classes))
        made = {**batch, "labels": parsing.argmax(dim=1, keepdim=True)}
        pictures = [(self.fakes(given) + 1) / 2 for given in (batch, made)]
        pictures = [torch.where(hole > 0, picture, batch["image"]) for picture in pictures]
        known = torch.where(hole > 0, (drawn.colour + 1) / 2, batch["image"])
        known = torch.where(drawn.sketch > 0, 1.0, known)
        return [batch["image"], known, coloured(made["labels"]), *pictures]
