"""Edits of a code by strokes: where, which units, what value, how strongly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_images
from .networks import CODE_SIZE, WIDTH

Pooling = Literal["max", "average"]
INTENSITIES = {"low": 4, "medium": 10, "high": 15}  # units of the published demo
UNITS = 20  # of the paper's evaluations
CHURCH_ARTEFACT = 418  # a unit of the church generator that the published back end never edits


@dataclass(frozen=True, eq=False)
class Stroke:
    """A painted region in which some units of the code take a value.

    z_e = (1 - a) z + a v, where a = alpha * region for the units, 0 for the others.

    Attributes:
        region: (1,1,H,W) in [0,1], 1 where painted.
        units: channels of the code; the masks i_c of a class.
        value: s p_c: a number for all units, or one for each, in their order. Of a unit that is
            named twice the last value counts.
        alpha: 1 replaces, less blends.
        pooling: of the region to 8x8: "max" counts each cell with a painted pixel, "average" the
            share of its painted pixels.

    Raises:
        ValueError: a shape, unit or number that does not fit.
    """

    region: Tensor
    units: tuple[int, ...]
    value: float | tuple[float, ...] = 0.0
    alpha: float = 1.0
    pooling: Pooling = "max"

    def __post_init__(self) -> None:
        check_images("region", self.region, 1)
        if len(self.region) != 1:
            raise ValueError(
                f"region: expected the shape (1, 1, H, W), got {tuple(self.region.shape)}"
            )
        low, high = (bound.item() for bound in self.region.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"region: expected values from 0 to 1, got {low:g} to {high:g}")
        if not self.units or min(self.units) < 0:
            raise ValueError(f"units: expected numbers from 0 on, at least one, got {self.units}")
        if not isinstance(self.value, int | float) and len(self.value) != len(self.units):
            raise ValueError(
                f"value: expected one for each of {len(self.units)} units, got {len(self.value)}"
            )
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: expected 0 to 1, got {self.alpha}")
        if self.pooling not in ("max", "average"):
            raise ValueError(f"pooling: expected 'max' or 'average', got {self.pooling!r}")

    def cells(self, size: int = CODE_SIZE) -> Tensor:
        """The region as a map of the code's cells, (size,size) in [0,1]."""
        return pooled(self.region, self.pooling, size)[0, 0]

    def maps(self, channels: int, size: int = CODE_SIZE) -> tuple[Tensor, Tensor]:
        """alpha (C,size,size), 0 outside the region, and the value everywhere, (C,1,1)."""
        if max(self.units) >= channels:
            raise ValueError(f"units: expected 0 to {channels - 1}, got {max(self.units)}")
        several = not isinstance(self.value, int | float)
        values = list(self.value) if several else [self.value] * len(self.units)
        last = dict(zip(self.units, values, strict=True))
        units = torch.tensor([*last], device=self.region.device)
        alpha, value = self.region.new_zeros(2, channels)
        alpha[units] = self.alpha
        value[units] = self.region.new_tensor([*last.values()])
        return alpha[:, None, None] * self.cells(size), value[:, None, None]


def pooled(region: Tensor, pooling: Pooling = "max", size: int = CODE_SIZE) -> Tensor:
    """A region (N,1,H,W) as a map of cells, (N,1,size,size)."""
    pool = F.adaptive_max_pool2d if pooling == "max" else F.adaptive_avg_pool2d
    return pool(region, size)


def compose(
    strokes: Sequence[Stroke], channels: int = WIDTH, size: int = CODE_SIZE
) -> tuple[Tensor, Tensor]:
    """Strokes in their order as one: alpha A and value V, (C,size,size) each, V 0 where A is.

    A = 1 - (1 - a_2)(1 - a_1), V = (v_1 a_1 (1 - a_2) + v_2 a_2) / A.

    Raises:
        ValueError: no strokes, or a unit that the code has not.
    """
    if not strokes:
        raise ValueError("strokes: expected at least one")
    alpha, value = (torch.zeros(channels, size, size).to(strokes[0].region) for _ in range(2))
    for stroke in strokes:
        a, v = stroke.maps(channels, size)
        total = 1 - (1 - a) * (1 - alpha)
        weighted = value * alpha * (1 - a) + v * a
        value = torch.where(total > 0, weighted / total.where(total > 0, 1), 0)
        alpha = total
    return alpha, value


def edited(code: Tensor, strokes: Sequence[Stroke]) -> Tensor:
    """Codes with strokes: z (1 - A) + V A.

    Args:
        code: (N,C,H,H), which stays as it is.
        strokes: in their order; without any the code itself.
    """
    check_images("code", code)
    if not strokes:
        return code
    alpha, value = compose(strokes, code.shape[1], code.shape[-1])
    alpha, value = alpha.to(code), value.to(code)
    return code * (1 - alpha) + value * alpha


