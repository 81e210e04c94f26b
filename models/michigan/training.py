"""Losses and optimisers of the generator, and of the networks that fill orientations."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from torchext.nn import OrientationLoss

from ..blocks import initialise as fill_weights
from ..discriminators import halves
from ..losses import AdversarialLoss, colour_difference, feature_matching, perceptual
from ..recipe import AdversarialRecipe, Batch, Passed, Phase, Recipe, Terms
from ..schedules import constant_then_linear
from ..vgg import SYNTHESIS_TAPS, VGGFeatures
from . import losses
from .hair import complete_orientation
from .inpainting import fill_orientation, fill_strokes, two_channel
from .networks import Config


def _fill(network: nn.Module) -> None:
    fill_weights(network, lambda weight: nn.init.xavier_normal_(weight, 0.02))


def _rates(config: Config, epoch: int) -> tuple[float, float]:
    """Of a generator and of its discriminator."""
    given = config.schedule
    rate = given.rate * constant_then_linear(epoch, given.constant_epochs, given.decay_epochs)
    return rate / 2, rate * 2


def _adam(network: nn.Module, config: Config) -> Adam:
    given = config.schedule
    return Adam(network.parameters(), given.rate, (given.beta1, given.beta2))


class Michigan(AdversarialRecipe):
    """The published training: every photo is made again from its own conditions.

    Args:
        networks: "generator" and "discriminator"; with the option inpainting also "orientation",
            which stays as it is, and "strokes", which the run's files hold for edits.
        config: its options.
        pretrained: "vgg19"; see `vgg.VGGFeatures.load`. It sees images in [-1,1] as they are, and
            is not needed where its losses have the weight 0.
        initialise: names of the networks whose weights are filled as the published script does:
            Xavier-normal times 0.02, biases 0.
    """

    first = "generator"
    fresh_fakes = True
    averaged = ("generator",)

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        for name in ("generator", "discriminator"):
            if name in self.fresh:
                _fill(networks[name])
            self.optimizers[name] = _adam(networks[name], config)
        given = config.loss
        self.hinge = losses.HairHinge(given.edge, given.hair_only)
        self.orientation_loss = OrientationLoss(given.bank)
        self.vgg = None
        if given.vgg_weight or given.content_weight or given.style_weight:
            self.vgg = VGGFeatures(19, SYNTHESIS_TAPS).load(self.pretrained.get("vgg19"))
        self.train()

    def train(self, mode: bool = True) -> "Michigan":
        super().train(mode)
        for name in self.networks.keys() - self.optimizers.keys():
            self.networks[name].eval()
        return self

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        return dict(zip(("generator", "discriminator"), _rates(self.config, epoch), strict=True))

    def orientation(self, batch: Batch) -> Tensor:
        """(N,2,H,W): sine and cosine in the hair, its holes filled."""
        shape, rgb = batch["shape"], batch["rgb"]
        if self.config.network.inpainting:
            with torch.no_grad():
                rgb = complete_orientation(
                    rgb,
                    batch["hair"] * (1 - batch["hole"]),
                    shape,
                    batch["noise"],
                    self.networks["orientation"],
                    size=self.config.network.inpainting_size,
                )
        return two_channel(rgb, shape)

    def fakes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Photos in (-1,1), and the orientations that they were made of."""
        orientation, image = self.orientation(batch), batch["image"] * 2 - 1
        fake = self.networks["generator"](
            image, batch["hair"], image, batch["shape"], orientation, batch["noise"]
        )
        return fake, orientation

    def _scores(self, batch: Batch, fake: Tensor, orientation: Tensor) -> tuple[list, list]:
        """The discriminator's outputs for fakes and for photos, from one pass."""
        shape, real = batch["shape"].to(fake), (batch["image"] * 2 - 1).to(fake)
        condition = torch.cat((1 - shape, shape, orientation.to(fake)), dim=1)
        images = torch.cat((fake, real))
        return halves(
            self.networks["discriminator"](torch.cat((condition.repeat(2, 1, 1, 1), images), dim=1))
        )

    def generator_loss(self, batch: Batch, fakes: Any) -> Terms:
        given = self.config.loss
        fake, orientation = fakes
        hair, real = batch["hair"], batch["image"] * 2 - 1
        of_fake, of_real = self._scores(batch, fake, orientation)
        if given.hair_only:
            matching = losses.matching_inside(of_fake, of_real, hair)
        else:
            matching = feature_matching(of_fake, of_real)
        along, confidence = self.orientation_loss(fake, orientation, batch["shape"])
        terms = {
            "adversarial": self.hinge.generator([scale[-1] for scale in of_fake], hair),
            "matching": given.matching_weight * matching,
            "lab": given.lab_weight * colour_difference(fake, real),
            "orientation": given.orientation_weight * along,
            "confidence": given.confidence_weight * confidence,
            "background": given.background_weight * losses.background(fake, real, hair),
            "rgb": given.rgb_weight * F.l1_loss(fake, real),
            "average": given.average_weight * losses.average_colour(fake, real, hair, hair),
        }
        off = ("confidence", "background", "rgb", "average")
        terms = {k: v for k, v in terms.items() if k not in off or getattr(given, f"{k}_weight")}
        if self.vgg is not None:
            terms |= self._feature_losses(fake, real, hair)
        return terms

    def _feature_losses(self, fake: Tensor, real: Tensor, hair: Tensor) -> Terms:
        given = self.config.loss
        ours = self.vgg(fake)
        with torch.no_grad():
            wanted = self.vgg(real)
        last = self.vgg.taps[-1]
        inside = hair if given.hair_only else None
        terms = {}
        if given.vgg_weight:
            compared = (ours, wanted, SYNTHESIS_TAPS)
            distance = (
                perceptual(*compared)
                if inside is None
                else losses.perceptual_inside(*compared, inside)
            )
            terms["vgg"] = given.vgg_weight * distance
        if given.content_weight:
            terms["content"] = given.content_weight * losses.content(
                ours[last], wanted[last], inside
            )
        if given.style_weight:
            terms["style"] = given.style_weight * losses.style(ours, wanted, inside, inside)
        return terms

    def discriminator_loss(self, batch: Batch, fakes: Any) -> Terms:
        of_fake, of_real = self._scores(batch, *fakes)
        hair = batch["hair"]
        return {
            "discriminator_fake": self.hinge.fake([scale[-1] for scale in of_fake], hair),
            "discriminator_real": self.hinge.real([scale[-1] for scale in of_real], hair),
        }

    def samples(self, batch: Batch) -> list[Tensor]:
        fake, _ = self.fakes(batch)
        return [batch["image"], batch["rgb"], (fake + 1) / 2]


