"""The losses of the U-Net, and of the padding layer's authors. Mask: **1 known, 0 hole**."""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_images, check_mask
from ..losses import perceptual, style, total_variation, total_variation_in_holes
from ..pictures import composite
from ..vgg import VGGFeatures, imagenet_normalised

TAPS = ("pool1", "pool2", "pool3")


class InpaintingLoss(nn.Module):
    """The five terms of the U-Net's loss, unweighted. Mask: 1 known, 0 hole.

    Args:
        vgg: features at `TAPS`; None leaves out "prc" and "style".
        variation: "image": total variation of the whole composite (published code); "hole": of the
            holes grown by one pixel (paper).

    Shape: input, output, gt (N,C,H,W), ImageNet-normalised, mask (N or 1,1 or C,H,W) -> terms by
    name. One-channel images are repeated for the features.

    Raises:
        TypeError, ValueError: an image or the mask does not fit.
    """

    def __init__(
        self, vgg: VGGFeatures | None, *, variation: Literal["image", "hole"] = "image"
    ) -> None:
        super().__init__()
        if variation not in ("image", "hole"):
            raise ValueError(f"variation: expected 'image' or 'hole', got {variation!r}")
        self.vgg = vgg
        self.variation = variation

    def forward(self, input: Tensor, mask: Tensor, output: Tensor, gt: Tensor) -> dict[str, Tensor]:
        for name, image in (("input", input), ("output", output)):
            _check_alike(name, image, "gt", gt)
        check_mask("mask", mask, gt, (1, gt.shape[1]))
        mask = mask.to(gt.dtype)
        merged = composite(input, mask, output)
        if self.variation == "image":
            variation = total_variation(merged)
        else:
            variation = total_variation_in_holes(merged, mask)
        terms = {
            "valid": F.l1_loss(mask * output, mask * gt),
            "hole": F.l1_loss((1 - mask) * output, (1 - mask) * gt),
            "tv": variation,
        }
        if self.vgg is not None:
            with torch.no_grad():
                wanted = self._features(gt)
            both = [self._features(image) for image in (output, merged)]
            terms["prc"] = sum(perceptual(features, wanted) for features in both)
            terms["style"] = sum(style(features, wanted) for features in both)
        return terms

    def _features(self, image: Tensor) -> dict[str, Tensor]:
        return self.vgg(image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image)


class VGG16PartialLoss(nn.Module):
    """The loss that the padding layer's authors published, without a composite.

    Args:
        l1_alpha, perceptual_alpha, style_alpha, smooth_alpha: weights.
        feat_num: how many of the taps, from the first.
        weights: torchvision's VGG-16; see `vgg.VGGFeatures.load`. Without it the cached file.
        vgg: features that are loaded already, instead.

    Shape: output, target (N,3,H,W) in [0,1] -> total, perceptual and style terms, weighted.

    Raises:
        TypeError, ValueError: an image does not fit.
    """

    def __init__(
        self,
        l1_alpha: float = 5.0,
        perceptual_alpha: float = 0.05,
        style_alpha: float = 120.0,
        smooth_alpha: float = 0.0,
        feat_num: int = 3,
        *,
        weights: Path | None = None,
        vgg: VGGFeatures | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= feat_num <= len(TAPS):
            raise ValueError(f"feat_num: expected 1 to {len(TAPS)}, got {feat_num}")
        self.l1_alpha = l1_alpha
        self.perceptual_alpha = perceptual_alpha
        self.style_alpha = style_alpha
        self.smooth_alpha = smooth_alpha
        self.vgg = VGGFeatures(16, TAPS[:feat_num]).load(weights) if vgg is None else vgg

    def forward(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _check_alike("output", output, "target", target)
        x, y = imagenet_normalised(output), imagenet_normalised(target)
        ours = self.vgg(x)
        with torch.no_grad():
            wanted = self.vgg(y)
        of_features = self.perceptual_alpha * perceptual(ours, wanted)
        of_style = self.style_alpha * style(ours, wanted)
        total = self.l1_alpha * F.l1_loss(x, y) + of_features + of_style
        return total + self.smooth_alpha * total_variation(x), of_features, of_style


def _check_alike(name: str, image: Tensor, other_name: str, other: Tensor) -> None:
    check_images(name, image)
    check_images(other_name, other)
    if image.shape != other.shape:
        raise ValueError(
            f"{name}: expected the shape of {other_name}, {tuple(other.shape)},"
            f" got {tuple(image.shape)}"
        )
