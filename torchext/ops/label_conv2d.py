"""The convolution of a one-hot label map, as table look-ups."""

from typing import Any

import torch
from torch import Tensor

from .. import backend, reference
from .checks import FLOATING, accumulate_dtype, check_device, check_parameter, check_tensor
from .labels import check_label_map, check_label_values
from .registration import call, differentiated, gradients_of_reference, operator, register

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
    chosen = backend.choose("label_conv2d", weight)
    check_values = backend.readable(weight) and backend.readable(labels)
    if chosen is backend.REFERENCE:
        if check_values:
            check_label_values(labels, weight.shape[1])
        return reference.label_conv2d(labels, weight, bias)
    accumulate = accumulate_dtype(weight.dtype)
    arguments = (
        labels.to(torch.int32).contiguous(),
        weight.to(accumulate).contiguous(),
        None if bias is None else bias.to(accumulate).contiguous(),
        weight.dtype,
        check_values,
    )
    try:
        return call(chosen.namespace, "label_conv2d", *arguments)
    except RuntimeError:  # what torch from 2.15 on makes of C++'s std::invalid_argument
        if check_values:
            check_label_values(labels, weight.shape[1])
        raise


# --- registration -------------------------------------------------------------------------------


def _fake(
    labels: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, check_values: bool
) -> Tensor:
    N, H, W = labels.shape
    return weight.new_empty((N, weight.shape[0], H, W), dtype=dtype)


def _fake_backward(grad: Tensor, labels: Tensor, classes: int, kernel: int) -> Tensor:
    shape = (grad.shape[1], classes, kernel, kernel)
    return grad.new_empty(shape, dtype=accumulate_dtype(grad.dtype))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    labels, weight, bias, _, _ = inputs
    ctx.save_for_backward(labels)
    ctx.set_materialize_grads(False)
    ctx.classes, ctx.kernel, ctx.biased = weight.shape[1], weight.shape[3], bias is not None
    ctx.dtype = weight.dtype


def _backward(namespace: str) -> Any:
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 5
        (labels,) = ctx.saved_tensors
        if differentiated():  # the gradient itself will be differentiated
            shape = (grad.shape[1], ctx.classes, ctx.kernel, ctx.kernel)

            def function(weight: Tensor) -> Tensor:
                return reference.label_conv2d(labels, weight)

            zeros = grad.new_zeros(shape, dtype=ctx.dtype)
            (grad_weight,) = gradients_of_reference(function, [zeros], grad.to(ctx.dtype))
        else:
            grad_weight = operator(namespace, "label_conv2d_backward")(
                grad.contiguous(), labels, ctx.classes, ctx.kernel
            )
        # Every pixel lies under the middle tap once, with its own class.
        middle = ctx.kernel // 2
        grad_bias = grad_weight[:, :, middle, middle].sum(1) if ctx.biased else None
        return None, grad_weight, grad_bias, None, None

    return backward


def register_ops(namespace: str) -> None:
    register(namespace, "label_conv2d", _fake, _setup_context, _backward(namespace))
    register(namespace, "label_conv2d_backward", _fake_backward)
