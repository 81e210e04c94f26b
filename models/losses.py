"""Losses that several papers share. A mean runs over all elements unless said otherwise."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_images, check_mask

Scores = Tensor | Sequence[Tensor]  # one score map, or one of each scale
Adversarial = Literal["hinge", "non_saturating", "probability", "least_squares", "wasserstein"]


def _cross_entropy(score: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(score, torch.full_like(score, target))


def _log(probability: Tensor) -> Tensor:
    """At least -100, as in PyTorch's cross entropy, which refuses a NaN where this hands it on."""
    if probability.dtype in (torch.float16, torch.bfloat16):
        probability = probability.float()
    return probability.log().clamp(min=-100)


# Of a discriminator's score map: its loss on real and on fake images, and the generator's on fakes.
_FORMS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "hinge": (
        lambda score: F.relu(1 - score).mean(),
        lambda score: F.relu(1 + score).mean(),
        lambda score: -score.mean(),
    ),
    "non_saturating": (
        lambda score: _cross_entropy(score, 1.0),
        lambda score: _cross_entropy(score, 0.0),
        lambda score: _cross_entropy(score, 1.0),
    ),
    "probability": (
        lambda score: -_log(score).mean(),
        lambda score: -_log(1 - score).mean(),
        lambda score: -_log(score).mean(),
    ),
    "least_squares": (
        lambda score: (score - 1).square().mean(),
        lambda score: score.square().mean(),
        lambda score: (score - 1).square().mean(),
    ),
    "wasserstein": (
        lambda score: -score.mean(),
        lambda score: score.mean(),
        lambda score: -score.mean(),
    ),
}


class AdversarialLoss:
    """A GAN loss on score maps.

    Args:
        form: "hinge"; "non_saturating" (cross entropy of logits); "probability" (the same of scores
            behind a sigmoid); "least_squares" with targets 1 and 0; "wasserstein".
        scales: "mean" or "sum" over the scales of a multi-scale discriminator.
    """

    def __init__(
        self, form: Adversarial = "hinge", *, scales: Literal["mean", "sum"] = "mean"
    ) -> None:
        if form not in _FORMS:
            raise ValueError(f"form: expected one of {sorted(_FORMS)}, got {form!r}")
        if scales not in ("mean", "sum"):
            raise ValueError(f"scales: expected 'mean' or 'sum', got {scales!r}")
        self.form = form
        self.scales = scales
        self._real, self._fake, self._generator = _FORMS[form]

    def _reduce(self, scores: Scores, loss: Callable[[Tensor], Tensor]) -> Tensor:
        losses = [loss(score) for score in ([scores] if isinstance(scores, Tensor) else scores)]
        total = torch.stack(losses).sum()
        return total / len(losses) if self.scales == "mean" else total

    def real(self, scores: Scores) -> Tensor:
        """The discriminator's loss on real images."""
        return self._reduce(scores, self._real)

    def fake(self, scores: Scores) -> Tensor:
        """The discriminator's loss on fakes."""
        return self._reduce(scores, self._fake)

    def generator(self, scores: Scores) -> Tensor:
        """The generator's loss."""
        return self._reduce(scores, self._generator)


def feature_matching(fake: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]]) -> Tensor:
    """L1 of a discriminator's features, summed over layers, averaged over scales.

    Args:
        fake, real: for each scale its features, the score map last (left out). No gradient passes
            to `real`.
    """
    losses = [
        F.l1_loss(a, b.detach())
        for scale_a, scale_b in zip(fake, real, strict=True)
        for a, b in zip(scale_a[:-1], scale_b[:-1], strict=True)
    ]
    return torch.stack(losses).sum() / len(fake)


def gram(features: Tensor) -> Tensor:
    """(N,C,H,W) -> (N,C,C): products of all pairs of channels, divided by C*H*W."""
    check_images("features", features)
    N, C, H, W = features.shape
    flat = features.reshape(N, C, H * W)
    return flat @ flat.transpose(1, 2) / (C * H * W)


def perceptual(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], weights: Mapping[str, float] | None = None
) -> Tensor:
    """Weighted sum over taps of the L1 between features (see `vgg.VGGFeatures`).

    Args:
        a, b: features by tap.
        weights: of the taps that count; by default all of `a`, weight 1.
    """
    weights = dict.fromkeys(a, 1.0) if weights is None else weights
    return torch.stack([weight * F.l1_loss(a[k], b[k]) for k, weight in weights.items()]).sum()


