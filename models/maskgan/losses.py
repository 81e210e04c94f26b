"""Losses beyond those that papers share."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..losses import feature_matching, kl_divergence

IGNORED = 250  # a class in files of the face parser's data set that no loss counts


def matching(
    fake: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]], layers: int
) -> Tensor:
    """L1 of a discriminator's features as published: 4/(layers + 1) of the mean over scales.

    Args:
        fake, real: as for `losses.feature_matching`.
        layers: convolutions of a discriminator before its last two.
    """
    return 4 / (layers + 1) * feature_matching(fake, real)


def parsing_loss(logits: Tensor, labels: Tensor, *, ignored: int = IGNORED) -> Tensor:
    """The face parser's cross entropy, averaged over the pixels that count.

    Args:
        logits: (N,classes,h,w); resized bilinearly (corners aligned) to the labels' size.
        labels: (N,H,W) or (N,1,H,W), integers.
        ignored: the class that does not count.
    """
    labels = labels[:, 0] if labels.dim() == 4 else labels
    if logits.shape[2:] != labels.shape[1:]:
        logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=True)
    return F.cross_entropy(logits, labels.long(), ignore_index=ignored)


def mask_vae_loss(
    logits: Tensor, mean: Tensor, log_variance: Tensor, labels: Tensor, kl_weight: float = 1e-5
) -> Tensor:
    """MaskVAE's cross entropy, averaged over pixels, and the weighted divergence of its codes.

    Args:
        logits, mean, log_variance: of `MaskVAE`.
        labels: (N,H,W) or (N,1,H,W), integers.
        kl_weight: 1e-5 in the paper.
    """
    labels = labels[:, 0] if labels.dim() == 4 else labels
    entropy = F.cross_entropy(logits, labels.long())
    return entropy + kl_weight * kl_divergence(mean, log_variance)
