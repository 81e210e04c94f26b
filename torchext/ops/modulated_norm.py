"""Normalise, modulate, activate: SPADE, SPDNorm, attention normalisation, AdaIN and pixel norm."""

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .. import backend
from .checks import (
    FLOATING,
    accumulate_dtype,
    check_choice,
    check_device,
    check_feature_map,
    check_number,
    check_parameter,
    check_positive,
    check_slope,
    check_tensor,
    is_number,
    memory_format,
    native,
    parameter_in,
)
from .distributed import merged_moments
from .op import Gradients, Op, gradients_of_reference

Statistics = Literal["instance", "batch", "position", "rms", "none"]
Gain = Literal["one_plus", "plain", "sigmoid"]
_STATISTICS = ("instance", "batch", "position", "rms", "none")
_GAINS = ("one_plus", "plain", "sigmoid")


def modulated_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    statistics: Statistics = "instance",
    eps: float = 1e-5,
    unbiased: bool = False,
    gain: Gain = "one_plus",
    activation: Literal["relu"] | float | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    process_group: "dist.ProcessGroup | None" = None,
    index: Tensor | None = None,
) -> Tensor:
    """Normalise a feature map, scale and shift it by maps, and activate it.

    y = activation(xn * scale + beta * weight), with xn = (x - mean) / sqrt(variance + eps) and

        "one_plus"  scale = 1 + gamma * weight           SPADE, SPDNorm as published
        "plain"     scale = gamma * weight               AdaIN, SPDNorm as in its paper
        "sigmoid"   scale = 1 + sigmoid(gamma) * weight  FE-GAN's attention normalisation

    Args:
        x: (N,C,H,W), float32, float64, float16 or bfloat16; contiguous or channels_last (other
            strides are copied). Statistics of the halves are taken in float32.
        gamma, beta: both or none, of one shape: (N,C,H,W), a value for each element; (N,1,H,W),
            for each pixel; or (N,C), for each channel; with an index (rows,C). Maps of x's shape
            are taken in x's dtype, the others in that of the statistics. None is
            y = activation(xn).
        weight: (N,1,H,W) or (N,C,H,W), how much the modulation counts (SPDNorm's diversity map D).
        statistics: what mean and variance are taken over: "instance" (H,W), "batch" (N,H,W),
            "position" (C, at each pixel); "rms" is x / sqrt(mean of x^2 over C + eps), pixel norm;
            "none" leaves x as it is.
        eps: added to the variance, positive.
        unbiased: divide the squared deviations by their count less one.
        activation: "relu", or the slope (0 to 1) of a leaky ReLU.
        running_mean, running_var: (C,), both or none, statistics "batch" only. In training they are
            updated in place, (1 - momentum) * running + momentum * batch, the variance unbiased;
            in evaluation (`training` False) they are the statistics.
        training: of the running statistics; False needs them.
        momentum: of the running statistics, 0 to 1.
        process_group: take the batch's statistics over all processes of the group, each holding
            part of the batch. Gradients of gamma and beta stay local. Differentiable once.
        index: int32 (N,H,W), each pixel's row of gamma and beta, such as
            `torchext.label_windows` finds them. The maps of x's size are never made; a backward to
            gamma and beta makes their gradients. (With statistics "position" and "rms" they are
            made.)

    Returns:
        y, with x's shape, dtype and memory format. A channel of one pixel (or a pixel of one
        channel) gives beta.

    Memory beyond the result: the statistics. x, gamma, the statistics and, with an activation, y
    (with a weight that needs a gradient, beta too) are kept for backward.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape, device, range or choice does not fit.
    """
    check_feature_map("x", x)
    check_choice("statistics", statistics, _STATISTICS)
    check_choice("gain", gain, _GAINS)
    check_positive("eps", eps)
    if index is None:
        _check_maps(x, gamma, beta, weight)
    else:
        _check_table(x, gamma, beta, weight, index)
    slope = _slope(activation)
    _check_unbiased(x, statistics, unbiased)
    _check_running(
        x, running_mean, running_var, statistics, unbiased, training, momentum, process_group
    )

    x = native(x)
    if index is not None and statistics in ("position", "rms"):
        rows = index.long()
        gamma, beta = (table[rows].permute(0, 3, 1, 2) for table in (gamma, beta))
        index = None
    if index is None:
        maps = [_prepared(value, x) for value in (gamma, beta, weight)]
    else:
        maps = [_rows(gamma, x), _rows(beta, x), _prepared(weight, x)]
        index = index.contiguous()
    options = (index, statistics, unbiased, float(eps), gain, slope)
    if running_mean is not None and not training:
        accumulate = accumulate_dtype(x.dtype)
        mean = running_mean.to(accumulate)[None]
        rstd = torch.rsqrt(running_var.to(accumulate) + eps)[None]
        return MODULATED_NORM(x, *maps, mean, rstd, *options)[0]
    if process_group is None:
        y, mean, rstd = MODULATED_NORM(x, *maps, None, None, *options)
        count = x.numel() // x.shape[1]
    else:
        ops = backend.choose("modulated_norm", x).ops
        y, mean, rstd, count = _Synchronised.apply(ops, process_group, x, *maps, *options)
    if running_mean is not None:
        _update_running(running_mean, running_var, mean, rstd, eps, count, momentum)
    return y


