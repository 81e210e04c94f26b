"""All stages of the training. None of it was published.

Reconstructed: the paper names stages and terms; weights, rates and the discriminators are those of
a later implementation by others; instance norms in these (others have batch norms), the sketch
decoder's layers, the swapped photo's geometry loss, the first bias of the appearance and the stages
of extractor and coarse sketches are ours.

Each part trains by itself, with optimisers of its own, one after the other in each iteration; the
losses that are shown are sums over the parts.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from ..losses import AdversarialLoss, colour_difference, feature_matching, perceptual
from ..recipe import AdversarialRecipe, Batch, Passed, Phase, Recipe, Terms
from ..vgg import SYNTHESIS_TAPS, VGGFeatures
from .config import Config
from .networks import PartGenerator, canvas, named
from .parts import PARTS, pasted

Outputs = Sequence[Sequence[Tensor]]  # of a discriminator: features and score of each scale


def split(outputs: Outputs, count: int) -> list[Outputs]:
    """What a discriminator gave for each of several batches that went through together."""
    return [[[x.chunk(count)[i] for x in scale] for scale in outputs] for i in range(count)]


def scores(outputs: Outputs) -> list[Tensor]:
    """Of each scale."""
    return [scale[-1] for scale in outputs]


class FaceRecipe(Recipe):
    """What all stages share.

    Args:
        networks: of the stage.
        config: its options.
        pretrained: "vgg19", for stages that compare photos; see `vgg.VGGFeatures.load`. It sees
            images in [-1,1] as they are, and is not needed where its weight is 0.
        initialise: names of the networks that start from new weights: PyTorch's, and a new
            generator's appearances start from scales of 1 and shifts of 0.
    """

    kinds: tuple[str, ...] = ()  # of the networks of each part that learn together
    compares_photos = False

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        for name in self.fresh & networks.keys():
            if isinstance(networks[name], PartGenerator):
                start_plain(networks[name])
        self.adversarial = AdversarialLoss("hinge")
        self.vgg = None
        if self.compares_photos and config.loss.vgg_weight:
            self.vgg = VGGFeatures(19, SYNTHESIS_TAPS).load(self.pretrained.get("vgg19"))

    def train(self, mode: bool = True) -> "FaceRecipe":
        """Networks that stay as they are keep their statistics, too."""
        super().train(mode)
        learning = {id(p) for o in self.optimizers.values() for g in o.param_groups
                    for p in g["params"]}  # fmt: skip
        for network in self.networks.values():
            if not any(id(parameter) in learning for parameter in network.parameters()):
                network.eval()
        return self

    def of(self, kind: str, part: str) -> nn.Module:
        """The network of a kind for a part."""
        return self.networks[f"{kind}_{part}"]

    def adam(self, kinds: Sequence[str], part: str, rate: float) -> Adam:
        given = self.config.schedule
        parameters = [p for kind in kinds for p in self.of(kind, part).parameters()]
        return Adam(parameters, rate, (given.beta1, given.beta2))

    def crop(self, batch: Batch, field: str, part: str) -> Tensor:
        """A part of the batch's pictures in [-1,1]."""
        return self.config.network.boxes[part].crop(batch[field] * 2 - 1).contiguous()

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        given = self.config.schedule
        return {
            name: given.discriminator_rate if name.startswith("discriminator") else given.rate
            for name in self.optimizers
        }

    def photo_losses(
        self, fake: Tensor, real: Tensor, of_fake: Outputs = (), of_real: Outputs = ()
    ) -> Terms:
        """How far a photo is from the one it should be; in a discriminator, too, where given."""
        given = self.config.loss
        terms = {"colour": given.lab_weight * colour_difference(fake, real)}
        if of_fake:
            terms["matching"] = given.matching_weight * feature_matching(of_fake, of_real)
        if self.vgg is not None:
            with torch.no_grad():
                wanted = self.vgg(real)
            terms["vgg"] = given.vgg_weight * perceptual(self.vgg(fake), wanted)
        return terms

    def mosaic(self, picture: Any) -> Tensor:
        """Pictures of the parts in their places, in [0,1]."""
        return (pasted(picture, self.config.network.boxes) + 1) / 2


