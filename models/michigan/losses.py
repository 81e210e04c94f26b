"""What the paper compares. Masks: **1 hair, 0 not**, (N,1,H,W); photos in [-1,1].

"Inside" a mask: sum(values * mask) / (sum(mask) * channels + 1e-5), the mask resized to the values'
size by nearest neighbours. A mean runs over all elements unless said otherwise.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import lab

EPS = 1e-5
EDGE_SHARE = 0.06  # of a score map's height: the breadth of the hair's edge


def resized(mask: Tensor, like: Tensor) -> Tensor:
    """A mask (N,1,h,w) at another map's height and width and in its dtype."""
    return F.interpolate(mask.to(like.dtype), like.shape[2:], mode="nearest")


def inside(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of (N,C,H,W) inside a mask, 0 where it is empty."""
    mask = resized(mask, values)
    return (values * mask).sum() / (mask.sum() * values.shape[1] + EPS)


# --- discriminator --------------------------------------------------------------------------------


def edge(hair: Tensor, height: int, width: int) -> Tensor:
    """(N,1,height,width): 1 at the hair's edge, both sides of it, 0 elsewhere."""
    hair = F.interpolate(hair, (height, width), mode="nearest")
    side = max(1, int(height * EDGE_SHARE))

    def grown(mask: Tensor) -> Tensor:
        # Of an even side the result is a row and a column larger, which are left out.
        return F.max_pool2d(mask, side, stride=1, padding=side // 2)[..., :height, :width]

    return grown(hair) - (1 - grown(1 - hair))


class HairHinge:
    """A hinge loss that knows where hair is; averaged over scales.

    Args:
        edge_weight: of the discriminator's scores at the hair's edge; others have 1.
        hair_only: inside the hair alone, without `edge_weight`.
    """

    def __init__(self, edge_weight: float = 2.0, hair_only: bool = False) -> None:
        self.edge_weight = edge_weight
        self.hair_only = hair_only

    def weight(self, hair: Tensor, score: Tensor) -> Tensor:
        """(N,1,H,W): of a score map in the discriminator's loss."""
        if self.edge_weight <= 1:
            return torch.ones_like(score)
        return 1 + (self.edge_weight - 1) * edge(hair.to(score.dtype), *score.shape[2:])

    def _averaged(self, losses: Sequence[Tensor], hair: Tensor, weighted: bool) -> Tensor:
        if self.hair_only:
            reduced = [inside(loss, hair) for loss in losses]
        elif weighted:
            reduced = [(loss * self.weight(hair, loss)).mean() for loss in losses]
        else:
            reduced = [loss.mean() for loss in losses]
        return torch.stack(reduced).mean()

    def real(self, scores: Sequence[Tensor], hair: Tensor) -> Tensor:
        """The discriminator's loss on photos: a score map (N,1,h,w) for each scale."""
        return self._averaged([F.relu(1 - score) for score in scores], hair, True)

    def fake(self, scores: Sequence[Tensor], hair: Tensor) -> Tensor:
        """The discriminator's loss on fakes."""
        return self._averaged([F.relu(1 + score) for score in scores], hair, True)

    def generator(self, scores: Sequence[Tensor], hair: Tensor) -> Tensor:
        """The generator's loss; nothing is weighted."""
        return self._averaged([-score for score in scores], hair, False)


def matching_inside(
    fake: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]], hair: Tensor
) -> Tensor:
    """`losses.feature_matching` inside the hair."""
    terms = [
        inside((a - b.detach()).abs(), hair)
        for of_fake, of_real in zip(fake, real, strict=True)
        for a, b in zip(of_fake[:-1], of_real[:-1], strict=True)
    ]
    return torch.stack(terms).sum() / len(fake)


# --- features of VGG-19 ---------------------------------------------------------------------------


def perceptual_inside(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], weights: Mapping[str, float], hair: Tensor
) -> Tensor:
    """`losses.perceptual` inside the hair."""
    terms = [weight * inside((a[k] - b[k]).abs(), hair) for k, weight in weights.items()]
    return torch.stack(terms).sum()


def content(a: Tensor, b: Tensor, hair: Tensor | None = None) -> Tensor:
    """Mean squared difference of features, or the mean inside the hair."""
    return F.mse_loss(a, b) if hair is None else inside((a - b).square(), hair)


def style(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    hair_a: Tensor | None = None,
    hair_b: Tensor | None = None,
) -> Tensor:
    """Sum over taps of the mean squared differences of channel means and of deviations.

    Args:
        a, b: features (N,C,h,w) by tap.
        hair_a, hair_b: take those of the hair alone. The published script passes each other's.
    """
    terms = []
    for tap, features in a.items():
        ours, wanted = _moments(features, hair_a), _moments(b[tap], hair_b)
        terms += [F.mse_loss(x, y) for x, y in zip(ours, wanted, strict=True)]
    return torch.stack(terms).sum()


def _moments(x: Tensor, hair: Tensor | None) -> tuple[Tensor, Tensor]:
    """Means and deviations (N,C,1,1) of each image's channels."""
    if hair is None:
        variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True)
        return mean, (variance + EPS).sqrt()
    hair = resized(hair, x)
    area = hair.sum(dim=(2, 3), keepdim=True) + EPS
    mean = (x * hair).sum(dim=(2, 3), keepdim=True) / area
    squared = (x * hair - mean).square() * hair
    return mean, (squared.sum(dim=(2, 3), keepdim=True) / area + EPS).sqrt()


# --- colours --------------------------------------------------------------------------------------


def average_colour(a: Tensor, b: Tensor, hair_a: Tensor, hair_b: Tensor) -> Tensor:
    """Mean absolute difference of each image's mean colour of hair, a and b of Lab."""

    def mean(image: Tensor, hair: Tensor) -> Tensor:
        hair = hair.to(image.dtype)
        area = hair.sum(dim=(2, 3))
        total = (lab(image)[:, 1:] * hair).sum(dim=(2, 3))
        return total / torch.where(area > 0, area, 1)

    return F.l1_loss(mean(a, hair_a), mean(b, hair_b))


def background(a: Tensor, b: Tensor, hair: Tensor) -> Tensor:
    """Mean absolute difference outside the hair, over all pixels."""
    return ((a - b) * (1 - hair.to(a.dtype))).abs().mean()