# --- actions --------------------------------------------------------------------------------------


def without(units: Sequence[int], excluded: Sequence[int] = ()) -> tuple[int, ...]:
    """Units but for those that are excluded, such as `CHURCH_ARTEFACT`."""
    return tuple(unit for unit in units if unit not in excluded)


def remove(region: Tensor, units: Sequence[int], **how: object) -> Stroke:
    """A stroke that turns units off."""
    return Stroke(region, tuple(units), 0.0, **how)


def add(
    region: Tensor,
    units: Sequence[int],
    values: Tensor,
    *,
    strength: float = 1.0,
    **how: object,
) -> Stroke:
    """A stroke that gives units the values that they have where the class is.

    Args:
        region: (1,1,H,W) in [0,1].
        units: of the class, best first.
        values: p_c (C,), of all units of the code; see `ranking`.
        strength: s.
    """
    if strength < 0:
        raise ValueError(f"strength: expected at least 0, got {strength}")
    _check_values(values, units)
    return Stroke(region, tuple(units), tuple((strength * values[[*units]]).tolist()), **how)


def restyle(region: Tensor, units: Sequence[int], values: Tensor, **how: object) -> Stroke:
    """A stroke that gives units the values of another region; see `style_values`."""
    _check_values(values, units)
    return Stroke(region, tuple(units), tuple(values[[*units]].tolist()), **how)


def _check_values(values: Tensor, units: Sequence[int]) -> None:
    if values.dim() != 1 or (units and max(units) >= len(values)):
        raise ValueError(
            f"values: expected one for each unit, at least {max(units, default=0) + 1}, got the"
            f" shape {tuple(values.shape)}"
        )


def style_values(code: Tensor, region: Tensor, units: Sequence[int]) -> Tensor:
    """Of each unit the mean of its positive activations in a region; 0 for other units.

    Args:
        code: (1,C,8,8) of a reference photo.
        region: (1,1,H,W) in [0,1], where its class is; any painted pixel of a cell counts.
        units: of the class.

    Returns:
        (C,); 0 of a unit that is nowhere positive there.

    Raises:
        ValueError: a shape that does not fit, or a region in which nothing is painted.
    """
    check_images("code", code)
    check_images("region", region, 1)
    cells = pooled(region, "max", code.shape[-1])[0, 0] > 0
    if not cells.any():
        raise ValueError("region: expected painted pixels of the reference, got none")
    seen = code[0][:, cells]
    positive = seen > 0
    means = (seen * positive).sum(1) / positive.sum(1).clamp(min=1)
    values = torch.zeros_like(means)
    values[[*units]] = means[[*units]]
    return values


# --- what the image-specific generator keeps ------------------------------------------------------


def edit_region(strokes: Sequence[Stroke]) -> Tensor:
    """Where any of the strokes paints, (1,1,H,W), 0 or 1."""
    if not strokes:
        raise ValueError("strokes: expected at least one")
    return torch.stack([(stroke.region > 0).to(stroke.region) for stroke in strokes]).amax(0)


def keep_mask(region: Tensor, dilation: int = 16, sigma: float = 4.0) -> Tensor:
    """1 outside an edit, fading to 0 inside: 1 - Gaussian of the region grown by some pixels.

    Args:
        region: (N,1,H,W); above 0 is painted.
        dilation: rounds in which the four neighbours of a painted pixel are painted too.
        sigma: of the Gaussian, which is cut off at 4 sigma; 0 for none.

    Returns:
        (N,1,H,W) in [0,1].
    """
    check_images("region", region, 1)
    if dilation < 0 or sigma < 0:
        raise ValueError(f"dilation, sigma: expected at least 0, got {dilation} and {sigma}")
    grown = (region > 0).to(region)
    for _ in range(dilation):
        upright = F.max_pool2d(grown, (3, 1), stride=1, padding=(1, 0))
        grown = torch.maximum(upright, F.max_pool2d(grown, (1, 3), stride=1, padding=(0, 1)))
    if not sigma:
        return 1 - grown
    reach = int(4 * sigma + 0.5)
    places = torch.arange(-reach, reach + 1, dtype=region.dtype, device=region.device)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(grown, [reach] * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    # Rounding apart, a window of equal values keeps its value.
    inner = -F.max_pool2d(-padded, 2 * reach + 1, stride=1)
    outer = F.max_pool2d(padded, 2 * reach + 1, stride=1)
    return 1 - torch.where(inner == outer, inner, blurred).clamp(0, 1)
