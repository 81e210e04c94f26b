"""The convolution of a one-hot label map, as table look-ups."""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from .checks import (
    FLOATING,
    accumulate_dtype,
    check_device,
    check_parameter,
    check_tensor,
    parameter_in,
)
from .labels import check_label_map
from .op import Gradients, Op

MAX_KERNEL = 7


def label_conv2d(labels: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv2d(one_hot(labels), weight, bias) with zero padding, without the one-hot tensor.

    A tap over a pixel of class l adds weight[:, l, tap]: one vector instead of a product with a
    one-hot vector. In SPADE's first convolution this is nearly all the work.

    Args:
        labels: (N,H,W) or (N,1,H,W), integers, 0 to classes - 1.
        weight: (O,classes,k,k), k odd, at most 7; float32, float64, float16 or bfloat16.
        bias: (O,).

    Returns:
        (N,O,H,W), contiguous, in weight's dtype. Sums are float32 (float64 for a float64 weight).

    Memory beyond the result: 4 bytes per pixel, and a copy of the weights; backward 8 of them.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape or device does not fit, or, in eager mode on the CPU, a label is out of
            range. Elsewhere such a label adds nothing.
    """
    labels = check_label_map(labels)
    check_tensor("weight", weight)
    if weight.dtype not in FLOATING:
        raise TypeError(f"weight: expected a floating-point tensor, got {weight.dtype}")
    kernel = weight.shape[-1] if weight.dim() == 4 else 0
    if kernel % 2 == 0 or kernel > MAX_KERNEL or weight.shape[2] != kernel or 0 in weight.shape:
        raise ValueError(
            f"weight: expected the shape (O, classes, k, k) with k odd and at most {MAX_KERNEL},"
            f" got {tuple(weight.shape)}"
        )
    check_device("weight", weight, labels)
    if bias is not None:
        check_parameter("bias", bias, (weight.shape[0],), weight)
    accumulate = accumulate_dtype(weight.dtype)
    return LABEL_CONV2D(
        labels.to(torch.int32).contiguous(),
        parameter_in(weight, accumulate),
        None if bias is None else parameter_in(bias, accumulate),
        weight.dtype,
        backend.readable(weight) and backend.readable(labels),
    )


# --- ops ----------------------------------------------------------------------------------------


def _fake(
    labels: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, check_values: bool
) -> Tensor:
    N, H, W = labels.shape
    return weight.new_empty((N, weight.shape[0], H, W), dtype=dtype)


def _keep(given: Any, outputs: tuple[Tensor, ...], needs: set[str]) -> dict[str, Any]:
    _, classes, _, kernel = given.weight.shape
    return {"labels": given.labels, "classes": classes, "kernel": kernel}


def _backward(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    weight = ops.label_conv2d_backward(grad, kept.labels, kept.classes, kept.kernel)
    # Every pixel lies under the middle tap once, with its own class.
    middle = kept.kernel // 2
    bias = weight[:, :, middle, middle].sum(1) if "bias" in kept.needs else None
    return {"weight": weight, "bias": bias}


def _fake_backward(grad: Tensor, labels: Tensor, classes: int, kernel: int) -> Tensor:
    shape = (grad.shape[1], classes, kernel, kernel)
    return grad.new_empty(shape, dtype=accumulate_dtype(grad.dtype))


LABEL_CONV2D = Op(name="label_conv2d", fake=_fake, keep=_keep, backward=_backward, twice="backward")
LABEL_CONV2D_BACKWARD = Op(name="label_conv2d_backward", fake=_fake_backward)
