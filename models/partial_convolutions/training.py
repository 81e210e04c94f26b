"""Both phases of the U-Net's training."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam

from .. import inpainting
from ..data import MaskedImages
from ..geometry import Preparation
from ..paper import Stage
from ..pictures import composite
from ..recipe import Batch, Passed, Phase, Recipe, Terms
from ..vgg import VGGFeatures, imagenet_normalised, imagenet_restored
from .losses import TAPS, InpaintingLoss
from .networks import Config


def dataset(options: argparse.Namespace, config: Config, stage: Stage) -> MaskedImages:
    """Images scaled to the size without regard to their aspect."""
    flip = config.schedule.flip
    preparation = Preparation(config.network.size, fit="stretch", flip=flip, flip_mask="never")
    return inpainting.dataset(options, preparation)


class PartialConvolutions(Recipe):
    """The published training: five terms, Adam, and a second phase with frozen statistics.

    Args:
        networks: "generator".
        config: its options.
        pretrained: "vgg16"; see `vgg.VGGFeatures.load`. Not needed where its terms have weight 0.
        initialise: has no effect: the layers are built with the published weights (He-normal).
    """

    averaged = ("generator",)

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        vgg = None
        if config.loss.perceptual_weight or config.loss.style_weight:
            vgg = VGGFeatures(16, TAPS).load(self.pretrained.get("vgg16"))
        self.loss = InpaintingLoss(vgg, variation=config.loss.variation)
        self.weights = {
            "valid": config.loss.valid_weight,
            "hole": config.loss.hole_weight,
            "prc": config.loss.perceptual_weight,
            "style": config.loss.style_weight,
            "tv": config.loss.variation_weight,
        }
        learning = [p for p in networks["generator"].parameters() if p.requires_grad]
        self.optimizers["generator"] = Adam(learning, config.schedule.learning_rate)

    def _finetunes(self, iteration: int) -> bool:
        return (
            self.config.schedule.finetune_at is not None
            and iteration >= self.config.schedule.finetune_at
        )

    def phases(self, iteration: int) -> Sequence[Phase]:
        generator = self.networks["generator"]
        if self._finetunes(iteration) != generator.freeze_enc_bn:
            generator.freeze_enc_bn = self._finetunes(iteration)
            generator.train()
        return (Phase(("generator",), self.generator_loss),)

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        config = self.config
        finetunes = self._finetunes(iteration)
        return {
            "generator": config.schedule.finetuning_rate
            if finetunes
            else config.schedule.learning_rate
        }

    def generator_loss(self, batch: Batch, passed: Passed) -> Terms:
        image, known = imagenet_normalised(batch["image"]), batch["known"]
        masked = image * known
        output, _ = self.networks["generator"](masked, known)
        terms = self.loss(masked, known, output, image)
        return {name: self.weights[name] * term for name, term in terms.items()}

    def samples(self, batch: Batch) -> list[Tensor]:
        image, known = batch["image"], batch["known"]
        masked = imagenet_normalised(image) * known
        output = imagenet_restored(self.networks["generator"](masked, known)[0])
        return [image, image * known, output, composite(image, known, output)]
