"""Normalise, modulate, activate: SPADE, SPDNorm, attention normalisation, AdaIN and pixel norm."""

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .. import backend, reference
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
    native,
)
from .distributed import AllReduce, merged_moments
from .registration import call, differentiated, gradients_of_reference, like, operator, register

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
            for each pixel; or (N,C), for each channel. Maps of x's shape are taken in x's dtype,
            the others in that of the statistics. None is y = activation(xn).
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
    _check_maps(x, gamma, beta, weight)
    slope = _slope(activation)
    _check_unbiased(x, statistics, unbiased)
    _check_running(
        x, running_mean, running_var, statistics, unbiased, training, momentum, process_group
    )

    chosen = backend.choose("modulated_norm", x)
    x = native(x)
    maps = [_prepared(value, x) for value in (gamma, beta, weight)]
    options = (statistics, unbiased, float(eps), gain, slope)
    if running_mean is not None and not training:
        accumulate = accumulate_dtype(x.dtype)
        mean = running_mean.to(accumulate)[None]
        rstd = torch.rsqrt(running_var.to(accumulate) + eps)[None]
        return _run(chosen, x, maps, mean, rstd, options)[0]
    if process_group is not None:
        y, mean, rstd, count = _synchronised(chosen, x, maps, options, process_group)
    else:
        y, mean, rstd = _run(chosen, x, maps, None, None, options)
        count = x.numel() // x.shape[1]
    if running_mean is not None:
        if chosen is backend.REFERENCE:
            mean, rstd = _statistics_of_batch(x, eps, process_group)
        _update_running(running_mean, running_var, mean, rstd, eps, count, momentum)
    return y


