"""Partial convolution: arXiv 1804.07723 (irregular holes) and arXiv 1811.11718 (padding).

Three ops around PyTorch's own convolution: the mask's window (scale and updated mask), the product
x * mask, and the epilogue. Compilers see them one by one; eager code runs all but the window as the
one op `partial_conv`, which keeps less, writes the epilogue into the convolution's own result, and
on the CPU looks at the mask: a mask of ones needs no product, and where many windows are all hole
only the other tiles of the output are convolved.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backend
from .checks import (
    accumulate_dtype,
    autocast_dtype,
    check_choice,
    check_device,
    check_feature_map,
    check_integer,
    check_mask_values,
    check_parameter,
    check_positive,
    check_slope,
    check_tensor,
    in_dtype,
    native,
    parameter_in,
    place_to_keep,
    refuse_tracing,
)
from .convolution import (
    LARGEST,
    SPATIAL,
    Geometry,
    Sizes,
    check_mask,
    check_odd_kernel,
    dense,
    expand_groups,
    geometry_of,
    planes_of,
    planes_with_mask,
    sizes_of,
    volume_of,
    written_out,
)
from .hole_tiles import convolve_tiles, live_tiles
from .op import Gradients, Op
from .upsample_conv import by_phases
from .winograd_conv import (
    apply,
    chosen,
    conv2d,
    convolution_gradients,
    convolve,
    direct,
    made_of,
    split_at,
)

Form = Literal["ratio", "sum"]
FORMS = ("ratio", "sum")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
EPS = 1e-8  # as published
_NO_TAIL = (None, None, 1.0, False)


def partial_conv2d(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    form: Form = "ratio",
    eps: float = EPS,
    mask_channels: Sequence[int] | None = None,
    padding_mode: str = "zeros",
    masked_input: bool = False,
    window: tuple[Tensor, Tensor] | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    negative_slope: float | None = None,
    mask_output: bool = False,
) -> tuple[Tensor, Tensor]:
    """Convolve what is known, and update the mask. Mask: **1 known, 0 hole**, or between.

    With s the sum of the zero-padded mask over a window, over all channels that it stands for:

    - form "ratio", the paper's and its authors' layer: updated = clamp(s, 0, 1) and
      y = (conv(x * mask) * window / (s + eps) + bias) * updated, the last factor without a bias
      on the ratio alone; `window` counts all positions of the window, padding included;
    - form "sum", the widely used U-Net port: y = conv(x * mask) / s + bias where s is not 0, else
      0; updated = [s != 0].

    What x holds where the mask is 0, NaN included, has no effect. Hole windows are 0 in every
    dtype. The mask is zero padded whatever the padding mode.

    Args:
        x: (N,Ci,H,W), float32, float64, float16 or bfloat16.
        mask: (N or 1,M,H,W), bool, integer or floating point, values 0 to 1, M one of: 1; Ci; or
            the length of mask_channels. None: all is known (partial-convolution padding).
        weight: (Co,Ci/groups,kh,kw), x's dtype (any under autocast).
        bias: (Co,).
        stride, padding, dilation, groups: as for `torch.nn.functional.conv2d`; padding may be
            "same" or "valid".
        form, eps: see above; eps is used by "ratio" only.
        mask_channels: how many channels of x, in order, each mask channel stands for, Ci in all;
            e.g. (512, 256) for the concatenation of two feature maps with a mask each. Without it
            a mask of one channel counts once in the form "ratio" and Ci times in "sum" (they
            differ by eps, and where fractional masks meet the clamp).
        padding_mode: of x: "zeros", "reflect", "replicate" or "circular".
        masked_input: x is known to be 0 in the holes; the product with the mask is left out.
        window: scale and updated mask from `torchext.mask_window`, where several convolutions
            share them; the mask is then used for the product only, and form, eps are not used.
        norm_weight, norm_bias: (Co,), an affine after the convolution, such as an inference batch
            norm's; it reaches hole windows too, as in the published networks.
        negative_slope: then a leaky ReLU of this slope (0: ReLU).
        mask_output: then multiply by the updated mask, so that the next partial convolution can
            have masked_input.

    Returns:
        y: (N,Co,Ho,Wo), the dtype and memory format of the convolution's result.
        updated: (N or 1,1,Ho,Wo), x's dtype, of the mask's batch size (1 without a mask). No
            gradient passes the mask.

    Extra memory, beside the result: x's size for the product, the result's size for the
    convolution's raw output, and maps of one channel. For the backward x is kept, the maps, and
    after an activation the result, of which the sign is needed; neither the product nor the raw
    output. Under `torch.compile` the product is kept too, and the raw output for a norm_weight that
    has a gradient.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape, device or choice does not fit.
    """
    return _partial_conv(
        2, x, mask, weight, bias, stride, padding, dilation, groups, form, eps, mask_channels,
        padding_mode, masked_input, window, norm_weight, norm_bias, negative_slope, mask_output,
    )  # fmt: skip


def partial_conv3d(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    form: Form = "ratio",
    eps: float = EPS,
    mask_channels: Sequence[int] | None = None,
    padding_mode: str = "zeros",
    masked_input: bool = False,
    window: tuple[Tensor, Tensor] | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    negative_slope: float | None = None,
    mask_output: bool = False,
) -> tuple[Tensor, Tensor]:
    """`partial_conv2d` over volumes. Mask: **1 known, 0 hole**, or between.

    x: (N,Ci,D,H,W), mask: (N or 1,M,D,H,W), weight: (Co,Ci/groups,kd,kh,kw) -> y
    (N,Co,Do,Ho,Wo), updated (N or 1,1,Do,Ho,Wo). All else is as for `partial_conv2d`.
    """
    return _partial_conv(
        3, x, mask, weight, bias, stride, padding, dilation, groups, form, eps, mask_channels,
        padding_mode, masked_input, window, norm_weight, norm_bias, negative_slope, mask_output,
    )  # fmt: skip


def partial_upsample_conv2d(
    x: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    skip: Tensor | None = None,
    skip_mask: Tensor | None = None,
    form: Form = "ratio",
    eps: float = EPS,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    negative_slope: float | None = None,
    mask_output: bool = False,
) -> tuple[Tensor, Tensor]:
    """`partial_conv2d` of [x up-sampled by two, skip], neither built. Mask: **1 known, 0 hole**.

    Up-sampling is nearest, of the mask too; the convolution keeps the size (padding k // 2). The
    up-sampled part is convolved by phases, as by `torchext.upsample_conv2d`, and the skip's part
    is added. A U-Net's decoder stage.

    Args:
        x: (N,C1,H,W), float32, float64, float16 or bfloat16.
        mask: (N or 1,1,H,W), or the same expanded to C1 channels.
        weight: (Co,C1+C2,kh,kw), both sizes odd.
        bias: (Co,).
        skip, skip_mask: (N,C2,2H,2W), (N or 1,1,2H,2W); both or neither.
        form, eps, norm_weight, norm_bias, negative_slope, mask_output: as for `partial_conv2d`;
            with a skip each mask counts as often as it has channels.

    Returns:
        y (N,Co,2H,2W) and the updated mask (N or 1,1,2H,2W).

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape, device or choice does not fit.
    """
    check_feature_map("x", x)
    check_odd_kernel(weight)
    if (skip is None) != (skip_mask is None):
        raise ValueError("skip_mask: expected both skip and skip_mask, or none")
    N, low_channels, H, W = x.shape
    low_mask = _one_channel("mask", mask, x)
    masks = [F.interpolate(low_mask, scale_factor=2.0, mode="nearest")]
    channels = [low_channels]
    if skip is not None and skip_mask is not None:
        check_feature_map("skip", skip)
        if (skip.shape[0], *skip.shape[2:]) != (N, 2 * H, 2 * W) or skip.dtype != x.dtype:
            raise ValueError(
                f"skip: expected the shape ({N}, C2, {2 * H}, {2 * W}) and {x.dtype}, got"
                f" {tuple(skip.shape)} and {skip.dtype}"
            )
        check_device("skip", skip, x)
        masks.append(_one_channel("skip_mask", skip_mask, skip))
        channels.append(skip.shape[1])
    expected = (weight.shape[0], sum(channels), *weight.shape[2:])
    check_parameter("weight", weight, expected, x)
    _check_convolution(2, x, weight[:, :low_channels], 1)
    _check_form(form, eps)
    tail = _tail(x, weight, bias, norm_weight, norm_bias, negative_slope, mask_output)
    padding = [size // 2 for size in weight.shape[2:]]
    geometry = geometry_of((2 * H, 2 * W), list(weight.shape[2:]), 1, padding, 1)
    batch = max(m.shape[0] for m in masks)
    known = torch.cat([m.expand(batch, -1, -1, -1) for m in masks], dim=1)
    counts = channels if len(channels) > 1 or form == "sum" else []
    scale, updated = _window(known, counts, geometry, form, bias is not None, eps)
    low_weight, skip_weight = made_of(weight, split_at(low_channels))
    rest = None
    if skip is not None:
        rest = _convolve(_product(skip, masks[1], []), skip_weight, geometry, 1, "zeros")
    raw = by_phases(_product(x, low_mask, []), low_weight, None, rest)
    return _epilogue(raw, scale, updated, tail), updated.to(x.dtype)


def _one_channel(name: str, mask: Tensor, x: Tensor) -> Tensor:
    mask, _ = check_mask(name, mask, x, None)
    if mask.shape[1] != 1:
        raise ValueError(f"{name}: expected a mask of one channel, got {tuple(mask.shape)}")
    return mask


def mask_window(
    mask: Tensor,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    *,
    form: Form = "ratio",
    bias: bool = False,
    eps: float = EPS,
    mask_channels: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """What a partial convolution needs of its mask. Mask: **1 known, 0 hole**, or between.

    Args:
        mask: (N,M,H,W) or (N,M,D,H,W), floating point.
        kernel_size, stride, padding, dilation: the convolution's.
        form, eps: as for `torchext.partial_conv2d`.
        bias: whether the convolution has one.
        mask_channels: how often each mask channel counts; once each without it.

    Returns:
        scale, updated: (N,1,Ho,Wo) or (N,1,Do,Ho,Wo), float32 (float64 for a float64 mask), such
        that y = conv(x * mask) * scale + bias * updated.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape or choice does not fit.
    """
    check_tensor("mask", mask)
    dimensions = 3 if mask.dim() == 5 else 2
    check_feature_map("mask", mask, SPATIAL[dimensions])
    _check_form(form, eps)
    kernel = sizes_of("kernel_size", kernel_size, dimensions, least=1)
    geometry = geometry_of(mask.shape[2:], kernel, stride, padding, dilation)
    channels = [] if mask_channels is None else list(mask_channels)
    if channels and len(channels) != mask.shape[1]:
        raise ValueError(
            f"mask_channels: expected {mask.shape[1]} numbers, one for each mask channel, got"
            f" {len(channels)}"
        )
    check_mask_values("mask", mask)
    mask, channels = expand_groups(mask.detach(), channels)
    return _window(mask, channels, geometry, form, bias, eps)


def _check_form(form: str, eps: float) -> None:
    check_choice("form", form, FORMS)
    check_positive("eps", eps)


def _check_convolution(dimensions: int, x: Tensor, weight: Tensor, groups: int) -> None:
    refuse_tracing()
    check_feature_map("x", x, SPATIAL[dimensions])
    check_tensor("weight", weight)
    if weight.dim() != x.dim():
        sizes = ", ".join(f"k{letter.lower()}" for letter in SPATIAL[dimensions])
        raise ValueError(
            f"weight: expected the shape (Co, Ci / groups, {sizes}), got {tuple(weight.shape)}"
        )
    groups = check_integer("groups", groups, 1, LARGEST)
    for name, channels in (("x", x.shape[1]), ("weight", weight.shape[0])):
        if channels % groups:
            raise ValueError(
                f"groups: expected a divisor of {name}'s {channels} channels, got {groups}"
            )
    shape = (weight.shape[0], x.shape[1] // groups, *weight.shape[2:])
    check_parameter("weight", weight, shape, x)
    if weight.dtype != x.dtype and autocast_dtype(x) is None:
        raise TypeError(f"weight: expected the dtype of x, {x.dtype}, got {weight.dtype}")


class _Tail(NamedTuple):
    """What follows the convolution, as the ops take it; the tensors of any floating dtype."""

    bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    negative_slope: float
    mask_output: bool

    def of(self, dtype: torch.dtype) -> tuple[Any, ...]:
        """Ready for a feature map of a dtype."""
        accumulate = accumulate_dtype(dtype)
        tensors = (None if value is None else parameter_in(value, accumulate) for value in self[:3])
        return *tensors, *self[3:]


def _tail(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    negative_slope: float | None,
    mask_output: bool,
) -> _Tail:
    """Raises what the functions document."""
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError("norm_bias: expected both norm_weight and norm_bias, or none")
    for name, value in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if value is not None:
            check_parameter(name, value, (weight.shape[0],), x)
    if negative_slope is not None:
        check_slope("negative_slope", negative_slope)
    slope = 1.0 if negative_slope is None else float(negative_slope)
    return _Tail(bias, norm_weight, norm_bias, slope, mask_output)


def _partial_conv(
    dimensions: int,
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    form: str,
    eps: float,
    mask_channels: Sequence[int] | None,
    padding_mode: str,
    masked_input: bool,
    window: tuple[Tensor, Tensor] | None,
    *tail_arguments: Any,
) -> tuple[Tensor, Tensor]:
    _check_convolution(dimensions, x, weight, groups)
    _check_form(form, eps)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    tail = _tail(x, weight, bias, *tail_arguments)
    geometry = geometry_of(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    masks, channels, mask_dtype = None, [], x.dtype
    if mask is None and mask_channels is None:
        if window is None:
            scale, updated = _window_of_ones(x, geometry, form, bias is not None, float(eps))
            if form == "ratio" and not any(geometry.border) and tail[1:] == _NO_TAIL:
                # Without padding all windows are whole: the scale is 1.
                return _plain(x, weight, bias, geometry, groups), updated.to(mask_dtype, copy=True)
        else:
            scale, updated = _check_window(window, x, geometry)
    else:
        known = x.new_ones((1, 1, *x.shape[2:])) if mask is None else mask
        known, channels = check_mask("mask", known, x, mask_channels)
        if window is None:
            counts = [x.shape[1]] if form == "sum" and known.shape[1] == 1 else channels
            scale, updated = _window(known, counts, geometry, form, bias is not None, eps)
        else:
            scale, updated = _check_window(window, x, geometry)
        masks = None if mask is None or masked_input else known
    in_one_op = padding_mode == "zeros" and geometry.symmetric and not torch.compiler.is_compiling()
    if in_one_op:
        dtype = autocast_dtype(x)
        if dtype is not None:
            x, weight, masks = (
                value if value is None or value.dtype == torch.float64 else value.to(dtype)
                for value in (x, weight, masks)
            )
        accumulate = accumulate_dtype(x.dtype)
        y = PARTIAL_CONV(
            x,
            masks,
            [1] if masks is None else written_out(channels, masks),
            in_dtype(scale, accumulate),
            in_dtype(updated, accumulate),
            weight,
            *tail.of(x.dtype),
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            groups,
        )
    else:
        masked = x if masks is None else _product(x, masks, channels)
        raw = _convolve(masked, weight, geometry, groups, padding_mode)
        y = _epilogue(raw, scale, updated, tail)
    # What is kept is not handed out.
    return y, updated.to(mask_dtype, copy=True) if mask is None else in_dtype(updated, mask_dtype)


def _plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, groups: int
) -> Tensor:
    """The convolution alone, without padding."""
    if bias is not None and bias.dtype != weight.dtype and autocast_dtype(x) is None:
        bias = bias.to(weight.dtype)
    sizes = (geometry.stride, geometry.padding, geometry.dilation, groups)
    return (F.conv3d if x.dim() == 5 else conv2d)(x, weight, bias, *sizes)


class _Kept:
    """The windows of masks of ones, which depend on sizes alone; those used last, up to 16 MiB."""

    def __init__(self, limit: int = 2**24) -> None:
        self.limit = limit
        self.size = 0
        self.lock = threading.Lock()
        self.windows: OrderedDict[Any, tuple[Tensor, Tensor]] = OrderedDict()

    def get(self, key: Any) -> tuple[Tensor, Tensor] | None:
        with self.lock:
            window = self.windows.get(key)
            if window is not None:
                self.windows.move_to_end(key)
            return window

    def put(self, key: Any, window: tuple[Tensor, Tensor]) -> None:
        with self.lock:
            if key in self.windows:
                return
            self.windows[key] = window
            self.size += _bytes(window)
            while self.size > self.limit:
                self.size -= _bytes(self.windows.popitem(last=False)[1])


def _bytes(window: tuple[Tensor, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in window)


_KEPT = _Kept()


def _window_of_ones(
    x: Tensor, geometry: Geometry, form: str, bias: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """What `_window` gives for a mask of ones, from the last calls where that can be."""

    def window() -> tuple[Tensor, Tensor]:
        ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
        counts = [x.shape[1]] if form == "sum" else []
        return _window(ones, counts, geometry, form, bias, eps)

    place = place_to_keep(x)
    if place is None:
        return window()
    key = (
        *(*place, x.dtype, backend.choose("mask_window", x).name),
        *(tuple(x.shape[2:]), form, bias, eps, x.shape[1] if form == "sum" else 1),
        *map(tuple, (geometry.kernel_size, geometry.stride, geometry.border, geometry.dilation)),
    )
    found = _KEPT.get(key)
    if found is None:
        # A training step may use what an evaluation in inference mode has left here.
        with torch.inference_mode(False), torch.no_grad():
            found = window()
        _KEPT.put(key, found)
    return found


def _check_window(
    window: tuple[Tensor, Tensor], x: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    for value in window:
        check_tensor("window", value)
        if value.shape[0] not in (1, x.shape[0]) or list(value.shape[1:]) != [
            1,
            *geometry.output_size,
        ]:
            sizes = ", ".join(map(str, geometry.output_size))
            raise ValueError(
                f"window: expected two tensors of the shape ({x.shape[0]} or 1, 1, {sizes}), got"
                f" {tuple(value.shape)}"
            )
        check_device("window", value, x)
    return window


def _window(
    mask: Tensor, channels: list[int], geometry: Geometry, form: str, bias: bool, eps: float
) -> tuple[Tensor, Tensor]:
    return MASK_WINDOW(
        native(mask) if mask.dim() == 4 else mask.contiguous(),
        written_out(channels, mask),
        geometry.kernel_size,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.output_size,
        form == "ratio",
        bias,
        float(eps),
    )


def _product(x: Tensor, mask: Tensor, channels: list[int]) -> Tensor:
    """x * mask, for volumes too."""
    planes, masks = planes_with_mask(x, mask)
    return volume_of(MASK_PRODUCT(planes, masks, written_out(channels, mask)), x)


def _epilogue(raw: Tensor, scale: Tensor, updated: Tensor, tail: _Tail) -> Tensor:
    accumulate = accumulate_dtype(raw.dtype)
    maps = (planes_of(value.to(accumulate)) for value in (scale, updated))
    return volume_of(PARTIAL_CONV_EPILOGUE(planes_of(raw), *maps, *tail.of(raw.dtype)), raw)


def _convolve(
    x: Tensor, weight: Tensor, geometry: Geometry, groups: int, padding_mode: str
) -> Tensor:
    padding = geometry.padding
    if padding_mode != "zeros" or not geometry.symmetric:
        mode = "constant" if padding_mode == "zeros" else padding_mode
        x = F.pad(x, geometry.border, mode=mode)
        padding = [0] * len(padding)
    convolution = F.conv3d if x.dim() == 5 else conv2d
    return convolution(x, weight, None, geometry.stride, padding, geometry.dilation, groups)


# --- ops ----------------------------------------------------------------------------------------


def _compose(
    ops: Any,
    x: Tensor,
    mask: Tensor | None,
    mask_channels: list[int],
    scale: Tensor,
    updated: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    negative_slope: float,
    mask_output: bool,
    *geometry: Any,
) -> Tensor:
    tail = (bias, norm_weight, norm_bias, negative_slope, mask_output)
    scale, updated = planes_of(scale), planes_of(updated)
    if mask is not None and _all_known(mask):
        mask = None
    stride, padding, dilation, groups = geometry
    winograd = chosen(ops, x, len(weight), weight.shape[2:], stride, padding, dilation, groups)
    if winograd and (mask is None or mask.shape[1] == 1):
        epilogue = (scale, updated, *tail)  # tiles that are all hole are left out there too
        return apply(x, weight, padding, dilation, mask=mask, epilogue=epilogue)
    slots = live_tiles(ops, x, updated) if x.is_cpu else None
    if slots is not None:
        tiles = convolve_tiles(ops, x, mask, mask_channels, slots, weight, *geometry)
        return ops.scatter_tiles(tiles, slots, scale, updated, *tail)
    if mask is not None:
        x = _masked(ops, x, mask, mask_channels)
    if winograd:
        raw = apply(x, weight, padding, dilation)
    else:
        raw = dense(direct(x, weight, None, *geometry))
    ops.partial_conv_epilogue_(planes_of(raw), scale, updated, *tail)
    return raw


def _all_known(mask: Tensor) -> bool:
    """Whether the product is known to be for nothing; on the CPU, and where asking costs less."""
    return mask.is_cpu and mask.numel() > 4096 and bool((mask == 1).all())


def _masked(ops: Any, x: Tensor, mask: Tensor, mask_channels: list[int]) -> Tensor:
    return volume_of(ops.mask_product(*planes_with_mask(x, mask), mask_channels), x)


def _fake(x: Tensor, *rest: Any) -> Tensor:
    weight, geometry = rest[4], rest[10:]
    return torch.empty_like(dense(convolve(None, x, weight, *geometry)))


_GRADIENTS = ("x", "weight", "bias", "norm_weight", "norm_bias")


def _keep(given: Any, outputs: tuple[Tensor, ...], needs: set[str]) -> dict[str, Any]:
    # The sign of what the activation was given is the result's.
    return {**vars(given), "y": None if given.negative_slope == 1 else outputs[0]}


def _backward(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    wanted = [name in kept.needs for name in ("x", "weight", "norm_weight")]
    gradients = ops.partial_conv_backward(
        grad,
        kept.y,
        kept.x,
        kept.mask,
        kept.mask_channels,
        kept.scale,
        kept.updated,
        kept.weight,
        kept.bias,
        kept.norm_weight,
        kept.negative_slope,
        kept.mask_output,
        kept.stride,
        kept.padding,
        kept.dilation,
        kept.groups,
        wanted,
    )
    found = zip(_GRADIENTS, gradients, strict=True)
    return {name: gradient for name, gradient in found if name in kept.needs}


def _compose_backward(
    ops: Any,
    grad: Tensor,
    y: Tensor | None,
    x: Tensor,
    mask: Tensor | None,
    mask_channels: list[int],
    scale: Tensor,
    updated: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    negative_slope: float,
    mask_output: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    of_x, of_weight, of_norm = wanted
    # The norm's weight is as well one of the convolution's. With the gradient before it, the
    # weight's is what the norm's is made of too: the sum of grad * raw is that of grad_weight *
    # weight, and no raw output is needed.
    factor = norm_weight if of_norm else None
    grad_raw, sums = ops.partial_conv_epilogue_backward(
        planes_of(grad.to(x.dtype)),
        None if y is None else planes_of(y),
        None,
        planes_of(scale),
        planes_of(updated),
        None if of_norm else norm_weight,
        negative_slope,
        mask_output,
    )
    if mask is not None and _all_known(mask):
        mask = None
    if mask is not None and (of_weight or of_norm):  # made again rather than kept
        x = _masked(ops, x, mask, mask_channels)
    per_channel = [-1, *[1] * (x.dim() - 1)]
    behind = weight if factor is None else (weight * factor.view(per_channel)).to(weight.dtype)
    grad_x, grad_weight = convolution_gradients(
        ops, volume_of(grad_raw, grad), x, behind, stride, padding, dilation, groups,
        [of_x, of_weight or of_norm],
    )  # fmt: skip
    if of_x:
        grad_x = dense(grad_x)
        if mask is not None:
            ops.mask_product_(*planes_with_mask(grad_x, mask), mask_channels)
    grad_bias = sums[0] if norm_weight is None else sums[0] * norm_weight
    grad_norm_weight = x.new_empty(0)
    if factor is not None:
        grad_norm_weight = (grad_weight.to(sums.dtype) * weight).flatten(1).sum(dim=1)
        if bias is not None:
            grad_norm_weight += bias * sums[0]
        grad_weight = (grad_weight * factor.view(per_channel)).to(weight.dtype)
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        x.new_empty(0) if not of_weight else grad_weight.contiguous(),
        grad_bias.clone() if norm_weight is None else grad_bias,
        grad_norm_weight,
        sums[1].clone(),
    )


def _fake_backward(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor,
    mask: Tensor | None,
    mask_channels: list[int],
    scale: Tensor,
    updated: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    negative_slope: float,
    mask_output: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_x, _ = convolution_gradients(
        None, dense(grad.to(x.dtype)), x, weight, stride, padding, dilation, groups, wanted
    )
    return (
        torch.empty_like(dense(grad_x)) if wanted[0] else x.new_empty(0),
        weight.new_empty(weight.shape) if wanted[1] else x.new_empty(0),
        scale.new_empty((grad.shape[1],)),
        scale.new_empty((grad.shape[1],)) if wanted[2] else x.new_empty(0),
        scale.new_empty((grad.shape[1],)),
    )


def _fake_window(mask: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    output_size = rest[5]
    shape, dtype = (mask.shape[0], 1, *output_size), accumulate_dtype(mask.dtype)
    return mask.new_empty(shape, dtype=dtype), mask.new_empty(shape, dtype=dtype)


def _backward_product(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    return {"x": ops.mask_product(grad, kept.mask, kept.mask_channels)}


def _keep_epilogue(given: Any, outputs: tuple[Tensor, ...], needs: set[str]) -> dict[str, Any]:
    kept = _keep(given, outputs, needs)
    return kept if "norm_weight" in needs else {**kept, "raw": None, "bias": None}


def _backward_epilogue(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    norm_weight = kept.norm_weight
    raw, sums = ops.partial_conv_epilogue_backward(
        *(grad, kept.y, kept.raw, kept.scale, kept.updated, norm_weight),
        *(kept.negative_slope, kept.mask_output),
    )
    of_bias, of_norm_bias, of_norm_weight = sums.unbind()
    gradients: Gradients = {"raw": raw, "norm_bias": of_norm_bias}
    if "norm_weight" in kept.needs:
        of_norm = of_norm_weight if kept.bias is None else of_norm_weight + kept.bias * of_bias
        gradients["norm_weight"] = of_norm
    gradients["bias"] = of_bias if norm_weight is None else of_bias * norm_weight
    return {name: gradient for name, gradient in gradients.items() if name in kept.needs}


def _fake_epilogue_backward(
    grad: Tensor, y: Tensor | None, raw: Tensor | None, scale: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad), scale.new_empty((3, grad.shape[1]))


PARTIAL_CONV = Op(
    name="partial_conv",
    fake=_fake,
    compose=_compose,
    keep=_keep,
    backward=_backward,
)
PARTIAL_CONV_BACKWARD = Op(
    name="partial_conv_backward", fake=_fake_backward, compose=_compose_backward
)
MASK_WINDOW = Op(name="mask_window", fake=_fake_window)
MASK_PRODUCT = Op(
    name="mask_product",
    fake=lambda x, mask, mask_channels: torch.empty_like(x),
    keep=("mask", "mask_channels"),
    backward=_backward_product,
    twice="backward",
)
MASK_PRODUCT_ = Op(name="mask_product_", fake=lambda *_: None)
PARTIAL_CONV_EPILOGUE = Op(
    name="partial_conv_epilogue",
    fake=lambda raw, *_: torch.empty_like(raw),
    keep=_keep_epilogue,
    backward=_backward_epilogue,
    twice="backward",
)
PARTIAL_CONV_EPILOGUE_ = Op(name="partial_conv_epilogue_", fake=lambda *_: None)
PARTIAL_CONV_EPILOGUE_BACKWARD = Op(
    name="partial_conv_epilogue_backward", fake=_fake_epilogue_backward
)
