"""Geometry of convolutions, the masks that come with them, and volumes as images."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import (
    check_choice,
    check_device,
    check_integer,
    check_mask_values,
    check_tensor,
    in_dtype,
    memory_format,
    native,
)

Sizes = int | Sequence[int]
SPATIAL = {2: ("H", "W"), 3: ("D", "H", "W")}
MAX_MASK_CHANNELS = 64  # that stand for several channels of x each
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Geometry:
    """Where a convolution's windows lie; a list holds a number for each spatial dimension."""

    kernel_size: list[int]
    stride: list[int]
    padding: list[int]  # in front
    padding_behind: list[int]
    dilation: list[int]
    output_size: list[int]

    @property
    def symmetric(self) -> bool:
        return self.padding == self.padding_behind

    @property
    def border(self) -> list[int]:
        """The padding as `torch.nn.functional.pad` takes it."""
        pairs = zip(reversed(self.padding), reversed(self.padding_behind), strict=True)
        return [size for pair in pairs for size in pair]


def sizes_of(name: str, value: Any, dimensions: int, least: int) -> list[int]:
    """An int, or one for each dimension, as a list."""
    several = hasattr(value, "__len__") and not isinstance(value, Tensor)
    values = list(value) if several else [value] * dimensions
    if len(values) != dimensions:
        raise ValueError(f"{name}: expected an int or {dimensions} of them, got {len(values)}")
    return [check_integer(name, item, least, LARGEST) for item in values]


def geometry_of(
    size: Sequence[int], kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> Geometry:
    """Raises what the functions document for these arguments."""
    given = [
        tuple(value) if isinstance(value, (list, tuple)) else value
        for value in (size, kernel, stride, padding, dilation)
    ]
    # Symbols are no keys, and True is the key that 1 is.
    if torch.compiler.is_compiling() or not all(map(_is_key, given)):
        return _geometry(*given)
    return _known_geometry(*given)


def _is_key(value: Any) -> bool:
    if type(value) is tuple:
        return all(type(item) is int for item in value)
    return type(value) in (int, str)


def _geometry(
    size: Sequence[int], kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> Geometry:
    dimensions = len(kernel)
    strides = sizes_of("stride", stride, dimensions, least=1)
    dilations = sizes_of("dilation", dilation, dimensions, least=1)
    if isinstance(padding, str):
        check_choice("padding", padding, ("same", "valid"))
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, kernel)]  # noqa: B905
        if padding == "same" and strides != [1] * dimensions:
            raise ValueError(f"stride: expected 1 with padding 'same', got {stride}")
        front = [amount // 2 for amount in total]
        behind = [amount - first for amount, first in zip(total, front, strict=True)]
    else:
        front = behind = sizes_of("padding", padding, dimensions, least=0)
    output = [
        (n + a + b - d * (k - 1) - 1) // s + 1
        for n, a, b, d, k, s in zip(size, front, behind, dilations, kernel, strides, strict=True)
    ]
    if any(n < 1 for n in output):
        raise ValueError(
            f"weight: expected windows that fit into the padded size, got a kernel of"
            f" {tuple(kernel)} with dilation {tuple(dilations)} for {tuple(size)} padded by"
            f" {tuple(front)}"
        )
    return Geometry(list(kernel), strides, front, behind, dilations, output)


# The same few geometries come back at every call of a network.
_known_geometry = functools.lru_cache(maxsize=256)(_geometry)


def check_odd_kernel(weight: Tensor) -> None:
    check_tensor("weight", weight)
    if weight.dim() != 4 or weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        raise ValueError(
            f"weight: expected the shape (Co, Ci, kh, kw) with odd sizes, got {tuple(weight.shape)}"
        )


def check_mask(
    name: str, mask: Tensor, x: Tensor, mask_channels: Sequence[int] | None
) -> tuple[Tensor, list[int]]:
    """The mask in x's dtype, and the channels of x that each of its channels stands for.

    These are empty where each mask channel stands for itself. A mask expanded over channels, as
    the layers return it, becomes a mask of one channel again.
    """
    check_tensor(name, mask)
    if mask.is_complex():
        raise TypeError(
            f"{name}: expected a bool, integer or floating-point mask, got {mask.dtype}"
        )
    N, C = x.shape[:2]
    channels = [
        check_integer("mask_channels", number, 1, LARGEST)
        for number in (() if mask_channels is None else mask_channels)
    ]
    if channels and sum(channels) != C:
        raise ValueError(
            f"mask_channels: expected numbers that add up to x's {C} channels, got {channels}"
        )
    counts = {len(channels)} if channels else {1, C}
    fits = mask.dim() == x.dim() and mask.shape[2:] == x.shape[2:]
    if not (fits and mask.shape[0] in (1, N) and mask.shape[1] in counts):
        sizes = ", ".join(map(str, x.shape[2:]))
        allowed = " or ".join(map(str, sorted(counts)))
        raise ValueError(
            f"{name}: expected the shape ({N} or 1, {allowed}, {sizes}) for x of"
            f" {tuple(x.shape)}, got {tuple(mask.shape)}"
        )
    check_device(name, mask, x)
    mask = mask.detach()
    if not channels and C > 1 and mask.shape[1] == C and mask.stride(1) == 0:
        mask, channels = mask[:, :1], [C]
    check_mask_values(name, mask)
    mask = in_dtype(mask, x.dtype)
    if channels == [1] * C:
        channels = []
    return expand_groups(mask, channels)


def expand_groups(mask: Tensor, channels: list[int]) -> tuple[Tensor, list[int]]:
    """More groups than the GPU kernels take as arguments become a mask of all channels."""
    if len(channels) <= MAX_MASK_CHANNELS:
        return mask, channels
    planes = zip(mask.split(1, dim=1), channels, strict=True)
    return torch.cat([plane.expand(-1, n, *mask.shape[2:]) for plane, n in planes], dim=1), []


def written_out(channels: list[int], mask: Tensor) -> list[int]:
    """Never empty: AOTInductor takes an empty list for None."""
    return channels or [1] * mask.shape[1]


def planes_of(x: Tensor) -> Tensor:
    """A volume as the image (N,C,D*H,W) that the elementwise kernels take, in a native format."""
    return native(x.flatten(2, 3) if x.dim() == 5 else x)


def planes_with_mask(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both as planes: a mask of x's channels in x's memory format, others contiguous."""
    planes, masks = planes_of(x), planes_of(mask)
    each_its_own = masks.shape[1] == x.shape[1] and x.shape[1] > 1
    layout = memory_format(planes) if each_its_own else torch.contiguous_format
    return planes, masks.contiguous(memory_format=layout)


def volume_of(planes: Tensor, x: Tensor) -> Tensor:
    """Back from `planes_of(x)`."""
    return planes.unflatten(2, x.shape[2:4]) if x.dim() == 5 else planes


def dense(x: Tensor) -> Tensor:
    """`x` in the format of `planes_of`, with its own shape: copied only if it has neither."""
    return volume_of(planes_of(x), x)
