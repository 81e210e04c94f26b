"""The mask of what is visible, for layers that a `Sequential` calls without one."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..ops.checks import check_device, check_mask_values, check_tensor

# Of the whole process, so that an autograd thread which recomputes a checkpoint sees it too.
_masks: list[Tensor] = []


@contextlib.contextmanager
def visible(mask: Tensor) -> Iterator[None]:
    """Inside the `with` block, the `Sparse` layers see this mask. Mask: **1 visible, 0 hidden**.

    What SparK (ICLR 2023) and nnssl keep in a global variable of a module: masked autoencoders hide
    whole patches, and every layer of the encoder hides them anew, at its own size. A mask that a
    layer is given itself goes before it. Backward belongs inside the block where activations are
    checkpointed. It holds for the process, not for a thread: no two at a time.

    Args:
        mask: (N or 1,1,h,w), or (N or 1,1,d,h,w) for volumes, bool, integer or floating point, 0
            and 1: a value for each patch. A layer repeats it to its output's size, which is a
            multiple of it in each axis. To an output that is smaller in all axes all is visible.

    Raises:
        TypeError: mask is no such tensor.
        ValueError: it has another shape, or, in eager mode on the CPU, values outside 0 to 1.
    """
    _masks.append(_checked(mask))
    try:
        yield
    finally:
        _masks.pop()


def visible_at(mask: Tensor | None, x: Tensor, size: Sequence[int]) -> Tensor | None:
    """A mask, or that of the block around, repeated to a size; None where all is visible.

    Args:
        mask: as `visible` takes it, or None for the block's.
        x: the features that it is for, whose batch and device it must fit.
        size: of the features that are masked.

    Raises:
        TypeError, ValueError: there is none, or it does not fit.
    """
    if mask is None:
        if not _masks:
            raise ValueError(
                "mask: expected one, or a block `with torchext.nn.visible(mask)` around the call"
            )
        mask = _masks[-1]
    else:
        mask = _checked(mask)
    check_device("mask", mask, x)
    sizes = tuple(mask.shape[2:])
    factors = [a // b for a, b in zip(size, sizes, strict=False)]
    if len(sizes) == len(size) and not any(factors):
        return None
    if (
        len(sizes) != len(size)
        or mask.shape[0] not in (1, x.shape[0])
        or any(b * f != a for a, b, f in zip(size, sizes, factors, strict=True))
    ):
        raise ValueError(
            f"mask: expected ({x.shape[0]} or 1, 1, ...) of sizes that divide {tuple(size)}, got"
            f" {tuple(mask.shape)}"
        )
    for dim, factor in enumerate(factors, start=2):
        if factor > 1:
            mask = mask.repeat_interleave(factor, dim)
    return mask


def _checked(mask: Tensor) -> Tensor:
    check_tensor("mask", mask)
    if mask.is_complex():
        raise TypeError(f"mask: expected a bool, integer or floating-point mask, got {mask.dtype}")
    if mask.dim() not in (4, 5) or mask.shape[1] != 1 or 0 in mask.shape[2:]:
        raise ValueError(
            f"mask: expected the shape (N or 1, 1, h, w) or (N or 1, 1, d, h, w), got"
            f" {tuple(mask.shape)}"
        )
    check_mask_values("mask", mask)
    return mask.detach() if mask.requires_grad else mask


def as_floats(mask: Tensor, x: Tensor) -> Tensor:
    """A mask as floating-point values beside x."""
    return mask.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
