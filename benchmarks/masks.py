"""Holes: irregular ones, as a brush leaves them (those that the models train on), and blobs."""

import numpy as np

from torchext.models.masks import irregular_hole

__all__ = ["gaussian_hole", "irregular_hole"]


def gaussian_hole(
    height: int, width: int, *, share: float = 0.5, sigma: float = 20, seed: int = 0
) -> np.ndarray:
    """A bool (height, width) array, True in the hole: blobs, Gaussian noise above a threshold."""
    noise = np.random.default_rng(seed).standard_normal((height, width))
    # The blur as a product in the frequency domain.
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    blur = np.exp(-2 * (np.pi * sigma) ** 2 * (rows**2 + columns**2))
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * blur, s=(height, width))
    return smooth < np.quantile(smooth, share) if share > 0 else np.zeros_like(smooth, dtype=bool)