# --- checks -------------------------------------------------------------------------------------


def _check_maps(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, weight: Tensor | None
) -> None:
    N, C, H, W = x.shape
    if (gamma is None) != (beta is None):
        raise ValueError("gamma, beta: expected both or none")
    if weight is not None and gamma is None:
        raise ValueError("weight: expected gamma and beta with it")
    if gamma is not None:
        _check_map("gamma", gamma, [(N, C, H, W), (N, 1, H, W), (N, C)], x)
        check_parameter("beta", beta, tuple(gamma.shape), x)
    if weight is not None:
        _check_map("weight", weight, [(N, C, H, W), (N, 1, H, W)], x)


def _check_table(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, weight: Tensor | None, index: Tensor
) -> None:
    N, C, H, W = x.shape
    if gamma is None or beta is None:
        raise ValueError("index: expected gamma and beta with it")
    check_tensor("gamma", gamma)
    if gamma.dim() != 2 or gamma.shape[0] == 0 or gamma.shape[1] != C:
        raise ValueError(f"gamma: expected the shape (rows, {C}), got {tuple(gamma.shape)}")
    check_parameter("gamma", gamma, tuple(gamma.shape), x)
    check_parameter("beta", beta, tuple(gamma.shape), x)
    check_tensor("index", index)
    if index.dtype != torch.int32:
        raise TypeError(f"index: expected int32, got {index.dtype}")
    if tuple(index.shape) != (N, H, W):
        raise ValueError(f"index: expected the shape {(N, H, W)}, got {tuple(index.shape)}")
    check_device("index", index, x)
    if weight is not None:
        _check_map("weight", weight, [(N, C, H, W), (N, 1, H, W)], x)
    if index.numel() and backend.readable(index):
        low, high = (bound.item() for bound in torch.aminmax(index))
        if low < 0 or high >= gamma.shape[0]:
            wrong = low if low < 0 else high
            raise ValueError(f"index: expected 0 to {gamma.shape[0] - 1}, got {wrong}")


def _check_map(name: str, value: Tensor, shapes: list[tuple[int, ...]], x: Tensor) -> None:
    check_tensor(name, value)
    if value.dtype not in FLOATING:
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    if tuple(value.shape) not in shapes:
        expected = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ValueError(f"{name}: expected the shape {expected}, got {tuple(value.shape)}")
    check_device(name, value, x)


def _slope(activation: str | float | None) -> float:
    """The factor of negative values: 1 without an activation, 0 for ReLU."""
    if activation is None:
        return 1.0
    if activation == "relu":
        return 0.0
    if not is_number(activation):
        raise TypeError(f"activation: expected None, 'relu' or a slope, got {activation!r}")
    check_slope("activation", activation)
    return float(activation)


def _check_unbiased(x: Tensor, statistics: str, unbiased: bool) -> None:
    if not isinstance(unbiased, bool):
        raise TypeError(f"unbiased: expected a bool, got {type(unbiased).__name__}")
    if unbiased and statistics == "rms":
        raise ValueError("unbiased: expected False for the statistics 'rms'")
    N, C, H, W = x.shape
    count = {"position": C, "instance": H * W, "batch": N * H * W}.get(statistics, 2)
    if unbiased and count == 1:
        raise ValueError(
            f"x: expected more than one value for unbiased statistics {statistics!r},"
            f" got {tuple(x.shape)}"
        )


def _check_running(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    statistics: str,
    unbiased: bool,
    training: bool,
    momentum: float,
    process_group: "dist.ProcessGroup | None",
) -> None:
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean, running_var: expected both or none")
    if statistics != "batch":
        for name, value in (("running_mean", running_mean), ("process_group", process_group)):
            if value is not None:
                raise ValueError(f"{name}: expected statistics 'batch' with it, got {statistics!r}")
    if process_group is not None and unbiased:
        raise ValueError("unbiased: expected False with a process_group")
    if running_mean is None:
        if not training:
            raise ValueError("training: expected running_mean and running_var with False")
        return
    check_parameter("running_mean", running_mean, (x.shape[1],), x)
    check_parameter("running_var", running_var, (x.shape[1],), x)
    check_number("momentum", momentum)
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected 0 to 1, got {momentum}")


