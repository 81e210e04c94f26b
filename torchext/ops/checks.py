"""Argument checks that every function shares, and the memory format that every op takes."""

from collections.abc import Collection

import torch

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAX_REGIONS = 64


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def check_feature_map(name: str, x: torch.Tensor, spatial: tuple[str, ...] = ("H", "W")) -> None:
    """(N,C,*spatial), floating point, C and all of `spatial` at least 1."""
    check_tensor(name, x)
    if x.dtype not in FLOATING:
        raise TypeError(f"{name}: expected float32, float64, float16 or bfloat16, got {x.dtype}")
    *first, last = ("C", *spatial)
    if x.dim() != 2 + len(spatial):
        shape = ", ".join(("N", *first, last))
        raise ValueError(f"{name}: expected the shape ({shape}), got {tuple(x.shape)}")
    if 0 in x.shape[1:]:
        sizes = f"{', '.join(first)} and {last}"
        raise ValueError(f"{name}: expected {sizes} of at least 1, got {tuple(x.shape)}")


def check_device(name: str, value: torch.Tensor, x: torch.Tensor) -> None:
    if value.device != x.device:
        raise ValueError(f"{name}: expected the device of x, {x.device}, got {value.device}")


def check_parameter(
    name: str, value: torch.Tensor, shape: tuple[int, ...], x: torch.Tensor
) -> None:
    """A floating-point tensor of an exact shape on x's device."""
    check_tensor(name, value)
    if value.dtype not in FLOATING:
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected the shape {shape}, got {tuple(value.shape)}")
    check_device(name, value, x)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {sorted(choices)}, got {value!r}")


def check_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a positive finite number, got {value}")


def check_integer(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {value}")


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """The format in which an op takes `x`: its own if it is native, contiguous otherwise.

    A tensor that is both (one channel, or one pixel) counts as contiguous; the C++ entry points
    decide alike.
    """
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def native(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if it is contiguous or channels last, else a contiguous copy."""
    return x.contiguous(memory_format=memory_format(x))
