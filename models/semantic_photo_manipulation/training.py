"""The training of the generator, which grows, and of the encoder, in three stages.

The encoder sees images that the generator makes of noise; the folder's photos are what its sample
sheets show, and with the option photo_weight a term of the last stage. The published loops of the
layers and the joint stage never zero their gradients, which add up over all batches; here each step
has its own.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from ..blocks import initialise as fill_weights
from ..data import MaskedImages
from ..geometry import Preparation
from ..losses import AdversarialLoss, gradient_penalty
from ..paper import Stage
from ..recipe import AdversarialRecipe, Batch, Passed, Phase, Recipe, Terms
from ..schedules import steps as stepwise
from .losses import cosine_error
from .networks import (
    CODE_LAYER,
    Config,
    HybridLayerNormEncoder,
    ProgressiveGenerator,
    WScale,
    as_map,
)

# Epochs at which rates fall; the second layer's differ.
LAYER_FALLS = dict.fromkeys((1, 3, 4), (20, 60)) | {2: (60, 80)}
JOINT_FALLS = (50, 150, 350)
JOINT_FROZEN = ("conv3",)  # of the layers, in the joint stage


def train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, help="a folder of photos, searched at any depth")


def dataset(options: argparse.Namespace, config: Config, stage: Stage) -> MaskedImages:
    """Photos, and the noise of which the generator makes images."""
    given = config.network
    return MaskedImages(options.images, None, preparation(config), noise=given.sizes[:1],
                        seed=options.seed)  # fmt: skip


def preparation(config: Config) -> Preparation:
    """The shorter side scaled to the resolution, and the middle square of that."""
    return Preparation(config.network.resolution, "crop", random_crop=False)


def photo(batch: Batch) -> Tensor:
    """The folder's photos in [-1,1]."""
    return batch["image"] * 2 - 1


# --- generator ------------------------------------------------------------------------------------


class Growth(NamedTuple):
    """How far a generator has grown: the images' side, and how much its last level counts."""

    side: int
    alpha: float = 1.0


