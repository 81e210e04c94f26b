"""The encoder's training: its ResNet, its layers, and all of it together.

It sees images that the generator makes of noise; the folder's photos are what its sample sheets
show, and with the option photo_weight a term of the last stage. The published loops of the layers
and the joint stage never zero their gradients, which add up over all batches; here each step has
its own.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from ..blocks import initialise as fill_weights
from ..data import MaskedImages
from ..geometry import Preparation
from ..paper import Stage
from ..recipe import Batch, Passed, Phase, Recipe, Terms
from ..schedules import steps as stepwise
from .losses import cosine_error
from .networks import CODE_LAYER, Config, HybridLayerNormEncoder, ProgressiveGenerator, as_map

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

    def to(self, *args: Any, **kwargs: Any) -> "EncoderTraining":
        """As of every module, but contiguous whatever memory format is asked for.

        The backward of PyTorch's own convolution was seen to write out of bounds where very narrow
        networks (few channels) are trained in channels_last on the CPU.
        """
        kwargs.pop("memory_format", None)
        return super().to(*args, **kwargs)

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
        photo = self.photo(batch)
        rows = [photo, self.rebuilt(photo), image, self.rebuilt(image)]
        return [(row + 1) / 2 for row in rows]

    def photo(self, batch: Batch) -> Tensor:
        """The folder's photos in [-1,1]."""
        return batch["image"].contiguous() * 2 - 1

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
            photo = self.photo(batch)
            terms["photo"] = weight * F.mse_loss(self.rebuilt(photo), photo)
        return terms
