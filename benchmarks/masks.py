"""Irregular holes, as a brush leaves them: those that the models are trained on."""

from torchext.models.masks import irregular_hole

__all__ = ["irregular_hole"]


def irregular_hole(height: int, width: int, *, share: float = 0.25, seed: int = 0) -> np.ndarray:
    """A bool (height, width) array, True in the hole: brush strokes until `share` is covered."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    hole = np.zeros((height, width), dtype=bool)
    size = max(height, width)
    while hole.mean() < share:
        point = random.uniform((0, 0), (height, width))
        angle = random.uniform(0, 2 * np.pi)
        radius = max(0.6, random.uniform(0.015, 0.05) * size)
        for _ in range(random.integers(3, 9)):
            angle += random.normal(0, 0.9)
            step = random.uniform(0.06, 0.16) * size * np.array((np.sin(angle), np.cos(angle)))
            # Distance of every pixel from the segment point .. point + step.
            along = (rows - point[0]) * step[0] + (columns - point[1]) * step[1]
            along = np.clip(along / (step @ step), 0, 1)
            distance = np.hypot(
                rows - point[0] - along * step[0], columns - point[1] - along * step[1]
            )
            hole |= distance <= radius
            point = np.clip(point + step, 0, (height - 1, width - 1))
            if hole.mean() >= share:
                break
    return hole


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
