"""SPADE's gamma and beta, once for each distinct window of the label map (CVPR 2019)."""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backend, schema
from .checks import (
    FLOATING,
    accumulate_dtype,
    autocast_dtype,
    check_device,
    check_parameter,
    check_tensor,
)
from .label_windows import LabelWindows
from .modulated_norm import sorted_by
from .op import Gradients, Op


def spade_modulation_table(
    windows: LabelWindows,
    weight: Tensor,
    bias: Tensor | None,
    modulation_weight: Tensor,
    modulation_bias: Tensor | None,
) -> Tensor:
    """conv(relu(conv(map))) at each distinct window, zero padded: rows for `modulated_norm`.

    table[windows.index] is the result of both convolutions of the map, to rounding. For gamma and
    beta together, `modulation_weight` and `modulation_bias` are theirs side by side; the table's
    columns then are gamma's and beta's.

    Args:
        windows: from `torchext.label_windows`, of two levels.
        weight, bias: (O,K,k,k), (O,), of the first convolution; K classes, or channels of the map.
        modulation_weight, modulation_bias: (D,O,k,k), (D,), of the second; weight's dtype.

    Returns:
        (rows,D), float32 (float64 for float64 weights), under autocast too; differentiable in
        weights and biases.

    Memory beyond the result: rows of the first level times k * k * D.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape or device does not fit, or, in eager mode on the CPU, a label is out of
            range. Elsewhere such a label adds nothing.
    """
    if not isinstance(windows, LabelWindows):
        raise TypeError(f"windows: expected LabelWindows, got {type(windows).__name__}")
    if len(windows.windows) != 2:
        raise ValueError(f"windows: expected 2 levels, got {len(windows.windows)}")
    check_tensor("weight", weight)
    if weight.dtype not in FLOATING:
        raise TypeError(f"weight: expected a floating-point tensor, got {weight.dtype}")
    size = windows.kernel_size
    if weight.dim() != 4 or tuple(weight.shape[2:]) != (size, size):
        raise ValueError(
            f"weight: expected the shape (O, K, {size}, {size}), got {tuple(weight.shape)}"
        )
    check_device("weight", weight, windows.index)
    hidden, K = weight.shape[:2]
    check_tensor("modulation_weight", modulation_weight)
    D = modulation_weight.shape[0] if modulation_weight.dim() else 0
    check_parameter("modulation_weight", modulation_weight, (D, hidden, size, size), weight)
    if bias is not None:
        check_parameter("bias", bias, (hidden,), weight)
    if modulation_bias is not None:
        check_parameter("modulation_bias", modulation_bias, (D,), weight)
    vectors, (first, wide) = windows.vectors, windows.windows
    if vectors is not None and vectors.shape[1] != K:
        raise ValueError(f"weight: expected {vectors.shape[1]} channels of the map, got {K}")
    if vectors is None and not backend.readable(first):
        first = first.masked_fill(first >= K, -1)
    elif vectors is None and first.numel() and int(first.max()) >= K:
        raise ValueError(f"labels: expected classes from 0 to {K - 1}, got {int(first.max())}")
    accumulate = accumulate_dtype(weight.dtype)
    prepared = [
        None if value is None else value.to(accumulate)
        for value in (vectors, weight, bias, modulation_weight, modulation_bias)
    ]
    with _without_autocast(weight):
        table, _ = SPADE_MODULATION_TABLE(prepared[0], first, wide, *prepared[1:])
    return table


# --- ops ----------------------------------------------------------------------------------------


def _without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    if autocast_dtype(x) is None:
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _taps(weight: Tensor) -> Tensor:
    """(O,K,k,k) to (K,k*k*O): a row of K channels times it is its share of every tap's sum."""
    return weight.permute(1, 2, 3, 0).reshape(weight.shape[1], -1)


