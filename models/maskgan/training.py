"""The stages of training: mapping and MaskVAE, then simulated edits; and the face parser."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from ..discriminators import halves
from ..face_labels import coloured
from ..losses import AdversarialLoss, perceptual
from ..recipe import Batch, Passed, Phase, Recipe, Terms
from ..schedules import constant_then_linear
from ..vgg import SYNTHESIS_TAPS, VGGFeatures
from .losses import mask_vae_loss, matching, parsing_loss
from .networks import Config


def fill_weights(network: nn.Module) -> None:
    """As the published script does: convolutions normal of deviation 0.02.

    Transposed convolutions and biases keep PyTorch's own values.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)


def interpolated(
    mask_vae: nn.Module,
    labels: Tensor,
    reference: Tensor,
    lambda_inter: float = 2.5,
    *,
    noise: bool = False,
) -> tuple[Tensor, Tensor]:
    """Label maps between a mask and another, and beyond the mask: z +- (z_reference - z) / lambda.

    Args:
        mask_vae: trained, in evaluation mode; no gradient passes through it.
        labels, reference: (N,1,H,W), integers.
        lambda_inter: 2.5 as published.
        noise: take codes that are drawn; else their means.

    Returns:
        int64 (N,1,H,W) each, the most probable classes.
    """
    with torch.no_grad():
        z, other = (
            mask_vae.sample(mean, log_variance) if noise else mean
            for mean, log_variance in (mask_vae.encode(labels), mask_vae.encode(reference))
        )
        step = (other - z) / lambda_inter
        inter, outer = (
            mask_vae.decode(code).argmax(dim=1, keepdim=True) for code in (z + step, z - step)
        )
    return inter, outer


class _Mapping(Recipe):
    """What both stages share: a generator and a discriminator that sees label map and photo."""

    averaged = ("generator",)

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        self.adversarial = AdversarialLoss("least_squares", scales="sum")
        self.vgg = None
        if config.loss.vgg_weight:
            self.vgg = VGGFeatures(19, SYNTHESIS_TAPS).load(self.pretrained.get("vgg19"))
        for name, network in networks.items():
            if name in self.fresh and name != "mask_vae":
                fill_weights(network)
        for name in ("generator", "discriminator"):
            self._optimise(name, networks[name])

    def _optimise(self, name: str, *networks: nn.Module) -> None:
        given = self.config.schedule
        parameters = [p for network in networks for p in network.parameters()]
        self.optimizers[name] = Adam(parameters, given.rate, (given.beta1, given.beta2))

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        given = self.config.schedule
        rate = given.rate * constant_then_linear(epoch, given.constant_epochs, given.decay_epochs)
        rates = dict.fromkeys(self.optimizers, rate)
        return rates | ({"mask_vae": given.vae_rate} if "mask_vae" in rates else {})

    def fake(self, batch: Batch) -> Tensor:
        """The photo from its own label map, (N,3,H,W) in (-1,1)."""
        labels = batch["labels"]
        return self.networks["generator"](labels, labels, batch["image"] * 2 - 1)

    def _fake(self, batch: Batch, passed: Passed) -> Tensor:
        return passed.once("fake", lambda: self.fake(batch))

    def _scores(self, picture: Tensor, batch: Batch) -> tuple[list, list]:
        """The discriminator's outputs for pictures and for photos, from one pass."""
        classes = self.config.network.labels
        condition = F.one_hot(batch["labels"][:, 0], classes).movedim(-1, 1).to(picture)
        images = torch.cat((picture, (batch["image"] * 2 - 1).to(picture)))
        return halves(
            self.networks["discriminator"](torch.cat((condition.repeat(2, 1, 1, 1), images), dim=1))
        )

    def picture_loss(self, batch: Batch, picture: Tensor, name: str = "") -> Terms:
        """The generator's weighted terms of a picture against the photo; the name begins theirs."""
        given = self.config.loss
        of_fake, of_real = self._scores(picture, batch)
        layers = self.config.network.discriminator_layers
        terms = {
            f"{name}adversarial": self.adversarial.generator([scale[-1] for scale in of_fake]),
            f"{name}matching": given.matching_weight * matching(of_fake, of_real, layers),
        }
        if self.vgg is not None:
            with torch.no_grad():
                wanted = self.vgg(batch["image"] * 2 - 1)
            terms[f"{name}vgg"] = given.vgg_weight * perceptual(
                self.vgg(picture), wanted, SYNTHESIS_TAPS
            )
        return terms

    def discriminator_loss(self, batch: Batch, picture: Tensor, name: str = "fake") -> Terms:
        """Half of the loss on fakes, and half of that on photos."""
        of_fake, of_real = self._scores(picture.detach(), batch)
        loss = self.adversarial
        return {
            f"discriminator_{name}": 0.5 * loss.fake([scale[-1] for scale in of_fake]),
            f"discriminator_real_{name}": 0.5 * loss.real([scale[-1] for scale in of_real]),
        }

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [
            Phase(
                ("discriminator",),
                lambda batch, passed: self.discriminator_loss(batch, self._fake(batch, passed)),
            ),
            Phase(
                ("generator",),
                lambda batch, passed: self.picture_loss(batch, self._fake(batch, passed)),
            ),
        ]

    def samples(self, batch: Batch) -> list[Tensor]:
        return [_shown(batch["labels"]), batch["image"], (self.fake(batch) + 1) / 2]