@torch.no_grad()
def start_plain(generator: PartGenerator) -> None:
    """Let a new generator's appearances start from scales of 1 and shifts of 0."""
    last = generator.enc_style.model[-1]
    for shift, scale in (x.chunk(2) for x in last.bias.split(generator.splits)):
        shift.zero_()
        scale.fill_(1)


class ByParts(FaceRecipe):
    """Stages in which the networks of a part learn together, without a discriminator."""

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        for part in PARTS:
            self.optimizers[part] = self.adam(self.kinds, part, config.schedule.rate)

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [Phase((part,), partial(self.part_loss, part)) for part in PARTS]

    def part_loss(self, part: str, batch: Batch, passed: Passed) -> Terms:
        raise NotImplementedError


class SketchTraining(ByParts):
    """Stage sketch: encoder and decoder of sketches as an auto-encoder, L1."""

    kinds = ("sketch_encoder", "sketch_decoder")
    averaged = (*named("sketch_encoder"), *named("sketch_decoder"))

    def decoded(self, part: str, batch: Batch) -> Tensor:
        geometry = self.of("sketch_encoder", part)(self.crop(batch, "sketch", part))
        return self.of("sketch_decoder", part)(geometry)

    def part_loss(self, part: str, batch: Batch, passed: Passed) -> Terms:
        sketch = self.crop(batch, "sketch", part)
        return {"sketch": F.l1_loss(self.decoded(part, batch), sketch)}

    def samples(self, batch: Batch) -> list[Tensor]:
        return [batch["sketch"], self.mosaic(lambda part: self.decoded(part, batch))]


class ImageTraining(ByParts):
    """Stage image: the photo's geometry is to be the sketch's, and to decode to the same sketch.

    The sketch's encoder and decoder stay as they are.
    """

    kinds = ("image_encoder",)
    averaged = named("image_encoder")

    def part_loss(self, part: str, batch: Batch, passed: Passed) -> Terms:
        decoder = self.of("sketch_decoder", part)
        geometry = self.of("image_encoder", part)(self.crop(batch, "image", part))
        layers = decoder.layers(geometry)
        with torch.no_grad():
            sketch = self.crop(batch, "sketch", part)
            wanted = decoder.layers(self.of("sketch_encoder", part)(sketch))
        distances = [F.l1_loss(a, b) for a, b in zip(layers, wanted, strict=True)]
        terms = {"geometry": distances[0], "decoded": distances[-1]}
        if self.config.loss.consistency == "layers":
            terms["layers"] = torch.stack(distances[1:-1]).sum()
        return terms

    def samples(self, batch: Batch) -> list[Tensor]:
        def decoded(part: str) -> Tensor:
            geometry = self.of("image_encoder", part)(self.crop(batch, "image", part))
            return self.of("sketch_decoder", part)(geometry)

        return [batch["image"], batch["sketch"], self.mosaic(decoded)]