def _prepared(value: Tensor | None, x: Tensor) -> Tensor | None:
    """A map as the kernels take it: like x if of its shape, else plain and accumulating."""
    if value is None:
        return None
    if value.shape == x.shape:
        return value.to(x.dtype).contiguous(memory_format=memory_format(x))
    return parameter_in(value, accumulate_dtype(x.dtype))


def _rows(table: Tensor, x: Tensor) -> Tensor:
    """As the kernels read it: for a contiguous x a channel's rows side by side."""
    table = table.to(accumulate_dtype(x.dtype))
    if memory_format(x) == torch.contiguous_format:
        return table.t().contiguous().t()
    return table.contiguous()


# --- statistics of the batch --------------------------------------------------------------------


class _Synchronised(torch.autograd.Function):
    """Statistics of the batch over all processes; one small all-reduce more in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        ops: Any,
        group: dist.ProcessGroup,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        weight: Tensor | None,
        index: Tensor | None,
        statistics: str,
        unbiased: bool,
        eps: float,
        gain: str,
        slope: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        labels = torch.zeros((1, 1, *x.shape[2:]), dtype=torch.uint8, device=x.device)
        local = ops.region_statistics(x, labels, 1, False, False)
        mean, rstd, size = merged_moments(*local, eps, group)
        y, _, _ = ops.modulated_norm(
            x, gamma, beta, weight, mean, rstd, index, statistics, unbiased, eps, gain, slope
        )
        ctx.mark_non_differentiable(mean, rstd, size)
        sign = y if slope != 1 else None
        ctx.save_for_backward(x, gamma, beta, weight, mean, rstd, index, size, sign)
        ctx.ops, ctx.group, ctx.options = ops, group, (gain, slope)
        return y, mean, rstd, size

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        x, gamma, beta, weight, mean, rstd, index, size, y = ctx.saved_tensors
        grad = grad.contiguous(memory_format=memory_format(x))
        weight_gradient = weight is not None and ctx.needs_input_grad[5]
        sums, *gradients = ctx.ops.modulated_norm_backward_sums(
            grad, y, x, gamma, beta, weight, mean, rstd, index, *ctx.options, weight_gradient
        )
        total = sums.double()
        dist.all_reduce(total, group=ctx.group)
        mean_sums = (total / size).to(sums.dtype)
        grad_x = ctx.ops.modulated_norm_backward_apply(
            grad, y, x, gamma, weight, mean, rstd, index, mean_sums, *ctx.options
        )
        *of_maps, grad_weight = gradients
        slope = ctx.options[1]
        pair = _gamma_and_beta(ctx.ops, grad, x, gamma, weight, index, slope, *of_maps)
        maps = (*pair, grad_weight if weight_gradient else None)
        return None, None, grad_x, *maps, *(None,) * 6


def _update_running(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    count: int | Tensor,
    momentum: float,
) -> None:
    """In place; the variance that enters is unbiased, as in torch.nn.BatchNorm2d."""
    with torch.no_grad():
        variance = rstd[0].double().pow(-2) - eps
        correction = (
            count / (count - 1).clamp(min=1)
            if isinstance(count, Tensor)
            else (count / max(count - 1, 1))
        )
        variance = (variance.clamp(min=0) * correction).flatten()
        running_mean.lerp_(mean[0].to(running_mean.dtype), momentum)
        running_var.lerp_(variance.to(running_var.dtype), momentum)


# --- ops ----------------------------------------------------------------------------------------


def _statistics_shape(x: Tensor, statistics: str, given: bool) -> tuple[int, ...]:
    N, C, H, W = x.shape
    if given or statistics == "none":
        return (0,)
    if statistics in ("position", "rms"):
        return (N, 1, H, W)
    return (N if statistics == "instance" else 1, C)


def _fake(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    index: Tensor | None,
    statistics: str,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _statistics_shape(x, statistics, mean is not None)
    dtype = accumulate_dtype(x.dtype)
    no_mean = (0,) if statistics == "rms" else shape
    return torch.empty_like(x), x.new_empty(no_mean, dtype=dtype), x.new_empty(shape, dtype=dtype)


def _beta_has_gradient_of_y(
    x: Tensor, elements: Tensor | None, weight: Tensor | None, slope: float
) -> bool:
    """Whether the gradient of an element's beta is that of y: then the ops give none.

    Args:
        elements: gamma's gradient, or what has its shape; of rows of a table each element's share.
    """
    return elements is not None and elements.shape == x.shape and weight is None and slope == 1


def _fake_map_gradients(
    x: Tensor,
    gamma: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    slope: float,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if index is not None and gamma is not None:
        gamma = x
    beta = None if _beta_has_gradient_of_y(x, gamma, weight, slope) else gamma

    def gradient(value: Tensor | None) -> Tensor:
        if value is None:
            return x.new_empty((0,), dtype=accumulate_dtype(x.dtype))
        return torch.empty_like(value)

    return gradient(gamma), gradient(beta), gradient(weight if weight_gradient else None)


def _fake_backward(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    index: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *_fake_map_gradients(x, gamma, weight, index, *rest[-2:])


def _fake_backward_sums(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    index: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    sums = mean.new_empty((2, 1, x.shape[1]))
    return sums, *_fake_map_gradients(x, gamma, weight, index, *rest[-2:])


def _keep(given: Any, outputs: tuple[Tensor, ...], needs: set[str]) -> dict[str, Any]:
    y, mean, rstd = outputs
    kept = {**vars(given), "given": given.mean is not None, "y": y if given.slope != 1 else None}
    if not kept["given"] and given.statistics != "none":
        kept |= {"mean": None if given.statistics == "rms" else mean, "rstd": rstd}
    if "weight" not in needs:
        kept["beta"] = None
    return kept


def _backward(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    weight_gradient = "weight" in kept.needs
    x, gamma, beta, weight = ops.modulated_norm_backward(
        grad,
        kept.y,
        kept.x,
        kept.gamma,
        kept.beta,
        kept.weight,
        kept.mean,
        kept.rstd,
        kept.index,
        kept.statistics,
        kept.given,
        kept.unbiased,
        kept.gain,
        kept.slope,
        weight_gradient,
    )
    given = (kept.x, kept.gamma, kept.weight, kept.index, kept.slope)
    gamma, beta = _gamma_and_beta(ops, grad, *given, gamma, beta)
    gradients: Gradients = {"x": x, "gamma": gamma, "beta": beta}
    if weight_gradient:
        gradients["weight"] = weight
    return gradients


def _gamma_and_beta(
    ops: Any,
    grad: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    slope: float,
    of_gamma: Tensor,
    of_beta: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """Their gradients, from what the ops give of them."""
    if gamma is None:
        return None, None
    if _beta_has_gradient_of_y(x, of_gamma, weight, slope):
        of_beta = grad
    if index is None:
        return of_gamma, of_beta
    return _table_gradients(ops, gamma, index, of_gamma, of_beta)


def _table_gradients(
    ops: Any, table: Tensor, index: Tensor, *elements: Tensor
) -> tuple[Tensor, ...]:
    """The gradients (rows,C) of tables from those of every element."""
    rows = table.shape[0]
    order, offsets = sorted_by(ops, index, rows)
    return tuple(ops.segmented_sum(values, index, order, offsets, rows) for values in elements)


def sorted_by(ops: Any, index: Tensor, rows: int) -> tuple[Tensor | None, Tensor | None]:
    """The pixels in the order of their index, and each row's first; None where kernels need none.

    Of fixed sizes, so that a device need not be waited for.
    """
    if not backend.sums_in_order(ops, index):
        return None, None
    ordered, order = index.flatten().sort(stable=True)
    borders = torch.arange(rows + 1, dtype=torch.int32, device=index.device)
    return order.to(torch.int32), torch.searchsorted(ordered, borders, out_int32=True)


def _fake_segmented_sum(
    values: Tensor, index: Tensor, order: Tensor | None, offsets: Tensor | None, rows: int
) -> Tensor:
    return values.new_empty((rows, values.shape[1]), dtype=accumulate_dtype(values.dtype))


def _twice(kept: Any, grad: Tensor) -> Gradients:
    """Of the formula without activation, whose slope is known from y."""
    if kept.y is not None:
        grad = torch.where(kept.y > 0, grad, kept.slope * grad)
        kept.slope = 1.0
    if not kept.given:
        kept.mean = kept.rstd = None
    if kept.beta is None and kept.gamma is not None:
        # Behind the activation everything is linear in beta, so any beta will do.
        kept.beta = torch.zeros_like(kept.gamma)
    return gradients_of_reference(MODULATED_NORM, kept, grad)


MODULATED_NORM = Op(name="modulated_norm", fake=_fake, keep=_keep, backward=_backward, twice=_twice)
MODULATED_NORM_BACKWARD = Op(name="modulated_norm_backward", fake=_fake_backward)
MODULATED_NORM_BACKWARD_SUMS = Op(name="modulated_norm_backward_sums", fake=_fake_backward_sums)
MODULATED_NORM_BACKWARD_APPLY = Op(
    name="modulated_norm_backward_apply", fake=lambda grad, y, x, *_: torch.empty_like(x)
)
SEGMENTED_SUM = Op(name="segmented_sum", fake=_fake_segmented_sum)