class DenseMapping(_Mapping):
    """Stage 1: the generator against the discriminator, and MaskVAE beside them.

    MaskVAE shares nothing with the others; its run is theirs, so that stage 2 finds all in one
    file.

    Args:
        networks: "generator", "discriminator" and "mask_vae".
        config: its options.
        pretrained: "vgg19"; see `vgg.VGGFeatures.load`. It sees images in [-1,1] as they are, and
            is not needed where its loss has the weight 0.
        initialise: names of the networks whose weights are filled; see `fill_weights`. MaskVAE
            keeps PyTorch's own.
    """

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        self.optimizers["mask_vae"] = Adam(networks["mask_vae"].parameters(), 1e-4)

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [*super().phases(iteration), Phase(("mask_vae",), self._mask_vae_phase)]

    def _mask_vae_phase(self, batch: Batch, passed: Passed) -> Terms:
        results = self.networks["mask_vae"](batch["labels"])
        return {"mask_vae": mask_vae_loss(*results, batch["labels"], self.config.loss.kl_weight)}

    def samples(self, batch: Batch) -> list[Tensor]:
        mean, _ = self.networks["mask_vae"].encode(batch["labels"])
        decoded = self.networks["mask_vae"].decode(mean).argmax(dim=1, keepdim=True)
        return [*super().samples(batch), _shown(decoded)]


class EditingSimulation(_Mapping):
    """Stage 2, editing behaviour simulated training.

    Photos of two edited masks are blended to the photo of the mask between them. One discriminator
    judges the generator's photo and the blend: its step and the generator's on the photo, then its
    step and that of generator and blender together on the blend. The rate of the latter falls with
    the others'; the published options leave it as it is.

    Args:
        networks: "generator", "blender", "discriminator" and "mask_vae", which is used as it is,
            and not at all where the masks were decoded beforehand.
        config, pretrained, initialise: as of `DenseMapping`.
    """

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        self._optimise("joint", networks["generator"], networks["blender"])

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        given = self.config.schedule
        rates = super().learning_rates(epoch, iteration)
        return rates if given.joint_decay else rates | {"joint": given.rate}

    def blend(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Blend, the weights of the first, and the photos of the inner and the outer mask."""
        if "inter" in batch:
            masks = batch["inter"], batch["outer"]
        else:
            given = self.config.loss
            vae = self.networks["mask_vae"].eval()
            masks = interpolated(
                vae, batch["labels"], batch["reference"], given.lambda_inter, noise=given.vae_noise
            )
        generator = self.networks["generator"]
        style = generator.encode_style(batch["labels"], batch["image"] * 2 - 1)
        inter, outer = (generator.generate(mask, style) for mask in masks)
        return *self.networks["blender"](inter, outer), inter, outer

    def _blend(self, batch: Batch, passed: Passed) -> Tensor:
        return passed.once("blend", lambda: self.blend(batch))[0]

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [
            *super().phases(iteration),
            Phase(
                ("discriminator",),
                lambda batch, passed: self.discriminator_loss(
                    batch, self._blend(batch, passed), "blend"
                ),
            ),
            Phase(
                ("joint",),
                lambda batch, passed: self.picture_loss(
                    batch, self._blend(batch, passed), "blend_"
                ),
            ),
        ]

    def samples(self, batch: Batch) -> list[Tensor]:
        blend, _, inter, outer = self.blend(batch)
        return [*super().samples(batch), *((x + 1) / 2 for x in (inter, outer, blend))]


class Parsing(Recipe):
    """The face parser by cross entropy.

    Args:
        networks: "parser".
        config: its options.
        initialise: of no effect, as the parser begins with PyTorch's own values.
    """

    averaged = ("parser",)

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        given = config.schedule
        parameters = networks["parser"].parameters()
        self.optimizers["parser"] = Adam(parameters, given.parser_rate, (given.beta1, given.beta2))

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [Phase(("parser",), self._loss)]

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        return {"parser": self.config.schedule.parser_rate}

    def _loss(self, batch: Batch, passed: Passed) -> Terms:
        logits = self.networks["parser"](batch["image"] * 2 - 1)
        return {"parsing": parsing_loss(logits, batch["labels"])}

    def samples(self, batch: Batch) -> list[Tensor]:
        parsed = self.networks["parser"](batch["image"] * 2 - 1).argmax(dim=1, keepdim=True)
        return [batch["image"], _shown(batch["labels"]), _shown(parsed)]


def _shown(labels: Tensor) -> Tensor:
    """In the data set's colours, as far as there are."""
    return coloured(labels % 19)