def _run(
    chosen: "backend.Backend",
    x: Tensor,
    maps: list[Tensor | None],
    mean: Tensor | None,
    rstd: Tensor | None,
    options: tuple[Any, ...],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if chosen is backend.REFERENCE:
        return _reference(x, *maps, mean, rstd, options), None, None
    return call(chosen.namespace, "modulated_norm", x, *maps, mean, rstd, *options)


def _reference(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    options: tuple[Any, ...],
    **extra: Any,
) -> Tensor:
    statistics, unbiased, eps, gain, slope = options
    return reference.modulated_norm(
        x,
        gamma,
        beta,
        weight,
        mean,
        rstd,
        statistics=statistics,
        unbiased=unbiased,
        eps=eps,
        gain=gain,
        slope=slope,
        **extra,
    )


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
        return like(value, x)
    return value.to(accumulate_dtype(x.dtype)).contiguous()


# --- statistics of the batch --------------------------------------------------------------------


def _statistics_of_batch(
    x: Tensor, eps: float, group: "dist.ProcessGroup | None"
) -> tuple[Tensor, Tensor]:
    """Mean and rstd (1,C) of the batch, of all processes of a group."""
    labels = torch.zeros((1, 1, *x.shape[2:]), dtype=torch.uint8, device=x.device)
    count, mean, variance = reference.region_statistics(x.detach(), labels, num_regions=1)
    return merged_moments(count, mean, variance, eps, group)[:2]


def _synchronised(
    chosen: "backend.Backend",
    x: Tensor,
    maps: list[Tensor | None],
    options: tuple[Any, ...],
    group: "dist.ProcessGroup",
) -> tuple[Tensor, Tensor | None, Tensor | None, int | Tensor]:
    if chosen is backend.REFERENCE:
        count = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        dist.all_reduce(count, group=group)
        y = _reference(
            x, *maps, None, None, options, all_reduce=lambda value: AllReduce.apply(value, group)
        )
        return y, None, None, count
    return _SynchronizedModulatedNorm.apply(chosen.namespace, group, x, *maps, *options)


class _SynchronizedModulatedNorm(torch.autograd.Function):
    """Statistics of the batch over all processes; one small all-reduce more in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        group: dist.ProcessGroup,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        weight: Tensor | None,
        statistics: str,
        unbiased: bool,
        eps: float,
        gain: str,
        slope: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        labels = torch.zeros((1, 1, *x.shape[2:]), dtype=torch.uint8, device=x.device)
        local = operator(namespace, "region_statistics")(x, labels, 1, False, False)
        mean, rstd, size = merged_moments(*local, eps, group)
        y, _, _ = operator(namespace, "modulated_norm")(
            x, gamma, beta, weight, mean, rstd, statistics, unbiased, eps, gain, slope
        )
        ctx.mark_non_differentiable(mean, rstd, size)
        sign = y if slope != 1 else None
        ctx.save_for_backward(x, gamma, beta, weight, mean, rstd, size, sign)
        ctx.namespace, ctx.group, ctx.options = namespace, group, (gain, slope)
        return y, mean, rstd, size

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        x, gamma, beta, weight, mean, rstd, size, y = ctx.saved_tensors
        grad = like(grad, x)
        weight_gradient = weight is not None and ctx.needs_input_grad[5]
        sums, *gradients = operator(ctx.namespace, "modulated_norm_backward_sums")(
            grad, y, x, gamma, beta, weight, mean, rstd, *ctx.options, weight_gradient
        )
        total = sums.double()
        dist.all_reduce(total, group=ctx.group)
        mean_sums = (total / size).to(sums.dtype)
        grad_x = operator(ctx.namespace, "modulated_norm_backward_apply")(
            grad, y, x, gamma, weight, mean, rstd, mean_sums, *ctx.options
        )
        return None, None, grad_x, *_present(gradients, gamma, weight_gradient), *(None,) * 5


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


# --- registration -------------------------------------------------------------------------------


def _statistics_shape(x: Tensor, statistics: str, given: bool) -> tuple[int, ...]:
    N, C, H, W = x.shape
    if given or statistics == "none":
        return (0,)
    if statistics in ("position", "rms"):
        return (N, 1, H, W)
    return (N if statistics == "instance" else 1, C)


def _fake_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    statistics: str,
    unbiased: bool,
    eps: float,
    gain: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _statistics_shape(x, statistics, mean is not None)
    dtype = accumulate_dtype(x.dtype)
    no_mean = (0,) if statistics == "rms" else shape
    return torch.empty_like(x), x.new_empty(no_mean, dtype=dtype), x.new_empty(shape, dtype=dtype)


def _fake_map_gradients(
    x: Tensor, gamma: Tensor | None, weight: Tensor | None, weight_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    def gradient(value: Tensor | None) -> Tensor:
        if value is None:
            return x.new_empty((0,), dtype=accumulate_dtype(x.dtype))
        return torch.empty_like(value)

    return gradient(gamma), gradient(gamma), gradient(weight if weight_gradient else None)


def _fake_backward(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    statistics: str,
    given: bool,
    unbiased: bool,
    gain: str,
    slope: float,
    weight_gradient: bool,
) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *_fake_map_gradients(x, gamma, weight, weight_gradient)


def _fake_backward_sums(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    gain: str,
    slope: float,
    weight_gradient: bool,
) -> tuple[Tensor, ...]:
    sums = mean.new_empty((2, 1, x.shape[1]))
    return sums, *_fake_map_gradients(x, gamma, weight, weight_gradient)


def _fake_backward_apply(grad: Tensor, y: Tensor | None, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gamma, beta, weight, given_mean, given_rstd, *options = inputs
    y, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.given = given_mean is not None
    ctx.weight_gradient = weight is not None and ctx.needs_input_grad[3]
    kind = options[0]
    statistics = (
        given_mean if ctx.given else None if kind in ("none", "rms") else mean,
        given_rstd if ctx.given else None if kind == "none" else rstd,
    )
    sign = y if options[-1] != 1 else None
    ctx.save_for_backward(
        x, gamma, beta if ctx.weight_gradient else None, weight, *statistics, sign
    )
    ctx.options = options


def _present(
    gradients: list[Tensor], gamma: Tensor | None, weight_gradient: bool
) -> tuple[Tensor | None, ...]:
    """The gradients of gamma, beta and weight; None where there is none."""
    grad_gamma, grad_beta, grad_weight = gradients
    if gamma is None:
        grad_gamma = grad_beta = None
    return grad_gamma, grad_beta, grad_weight if weight_gradient else None


def _backward(namespace: str) -> Any:
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        tail = (None,) * 7
        if grad is None:
            return (None,) * 4 + tail
        x, gamma, beta, weight, mean, rstd, y = ctx.saved_tensors
        statistics, unbiased, eps, gain, slope = ctx.options
        if differentiated():  # the gradient itself will be differentiated
            constants = (mean, rstd) if ctx.given else (None, None)
            # Behind the activation everything is linear in beta, so any beta will do.
            shift = torch.zeros_like(gamma) if beta is None and gamma is not None else beta
            if y is not None:
                grad = torch.where(y > 0, grad, slope * grad)

            def function(*maps: Tensor | None) -> Tensor:
                return _reference(*maps, *constants, (statistics, unbiased, eps, gain, 1.0))

            return *gradients_of_reference(function, [x, gamma, shift, weight], grad), *tail
        grad_x, *gradients = operator(namespace, "modulated_norm_backward")(
            like(grad, x),
            y,
            x,
            gamma,
            beta,
            weight,
            mean,
            rstd,
            statistics,
            ctx.given,
            unbiased,
            gain,
            slope,
            ctx.weight_gradient,
        )
        return grad_x, *_present(gradients, gamma, ctx.weight_gradient), *tail

    return backward


def register_ops(namespace: str) -> None:
    register(namespace, "modulated_norm", _fake_norm, _setup_context, _backward(namespace))
    register(namespace, "modulated_norm_backward", _fake_backward)
    register(namespace, "modulated_norm_backward_sums", _fake_backward_sums)
    register(namespace, "modulated_norm_backward_apply", _fake_backward_apply)