def style(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], taps: Iterable[str] | None = None
) -> Tensor:
    """Sum over taps of the L1 between Gram matrices."""
    taps = a if taps is None else taps
    return torch.stack([F.l1_loss(gram(a[key]), gram(b[key])) for key in taps]).sum()


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of horizontal neighbours plus that of vertical ones."""
    horizontal = (x[..., :, 1:] - x[..., :, :-1]).abs().mean()
    return horizontal + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()


def total_variation_in_holes(
    x: Tensor,
    known: Tensor,
    *,
    rows: Literal["neighbours", "published"] = "neighbours",
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Absolute differences of neighbours that both lie in the holes grown by one pixel.

    Args:
        x: (N,C,H,W).
        known: (N or 1,1 or C,H,W), 1 known, 0 hole.
        rows: "published" compares the first with the last row in place of vertical neighbours, the
            slip of PD-GAN's code.
        reduction: of each direction, over all elements, those outside too.

    Raises:
        TypeError, ValueError: x or known does not fit.
    """
    check_images("x", x)
    check_mask("known", known, x, (1, x.shape[1]))
    known = known.to(x.dtype)
    grown = F.max_pool2d(1 - known, 3, stride=1, padding=1)
    horizontal = grown[..., 1:] * grown[..., :-1] * (x[..., 1:] - x[..., :-1]).abs()
    if rows == "neighbours":
        vertical = (x[..., 1:, :] - x[..., :-1, :]).abs()
    else:
        vertical = (x[..., :1, :] - x[..., -1:, :]).abs()
    vertical = grown[..., 1:, :] * grown[..., :-1, :] * vertical
    if reduction == "mean":
        return horizontal.mean() + vertical.mean()
    return horizontal.sum() + vertical.sum()


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of normal distributions from the standard one, summed over everything but the batch.

    Averaged over the batch.
    """
    terms = 1 + log_variance - mean.square() - log_variance.exp()
    return -0.5 * terms.flatten(1).sum(1).mean()


# CIE XYZ of RGB, each row divided by its sum.
_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_DARK = 0.008856


def colour_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the colours, a and b of CIE Lab, whatever the lightness.

    Args:
        a, b: (N,3,H,W) in [-1,1]; RGB is taken as linear light, as papers on portraits do.
    """
    return F.l1_loss(lab(a)[:, 1:], lab(b)[:, 1:])


def lab(image: Tensor) -> Tensor:
    """CIE Lab (N,3,H,W) of photos (N,3,H,W) in [-1,1], taken as linear light."""
    matrix = torch.tensor(_XYZ, dtype=torch.float64)
    matrix = (matrix / matrix.sum(dim=1, keepdim=True)).to(image)
    xyz = torch.einsum("ij,njhw->nihw", matrix, (image + 1) / 2)
    bright = xyz > _DARK
    root = torch.where(
        bright, xyz.clamp(min=_DARK) ** (1 / 3), 7.787 * xyz + 0.137931
    )  # the clamp keeps the gradient of what is not taken finite
    x, y, z = root.unbind(1)
    lightness = torch.where(bright[:, 1], 116 * y - 16, 903.3 * xyz[:, 1])
    return torch.stack((lightness, 500 * (x - y), 200 * (y - z)), dim=1)


def gradient_penalty(
    score: Callable[[Tensor], Tensor], real: Tensor, other: Tensor, alpha: Tensor
) -> Tensor:
    """How far a score's gradients are from the length 1, squared, averaged over images (WGAN-GP).

    Its own gradient runs through the score twice. Where a gradient is 0, so is that of its length.

    Args:
        score: (N,1) of images.
        real, other: (N,C,H,W), between which the gradient is taken: photos and fakes, or photos and
            `scattered` ones.
        alpha: (N,1,1,1) in [0,1), the place between them.

    Raises:
        ValueError: the shapes differ.
    """
    check_images("real", real)
    if other.shape != real.shape:
        raise ValueError(f"other: expected the shape {tuple(real.shape)}, got {tuple(other.shape)}")
    if alpha.shape != (len(real), 1, 1, 1):
        raise ValueError(
            f"alpha: expected the shape ({len(real)}, 1, 1, 1), got {tuple(alpha.shape)}"
        )
    x = torch.lerp(real, other, alpha)
    if not x.requires_grad:
        x.requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(score(x).sum(), x, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