def _window_sums(products: Tensor, windows: Tensor, bias: Tensor | None) -> Tensor:
    """(rows + 1, k*k*O) to (windows,O): each window's taps added up; the last row is outside."""
    rows, taps = products.shape[0] - 1, windows.shape[1]
    places = torch.where(windows < 0, rows, windows) * taps
    places = places + torch.arange(taps, dtype=windows.dtype, device=windows.device)
    sums = F.embedding_bag(places, products.view((rows + 1) * taps, -1), mode="sum")
    return sums if bias is None else sums.add_(bias)


def _with_outside(rows: Tensor) -> Tensor:
    return F.pad(rows, (0, 0, 0, 1))


def _compose(
    ops: Any,
    vectors: Tensor | None,
    windows: Tensor,
    wide_windows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    modulation_weight: Tensor,
    modulation_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    products = _with_outside(_taps(weight) if vectors is None else vectors @ _taps(weight))
    hidden = _window_sums(products, windows, bias).relu_()
    products = _with_outside(hidden) @ _taps(modulation_weight)
    return _window_sums(products, wide_windows, modulation_bias), hidden


def _fake(
    vectors: Tensor | None,
    windows: Tensor,
    wide_windows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    modulation_weight: Tensor,
    modulation_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    table = weight.new_empty((wide_windows.shape[0], modulation_weight.shape[0]))
    return table, weight.new_empty((windows.shape[0], weight.shape[0]))


def _backward(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    with _without_autocast(grad):
        gradients = ops.spade_modulation_table_backward(
            grad,
            kept.hidden,
            kept.vectors,
            kept.windows,
            kept.wide_windows,
            kept.weight,
            kept.modulation_weight,
        )
    names = ("weight", "bias", "modulation_weight", "modulation_bias")
    found = zip(names, gradients, strict=True)
    return {name: gradient for name, gradient in found if name in kept.needs}


def _tap_gradients(ops: Any, grad: Tensor, windows: Tensor, rows: int) -> Tensor:
    """(windows,O) to (rows,k*k*O): what each row of each tap's products gets."""
    values = grad.t()[None, :, :, None]
    parts = []
    for tap in windows.t().contiguous():
        index = tap.view(1, -1, 1)
        order, offsets = sorted_by(ops, index, rows)
        parts.append(ops.segmented_sum(values, index, order, offsets, rows))
    return torch.stack(parts, dim=1).flatten(1)


def _weight_gradient(matrix: Tensor, like: Tensor) -> Tensor:
    """Back from `_taps`."""
    out, K, *size = like.shape
    return matrix.view(K, *size, out).permute(3, 0, 1, 2).contiguous()


def _compose_backward(
    ops: Any,
    grad: Tensor,
    hidden: Tensor,
    vectors: Tensor | None,
    windows: Tensor,
    wide_windows: Tensor,
    weight: Tensor,
    modulation_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    products = _tap_gradients(ops, grad.contiguous(), wide_windows, hidden.shape[0])
    modulation = _weight_gradient(hidden.t() @ products, modulation_weight)
    inner = (products @ _taps(modulation_weight).t()).masked_fill_(hidden <= 0, 0)
    rows = weight.shape[1] if vectors is None else vectors.shape[0]
    products = _tap_gradients(ops, inner, windows, rows)
    first = products if vectors is None else vectors.t() @ products
    return _weight_gradient(first, weight), inner.sum(0), modulation, grad.sum(0)


def _fake_backward(
    grad: Tensor,
    hidden: Tensor,
    vectors: Tensor | None,
    windows: Tensor,
    wide_windows: Tensor,
    weight: Tensor,
    modulation_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[:1]),
        weight.new_empty(modulation_weight.shape),
        weight.new_empty(modulation_weight.shape[:1]),
    )


SPADE_MODULATION_TABLE = Op(
    name="spade_modulation_table",
    fake=_fake,
    compose=_compose,
    keep=(*schema.arguments("spade_modulation_table"), "hidden"),
    backward=_backward,
)
SPADE_MODULATION_TABLE_BACKWARD = Op(
    name="spade_modulation_table_backward", fake=_fake_backward, compose=_compose_backward
)
