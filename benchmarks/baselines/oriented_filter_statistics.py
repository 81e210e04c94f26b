"""Orientation and variance as NeuralHaircut (ICCV 2023) computes them, with scikit-image and scipy.

One convolution after another in float64, all absolute responses kept; then their largest, and the
mean of the squared distances from its angle, weighted by them.
"""

import math

import numpy as np
import torch
from scipy import ndimage
from skimage.filters import difference_of_gaussians, gabor_kernel
from torch import Tensor, nn

COUNT = 180


def orientation(
    grey: np.ndarray,
    count: int = COUNT,
    frequency: float = 0.23,
    sigma_x: float = 1.8,
    sigma_y: float = 2.4,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index, strength and variance of a grey picture (H,W) of 0 to 255."""
    image = difference_of_gaussians(grey, 0.4, 10)
    angles = np.arange(count) * math.pi / count
    responses = []
    for angle in angles:
        kernel = gabor_kernel(frequency, theta=math.pi - angle, sigma_x=sigma_x, sigma_y=sigma_y)
        responses.append(np.abs(ndimage.convolve(image, kernel.real, mode="wrap")))
    stacked = np.stack(responses)
    index = stacked.argmax(0)
    best = (index / count).astype(np.float16) * np.float16(math.pi)
    apart = angles[:, None, None] - best.astype(np.float64)
    distance = np.abs(apart)
    for shift in (-math.pi, math.pi):
        distance = np.minimum(distance, np.abs(apart + shift))
    variance = (distance**2 * stacked).sum(0) / stacked.sum(0)
    return index, stacked.max(0), variance


class Variance(nn.Module):
    """The variance where `clear` is 1, of a grey picture (1,1,H,W); 0 elsewhere."""

    @torch._dynamo.disable  # there is nothing of PyTorch to compile
    def forward(self, grey: Tensor, clear: Tensor) -> Tensor:
        _, _, variance = orientation(grey[0, 0].double().cpu().numpy())
        return torch.where(clear > 0, torch.from_numpy(variance).to(grey), 0)
