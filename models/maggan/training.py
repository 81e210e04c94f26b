"""The stages of training: the face parser, the classifier of attributes, and the edits."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

from ..losses import gradient_penalty
from ..recipe import Batch, Passed, Phase, Recipe, Terms
from ..schedules import exponential, polynomial
from .attributes import as_seen
from .config import Config
from .losses import (
    discriminator_terms,
    generator_terms,
    hard_example_cross_entropy,
    mask_guided_reconstruction,
    scattered,
)
from .parser import normalised, one_hot, overlay
from .regions import influence_regions, influence_table

WARM_UP = 1e-3  # of the face parser's rate, where it begins
HEADS = 10.0  # times the rate: of the parser's layers behind the ResNet and its refinement


class AttributeEditing(Recipe):
    """The generator against the discriminator: one iteration is a step of one of them.

    As published, five steps of the discriminator, each on a batch of its own, are followed by one
    of the generator. Target labels are those of the batch, shuffled. The generator's batch norms
    are in training mode in all steps.

    Args:
        networks: "generator" and "discriminator".
        config: its options.
        initialise: of no effect, as new networks begin with the published distribution.
    """

    averaged = ("generator",)

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        given = config.schedule
        self.table = influence_table(config.network.regions)
        for name in ("generator", "discriminator"):
            parameters = networks[name].parameters()
            self.optimizers[name] = Adam(parameters, given.rate, (given.beta1, given.beta2))

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        given = self.config.schedule
        rate = given.rate * exponential(epoch // given.decay_epochs, 0.1)
        return dict.fromkeys(self.optimizers, rate)

    def phases(self, iteration: int) -> Sequence[Phase]:
        steps = self.config.schedule.discriminator_steps
        if iteration % (steps + 1) < steps:
            return [Phase(("discriminator",), self._discriminator_phase)]
        return [Phase(("generator",), self._generator_phase)]

    def _told(self, source: Tensor, target: Tensor) -> Tensor:
        """What the generator is told: the difference of labels, or the target's."""
        if self.config.network.condition == "target":
            return as_seen(target)
        return target - source

    def _influence(self, batch: Batch, difference: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Condition and region of an edit in MagGAN."""
        if self.config.network.model == "stgan":
            return None, None
        masks = one_hot(batch["labels"]).to(difference)
        names = self.config.network.attributes
        found = influence_regions(masks, difference, names, self.table)
        return found.condition, found.edit

    def _shuffled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Source and target labels."""
        source = batch["attributes"]
        return source, source[torch.randperm(len(source), device=source.device)]

    def _penalties(self, views: Sequence[Tensor], fakes: Sequence[Tensor]) -> Tensor:
        """Of each level; in full precision, as they are differences of nearly equal numbers."""
        judge = self.networks["discriminator"]
        found = []
        for level, (view, fake) in enumerate(zip(views, fakes, strict=True)):
            other = fake.to(view)
            if self.config.loss.adversarial != "wasserstein":
                other = scattered(view, torch.rand_like(view))
            alpha = torch.rand(len(view), 1, 1, 1, dtype=view.dtype, device=view.device)
            with torch.autocast(view.device.type, enabled=False):
                found.append(
                    gradient_penalty(lambda x, at=level: judge.score(at, x), view, other, alpha)
                )
        return torch.stack(found)

    def _discriminator_phase(self, batch: Batch, passed: Passed) -> Terms:
        generator, judge = self.networks["generator"], self.networks["discriminator"]
        image = batch["image"] * 2 - 1
        source, target = self._shuffled(batch)
        condition, _ = self._influence(batch, target - source)
        with torch.no_grad():
            fake = generator(image, self._told(source, target), condition)
        offsets = judge.draw_offsets(len(image))
        views, fakes = judge.views(image, offsets), judge.views(fake, offsets)
        real_scores, attributes = judge.judge(views)
        fake_scores, _ = judge.judge(fakes)
        return discriminator_terms(
            real_scores,
            fake_scores,
            attributes,
            source,
            self._penalties(views, fakes),
            self.config.loss,
        )

    def _generator_phase(self, batch: Batch, passed: Passed) -> Terms:
        generator, judge = self.networks["generator"], self.networks["discriminator"]
        image = batch["image"] * 2 - 1
        source, target = self._shuffled(batch)
        condition, region = self._influence(batch, target - source)
        # The running statistics of batch norms follow from the order: edited, then reconstructed.
        maps = generator.encode(image)
        edited = generator.decode(maps, self._told(source, target), condition)
        nothing = None if condition is None else torch.zeros_like(condition)
        again = generator.decode(maps, self._told(source, source), nothing)
        scores, attributes = judge.judge(judge.views(edited, judge.draw_offsets(len(image))))
        preserved = None
        if region is not None:
            how = self.config.loss.normalise
            preserved = mask_guided_reconstruction(image, edited.to(image), region, how)
        return generator_terms(
            scores, attributes, target, F.l1_loss(again, image), preserved, self.config.loss
        )

    def samples(self, batch: Batch) -> list[Tensor]:
        """Photos, as they are made with nothing changed, with the next one's attributes, where."""
        generator, image = self.networks["generator"], batch["image"] * 2 - 1
        source = batch["attributes"]
        target = source.roll(1, dims=0)
        maps = generator.encode(image)
        rows = [batch["image"]]
        for wanted in (source, target):
            condition, region = self._influence(batch, wanted - source)
            made = generator.decode(maps, self._told(source, wanted), condition)
            rows.append((made + 1) / 2)
        return rows if region is None else [*rows, region.expand(-1, 3, -1, -1)]


class Parsing(Recipe):
    """The face parser by its hardest pixels, on three maps, by stochastic gradient descent.

    Args:
        networks: "parser".
        config: its options.
        initialise: of no effect: a new parser begins with PyTorch's own values. The published one
            began with a ResNet-18 trained on ImageNet.
    """

    averaged = ("parser",)

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        given, parser = config.schedule, networks["parser"]
        parts = {
            "parser": [parser.cp],
            "heads": [parser.ffm, parser.conv_out, parser.conv_out16, parser.conv_out32],
        }
        for name, modules in parts.items():
            parameters = [p for module in modules for p in module.parameters()]
            groups = [
                # Neither norms nor biases decay.
                {"params": [p for p in parameters if p.dim() > 1]},
                {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
            ]
            groups = [group for group in groups if group["params"]]
            self.optimizers[name] = SGD(
                groups, given.parser_rate, momentum=0.9, weight_decay=given.parser_decay
            )

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [Phase(("parser", "heads"), self._loss)]

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        given = self.config.schedule
        rate = given.parser_rate * polynomial(
            iteration, given.parser_iterations, warm_up=given.warm_up, start=WARM_UP
        )
        return {"parser": rate, "heads": HEADS * rate}

    def _loss(self, batch: Batch, passed: Passed) -> Terms:
        scores = self.networks["parser"](normalised(batch["image"]))
        threshold = self.config.schedule.parser_threshold
        return {
            name: hard_example_cross_entropy(score, batch["labels"], threshold)
            for name, score in zip(("parsing", "parsing_8", "parsing_16"), scores, strict=True)
        }

    def samples(self, batch: Batch) -> list[Tensor]:
        found = self.networks["parser"](normalised(batch["image"]))[0]
        parsed = found.argmax(dim=1, keepdim=True)
        maps = (batch["labels"], parsed)
        return [batch["image"], *(overlay(batch["image"], labels) for labels in maps)]


class Classifying(Recipe):
    """The classifier of attributes by binary cross entropy. Its rate and optimiser are ours.

    Args:
        networks: "classifier".
        config: its options.
        initialise: of no effect, as a new classifier begins with PyTorch's own values.
    """

    averaged = ("classifier",)

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        parameters = networks["classifier"].parameters()
        self.optimizers["classifier"] = Adam(parameters, config.schedule.classifier_rate)

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [Phase(("classifier",), self._loss)]

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        return {"classifier": self.config.schedule.classifier_rate}

    def _loss(self, batch: Batch, passed: Passed) -> Terms:
        classifier = self.networks["classifier"]
        logits = classifier(batch["image"] * 2 - 1)
        squares = [p.square().sum() for p in classifier.parameters() if p.dim() > 1]
        # Half of the squares, as TensorFlow's regulariser counts them.
        decay = self.config.schedule.classifier_decay * torch.stack(squares).sum() / 2
        classified = F.binary_cross_entropy_with_logits(logits, batch["attributes"])
        return {"attributes": classified, "decay": decay}

    def samples(self, batch: Batch) -> list[Tensor]:
        """Photos, and beside them a column for each attribute: wanted above, found below."""
        logits = self.networks["classifier"](batch["image"] * 2 - 1)
        rows = torch.stack((batch["attributes"], logits.sigmoid().float()), dim=1)[:, None]
        bars = F.interpolate(rows, batch["image"].shape[2:], mode="nearest")
        return [batch["image"], bars.expand(-1, 3, -1, -1)]