class AppearanceTraining(FaceRecipe):
    """Stage appearance: generators and appearance encoders, against a discriminator each.

    A photo is made again from itself; in another photo's appearance it keeps its geometry; and the
    other photo is made again in the appearance of that. The image encoders stay as they are.
    """

    averaged = named("generator")
    compares_photos = True

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        given = config.schedule
        for part in PARTS:
            rates = {"generator": given.rate, "discriminator": given.discriminator_rate}
            for kind, rate in rates.items():
                self.optimizers[f"{kind}_{part}"] = self.adam((kind,), part, rate)

    def phases(self, iteration: int) -> Sequence[Phase]:
        phases = []
        for part in PARTS:
            phases += [
                Phase((f"discriminator_{part}",), partial(self.discriminator_loss, part)),
                Phase((f"generator_{part}",), partial(self.generator_loss, part)),
            ]
        return phases

    def fakes(self, part: str, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The photo again, the other one again, and the photo in the other one's appearance."""
        generator, encoder = self.of("generator", part), self.of("image_encoder", part)
        photo, other = self.crop(batch, "image", part), self.crop(batch, "other", part)
        with torch.no_grad():
            of_photo, of_other = encoder(photo), encoder(other)
        again = generator(of_photo, photo)
        swapped = generator(of_photo, other)
        return again, generator(of_other, swapped), swapped

    def _shared(self, part: str, batch: Batch, passed: Passed) -> tuple[Tensor, Tensor, Tensor]:
        return passed.once(f"fakes of {part}", lambda: self.fakes(part, batch))

    def _outputs(self, part: str, batch: Batch, fakes: Sequence[Tensor]) -> list[Outputs]:
        """The discriminator's for fakes, the photo and the other one, from one pass."""
        reals = [self.crop(batch, field, part).to(fakes[0]) for field in ("image", "other")]
        together = torch.cat((*fakes, *reals))
        return split(self.of("discriminator", part)(together), len(fakes) + len(reals))

    def discriminator_loss(self, part: str, batch: Batch, passed: Passed) -> Terms:
        fakes = [fake.detach() for fake in self._shared(part, batch, passed)]
        outputs = self._outputs(part, batch, fakes)
        of_fakes = [self.adversarial.fake(scores(found)) for found in outputs[:3]]
        of_reals = [self.adversarial.real(scores(found)) for found in outputs[3:]]
        return {"discriminator": sum(of_fakes) / len(of_fakes) + sum(of_reals) / len(of_reals)}

    def generator_loss(self, part: str, batch: Batch, passed: Passed) -> Terms:
        given = self.config.loss
        photo, other = self.crop(batch, "image", part), self.crop(batch, "other", part)
        again, back, swapped = self._shared(part, batch, passed)
        of_again, of_back, of_swapped, of_photo, of_other = self._outputs(
            part, batch, (again, back, swapped)
        )
        deceiving = [self.adversarial.generator(scores(x)) for x in (of_again, of_back, of_swapped)]
        cycle = self.photo_losses(back, other, of_back, of_other)
        return {
            **self.photo_losses(again, photo, of_again, of_photo),
            "cycle": given.cycle_weight * torch.stack([*cycle.values()]).sum(),
            "geometry": given.geometry_weight * self._geometry_loss(part, swapped, photo),
            "adversarial": sum(deceiving) / len(deceiving),
        }

    def _geometry_loss(self, part: str, swapped: Tensor, photo: Tensor) -> Tensor:
        """L1 of the geometries, and of the sketches that they decode to."""
        encoder, decoder = self.of("image_encoder", part), self.of("sketch_decoder", part)
        found = encoder(swapped)
        with torch.no_grad():
            wanted = encoder(photo)
            sketch = decoder(wanted)
        return F.l1_loss(found, wanted) + F.l1_loss(decoder(found), sketch)

    def samples(self, batch: Batch) -> list[Tensor]:
        made = {part: self.fakes(part, batch) for part in PARTS}
        rows = [self.mosaic(lambda part, i=i: made[part][i]) for i in (0, 2)]
        return [batch["image"], batch["other"], *rows]


class OfPhoto(AdversarialRecipe, FaceRecipe):
    """A network that makes the whole photo, against a discriminator. All others stay as they are.

    Attributes:
        learns: the network's name.
    """

    learns: str
    compares_photos = True

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        given = config.schedule
        rates = {"generator": given.rate, "discriminator": given.discriminator_rate}
        names = {"generator": self.learns, "discriminator": "fusion_discriminator"}
        for role, rate in rates.items():
            parameters = self.networks[names[role]].parameters()
            self.optimizers[role] = Adam(parameters, rate, (given.beta1, given.beta2))

    def _outputs(self, batch: Batch, fake: Tensor) -> list[Outputs]:
        """The discriminator's for fake and photo, from one pass."""
        real = (batch["image"] * 2 - 1).to(fake)
        return split(self.networks["fusion_discriminator"](torch.cat((fake, real))), 2)

    def discriminator_loss(self, batch: Batch, fakes: Tensor) -> Terms:
        of_fake, of_real = self._outputs(batch, fakes)
        fake, real = self.adversarial.fake(scores(of_fake)), self.adversarial.real(scores(of_real))
        return {"discriminator": fake + real}

    def generator_loss(self, batch: Batch, fakes: Tensor) -> Terms:
        of_fake, of_real = self._outputs(batch, fakes)
        return {
            **self.photo_losses(fakes, batch["image"] * 2 - 1, of_fake, of_real),
            "adversarial": self.adversarial.generator(scores(of_fake)),
        }

    def samples(self, batch: Batch) -> list[Tensor]:
        return [batch["image"], (self.fakes(batch) + 1) / 2]


class FusionTraining(OfPhoto):
    """Stage fusion: each photo from its own geometry and appearance."""

    learns = "fusion"
    averaged = ("fusion",)

    def fakes(self, batch: Batch) -> Tensor:
        generators = {part: self.of("generator", part) for part in PARTS}
        with torch.no_grad():
            fused = canvas(
                generators,
                self.config.network.boxes,
                lambda part: self.of("image_encoder", part)(self.crop(batch, "image", part)),
                lambda part: generators[part].appearance(self.crop(batch, "image", part)),
            )
        return self.networks["fusion"](fused)


class CoarseTraining(ByParts):
    """Stage coarse: the branch for coarse sketches, from a sketch's code to the part's photo.

    L1, colours and VGG-19's features, in the photo's own appearance.
    """

    kinds = ("drawing_encoder", "drawing_decoder", "coarse_encoder", "coarse_generator")
    averaged = tuple(name for kind in kinds for name in named(kind))
    compares_photos = True

    def part_loss(self, part: str, batch: Batch, passed: Passed) -> Terms:
        generator, photo = self.of("coarse_generator", part), self.crop(batch, "image", part)
        made = generator(coarse_geometry(self, part, batch), photo)
        terms = self.photo_losses(made, photo)
        return {"photo": self.config.loss.coarse_weight * F.l1_loss(made, photo), **terms}

    def samples(self, batch: Batch) -> list[Tensor]:
        def made(part: str) -> Tensor:
            photo = self.crop(batch, "image", part)
            return self.of("coarse_generator", part)(coarse_geometry(self, part, batch), photo)

        return [batch["image"], batch["sketch"], self.mosaic(made)]


def coarse_geometry(recipe: FaceRecipe, part: str, batch: Batch) -> Tensor:
    """Of a sketch, by way of its code."""
    code = recipe.of("drawing_encoder", part)(recipe.crop(batch, "sketch", part)[:, :1])
    return recipe.of("coarse_encoder", part)(recipe.of("drawing_decoder", part)(code))


class CoarseFusionTraining(OfPhoto):
    """Stage coarse_fusion: each photo from the codes of its sketch and its own appearance."""

    learns = "coarse_fusion"
    averaged = ("coarse_fusion",)

    def fakes(self, batch: Batch) -> Tensor:
        generators = {part: self.of("coarse_generator", part) for part in PARTS}
        with torch.no_grad():
            fused = canvas(
                generators,
                self.config.network.boxes,
                lambda part: coarse_geometry(self, part, batch),
                lambda part: generators[part].appearance(self.crop(batch, "image", part)),
            )
        return self.networks["coarse_fusion"](fused)


class ExtractorTraining(FaceRecipe):
    """Stage extractor: the sketch of a photo, L1."""

    averaged = ("extractor",)

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        given = config.schedule
        parameters = networks["extractor"].parameters()
        self.optimizers["extractor"] = Adam(parameters, given.rate, (given.beta1, given.beta2))

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [Phase(("extractor",), self._loss)]

    def _loss(self, batch: Batch, passed: Passed) -> Terms:
        made = self.networks["extractor"](batch["image"] * 2 - 1)
        return {"extractor": F.l1_loss(made, batch["sketch"] * 2 - 1)}

    def samples(self, batch: Batch) -> list[Tensor]:
        made = (self.networks["extractor"](batch["image"] * 2 - 1) + 1) / 2
        return [batch["image"], batch["sketch"], made]
