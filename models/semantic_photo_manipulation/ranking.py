"""Units of the code that cause a class, and the values that they have where it is.

The class is told by a segmenter, which is not part of the paper's files: any function of images
(N,3,H,H) in [-1,1] that gives the probability of the class at each pixel, (N,H',W') in [0,1].
Ranking needs its gradient. (Bau et al., GAN Dissection, ICLR 2019.)
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..files import whole_or_nothing
from .fitting import Fitting, Progress, fit, frozen
from .networks import CODE_LAYER, Config, ProgressiveGenerator, as_map
from .strokes import pooled

Segmenter = Callable[[Tensor], Tensor]
PRESENT = 0.5  # probability from which on a pixel counts as of the class
QUANTILE = 0.99
TINY = 1e-12


class UnitClass(NamedTuple):
    """What is known of a class.

    Attributes:
        units: of the code, the strongest first.
        values: p_c, of all units, (C,).
    """

    units: tuple[int, ...]
    values: Tensor


@torch.no_grad()
def sampled_codes(
    generator: ProgressiveGenerator, count: int, *, batch: int = 8, seed: int = 1
) -> Iterator[Tensor]:
    """Codes r_4 of random z, (batch,C,8,8) each; `count` in all, the same for the same seed."""
    if count < 1 or batch < 1:
        raise ValueError(f"count, batch: expected at least 1, got {count} and {batch}")
    parameter = next(generator.parameters())
    random = np.random.RandomState(seed)
    for begin in range(0, count, batch):
        z = random.standard_normal((min(batch, count - begin), generator.sizes[0]))
        yield generator.run(as_map(torch.from_numpy(z).to(parameter)), last=CODE_LAYER)


@torch.no_grad()
def cover(generator: ProgressiveGenerator, segment: Segmenter, codes: Tensor) -> Tensor:
    """The share of each code cell that the class covers in the image, (N,1,8,8)."""
    image = generator.run(codes, CODE_LAYER + 1)
    return pooled(
        (_scores(segment, image) > PRESENT).to(codes)[:, None], "average", codes.shape[-1]
    )


def _scores(segment: Segmenter, image: Tensor) -> Tensor:
    scores = segment(image)
    if scores.dim() != 3 or len(scores) != len(image):
        raise ValueError(
            f"segment: expected a result of the shape ({len(image)}, H, W), got"
            f" {tuple(scores.shape)}"
        )
    return scores


def class_values(
    generator: ProgressiveGenerator,
    segment: Segmenter,
    *,
    samples: int = 10_000,
    batch: int = 8,
    seed: int = 1,
) -> Tensor:
    """p_c: mean activations where the class is, (C,), sum(feature * cover) / sum(cover).

    Raises:
        ValueError: the class is in none of the samples.
    """
    total = generator.layer4.wscale.b.new_zeros(generator.channels(CODE_LAYER)).double()
    weight = total.new_zeros(())
    for codes in sampled_codes(generator, samples, batch=batch, seed=seed):
        share = cover(generator, segment, codes)
        total += (codes * share).sum((0, 2, 3)).double()
        weight += share.sum().double()
    if weight == 0:
        raise ValueError(f"segment: expected the class in some of {samples} samples, found none")
    return (total / weight).to(generator.layer4.wscale.b)


def unit_quantiles(
    generator: ProgressiveGenerator,
    *,
    quantile: float = QUANTILE,
    samples: int = 1000,
    batch: int = 8,
    seed: int = 1,
) -> Tensor:
    """A quantile of each unit's activations over samples and cells, (C,), interpolated linearly.

    The values that the published demo paints with (0.99). Only the values above it are kept.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile: expected 0 to 1, got {quantile}")
    count = samples * generator.side(CODE_LAYER) ** 2
    place = (1 - quantile) * (count - 1)  # from the largest
    kept = min(count, math.floor(place) + 2)
    largest: Tensor | None = None
    for codes in sampled_codes(generator, samples, batch=batch, seed=seed):
        values = codes.movedim(1, 0).flatten(1)
        values = values if largest is None else torch.cat((largest, values), dim=1)
        largest = values.topk(min(kept, values.shape[1]), dim=1).values
    above, below = largest[:, math.floor(place)], largest[:, min(math.ceil(place), kept - 1)]
    return above.lerp(below, place - math.floor(place))


def unit_iou(
    generator: ProgressiveGenerator,
    segment: Segmenter,
    thresholds: Tensor,
    *,
    samples: int = 1000,
    batch: int = 8,
    seed: int = 1,
) -> Tensor:
    """Intersection over union of each unit, where it exceeds its threshold, with the class, (C,).

    At the code's cells, which count by the share that the class covers.
    """
    both = torch.zeros_like(thresholds, dtype=torch.float64)
    either = torch.zeros_like(both)
    for codes in sampled_codes(generator, samples, batch=batch, seed=seed):
        share = cover(generator, segment, codes)
        active = (codes > thresholds[:, None, None]).to(codes)
        both += (active * share).sum((0, 2, 3))
        either += torch.maximum(active, share.expand_as(active)).sum((0, 2, 3))
    return (both / either.clamp(min=TINY)).to(thresholds)


