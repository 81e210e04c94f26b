"""Argument checks that every function shares, and the memory format that every op takes."""

from collections.abc import Collection
from typing import Any

import torch

from .. import backend

PLAIN = (torch.Tensor, torch.nn.Parameter)  # types that stand for nothing else
FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAX_REGIONS = 64


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def in_dtype(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x.to(dtype)`, whose call costs as much as a small kernel where there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def parameter_in(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x` contiguous, in a dtype."""
    return x if x.dtype == dtype and x.is_contiguous() else x.to(dtype).contiguous()


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """What autocast makes of a convolution's inputs on x's device; None where it is off."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def place_to_keep(x: torch.Tensor) -> tuple[torch.device, object] | None:
    """Where what depends on x's sizes alone may be kept for later calls: its device and stream.

    None where it may not: in a graph, for a tensor that stands for another.
    """
    if type(x) not in PLAIN or backend.traced():
        return None
    if not x.is_cuda:
        return x.device, None
    if torch.cuda.is_current_stream_capturing():
        return None
    return x.device, torch.cuda.current_stream(x.device)


def refuse_tracing() -> None:
    """For ops whose arguments are computed from sizes, which a trace would keep."""
    if torch.jit.is_tracing():
        raise NotImplementedError(
            "torch.jit.trace would record the sizes of its example for good: use"
            " torch.export.export or torch.compile (for ONNX, torch.onnx.export with dynamo=True)"
        )


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


def check_mask_values(name: str, mask: torch.Tensor) -> None:
    """Raise unless every value lies between 0 and 1: a fraction of a pixel that is known.

    Looked at where that costs no wait, in eager mode on the CPU; elsewhere by an asynchronous
    assert where `torchext.backend.check_values` asks for it.

    Raises:
        ValueError: a value lies outside, or is NaN.
    """
    if mask.dtype == torch.bool or mask.numel() == 0 or not backend.checks_values(mask):
        return
    mask = mask.detach()
    if mask.device.type != "cpu":
        torch._assert_async(
            ((mask >= 0) & (mask <= 1)).all(), f"{name}: expected values from 0 to 1"
        )
        return
    low, high = (bound.item() for bound in torch.aminmax(mask))
    if not (low >= 0 and high <= 1):
        wrong = low if not low >= 0 else high
        raise ValueError(f"{name}: expected values from 0 to 1, got {wrong:g}")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {sorted(choices)}, got {value!r}")


def is_number(value: object) -> bool:
    """Python's numbers and NumPy's."""
    return hasattr(value, "__float__") and not isinstance(value, (bool, torch.Tensor))


def check_number(name: str, value: object) -> None:
    if not is_number(value):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")


def check_positive(name: str, value: float) -> None:
    check_number(name, value)
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a positive finite number, got {value}")


def check_slope(name: str, value: float) -> None:
    """Of a leaky ReLU."""
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a slope from 0 to 1, got {value}")


def check_integer(name: str, value: Any, least: int, most: int) -> int:
    """The value as Python's int; NumPy's and symbolic ones are taken too."""
    if not hasattr(value, "__index__") or isinstance(value, (bool, torch.Tensor)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {value}")
    return value if isinstance(value, (int, torch.SymInt)) else int(value)


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """The format in which an op takes `x`: its own if it is native, contiguous otherwise.

    A tensor that is both (one channel, or one pixel) counts as contiguous; the C++ entry points
    decide alike. Inside torch.func.vmap a tensor cannot be asked: contiguous.
    """
    if not torch.compiler.is_compiling() and backend.mapped(x):
        return torch.contiguous_format
    if x.is_contiguous():
        return torch.contiguous_format
    last = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    return last if x.is_contiguous(memory_format=last) else torch.contiguous_format


def native(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if it is contiguous or channels last, else a contiguous copy."""
    if type(x) is torch.Tensor and x.is_contiguous():
        return x
    return x.contiguous(memory_format=memory_format(x))
