"""`python -m torchext.models.maggan.evaluate`: how often edits succeed, and what else they change.

As STGAN counts them: each attribute of each photo is flipped by itself, with twice the intensity,
and a classifier looks whether it is.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from .. import papers
from . import PAPER, data
from .attributes import CELEBA
from .classifier import AttributeClassifier
from .config import Config
from .editing import AttributeEditor, classify
from .losses import mask_guided_reconstruction
from .parser import one_hot
from .regions import influence_table

INTENSITY = 2.0  # of STGAN's published accuracies


class Evaluation(NamedTuple):
    """What edits of many photos came to.

    Attributes:
        accuracy: of each attribute, the share of photos in which the classifier finds it flipped.
        psnr: of photos that are made with nothing to change, in dB, averaged over photos.
        changed: mean absolute change of values in [0,1] outside the influence regions, averaged
            over edits; None without masks.
    """

    accuracy: dict[str, float]
    psnr: float
    changed: float | None


@torch.no_grad()
def evaluate(
    generator: nn.Module,
    classifier: AttributeClassifier,
    samples: Iterable[Mapping[str, Any]],
    config: Config,
    *,
    intensity: float = INTENSITY,
) -> Evaluation:
    """Flip every attribute of every photo.

    Args:
        generator, classifier: trained, in evaluation mode, on one device.
        samples: of `data.Faces`: "image" (3,H,W) in [0,1], "attributes" (n,) and, for MagGAN,
            "labels" (1,H,W).
        config: the generator's options.
        intensity: of the edits.

    Raises:
        ValueError: no samples.
    """
    names = config.network.attributes
    places = [CELEBA.index(name) for name in names]
    table = influence_table(config.network.regions)
    device = next(generator.parameters()).device
    flipped, psnrs, changes = torch.zeros(len(names)), [], []
    for sample in samples:
        photo, source = (sample[n][None].to(device) for n in ("image", "attributes"))
        masks = one_hot(sample["labels"][None].to(device)) if "labels" in sample else None
        editor = AttributeEditor(
            generator,
            photo,
            source,
            masks=masks,
            attributes=names,
            table=table,
            condition=config.network.condition,
        )
        error = (editor.reconstruct().photo.clamp(0, 1) - photo).square().mean()
        psnrs.append(-10 * error.log10().item())
        for i, name in enumerate(names):
            made = editor({name: intensity})
            found = classify(classifier, made.photo)[0, places[i]]
            flipped[i] += float(found != source[0, i])
            if masks is not None:
                change = mask_guided_reconstruction(photo, made.photo, made.region, "area")
                changes.append(change.item())
    if not psnrs:
        raise ValueError("samples: expected photos, got none")
    accuracy = dict(zip(names, (flipped / len(psnrs)).tolist(), strict=True))
    changed = sum(changes) / len(changes) if changes else None
    return Evaluation(accuracy, sum(psnrs) / len(psnrs), changed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torchext.models.maggan.evaluate",
        description="how often edits succeed, and what else they change",
    )
    data.train_arguments(parser)
    parser.add_argument("--checkpoint", type=Path, required=True, help="with a generator")
    parser.add_argument("--classifier", type=Path, help="a file of the attribute classifier")
    parser.add_argument("--intensity", type=float, default=INTENSITY, help="(default: %(default)g)")
    parser.add_argument("--count", type=int, help="of photos (default: all)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    try:
        networks, config = papers.load(options.checkpoint, PAPER)
        if options.classifier is not None:
            networks |= papers.load(options.classifier, PAPER, config)[0]
        for name in ("generator", "classifier"):
            if name not in networks:
                raise ValueError(f"{options.checkpoint}: expected a {name}, found {[*networks]}")
            networks[name].to(options.device).eval()
        options.seed = 0
        as_they_are = dataclasses.replace(config.schedule, flip=0.0)
        faces = data.dataset(
            options, dataclasses.replace(config, schedule=as_they_are), PAPER.stage("editing")
        )
        count = len(faces) if options.count is None else min(options.count, len(faces))
        found = evaluate(
            networks["generator"],
            networks["classifier"],
            (faces[0, i, i] for i in tqdm(range(count), desc="photos")),
            config,
            intensity=options.intensity,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, share in found.accuracy.items():
        print(f"{name}: {share:.1%} flipped")
    print(f"mean: {sum(found.accuracy.values()) / len(found.accuracy):.1%} flipped")
    print(f"with nothing to change: {found.psnr:.2f} dB")
    if found.changed is not None:
        print(f"outside the regions: {found.changed:.4f} of full scale changed on average")
    return 0


if __name__ == "__main__":
    sys.exit(main())
