"""What stage two compares. Masks: **1 hole, which is edited, 0 known**; photos in [-1,1].

Means run over all elements, those outside of a mask too, as published.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from ..losses import style, total_variation

STYLE_TAPS = ("relu2_2", "relu3_4", "relu4_4", "relu5_2")


def l1_inside(fake: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """The mean difference of (N,C,H,W) inside a mask (N,1,H,W), 0 outside of it."""
    return F.l1_loss(fake * mask, real * mask)


def face_variation(fake: Tensor, real: Tensor, face: Tensor, hole: Tensor) -> Tensor:
    """Total variation of the face, of whose pixels those in the hole are new.

    Args:
        fake, real: (N,3,H,W).
        face, hole: (N,1,H,W).
    """
    new = face * hole
    return total_variation(real * face * (face - new) + fake * face * new)


def style_loss(fake: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
    """L1 between Gram matrices of VGG-19's features, which hold at least `STYLE_TAPS`."""
    return style(fake, real, STYLE_TAPS)
