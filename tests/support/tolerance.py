"""How far a result may lie from the float64 reference."""

import math

import torch

worst: dict[str, float] = {}  # by dtype: the largest error met, as a share of its tolerance


def tolerance(dtype: torch.dtype, length: int, scale: float, condition: float = 1.0) -> float:
    """Absolute tolerance of values of magnitude `scale` that come from sums of `length` terms.

    The accumulate type's rounding grows with the square root of the length and with the condition
    of the problem (|mean| / deviation for statistics); the result is then rounded to its own dtype.
    """
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    arithmetic = 8 * torch.finfo(accumulate).eps * math.sqrt(max(length, 1)) * condition
    return scale * (arithmetic + 2 * torch.finfo(dtype).eps)


def assert_close(
    name: str,
    got: torch.Tensor,
    expected: torch.Tensor,
    *,
    length: int,
    dtype: torch.dtype | None = None,
    condition: float = 1.0,
    scale: float | None = None,
) -> None:
    """Compare with a float64 result; the message gives the place and size of the worst error."""
    assert got.shape == expected.shape, f"{name}: shape {got.shape}, expected {expected.shape}"
    if expected.numel() == 0:
        return
    dtype = dtype or got.dtype
    got, expected = got.detach().double().cpu(), expected.detach().double().cpu()
    assert torch.equal(got.isnan(), expected.isnan()), f"{name}: NaN in other places than expected"
    error = (got - expected).abs().nan_to_num(0)
    if scale is None:
        scale = max(expected.nan_to_num(0).abs().max().item(), 1e-3)
    limit = tolerance(dtype, length, scale, condition)
    ratio = error.max().item() / limit
    worst[str(dtype)] = max(worst.get(str(dtype), 0.0), ratio)
    place = tuple(i.item() for i in torch.unravel_index(error.argmax(), error.shape))
    assert ratio <= 1, (
        f"{name}: off by {error.max().item():.3g} at {place} (got {got[place].item():.9g}, expected"
        f" {expected[place].item():.9g}), tolerance {limit:.3g}"
    )
