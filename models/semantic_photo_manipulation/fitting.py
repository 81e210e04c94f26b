"""What is fitted to one photo: its code, the image-specific generator, the interactive one.

Every fit is a `Recipe` of a few parameters on a `Loop`; the generator itself stays as it is.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from ..checks import check_images, check_mask
from ..loop import Loop
from ..losses import perceptual
from ..recipe import Batch, Phase, Recipe, Terms
from ..schedules import steps as stepwise
from ..vgg import VGGFeatures
from .losses import kept_l1, squared
from .networks import (
    CODE_LAYER,
    Config,
    FreeMaps,
    HybridLayerNormEncoder,
    PerturbationNetwork,
    ProgressiveGenerator,
    as_map,
    folded,
    perturbed,
)

VGG_TAP = "relu4_2"
OFFSET_LAYERS = (1, 2, 3)
REFINE_FALLS = (800, 1200, 1800)  # steps at which the rate is halved
TUNED_LAYERS = (6, 8)  # whose weights the interactive generator changes
MULTIPLIED_LAYERS = (10, 12)  # whose outputs it multiplies
Progress = Callable[[int, Mapping[str, float]], None]


def frozen(network: nn.Module) -> nn.Module:
    """The network in evaluation, without gradients: itself if it is so, else a copy."""
    if not network.training and not any(p.requires_grad for p in network.parameters()):
        return network
    return copy.deepcopy(network).eval().requires_grad_(False)


class Fitting(Recipe):
    """A fit by Adam.

    Args:
        networks: what is fitted, by name, with what else is to be moved along.
        config: the paper's options.
        parameters: that are fitted.
        rate: of Adam.
        falls: steps at which it is halved.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        config: Config,
        parameters: Sequence[nn.Parameter],
        rate: float,
        falls: Sequence[int] = (),
    ) -> None:
        super().__init__(networks, config)
        self.rate = rate
        self.falls = tuple(falls)
        self.optimizers["fit"] = Adam(parameters, rate)

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [Phase(("fit",), lambda batch, passed: self.terms(batch))]

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        return {"fit": self.rate * stepwise(iteration, self.falls, 0.5)}

    def prepared(self, batch: Batch) -> Batch:
        """A batch as `terms` takes it: with what no step changes, computed once."""
        return batch

    def terms(self, batch: Batch) -> Terms:
        """Weighted terms of the loss of a prepared batch."""
        raise NotImplementedError


