"""Both stages of the training."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from ..blocks import initialise as fill_weights
from ..checks import check_images, check_mask
from ..data import MaskedImages, Preparation
from ..discriminators import halves
from ..losses import (
    AdversarialLoss,
    feature_matching,
    perceptual,
    style,
    total_variation_in_holes,
)
from ..masks import MaskSource
from ..pictures import composite
from ..training import Batch, Phase, Recipe, Terms
from ..vgg import VGGFeatures
from .first_stage import PartialConv, restore
from .networks import Config

PERCEPTUAL_TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")  # stage 2
PRIOR_TAPS = (*PERCEPTUAL_TAPS, "relu5_1")  # stage 1
STYLE_TAPS = ("relu2_2", "relu3_3", "relu4_3")
DIVERSITY_TAP = "relu4_1"


def dataset(images: Path, masks: MaskSource, config: Config, *, seed: int = 0) -> MaskedImages:
    """Squares from the middle, masks mirrored at random; in stage 2 noise for two fills."""
    preparation = Preparation(config.size, fit="square", flip_mask="apart")
    noise = (2, config.noise) if config.stage == 2 else ()
    return MaskedImages(images, masks, preparation, noise=noise, seed=seed)


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


class PDGAN(Recipe):
    """The published training of one stage. VGG sees images in [-1,1] as they are.

    Args:
        networks: "encoder" and "decoder"; in stage 2, which trains them no further, "generator"
            and "discriminator" too.
        config: its options.
        vgg: torchvision's weights of VGG-16; see `vgg.VGGFeatures.load`.
        initialise: names of the networks which, if this stage trains them, are filled as the
            published script does: normal with deviation 0.02, biases 0.
    """

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
        if config.stage == 1:
            trained, betas = ("encoder", "decoder"), (0.0, 0.999)
            self.averaged = trained
            self.vgg = VGGFeatures(16, (*PRIOR_TAPS, *STYLE_TAPS))
        else:
            trained, betas = ("generator", "discriminator"), (0.0, 0.9)
            self.averaged = ("generator",)
            self.vgg = VGGFeatures(16, PERCEPTUAL_TAPS)
        self.vgg.load(vgg)
        for name in trained:
            if name in self.fresh:
                fill_weights(networks[name], lambda weight: nn.init.normal_(weight, 0, 0.02))
            learning = [p for p in networks[name].parameters() if p.requires_grad]
            self.optimizers[name] = Adam(learning, config.rate_1, betas)
        if "encoder" in self.fresh and config.stage == 1 and config.random_mask_kernels:
            for module in networks["encoder"].modules():
                if isinstance(module, PartialConv):
                    nn.init.normal_(module.mask_conv.weight, 0, 0.02)
                    module.refresh()

    def phases(self, iteration: int) -> Sequence[Phase]:
        if self.config.stage == 1:
            return (Phase(("encoder", "decoder"), self.prior_loss),)
        return (
            Phase(("discriminator",), self.discriminator_loss),
            Phase(("generator",), self.generator_loss),
        )

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        if self.config.stage == 1:
            rate = self.config.rate_1 * max(0.0, 1 - max(0, epoch + 2 - 20) / 101)
            return {"encoder": rate, "decoder": rate}
        rate = self.config.rate_2 * max(0.0, 1 - max(0, epoch + 1 - 21) / 100)
        return {"generator": rate / 2, "discriminator": rate * 2}

    # --- stage 1 ------------------------------------------------------------------------------

    def prior_loss(self, batch: Batch) -> Terms:
        config, known = self.config, batch["known"]
        image = batch["image"] * 2 - 1
        output = self.prior(image, known)
        merged = composite(image, known, output)
        with torch.no_grad():
            wanted = self.vgg(image)
        ours, of_merged = self.vgg(output), self.vgg(merged)
        weights = dict.fromkeys(PRIOR_TAPS, 1.0)
        hole = 1 - known
        return {
            "hole": config.l1_hole_weight * F.l1_loss(output * hole, image * hole),
            "known": config.l1_known_weight * F.l1_loss(output * known, image * known),
            "perceptual": config.prior_perceptual_weight
            * (perceptual(ours, wanted, weights) + perceptual(of_merged, wanted, weights)),
            "style": config.style_weight * style(ours, wanted, STYLE_TAPS),
            "variation": self._variation(merged, known),
        }

    def prior(self, image: Tensor, known: Tensor) -> Tensor:
        return restore(self.networks["encoder"], self.networks["decoder"], image, known)

    def _variation(self, merged: Tensor, known: Tensor) -> Tensor:
        loss = total_variation_in_holes(merged, known, rows=self.config.variation_rows)
        return self.config.variation_weight * loss

    # --- stage 2 ------------------------------------------------------------------------------

    def fakes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Two fills of each image, from one prior, in one forward."""
        if "fakes" not in batch:
            with torch.no_grad():
                prior = self.prior(batch["image"] * 2 - 1, batch["known"])
            generator = self.networks["generator"]
            conditions = generator.conditions(prior, batch["known"])
            noise = torch.cat((batch["noise"][:, 0], batch["noise"][:, 1]))
            both = generator(noise, conditions=[given.repeated(2) for given in conditions])
            batch["fakes"] = both.chunk(2)
        return batch["fakes"]

    def _scores(self, fake: Tensor, batch: Batch) -> tuple[list, list]:
        """The discriminator's outputs for fakes and for the images, from one pass."""
        real = batch["image"] * 2 - 1
        hole = (1 - batch["known"]).expand(-1, 3, -1, -1)
        inputs = torch.cat((torch.cat((hole, fake), 1), torch.cat((hole, real.to(fake)), 1)))
        return halves(self.networks["discriminator"](inputs))

    def discriminator_loss(self, batch: Batch) -> Terms:
        terms: list[Tensor] = []
        for fake in self.fakes(batch):
            of_fake, of_real = self._scores(fake.detach(), batch)
            terms.append(self.adversarial.fake([scale[-1] for scale in of_fake]))
            terms.append(self.adversarial.real([scale[-1] for scale in of_real]))
        return {"discriminator": sum(terms)}

    def generator_loss(self, batch: Batch) -> Terms:
        config, known = self.config, batch["known"]
        image = batch["image"] * 2 - 1
        with torch.no_grad():
            wanted = self.vgg(image)
        fakes = self.fakes(batch)
        adversarial, matching, features, variation = [], [], [], []
        for fake in fakes:
            of_fake, of_real = self._scores(fake, batch)
            adversarial.append(self.adversarial.generator([scale[-1] for scale in of_fake]))
            matching.append(feature_matching(of_fake, of_real))
            features.append(perceptual(self.vgg(fake), wanted))
            variation.append(self._variation(composite(image, known, fake), known))
        distance = diversity(self.vgg, *fakes, 1 - known)
        return {
            "adversarial": sum(adversarial),
            "matching": config.matching_weight * sum(matching),
            "perceptual": config.perceptual_weight * sum(features),
            "variation": sum(variation),
            "diversity": config.diversity_weight * diversity_loss(distance),
        }

    def samples(self, batch: Batch) -> list[Tensor]:
        image, known = batch["image"], batch["known"]
        prior = (self.prior(image * 2 - 1, known) + 1) / 2
        rows = [image, image * known, prior]
        if self.config.stage == 2:
            fills = [(fake + 1) / 2 for fake in self.fakes(batch)]
            rows += [composite(image, known, fill) for fill in fills]
        return rows