def growth(iteration: int, phase: int, resolution: int) -> Growth:
    """Phases of equal length: 4x4; then of each further resolution its fading in, and it as it is.

    Args:
        iteration: from 0.
        phase: iterations of a phase.
        resolution: of the grown generator, with which it goes on.
    """
    number, place = divmod(iteration, phase)
    side = 4 * 2 ** ((number + 1) // 2)
    if side > resolution:
        return Growth(resolution)
    return Growth(side, place / phase if number % 2 else 1.0)


class GeneratorTraining(AdversarialRecipe):
    """Stage generator: progressive growing with WGAN-GP (Karras et al., 2018).

    Reconstructed from that paper, as the published generators came without their training: phases
    of `growth`, photos that fade as the images do, gradient penalty, a term against drifting
    scores, one step of the discriminator for each of the generator's. Ours: both steps take the
    fakes of one forward, and one batch serves all resolutions, where the paper's shrinks.

    Args:
        networks: "generator", "outputs" (of the resolutions below its own), and "discriminator".
        config: its options.
        initialise: biases of "generator" and "outputs" among them are set to 0; all weights, and
            the discriminator's biases, begin as they are to.
    """

    averaged = ("generator", "outputs")

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        for name in ("generator", "outputs"):
            if name in self.fresh:
                for block in networks[name].modules():
                    if isinstance(block, WScale):
                        nn.init.zeros_(block.b)
        makes = [*networks["generator"].parameters(), *networks["outputs"].parameters()]
        judges = networks["discriminator"].parameters()
        for name, parameters in (("generator", makes), ("discriminator", judges)):
            rate = config.schedule.generator_rate
            self.optimizers[name] = Adam(parameters, rate, betas=(0.0, 0.99), eps=1e-8)
        self.adversarial = AdversarialLoss("wasserstein")
        self.grown = self._growth(0)

    def _growth(self, iteration: int) -> Growth:
        resolution = self.networks["generator"].resolution
        return growth(iteration, self.config.schedule.growth_iterations, resolution)

    def phases(self, iteration: int) -> Sequence[Phase]:
        self.grown = self._growth(iteration)
        return super().phases(iteration)

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        return dict.fromkeys(self.optimizers, self.config.schedule.generator_rate)

    def fakes(self, batch: Batch) -> Tensor:
        """(N,3,S,S), not cut off, of the side S of now."""
        generator, (side, alpha) = self.networks["generator"], self.grown
        layer = 2 * int(math.log2(side)) - 2  # whose output has that side
        x = as_map(batch["noise"])
        if alpha == 1:
            return self._colours(side, generator.run(x, last=layer))
        x = generator.run(x, last=layer - 2)
        lower = F.interpolate(self._colours(side // 2, x), scale_factor=2.0)
        return torch.lerp(lower, self._colours(side, generator.run(x, layer - 1, layer)), alpha)

    def _colours(self, side: int, x: Tensor) -> Tensor:
        generator, name = self.networks["generator"], f"output_{side}x{side}"
        holder = generator if name == generator.output else self.networks["outputs"]
        return holder.get_submodule(name).colours(x)

    def real(self, batch: Batch) -> Tensor:
        """The photos as the generator is to make them now, (N,3,S,S)."""
        side, alpha = self.grown
        image = photo(batch)
        image = F.avg_pool2d(image, image.shape[-1] // side)
        if alpha == 1:
            return image
        return torch.lerp(F.interpolate(F.avg_pool2d(image, 2), scale_factor=2.0), image, alpha)

    def _score(self, image: Tensor) -> Tensor:
        return self.networks["discriminator"](image, self.grown.alpha)

    def generator_loss(self, batch: Batch, fakes: Tensor) -> Terms:
        return {"generator": self.adversarial.generator(self._score(fakes))}

    def discriminator_loss(self, batch: Batch, fakes: Tensor) -> Terms:
        real, weights = self.real(batch), self.config.loss
        scores = self._score(real)
        place = torch.rand(len(real), 1, 1, 1, dtype=real.dtype, device=real.device)
        # In full precision, as it is a difference of nearly equal numbers.
        with torch.autocast(real.device.type, enabled=False):
            penalty = gradient_penalty(self._score, real, fakes.to(real), place)
        return {
            "discriminator_real": self.adversarial.real(scores),
            "discriminator_fake": self.adversarial.fake(self._score(fakes)),
            "penalty": weights.penalty_weight * penalty,
            "drift": weights.drift_weight * scores.square().mean(),
        }

    def samples(self, batch: Batch) -> list[Tensor]:
        """Photos and what the generator makes, both of the side of now, enlarged."""
        resolution = self.networks["generator"].resolution
        rows = (self.real(batch), self.fakes(batch).float().clamp(-1, 1))
        return [F.interpolate((row + 1) / 2, size=(resolution, resolution)) for row in rows]


# --- encoder --------------------------------------------------------------------------------------


class EncoderTraining(Recipe):
    """What the stages share: generated images and the generator's layers behind them.

    Args:
        networks: "generator", as it is, and "encoder".
        config: its options.
        initialise: with "encoder", its weights are filled: Kaiming-normal, biases 0.
    """

    averaged = ("encoder",)

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        if "encoder" in self.fresh:
            fill_weights(networks["encoder"], nn.init.kaiming_normal_)

    @property
    def encoder(self) -> HybridLayerNormEncoder:
        return self.networks["encoder"]

    @property
    def generator(self) -> ProgressiveGenerator:
        return self.networks["generator"]

    @torch.no_grad()
    def codes(self, batch: Batch, passed: Passed | None = None) -> tuple[list[Tensor], Tensor]:
        """z and r_1 to r_4 of the batch's noise, and the image in [-1,1]."""

        def make() -> tuple[list[Tensor], Tensor]:
            codes = [as_map(batch["noise"])]
            for layer in range(1, CODE_LAYER + 1):
                codes.append(self.generator.run(codes[-1], layer, layer))
            return codes, self.generator.run(codes[-1], CODE_LAYER + 1)

        return make() if passed is None else passed.once("codes", make)

    def rebuilt(self, photo: Tensor) -> Tensor:
        """What the generator makes of a photo's code, in [-1,1]."""
        return self.generator(self.encoder(photo))

    def samples(self, batch: Batch) -> list[Tensor]:
        _, image = self.codes(batch)
        given = photo(batch)
        rows = [given, self.rebuilt(given), image, self.rebuilt(image)]
        return [(row + 1) / 2 for row in rows]

    def epoch(self, iteration: int) -> int:
        return iteration // self.config.schedule.period


class TrunkTraining(EncoderTraining):
    """Stage resnet: mean squared error of the estimate of r_4."""

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        rate = config.schedule.trunk_rate
        self.optimizers["resnet"] = Adam(self.encoder.resnet.parameters(), rate)

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [Phase(("resnet",), self._loss)]

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        return {"resnet": self.config.schedule.trunk_rate}

    def _loss(self, batch: Batch, passed: Passed) -> Terms:
        codes, image = self.codes(batch, passed)
        return {"resnet": F.mse_loss(self.encoder.resnet(image), codes[-1])}

    def rebuilt(self, photo: Tensor) -> Tensor:
        return self.generator.run(self.encoder.resnet(photo), CODE_LAYER + 1)


class LayersTraining(EncoderTraining):
    """Stage layers: each inverse by itself, on the same codes.

    cse(r_{i-1}, inv_i(r_i)) + layer_weight * cse(r_i, layer_i(inv_i(r_i))).
    """

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        for layer in LAYER_FALLS:
            inverse = self.encoder.get_submodule(f"inv{layer}")
            self.optimizers[f"inv{layer}"] = Adam(inverse.parameters(), config.schedule.layers_rate)

    def phases(self, iteration: int) -> Sequence[Phase]:
        def phase(layer: int) -> Phase:
            return Phase((f"inv{layer}",), lambda batch, passed: self._loss(layer, batch, passed))

        return [phase(layer) for layer in LAYER_FALLS]

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        rate, epoch = self.config.schedule.layers_rate, self.epoch(iteration)
        return {f"inv{i}": rate * stepwise(epoch, falls, 0.1) for i, falls in LAYER_FALLS.items()}

    def _loss(self, layer: int, batch: Batch, passed: Passed) -> Terms:
        codes, _ = self.codes(batch, passed)
        estimate = self.encoder.get_submodule(f"inv{layer}")(codes[layer])
        again = self.generator.run(estimate, layer, layer)
        weight = self.config.loss.layer_weight
        return {
            f"inv{layer}": cosine_error(codes[layer - 1], estimate),
            f"inv{layer}_again": weight * cosine_error(codes[layer], again),
        }


class JointTraining(EncoderTraining):
    """Stage joint: the whole encoder, the 1x1 convolutions of its layers frozen.

    cse(r_4, resnet(x)) + cse(z, E(x)) + cse(r_4, r_4 of G(E(x))) + MSE(x, G(E(x))); with the option
    photo_weight the last term of the folder's photos, too (ours).
    """

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        trained = [
            parameter
            for name, parameter in self.encoder.named_parameters()
            if name.split(".")[-2] not in JOINT_FROZEN
        ]
        self.optimizers["encoder"] = Adam(trained, config.schedule.joint_rate)

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [Phase(("encoder",), self._loss)]

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        fall = stepwise(self.epoch(iteration), JOINT_FALLS, 0.5)
        return {"encoder": self.config.schedule.joint_rate * fall}

    def _loss(self, batch: Batch, passed: Passed) -> Terms:
        codes, image = self.codes(batch, passed)
        estimate = self.encoder.resnet(image)
        z = self.encoder.invert(estimate)
        r4 = self.generator.run(z, last=CODE_LAYER)
        terms = {
            "resnet": cosine_error(codes[-1], estimate),
            "z": cosine_error(codes[0], z),
            "code": cosine_error(codes[-1], r4),
            "image": F.mse_loss(self.generator.run(r4, CODE_LAYER + 1), image),
        }
        if weight := self.config.loss.photo_weight:
            given = photo(batch)
            terms["photo"] = weight * F.mse_loss(self.rebuilt(given), given)
        return terms