def fit(
    recipe: Fitting,
    batch: Batch | Callable[[int], Sequence[Batch]],
    steps: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    after: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Steps of a fit; the caller's random numbers stay as they are.

    Args:
        recipe: of what is fitted, on the batch's device.
        batch: the same for all steps, or of a step's number, from 0, the parts of its batch.
        steps: how many.
        seed: of everything random.
        progress: called after each step with its number, from 1, and its losses.
        after: called after each step.

    Returns:
        The losses before the last step.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite.
    """
    device = next(recipe.parameters()).device
    devices = [device] if device.type == "cuda" else []
    losses: dict[str, float] = {}
    with torch.enable_grad(), torch.random.fork_rng(devices):
        # Contiguous, weights and maps alike: on the CPU the form of Winograd's convolutions.
        recipe.to(memory_format=torch.contiguous_format)
        loop = Loop(recipe, seed=seed, device=device, channels_last=False)
        recipe.networks.train()  # what else it holds, such as a frozen generator, stays as it is

        def prepared(part: Batch) -> Batch:
            return recipe.prepared({k: v.contiguous() for k, v in part.items()})

        same = None if callable(batch) else [prepared(batch)]
        for step in range(steps):
            given = [prepared(part) for part in batch(step)] if same is None else same
            losses = loop.step(given, epoch=0)
            if after is not None:
                after()
            if progress is not None:
                progress(step + 1, losses)
        recipe.networks.eval()
    return losses


def features_of(vgg: VGGFeatures | None, weight: float) -> VGGFeatures | None:
    """The features that a loss compares; None where they do not count.

    Raises:
        ValueError: they count, but there are none.
    """
    if not weight:
        return None
    if vgg is None:
        raise ValueError(
            "vgg: expected features of VGG-16, as the option vgg_weight is not 0:"
            f' VGGFeatures(16, ("{VGG_TAP}",)).load(FILE)'
        )
    return frozen(vgg)


def _check_photo(generator: ProgressiveGenerator, photo: Tensor) -> None:
    check_images("photo", photo, 3)
    side = generator.resolution
    if tuple(photo.shape) != (1, 3, side, side):
        raise ValueError(f"photo: expected the shape (1, 3, {side}, {side}), got {photo.shape}")


# --- the code of a photo --------------------------------------------------------------------------


class Refinement(Fitting):
    """Section 4, step 4 of the inversion: offsets of the three lowest layers' outputs.

    L1 of the photo and of VGG-16's relu4_2, and the offsets' mean squares. A batch is
    {"photo": (1,3,H,H) in [-1,1], "z": (1,C,1,1)}.

    Args:
        generator: frozen.
        config: of the paper.
        vgg: with `VGG_TAP`; see `features_of`.
    """

    def __init__(
        self, generator: ProgressiveGenerator, config: Config, vgg: VGGFeatures | None = None
    ) -> None:
        offsets = FreeMaps(generator, OFFSET_LAYERS)
        rate = config.schedule.refine_rate
        super().__init__({"offsets": offsets}, config, [*offsets.parameters()], rate, REFINE_FALLS)
        self.generator = folded(generator)
        self.vgg = features_of(vgg, config.loss.vgg_weight)

    def code(self, z: Tensor, offsets: Mapping[int, Tensor] | None = None) -> Tensor:
        """r_4 = layer4(d_3 + layer3(d_2 + layer2(d_1 + layer1(z))))."""
        offsets = self.networks["offsets"]() if offsets is None else offsets
        return self.generator.run(z, last=CODE_LAYER, offsets=offsets)

    def prepared(self, batch: Batch) -> Batch:
        return with_features(self.vgg, batch)

    def terms(self, batch: Batch) -> Terms:
        offsets = self.networks["offsets"]()
        image = self.generator.run(self.code(batch["z"], offsets), CODE_LAYER + 1)
        return {
            **photo_terms(self.vgg, self.config.loss.vgg_weight, image, batch),
            "offsets": squared(offsets.values()),
        }


@torch.no_grad()
def with_features(vgg: VGGFeatures | None, batch: Batch) -> Batch:
    """A batch with the features of its photo, where they count."""
    return batch if vgg is None else {**batch, "features": vgg(batch["photo"])}


def photo_terms(vgg: VGGFeatures | None, weight: float, image: Tensor, batch: Batch) -> Terms:
    """L1 of pixels and of VGG-16's features, fed with images in [-1,1]."""
    terms = {"l1": F.l1_loss(image, batch["photo"])}
    if vgg is not None:
        terms["vgg"] = weight * perceptual(vgg(image), batch["features"])
    return terms


def refine(
    generator: ProgressiveGenerator,
    encoder: HybridLayerNormEncoder,
    photo: Tensor,
    config: Config | None = None,
    *,
    vgg: VGGFeatures | None = None,
    steps: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The code r_4 of a photo, (1,C,8,8): the encoder's, then refined.

    Args:
        generator, encoder: trained.
        photo: (1,3,H,H) in [-1,1], of the generator's resolution.
        config: of the paper (default: the published values).
        vgg: VGG-16 with the tap relu4_2; needed unless the option vgg_weight is 0.
        steps: instead of the option refine_steps; with 0 the encoder's code as it is.
        progress: called after each step with its number and its losses.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    config = config or Config()
    generator, encoder = frozen(generator), frozen(encoder)
    _check_photo(generator, photo)
    steps = config.schedule.refine_steps if steps is None else steps
    with torch.no_grad():
        z = encoder(photo)
        if steps == 0:
            return generator.run(z, last=CODE_LAYER)
    recipe = Refinement(generator, config, vgg)
    fit(recipe, {"photo": photo, "z": z}, steps, progress=progress)
    with torch.no_grad():
        return recipe.code(z)


# --- the image-specific generator -----------------------------------------------------------------


class Adaptation(Fitting):
    """Perturbations by which the generator repeats a photo outside the edit.

    mean |x' keep - x keep| + delta_weight * sum of the deltas' mean squares. A batch is
    {"photo": (1,3,H,H) in [-1,1], "code": (1,C,8,8), "keep": (1,1,H,H)}. What no step changes, up
    to the lowest perturbed layer's output, is computed once.

    Args:
        generator: frozen.
        config: of the paper.
        perturbation: gives deltas by layer; `PerturbationNetwork` or `FreeMaps`.
        rate: of Adam (default: adapt_rate).
        weight: of the deltas (default: delta_weight).
        additive: add deltas to the layers' outputs, instead of multiplying by 1 + delta.
    """

    def __init__(
        self,
        generator: ProgressiveGenerator,
        config: Config,
        perturbation: PerturbationNetwork | FreeMaps,
        *,
        rate: float | None = None,
        weight: float | None = None,
        additive: bool = False,
    ) -> None:
        rate = config.schedule.adapt_rate if rate is None else rate
        parameters = [*perturbation.parameters()]
        super().__init__({"perturbation": perturbation}, config, parameters, rate)
        self.generator = folded(generator)
        self.weight = config.loss.delta_weight if weight is None else weight
        self.additive = additive
        self.lowest = min(perturbation.layers)

    @torch.no_grad()
    def prepared(self, batch: Batch) -> Batch:
        below = self.generator.run(batch["code"], CODE_LAYER + 1, self.lowest)
        return {**batch, "below": below}

    def render(self, below: Tensor, deltas: Mapping[int, Tensor]) -> Tensor:
        """The image (N,3,H,H) of the lowest perturbed layer's output, not yet perturbed."""
        above = {layer: delta for layer, delta in deltas.items() if layer != self.lowest}
        if self.additive:
            x, maps = below + deltas[self.lowest], {"offsets": above}
        else:
            x, maps = perturbed(below, deltas[self.lowest]), {"deltas": above}
        return self.generator.run(x, self.lowest + 1, **maps)

    def terms(self, batch: Batch) -> Terms:
        deltas = self.networks["perturbation"]()
        image = self.render(batch["below"], deltas)
        return {
            "match": kept_l1(image, batch["photo"], batch["keep"]),
            "deltas": self.weight * squared(deltas.values()),
        }


class ImageSpecificGenerator(nn.Module):
    """A generator's upper layers with perturbations of their outputs: G'.

    Args:
        generator: frozen.
        deltas: by layer, (1,C,H,W).
        additive: they are added, instead of multiplying by 1 + delta.

    Shape: code (N,C,8,8) -> (N,3,H,H) in [-1,1]. `mask` (N or 1,1,H,H) in [0,1] turns the
    perturbations off where it is 1; it is halved bilinearly down to each layer. `masked` names the
    layers for which it does (default: all; the published server has 12 alone).

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    def __init__(
        self,
        generator: ProgressiveGenerator,
        deltas: Mapping[int, Tensor],
        *,
        additive: bool = False,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.additive = additive
        self.layers = tuple(sorted(deltas))
        for layer, delta in deltas.items():
            self.register_buffer(f"d{layer}", delta.detach())

    def forward(
        self, code: Tensor, mask: Tensor | None = None, *, masked: Collection[int] | None = None
    ) -> Tensor:
        masked = self.layers if masked is None else masked
        if unknown := {*masked} - {*self.layers}:
            raise ValueError(f"masked: expected some of {self.layers}, got {min(unknown)}")
        deltas = {layer: self.get_buffer(f"d{layer}") for layer in self.layers}
        if mask is not None:
            side = self.generator.resolution
            check_mask("mask", mask, code.new_empty(len(code), 3, side, side))
            keep = 1 - mask.to(code.dtype)
            for layer in reversed(self.layers):
                while keep.shape[-1] > self.generator.side(layer):
                    keep = F.avg_pool2d(keep, 2)  # what bilinear halving is
                if layer in masked:
                    deltas[layer] = deltas[layer] * keep
        maps = {"offsets" if self.additive else "deltas": deltas}
        return self.generator.run(code, CODE_LAYER + 1, **maps)


def adapt(
    generator: ProgressiveGenerator,
    code: Tensor,
    photo: Tensor,
    keep: Tensor,
    config: Config | None = None,
    *,
    layers: Sequence[int] | None = None,
    additive: bool = False,
    steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ImageSpecificGenerator:
    """The generator of one edited photo (section 6): what a perturbation network learns.

    Args:
        generator: trained.
        code: (1,C,8,8), edited.
        photo: (1,3,H,H) in [-1,1], unedited.
        keep: (1,1,H,H) in [0,1], 1 outside the edit; see `strokes.keep_mask`.
        config: of the paper (default: the published values).
        layers: that are perturbed (default: every second one from 8 on, as in the published code;
            the paper has all from 5 on).
        additive: deltas are added.
        steps: instead of the option adapt_steps.
        seed: of the perturbation network's weights.
        progress: called after each step with its number and its losses.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    config = config or Config()
    generator = frozen(generator)
    _check_photo(generator, photo)
    check_mask("keep", keep, photo)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        perturbation = PerturbationNetwork(generator, layers).to(photo)
    recipe = Adaptation(generator, config, perturbation, additive=additive)
    batch = {"photo": photo, "code": code, "keep": keep.to(photo.dtype)}
    steps = config.schedule.adapt_steps if steps is None else steps
    fit(recipe, batch, steps, seed=seed, progress=progress)
    # The batch norms' statistics are those of the fixed noise: training mode gives what was fitted.
    perturbation.train()
    with torch.no_grad():
        deltas = perturbation()
    return ImageSpecificGenerator(generator, deltas, additive=additive)


# --- the interactive variant ----------------------------------------------------------------------


class WeightTuning(Fitting):
    """Weights of layers 6 and 8 by which the generator repeats a photo, near those they had.

    L1 of the photo and of VGG-16's relu4_2, and for each parameter the L1 to its first value. A
    batch is {"photo": (1,3,H,H) in [-1,1], "code": (1,C,8,8)}.

    Args:
        generator: frozen; a copy of it is tuned.
        config: of the paper.
        vgg: see `features_of`.
    """

    def __init__(
        self, generator: ProgressiveGenerator, config: Config, vgg: VGGFeatures | None = None
    ) -> None:
        tuned = folded(generator, but=TUNED_LAYERS)
        layers = [tuned.get_submodule(f"layer{i}") for i in TUNED_LAYERS]
        parameters = [p for layer in layers for p in layer.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        super().__init__({"generator": tuned}, config, parameters, config.schedule.tune_rate)
        self.first = [parameter.detach().clone() for parameter in parameters]
        self.tuned = parameters
        self.vgg = features_of(vgg, config.loss.vgg_weight)

    def tune(self, generator: ProgressiveGenerator) -> None:
        """Give a generator the weights that were found."""
        for layer in TUNED_LAYERS:
            found = self.networks["generator"].get_submodule(f"layer{layer}")
            generator.get_submodule(f"layer{layer}").load_state_dict(found.state_dict())

    @torch.no_grad()
    def prepared(self, batch: Batch) -> Batch:
        lowest = min(TUNED_LAYERS) - 1
        below = self.networks["generator"].run(batch["code"], CODE_LAYER + 1, lowest)
        return with_features(self.vgg, {**batch, "below": below})

    def terms(self, batch: Batch) -> Terms:
        image = self.networks["generator"].run(batch["below"], min(TUNED_LAYERS))
        moved = [F.l1_loss(p, first) for p, first in zip(self.tuned, self.first, strict=True)]
        return {
            **photo_terms(self.vgg, self.config.loss.vgg_weight, image, batch),
            "weights": torch.stack(moved).sum(),
        }


def tune(
    generator: ProgressiveGenerator,
    code: Tensor,
    photo: Tensor,
    config: Config | None = None,
    *,
    vgg: VGGFeatures | None = None,
    steps: int | None = None,
    progress: Progress | None = None,
) -> ImageSpecificGenerator:
    """The generator of one photo, fitted before any edit is known: edits then take one forward.

    First the weights of layers 6 and 8, then multipliers of the outputs of layers 10 and 12, which
    an edit's mask turns off (see `ImageSpecificGenerator`).

    Args:
        generator: trained, of at least 128 pixels; it stays as it is.
        code: (1,C,8,8) of the photo, unedited.
        photo: (1,3,H,H) in [-1,1].
        config: of the paper (default: the published values).
        vgg: VGG-16 with the tap relu4_2; needed unless the option vgg_weight is 0.
        steps: of each of both fits, instead of the option tune_steps.
        progress: called after each step with its number, of both together, and its losses.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    config = config or Config()
    _check_photo(generator, photo)
    if generator.layers < max(MULTIPLIED_LAYERS):
        raise ValueError(
            f"generator: expected at least {max(MULTIPLIED_LAYERS)} layers, got {generator.layers}"
        )
    steps = config.schedule.tune_steps if steps is None else steps
    tuned = copy.deepcopy(generator).eval().requires_grad_(False)
    batch: dict[str, Any] = {"photo": photo, "code": code.detach()}
    weights = WeightTuning(tuned, config, vgg)
    fit(weights, batch, steps, progress=progress)
    weights.tune(tuned)
    multipliers = FreeMaps(tuned, MULTIPLIED_LAYERS)
    recipe = Adaptation(tuned, config, multipliers, rate=config.schedule.tune_rate, weight=1.0)
    batch["keep"] = torch.ones_like(photo[:, :1])
    second = None if progress is None else lambda step, losses: progress(steps + step, losses)
    fit(recipe, batch, steps, progress=second)
    return ImageSpecificGenerator(tuned, {k: v.detach() for k, v in multipliers().items()})


def code_of(generator: ProgressiveGenerator, z: Tensor) -> Tensor:
    """r_4 (N,C,8,8) of a latent code (N,C) or (N,C,1,1)."""
    return generator.run(as_map(z), last=CODE_LAYER)