class OrientationFilling(Recipe):
    """Trains the networks that fill holes of an orientation, each against a discriminator.

    By reconstruction and a GAN loss, as the authors describe it; their code and weights of the
    losses are not published, so that those here are ours.

    Args:
        networks: those in `trained`.
        config: its options.
        initialise: names of the networks whose weights are filled, as those of `Michigan`.
    """

    fillers = ("orientation", "strokes")
    trained = tuple(f"{name}{kind}" for name in fillers for kind in ("", "_discriminator"))
    averaged = fillers

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        self.adversarial = AdversarialLoss("hinge")
        for name, network in networks.items():
            if name in self.fresh:
                _fill(network)
            self.optimizers[name] = _adam(network, config)

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        rate, discriminators = _rates(self.config, epoch)
        return {n: rate if n in self.fillers else discriminators for n in self.optimizers}

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [
            phase
            for name in self.fillers
            for phase in (
                Phase((name,), partial(self._generator_phase, name)),
                Phase((f"{name}_discriminator",), partial(self._discriminator_phase, name)),
            )
        ]

    def _hole(self, name: str, batch: Batch) -> Tensor:
        return batch["hole" if name == "orientation" else "stroke_hole"]

    def filled(self, name: str, batch: Batch) -> Tensor:
        """(N,3,H,W): the orientation's colours, its holes filled by the network of this name."""
        network, size = self.networks[name], self.config.network.inpainting_size
        given = (self._hole(name, batch), batch["rgb"], batch["noise"])
        if name == "orientation":
            return fill_orientation(network, *given, size)
        return fill_strokes(network, *given, batch["stroke"], batch["stroke_rgb"], size)

    def _score(self, name: str, batch: Batch, rgb: Tensor) -> Tensor:
        """Of colours, beside which the discriminator sees the hole and any strokes."""
        seen = [rgb, self._hole(name, batch)]
        if name == "strokes":
            seen.append(batch["stroke"])
        seen = torch.cat([value.to(rgb) for value in seen], dim=1)
        return self.networks[f"{name}_discriminator"](seen)[-1]

    def _generator_phase(self, name: str, batch: Batch, passed: Passed) -> Terms:
        given = self.config.loss
        fake = passed.once(name, lambda: self.filled(name, batch))
        difference = (fake - batch["rgb"].to(fake)).abs()
        score = self._score(name, batch, fake)
        return {
            f"{name}_l1": given.inpainting_l1 * losses.inside(difference, self._hole(name, batch)),
            f"{name}_adversarial": given.inpainting_adversarial * self.adversarial.generator(score),
        }

    def _discriminator_phase(self, name: str, batch: Batch, passed: Passed) -> Terms:
        fake = passed.once(name, lambda: self.filled(name, batch)).detach()
        real = batch["rgb"].to(fake)
        return {
            f"{name}_fake": self.adversarial.fake(self._score(name, batch, fake)),
            f"{name}_real": self.adversarial.real(self._score(name, batch, real)),
        }

    def samples(self, batch: Batch) -> list[Tensor]:
        rows = [batch["rgb"]]
        for name in self.fillers:
            rows += [batch["rgb"] * (1 - self._hole(name, batch)), self.filled(name, batch)]
        return rows
