"""Losses beyond those that papers share."""

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ..checks import check_images
from ..losses import AdversarialLoss
from ..recipe import Terms
from .config import Loss


def scattered(real: Tensor, beta: Tensor) -> Tensor:
    """Images plus noise of half the batch's deviation (DRAGAN).

    Args:
        real: (N,C,H,W).
        beta: the same shape, in [0,1).
    """
    return real + 0.5 * real.std(correction=0) * beta


def mask_guided_reconstruction(
    x: Tensor, edited: Tensor, edit: Tensor, normalise: Literal["mean", "area"] = "mean"
) -> Tensor:
    """The mean absolute change where an edit is to preserve the photo (MagGAN).

    With nothing to edit it is the L1 of both. No gradient passes to `edit`.

    Args:
        x, edited: (N,3,H,W).
        edit: (N,1,H,W) in [0,1], where the photo may change; see `regions.influence_regions`.
        normalise: "mean" over all pixels, or over the "area" that is preserved, at least one value:
            a figure to compare edits by.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    check_images("x", x, 3)
    if edited.shape != x.shape:
        raise ValueError(f"edited: expected the shape {tuple(x.shape)}, got {tuple(edited.shape)}")
    if edit.shape != (len(x), 1, *x.shape[2:]):
        raise ValueError(
            f"edit: expected the shape {(len(x), 1, *x.shape[2:])}, got {tuple(edit.shape)}"
        )
    if normalise not in ("mean", "area"):
        raise ValueError(f"normalise: expected 'mean' or 'area', got {normalise!r}")
    preserved = 1 - edit.detach()
    changed = (x - edited).abs() * preserved
    if normalise == "mean":
        return changed.mean()
    return changed.sum() / (3 * preserved.sum()).clamp(min=1)


def hard_example_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    threshold: float = 0.7,
    least: int | None = None,
    *,
    ignored: int = -100,
) -> Tensor:
    """Cross entropy of the pixels that are hardest (online hard example mining).

    Those count whose loss is above that of the probability `threshold`; the hardest `least` ones,
    if there are not more of them. Which it is, the host has to know.

    Args:
        logits: (N,classes,H,W).
        labels: (N,H,W) or (N,1,H,W), integers.
        threshold: between 0 and 1.
        least: how many pixels count at least; a sixteenth of all by default.
        ignored: the label whose pixels have the loss 0.

    Raises:
        ValueError: a threshold that is no probability, or fewer pixels than `least`.
    """
    labels = labels[:, 0] if labels.dim() == 4 else labels
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: expected a probability between 0 and 1, got {threshold}")
    count = labels.numel()
    least = count // 16 if least is None else least
    if not 0 < least < count:
        raise ValueError(f"least: expected from 1 to {count - 1}, below all pixels, got {least}")
    losses = F.cross_entropy(logits, labels, ignore_index=ignored, reduction="none").flatten()
    losses = losses.sort(descending=True).values
    limit = -math.log(threshold)
    if losses[least] > limit:
        return losses[losses > limit].mean()
    return losses[:least].mean()


# --- sums of the training -------------------------------------------------------------------------


def discriminator_terms(
    real: Sequence[Tensor],
    fake: Sequence[Tensor],
    attributes: Tensor,
    labels: Tensor,
    penalties: Tensor,
    weights: Loss,
) -> Terms:
    """The weighted terms of the discriminator.

    Args:
        real, fake: logits (N,1) of each level.
        attributes: logits (N,n) of photos.
        labels: (N,n), 0 or 1, of these.
        penalties: of each level's gradients.
        weights: of the terms.
    """
    adversarial = AdversarialLoss(weights.adversarial)
    classified = F.binary_cross_entropy_with_logits(attributes, labels)
    return {
        "discriminator_real": adversarial.real(real),
        "discriminator_fake": adversarial.fake(fake),
        "penalty": weights.penalty_weight * penalties.mean(),
        "discriminator_attributes": weights.discriminator_attribute_weight * classified,
    }


def generator_terms(
    fake: Sequence[Tensor],
    attributes: Tensor,
    labels: Tensor,
    reconstruction: Tensor,
    preserved: Tensor | None,
    weights: Loss,
) -> Terms:
    """The weighted terms of the generator.

    Args:
        fake: logits (N,1) of each level, of edited photos.
        attributes: logits (N,n) of these.
        labels: (N,n), 0 or 1, that they were to have.
        reconstruction: the mean difference of photos that were made with nothing to change.
        preserved: `mask_guided_reconstruction` of edited photos, in MagGAN.
        weights: of the terms.
    """
    classified = F.binary_cross_entropy_with_logits(attributes, labels)
    terms = {
        "adversarial": AdversarialLoss(weights.adversarial).generator(fake),
        "attributes": weights.attribute_weight * classified,
        "reconstruction": weights.reconstruction_weight * reconstruction,
    }
    if preserved is not None:
        terms["mask"] = weights.mask_weight * preserved
    return terms
