"""SPADE's gamma and beta at each distinct window: two convolutions, written as sums over taps."""

import torch
from torch import Tensor


def _convolved(rows: Tensor, windows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Sum over the taps of weight[:, :, tap] @ rows[windows[:, tap]]; -1 is a row of zeros."""
    rows = torch.cat((rows, rows.new_zeros((1, rows.shape[1]))))
    sums = sum(
        rows[index.long()] @ matrix.t()
        for index, matrix in zip(windows.unbind(1), weight.flatten(2).unbind(2), strict=True)
    )
    return sums if bias is None else sums + bias


def spade_modulation_table(
    vectors: Tensor | None,
    windows: Tensor,
    wide_windows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    modulation_weight: Tensor,
    modulation_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """conv(relu(conv(map))) at the wide windows, and relu(conv(map)) at the windows."""
    if vectors is None:
        vectors = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    hidden = _convolved(vectors, windows, weight, bias).relu()
    return _convolved(hidden, wide_windows, modulation_weight, modulation_bias), hidden
