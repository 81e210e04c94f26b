"""The convolution of a one-hot label map."""

import torch
import torch.nn.functional as F
from torch import Tensor


def label_conv2d(labels: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv2d(one_hot(labels), weight, bias), zero padded; labels (N,H,W) hold 0..classes-1."""
    accumulate = torch.promote_types(weight.dtype, torch.float32)
    classes = torch.arange(weight.shape[1], device=labels.device)[:, None, None]
    one_hot = (labels[:, None] == classes).to(accumulate)
    bias = None if bias is None else bias.to(accumulate)
    y = F.conv2d(one_hot, weight.to(accumulate), bias, padding=weight.shape[-1] // 2)
    return y.to(weight.dtype)
