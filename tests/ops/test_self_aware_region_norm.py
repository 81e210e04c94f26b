"""torchext.self_aware_region_norm (RN-L) against the float64 reference, on every backend."""

import pytest
import torch
from ops.test_self_aware_affine import NAMES, feature_map, formula, weights_of
from support.backends import parameters, running
from support.tolerance import assert_close

import torchext
from torchext import reference

SHAPES = [(2, 5, 9, 13), (1, 40, 20, 17), (3, 1, 7, 7), (1, 3, 40, 41)]


def threshold_of(x: torch.Tensor, weights: list[torch.Tensor]) -> float:
    """A saliency that splits the pixels, as far as possible from any pixel's own."""
    weights = [w.detach().double() for w in weights]
    saliency = formula(x.detach().double(), *weights, 0.8)[0].flatten().sort()[0]
    middle = saliency[len(saliency) // 4 : 3 * len(saliency) // 4 + 2]
    gap = middle.diff()
    i = gap.argmax()
    assert gap[i] > 1e-4
    return ((middle[i] + middle[i + 1]) / 2).item()


def evaluate(x: torch.Tensor, weights: list[torch.Tensor], function, grad, **options) -> list:
    leaves = [t.clone().requires_grad_() for t in (x, *weights)]
    y = function(*leaves, **options)
    y.backward(grad.to(y.dtype))
    return [y, *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape: tuple, dtype: torch.dtype, last: bool, name: str) -> None:
    if name == "triton-interpreted" and dtype != torch.float32 and shape != SHAPES[0]:
        pytest.skip("the interpreter runs one shape of the other dtypes")
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    scope = "instance" if shape[0] == 3 else "batch"
    with running(name) as device:
        x = feature_map(shape, dtype, device, last)
        weights = weights_of(7, accumulate, device)
        grad = feature_map(shape, dtype, device, last).flip(0)
        options = {"threshold": threshold_of(x, weights)}
        got = evaluate(x, weights, torchext.self_aware_region_norm, grad, scope=scope, **options)
    assert got[0].dtype == got[1].dtype == dtype
    weights64 = [w.double() for w in weights]

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        rest = (options["threshold"], scope == "instance", 1e-5, True)
        return reference.self_aware_region_norm(*tensors, *rest)[0]

    expected = evaluate(x.double(), weights64, function, grad)
    pixels = shape[0] * shape[2] * shape[3]
    for key, g, e in zip(("y", "x", *NAMES), got, expected, strict=True):
        rounding = dtype if key in ("y", "x") else accumulate
        # Weight gradients are sums over all pixels of terms of either sign.
        scale = max(e.abs().max().item(), pixels**0.5) if key in NAMES else None
        assert_close(key, g, e, length=pixels * shape[1], dtype=rounding, scale=scale)