class _Effects(nn.Module):
    """a in [0,1], of each unit."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(start.detach().clone())


class CausalEffects(Fitting):
    """How strongly each unit is to be blended so that the class goes, and comes.

    Mean probability where the units are turned off in the class's cells, less that where they take
    the class's values in the candidate cells, + weight * sum of a^2. A batch is {"code": (n,C,8,8),
    "cells", "candidates": (n,1,8,8)}.
    """

    def __init__(
        self,
        generator: ProgressiveGenerator,
        config: Config,
        segment: Segmenter,
        values: Tensor,
        start: Tensor,
        *,
        rate: float = 0.01,
        weight: float = 0.005,
    ) -> None:
        effects = _Effects(start)
        super().__init__({"effects": effects}, config, [effects.a], rate)
        self.generator = generator
        self.segment = segment
        self.weight = weight
        self.register_buffer("values", values[:, None, None])

    def _score(self, code: Tensor) -> Tensor:
        return _scores(self.segment, self.generator.run(code, CODE_LAYER + 1)).mean()

    def terms(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        a, code = self.networks["effects"].a, batch["code"]
        off, on = (a[:, None, None] * batch[name] for name in ("cells", "candidates"))
        return {
            "without": self._score(code * (1 - off)),
            "with": -self._score(code * (1 - on) + self.values * on),
            "squares": self.weight * a.square().sum(),
        }


def rank_units(
    generator: ProgressiveGenerator,
    segment: Segmenter,
    *,
    values: Tensor | None = None,
    start: Tensor | None = None,
    samples: int = 1000,
    epochs: int = 10,
    batch: int = 2,
    accumulate: int = 10,
    seed: int = 1,
    progress: Progress | None = None,
) -> tuple[UnitClass, Tensor]:
    """The units by their causal effect on a class, and the effects a (C,) in [0,1].

    Args:
        generator: trained.
        segment: see above.
        values: p_c (default: `class_values` of these samples).
        start: of a (default: intersections over union, the largest made 1).
        samples: images; each step takes batch * accumulate of them, so many must be at least that.
        epochs: passes over them.
        batch, accumulate: images at once, and batches of a step.
        seed: of the samples and their order.
        progress: called after each step with its number and its losses.

    Raises:
        ValueError: an argument does not fit, or the class is in none of the samples.
    """
    per_step = batch * accumulate
    if min(samples, epochs, batch, accumulate) < 1 or samples < per_step:
        raise ValueError(
            f"samples: expected at least batch * accumulate, {per_step}, got {samples}"
        )
    generator = frozen(generator)
    how = {"samples": samples, "batch": batch, "seed": seed}
    values = class_values(generator, segment, **how) if values is None else values
    if start is None:
        thresholds = unit_quantiles(generator, **how)
        overlap = unit_iou(generator, segment, thresholds, **how)
        start = overlap / overlap.max().clamp(min=TINY)
    codes = torch.cat([*sampled_codes(generator, samples, batch=batch, seed=seed)])
    covers = torch.cat([cover(generator, segment, part) for part in codes.split(batch)])
    recipe = CausalEffects(generator, Config(), segment, values, start)
    effects = recipe.networks["effects"].a
    steps = samples // per_step

    def parts(step: int) -> Sequence[Mapping[str, Tensor]]:
        order = np.random.RandomState([seed, step // steps]).permutation(samples)
        begin = step % steps * per_step
        chosen = torch.from_numpy(order[begin : begin + per_step]).to(codes.device)
        present = (covers[chosen] > 0).to(codes)
        fields = {"code": codes[chosen], "cells": present, "candidates": 1 - present}
        return [{k: v[i : i + batch] for k, v in fields.items()} for i in range(0, per_step, batch)]

    def clamp() -> None:
        with torch.no_grad():
            effects.clamp_(0, 1)

    fit(recipe, parts, epochs * steps, seed=seed, progress=progress, after=clamp)
    found = effects.detach().clone()
    order = found.sort(descending=True, stable=True).indices
    return UnitClass(tuple(order.tolist()), values), found


# --- files ----------------------------------------------------------------------------------------


def write_classes(path: Path, classes: Mapping[str, UnitClass]) -> None:
    """Classes as JSON: {name: {"units": [...], "values": [...]}, ...}."""
    content = {
        name: {"units": [*found.units], "values": found.values.tolist()}
        for name, found in classes.items()
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(path) as partial:
        partial.write_text(json.dumps(content))


def read_classes(path: Path) -> dict[str, UnitClass]:
    """Classes that `write_classes` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    try:
        content = json.loads(Path(path).read_text())
        classes = {
            name: UnitClass(
                tuple(int(unit) for unit in given["units"]),
                torch.tensor([float(value) for value in given["values"]]),
            )
            for name, given in content.items()
        }
        for name, found in classes.items():
            if not found.units or not 0 <= min(found.units) <= max(found.units) < len(found.values):
                raise ValueError(f"{name}: units outside the values")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f'{path}: expected classes as {{"tree": {{"units": [5, ...], "values": [0.1, ...]}}}}'
            f" ({error})"
        ) from None
    return classes
