"""The convolution of a one-hot label map."""

import torch
import torch.nn.functional as F
from torch import Tensor


def label_conv2d(
    labels: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, check_values: bool
) -> Tensor:
    """conv2d(one_hot(labels), weight, bias), zero padded; labels (N,H,W) hold 0..classes-1."""
    count = weight.shape[1]
    if check_values:
        wrong = labels[(labels < 0) | (labels >= count)]
        if wrong.numel():
            got = wrong[0].item()
            raise ValueError(f"labels: expected classes from 0 to {count - 1}, got {got}")
    classes = torch.arange(count, device=labels.device)[:, None, None]
    one_hot = (labels[:, None] == classes).to(weight.dtype)
    return F.conv2d(one_hot, weight, bias, padding=weight.shape[-1] // 2).to(dtype)


def label_conv2d_backward(grad: Tensor, labels: Tensor, classes: int, kernel: int) -> Tensor:
    """The weight's gradient."""
    grad = grad.to(torch.promote_types(grad.dtype, torch.float32))

    def formula(weight: Tensor) -> Tensor:  # linear: where it is taken does not matter
        return label_conv2d(labels, weight, None, grad.dtype, False)

    _, pullback = torch.func.vjp(formula, grad.new_zeros((grad.shape[1], classes, kernel, kernel)))
    return pullback(grad)[0]
