"""Orientation maps and loss: "MichiGAN: Multi-Input-Conditioned Hair Image Generation" (2020)."""

import torch
from torch import Tensor, nn

from ..ops.checks import (
    check_choice,
    check_device,
    check_feature_map,
    check_mask_values,
    check_tensor,
)
from ..ops.gabor_orientation import (
    BANKS,
    GREY_WEIGHTS,
    BankName,
    Grey,
    Order,
    Rectify,
    check_value_range,
    gabor_orientation,
    orientation_map,
)


class GaborOrientation(nn.Module):
    """An image's orientation as the network reads it, with its confidence. Mask: 1 hair, 0 not.

    confidence = (tanh(strength) + 1) / 2 for Gabor filters; for "dog", strength times the mask,
    divided by its maximum over the whole batch (the gradient passes through the maximum too).

    Args:
        bank: "gabor" or "dog" (oriented differences of Gaussians).
        rectify, grey, value_range: as for `torchext.gabor_orientation`.
        order: of the channels, "sin_cos" (published code and checkpoints) or "cos_sin" (the paper).

    Shape: image (N,3,H,W) or (N,1,H,W), mask (N,1,H,W) or None for ones ->
    (two_channel (N,2,H,W), confidence (N,1,H,W)); two_channel is the doubled angle's sine and
    cosine times the confidence. float32 (float64 for a float64 image).

    Where the mask is empty in the whole batch the confidence of "dog" is 0 (published: NaN).

    Raises:
        TypeError, ValueError: what `torchext.gabor_orientation` raises; a mask that does not fit.
    """

    def __init__(
        self,
        bank: BankName = "gabor",
        *,
        rectify: Rectify = "relu",
        order: Order = "sin_cos",
        grey: Grey = "published",
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        check_choice("bank", bank, BANKS)
        check_choice("rectify", rectify, ("relu", "abs"))
        check_choice("order", order, ("sin_cos", "cos_sin"))
        check_choice("grey", grey, GREY_WEIGHTS)
        self.bank: BankName = bank
        self.rectify: Rectify = rectify
        self.order: Order = order
        self.grey: Grey = grey
        self.value_range = check_value_range(value_range)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        angle, strength = gabor_orientation(
            image, self.bank, rectify=self.rectify, grey=self.grey, value_range=self.value_range
        )
        if mask is not None:
            mask = _matching_mask(mask, strength)
        confidence = _confidence(self.bank, strength, mask)
        return orientation_map(angle, confidence, self.order), confidence

    def extra_repr(self) -> str:
        return (
            f"{self.bank!r}, rectify={self.rectify!r}, order={self.order!r}, grey={self.grey!r},"
            f" value_range={self.value_range}"
        )


class OrientationLoss(GaborOrientation):
    """The published orientation and confidence losses of a generated image. Mask: 1 hair, 0 not.

    orientation = mean |two_channel * mask - label * mask| over all pixels and both channels.
    confidence = -sum(log(clamp(c, .001, 1)) * mask) / sum(mask) for Gabor filters, sum |c * mask -
    mask| / (sum(mask) + 1e-5) for "dog". The choice of the filter passes no gradient, the strength
    does. As published, Gabor's tanh saturates: its gradient is 0 nearly everywhere; "dog" has one
    everywhere.

    Args: as for `GaborOrientation`.

    Shape: image (N,3,H,W) or (N,1,H,W); label (N,2,H,W), a two-channel map in `order`, or
    (N,1,H,W), the angle's 8-bit code 0..255 (0..pi); mask (N,1,H,W) -> (orientation, confidence),
    two scalars.

    Where the mask is empty in the whole batch both are 0 for Gabor filters and the confidence loss
    is 0 for "dog" (published: NaN).

    Raises:
        TypeError, ValueError: what `GaborOrientation` raises; a label that does not fit.
    """

    def forward(self, image: Tensor, label: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        two_channel, confidence = super().forward(image, mask)
        mask = _matching_mask(mask, confidence)
        label = _matching("label", label, confidence, (1, 2))
        if label.shape[1] == 1:
            label = orientation_map(label * (torch.pi / 255), order=self.order)
        orientation_loss = (two_channel * mask - label * mask).abs().mean()
        area = mask.sum()
        if self.bank == "dog":
            return orientation_loss, (confidence * mask - mask).abs().sum() / (area + 1e-5)
        total = -(confidence.clamp(0.001, 1).log() * mask).sum()
        return orientation_loss, total / torch.where(area > 0, area, 1)


def _confidence(bank: BankName, strength: Tensor, mask: Tensor | None) -> Tensor:
    if bank == "gabor":
        return (torch.tanh(strength) + 1) / 2
    inside = strength if mask is None else strength * mask
    if not inside.numel():
        return inside
    maximum = inside.max()
    return (inside / torch.where(maximum > 0, maximum, 1)).clamp(min=0)


def _matching_mask(mask: Tensor, like: Tensor) -> Tensor:
    value = _matching("mask", mask, like, (1,))
    check_mask_values("mask", value)
    return value


def _matching(name: str, value: Tensor, like: Tensor, channels: tuple[int, ...]) -> Tensor:
    """`value` (N,C,H,W) in the dtype of the maps (N,1,H,W), or an error that names it."""
    check_tensor(name, value)
    if value.dtype == torch.bool or not value.is_floating_point():
        value = value.to(like.dtype)
    check_feature_map(name, value)
    N, _, H, W = like.shape
    if value.shape[1] not in channels or value.shape != (N, value.shape[1], H, W):
        expected = " or ".join(str((N, C, H, W)) for C in channels)
        raise ValueError(f"{name}: expected the shape {expected}, got {tuple(value.shape)}")
    check_device(name, value, like)
    return value.to(like.dtype)
