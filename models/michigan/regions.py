"""Where in a picture something is to be computed: boxes around hair. Masks: 1 hair, 0 not."""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from torchext import backend

BAND = 128  # rows of a box at most, and columns between two boxes at least
# Of a SPADE block: two 3x3 convolutions, each behind maps that two more make. A pixel's result
# depends on x two pixels away, and on what SPADE sees four pixels away.
HALO = 4


class Box(NamedTuple):
    """Rows and columns, the ends not included."""

    top: int
    left: int
    bottom: int
    right: int

    def grown(self, by: int, height: int, width: int) -> "Box":
        """With so many pixels more on each side, as far as there are any."""
        return Box(
            max(self.top - by, 0),
            max(self.left - by, 0),
            min(self.bottom + by, height),
            min(self.right + by, width),
        )

    def of(self, x: Tensor) -> Tensor:
        """What lies inside: a view (N,C,h,w) of (N,C,H,W)."""
        return x[..., self.top : self.bottom, self.left : self.right]

    def within(self, other: "Box") -> "Box":
        """The same place, counted from another box's corner."""
        top, left = other.top, other.left
        return Box(self.top - top, self.left - left, self.bottom - top, self.right - left)


def near_hair(background: Tensor) -> Tensor | None:
    """bool (H,W) on the CPU: where any mask (N,1,H,W) of a batch is not 1.

    None where values cannot be looked at, as in a traced graph.
    """
    on_host = background.detach().cpu()
    if not backend.readable(on_host):
        return None
    return (on_host != 1).any(dim=0)[0]


def boxes(near: Tensor, height: int, width: int) -> list[Box]:
    """Boxes that cover what is True, at another height and width (by nearest neighbour).

    Bands of rows, each with the runs of columns that hold something, so that a face between two
    strands of hair is left out.
    """
    resized = F.interpolate(near[None, None].float(), (height, width), mode="nearest")[0, 0] > 0
    found = []
    for top in range(0, height, BAND):
        band = resized[top : top + BAND]
        columns = band.any(dim=0).nonzero().flatten().tolist()
        runs: list[list[int]] = []
        for column in columns:
            if runs and column - runs[-1][1] < BAND:
                runs[-1][1] = column
            else:
                runs.append([column, column])
        for left, right in runs:
            rows = band[:, left : right + 1].any(dim=1).nonzero().flatten().tolist()
            found.append(Box(top + rows[0], left, top + rows[-1] + 1, right + 1))
    return found


def added_inside(
    base: Tensor,
    found: list[Box],
    share: Tensor,
    block: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    seen: Tensor,
) -> Tensor:
    """base + block(x, seen) * share, where share is 0 outside the boxes; base is changed.

    Args:
        base: (N,Co,H,W).
        found: see `boxes`.
        share: (N,1,H,W).
        block: whose results depend on nothing farther than `HALO` pixels.
        x, seen: (N,C,H,W), its inputs.
    """
    H, W = base.shape[2:]
    for box in found:
        outer = box.grown(HALO, H, W)
        result = box.within(outer).of(block(outer.of(x).contiguous(), outer.of(seen).contiguous()))
        box.of(base).add_(result * box.of(share))
    return base
