"""Both phases of the U-Net's training."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Adam

from ..data import MaskedImages, Preparation
from ..masks import MaskSource
from ..pictures import composite
from ..training import Batch, Phase, Recipe, Terms
from ..vgg import VGGFeatures, imagenet_normalised, imagenet_restored
from .losses import TAPS, InpaintingLoss
from .networks import Config


def dataset(images: Path, masks: MaskSource, config: Config, *, seed: int = 0) -> MaskedImages:
    """Images scaled to the size without regard to their aspect."""
    preparation = Preparation(config.size, fit="stretch", flip=config.flip, flip_mask="never")
    return MaskedImages(images, masks, preparation, seed=seed)


class PartialConvolutions(Recipe):
    """The published training: five terms, Adam, and a second phase with frozen statistics.

    Args:
        networks: "generator".
        config: its options.
        vgg: torchvision's weights of VGG-16; see `vgg.VGGFeatures.load`.
        initialise: has no effect: the layers are built with the published weights (He-normal).
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
        self.loss = InpaintingLoss(VGGFeatures(16, TAPS).load(vgg), variation=config.variation)
        self.weights = {
            "valid": config.valid_weight,
            "hole": config.hole_weight,
            "prc": config.perceptual_weight,
            "style": config.style_weight,
            "tv": config.variation_weight,
        }
        learning = [p for p in networks["generator"].parameters() if p.requires_grad]
        self.optimizers["generator"] = Adam(learning, config.learning_rate)

    def _finetunes(self, iteration: int) -> bool:
        return self.config.finetune_at is not None and iteration >= self.config.finetune_at

    def phases(self, iteration: int) -> Sequence[Phase]:
        generator = self.networks["generator"]
        if self._finetunes(iteration) != generator.freeze_enc_bn:
            generator.freeze_enc_bn = self._finetunes(iteration)
            generator.train()
        return (Phase(("generator",), self.generator_loss),)

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        config = self.config
        finetunes = self._finetunes(iteration)
        return {"generator": config.finetuning_rate if finetunes else config.learning_rate}

    def generator_loss(self, batch: Batch) -> Terms:
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
