"""Gabor orientation: "MichiGAN: Multi-Input-Conditioned Hair Image Generation" (SIGGRAPH 2020).

And the orientation maps of hair reconstruction: NeuralHaircut (ICCV 2023), MonoHair (CVPR 2024),
GaussianHaircut (ECCV 2024) and Im2Haircut (ICCV 2025).
"""

import functools
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from .checks import (
    FLOATING,
    accumulate_dtype,
    check_choice,
    check_device,
    check_feature_map,
    check_number,
    check_tensor,
    is_number,
    native,
    parameter_in,
    place_to_keep,
)
from .filter_banks import BANKS, MAX_COUNT, MAX_SIZE
from .op import Gradients, Op

Confidence = Literal["variance", "spread"]
Border = Literal["zero", "wrap", "reflect"]
Rectify = Literal["relu", "abs"]
BankName = Literal["gabor", "dog"]
Grey = Literal["published", "standard"]
Order = Literal["sin_cos", "cos_sin"]

# Weights of R, G and B. The published blue is a slip of the usual .114, and what checkpoints saw.
GREY_WEIGHTS = {"published": (0.299, 0.587, 0.144), "standard": (0.299, 0.587, 0.114)}


# --- functions ----------------------------------------------------------------------------------


def oriented_filter_max(
    image: Tensor, bank: Tensor, rectify: Rectify = "relu"
) -> tuple[Tensor, Tensor]:
    """Each pixel's best filter of a bank and the strength of its response. No mask.

    Cross-correlation, zero padded, rectified, then the maximum over the filters; the responses are
    never stored. A bank that is symmetric (each filter under point reflection; the bank as a whole
    under mirroring and transposition, as angles pi * i / K are) is found to be so and takes an
    eighth of the multiplications.

    Args:
        image: (N,1,H,W), float32, float64, float16 or bfloat16.
        bank: (K,k,k) or (K,1,k,k), k odd and at most 63, K at most 1024.
        rectify: "relu" takes the largest response, at least 0 (published); "abs" the largest
            absolute value (the paper).

    Returns:
        index: int32 (N,1,H,W), the first filter of largest rectified response; 0 where all
            rectified responses are 0 or the window holds a NaN. Not differentiable.
        strength: (N,1,H,W), that response, rectified; float32 (float64 for a float64 image).

    Gradients of the strength go through the winning filter alone, to the image and to the bank.
    Kept for the backward: the inputs and two numbers per pixel.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape, device or choice does not fit.
    """
    _check_grey_image(image)
    _check_bank(bank, image)
    check_choice("rectify", rectify, ("relu", "abs"))
    absolute = rectify == "abs"
    bank = parameter_in(bank.reshape(-1, *bank.shape[-2:]), accumulate_dtype(image.dtype))
    response, index = ORIENTED_FILTER_MAX(native(image), bank, absolute)
    if absolute:  # abs() has a second derivative of a kind that kernels cannot take
        return index, torch.where(response < 0, -response, response)
    return index, response


def oriented_filter_statistics(
    image: Tensor,
    bank: Tensor,
    *,
    angles: Tensor | None = None,
    confidence: Confidence = "variance",
    eps: float = 0.0,
    border: Border = "zero",
) -> tuple[Tensor, Tensor, Tensor]:
    """Each pixel's best filter of a bank, its response, and how far the others agree. No mask.

    Cross-correlation and absolute values; filter i of K stands for the angle pi * i / K, and all
    responses F enter the confidence. They are never stored. As computed by NeuralHaircut,
    GaussianHaircut, Im2Haircut and MonoHair, with the banks of `gabor_kernel_bank`. On the CPU a
    bank whose filters are symmetric, in themselves and among each other, takes a fraction of the
    multiplications, and zeros around filters take none.

    Args:
        image: (N,1,H,W), float32, float64, float16 or bfloat16.
        bank: (K,k,k) or (K,1,k,k), k odd and at most 63, K at most 1024; smaller filters have
            zeros around them.
        angles: (K,), radians, floating point: the angle that distances are measured from where
            filter i is the best; None for pi * i / K. Published tables: NeuralHaircut rounds i / K
            and the product with pi to float16, Im2Haircut takes 255 i / 180 degrees.
        confidence: "variance", the mean of the squared distance, sum d^2 F / max(sum F, eps), d in
            [0, pi/2] radians; a small one is sure. "spread" (MonoHair): sqrt(sum d (F - max F)^2);
            a large one is sure. MonoHair then divides by the image's largest and clamps s / .2.
        eps: the least sum of responses for "variance". 0 gives NaN where nothing answers, as
            NeuralHaircut and Im2Haircut have it; GaussianHaircut's 1e-12 gives 0 there, its surest.
        border: beyond the image lie zeros ("zero"), the image again ("wrap", NeuralHaircut), or its
            mirror image without the edge pixel repeated ("reflect"); of any size.

    Returns:
        index: int32 (N,1,H,W), the first filter of largest absolute response; 0 where all are 0 or
            the window holds a NaN. Not differentiable.
        strength: (N,1,H,W), that response; float32 (float64 for a float64 image).
        confidence: (N,1,H,W), in the same dtype; 0 ("spread") where all responses are equal.

    A NaN in the window gives NaN for both; where the bank has no weight it may be passed over. In
    flat grey, rounding alone decides the index.
    Gradients of strength and confidence reach the image and the bank, the index and the angles held
    fixed; "spread" has none where it is 0. Kept for the backward: the image with its border, the
    bank, and the index; responses are computed again, some rows at a time.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape, device or choice does not fit.
    """
    _check_grey_image(image)
    _check_bank(bank, image)
    check_choice("confidence", confidence, ("variance", "spread"))
    check_choice("border", border, ("zero", "wrap", "reflect"))
    check_number("eps", eps)
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps: expected a finite number of at least 0, got {eps}")
    dtype, count = accumulate_dtype(image.dtype), bank.shape[0]
    if angles is None:
        positions = torch.arange(count, dtype=dtype, device=image.device)
    else:
        check_tensor("angles", angles)
        if angles.dtype not in FLOATING:
            raise TypeError(f"angles: expected a floating-point tensor, got {angles.dtype}")
        if angles.shape != (count,):
            raise ValueError(f"angles: expected the shape ({count},), got {tuple(angles.shape)}")
        check_device("angles", angles, image)
        steps = angles.detach().double() * (count / math.pi)
        positions = steps.remainder(count).to(dtype)
    bank = parameter_in(bank.reshape(-1, *bank.shape[-2:]), dtype)
    strength, measure, index = ORIENTED_FILTER_STATISTICS(
        _with_border(image, bank.shape[-1] // 2, border).contiguous(),
        bank,
        positions,
        confidence == "spread",
        float(eps),
    )
    return index, strength, measure


def _with_border(image: Tensor, width: int, border: Border) -> Tensor:
    """The image and `width` pixels around it."""
    if border == "zero":
        return F.pad(image, [width] * 4)
    places = []
    for size in image.shape[-2:]:
        place = torch.arange(-width, size + width, device=image.device)
        if border == "wrap":
            place = place.remainder(size)
        else:
            period = max(2 * (size - 1), 1)
            place = place.remainder(period)
            place = torch.minimum(place, period - place)
        places.append(place)
    return image[:, :, places[0]][..., places[1]]


def gabor_orientation(
    image: Tensor,
    bank: BankName | Tensor = "gabor",
    *,
    rectify: Rectify = "relu",
    grey: Grey = "published",
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """The local direction of lines such as hair, and how strong they are. No mask.

    Args:
        image: RGB (N,3,H,W), or grey (N,1,H,W); float32, float64, float16 or bfloat16.
        bank: "gabor", "dog" (oriented differences of Gaussians), or filters (K,k,k) at the angles
            pi * i / K.
        rectify: "relu" (published) or "abs" (the paper).
        grey: "published" takes .299 R + .587 G + .144 B, "standard" .114 B.
        value_range: the image's values for black and white; they are scaled to 0 and 255.

    Returns:
        angle: (N,1,H,W), pi * i / K in [0,pi): 0 horizontal, counted counter-clockwise. Not
            differentiable.
        strength: (N,1,H,W); float32 both (float64 for a float64 image).

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape, device or choice does not fit.
    """
    values = grey_image(image, grey, value_range)
    filters = resolve_bank(bank, values)
    index, strength = oriented_filter_max(values, filters, rectify)
    return index.to(strength.dtype) * (math.pi / filters.shape[0]), strength


def grey_image(image: Tensor, grey: Grey, value_range: tuple[float, float]) -> Tensor:
    """Grey values (N,1,H,W), 0 black and 255 white, in the accumulate dtype."""
    check_feature_map("image", image)
    if image.shape[1] not in (1, 3):
        raise ValueError(
            f"image: expected the shape (N, 3, H, W) or (N, 1, H, W), got {tuple(image.shape)}"
        )
    check_choice("grey", grey, GREY_WEIGHTS)
    black, white = check_value_range(value_range)
    scale = 255 / (white - black)
    image = image.to(accumulate_dtype(image.dtype))
    if image.shape[1] == 1:
        return (image - black) * scale
    red, green, blue = image.split(1, dim=1)
    weights = [scale * weight for weight in GREY_WEIGHTS[grey]]
    values = (red - black) * weights[0]
    values = torch.add(values, green - black, alpha=weights[1])
    return torch.add(values, blue - black, alpha=weights[2])


def check_value_range(value_range: object) -> tuple[float, float]:
    """Black and white, two finite numbers that differ."""
    pair = isinstance(value_range, (tuple, list)) and len(value_range) == 2
    if not pair or not all(map(is_number, value_range)):
        raise TypeError(f"value_range: expected two numbers (black, white), got {value_range!r}")
    black, white = value_range
    if not math.isfinite(black) or not math.isfinite(white) or black == white:
        raise ValueError(f"value_range: expected two finite numbers that differ, got {value_range}")
    return black, white


def resolve_bank(bank: BankName | Tensor, image: Tensor) -> Tensor:
    """The filters (K,k,k) of a name, for an image; a tensor as it is."""
    if isinstance(bank, str):
        check_choice("bank", bank, BANKS)
        dtype, place = accumulate_dtype(image.dtype), place_to_keep(image)
        if place is None:
            return BANKS[bank](dtype=dtype, device=image.device)
        return _kept_bank(bank, dtype, *place)
    _check_bank(bank, image)
    return bank.reshape(-1, *bank.shape[-2:])


@functools.lru_cache(maxsize=16)
def _kept_bank(bank: BankName, dtype: torch.dtype, device: torch.device, stream: Any) -> Tensor:
    # A training step may use what an inference has left here.
    with torch.inference_mode(False), torch.no_grad():
        return BANKS[bank](dtype=dtype, device=device)


def _check_grey_image(image: Tensor) -> None:
    check_feature_map("image", image)
    if image.shape[1] != 1:
        raise ValueError(f"image: expected the shape (N, 1, H, W), got {tuple(image.shape)}")


def _check_bank(bank: object, image: Tensor) -> None:
    check_tensor("bank", bank)
    if bank.dtype not in FLOATING:
        raise TypeError(f"bank: expected a floating-point tensor, got {bank.dtype}")
    dims = bank.dim() == 3 or (bank.dim() == 4 and bank.shape[1] == 1)
    size = bank.shape[-1] if dims else 0
    fits = dims and bank.shape[-2] == size and size % 2 == 1 and size <= MAX_SIZE
    if not fits or not 1 <= bank.shape[0] <= MAX_COUNT:
        raise ValueError(
            f"bank: expected the shape (K, k, k) or (K, 1, k, k) with K at most {MAX_COUNT} and k"
            f" odd and at most {MAX_SIZE}, got {tuple(bank.shape)}"
        )
    if bank.device != image.device:
        raise ValueError(f"bank: expected the device of image, {image.device}, got {bank.device}")


def orientation_map(
    angle: Tensor, confidence: Tensor | None = None, order: Order = "sin_cos"
) -> Tensor:
    """Two channels of the doubled angle, times a confidence. No mask.

    Doubling makes 0 and pi, the same direction of a line, the same map.

    Args:
        angle: (N,1,H,W), radians, floating point.
        confidence: (N,1,H,W), or None for 1.
        order: "sin_cos" (published code and checkpoints) or "cos_sin" (the paper).

    Returns:
        (N,2,H,W).

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape, device or choice does not fit.
    """
    _check_map("angle", angle, 1)
    check_choice("order", order, ("sin_cos", "cos_sin"))
    channels = [torch.sin(2 * angle), torch.cos(2 * angle)]
    if order == "cos_sin":
        channels.reverse()
    two_channel = torch.cat(channels, dim=1)
    if confidence is None:
        return two_channel
    _check_map("confidence", confidence, 1)
    if confidence.shape != angle.shape:
        raise ValueError(
            f"confidence: expected the shape {tuple(angle.shape)}, got {tuple(confidence.shape)}"
        )
    check_device("confidence", confidence, angle)
    return two_channel * confidence


def orientation_angle(two_channel: Tensor, order: Order = "sin_cos") -> Tensor:
    """The angle of a two-channel map, in [0,pi): the way back from `orientation_map`. No mask.

    Args:
        two_channel: (N,2,H,W), of any length per pixel.
        order: of its channels, "sin_cos" or "cos_sin".

    Returns:
        (N,1,H,W), radians.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a shape or choice does not fit.
    """
    _check_map("two_channel", two_channel, 2)
    check_choice("order", order, ("sin_cos", "cos_sin"))
    sine, cosine = two_channel.split(1, dim=1)
    if order == "cos_sin":
        sine, cosine = cosine, sine
    angle = torch.atan2(sine, cosine) / 2
    angle = torch.where(angle < 0, angle + math.pi, angle)
    return torch.where(angle < math.pi, angle, 0)  # a negative angle near 0 rounds to pi


def _check_map(name: str, value: Tensor, channels: int) -> None:
    check_feature_map(name, value)
    if value.shape[1] != channels:
        raise ValueError(
            f"{name}: expected the shape (N, {channels}, H, W), got {tuple(value.shape)}"
        )


# --- ops ----------------------------------------------------------------------------------------


def _fake(image: Tensor, bank: Tensor, absolute: bool) -> tuple[Tensor, Tensor]:
    response = image.new_empty(image.shape, dtype=accumulate_dtype(image.dtype))
    return response, image.new_empty(image.shape, dtype=torch.int32)


def _backward(ops: Any, kept: Any, grad: Tensor) -> Gradients:
    if not kept.absolute:  # max(r, 0) passes nothing where it is 0
        grad = grad.masked_fill(kept.response <= 0, 0)
    gradients: Gradients = {}
    if "image" in kept.needs:
        image = ops.oriented_filter_max_backward_image(grad, kept.index, kept.bank)
        gradients["image"] = image.to(kept.image.dtype)
    if "bank" in kept.needs:
        count, size, _ = kept.bank.shape
        gradients["bank"] = ops.oriented_filter_max_backward_bank(
            grad, kept.index, kept.image, count, size
        )
    return gradients


def _fake_backward_bank(
    grad: Tensor, index: Tensor, image: Tensor, count: int, size: int
) -> Tensor:
    return grad.new_empty((count, size, size))


def _fake_statistics(
    image: Tensor, bank: Tensor, positions: Tensor, spread: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    N, _, H, W = image.shape
    shape = (N, 1, H - bank.shape[-1] + 1, W - bank.shape[-1] + 1)
    strength, confidence = (
        image.new_empty(shape, dtype=accumulate_dtype(image.dtype)) for _ in range(2)
    )
    return strength, confidence, image.new_empty(shape, dtype=torch.int32)


def _statistics_backward(
    ops: Any, kept: Any, grad_strength: Tensor, grad_confidence: Tensor
) -> Gradients:
    wanted = ["image" in kept.needs, "bank" in kept.needs]
    grad_image, grad_bank = ops.oriented_filter_statistics_backward(
        grad_strength,
        grad_confidence,
        kept.image,
        kept.bank,
        kept.positions,
        kept.index,
        kept.spread,
        kept.eps,
        wanted,
    )
    return {
        "image": grad_image.to(kept.image.dtype) if wanted[0] else None,
        "bank": grad_bank if wanted[1] else None,
    }


def _compose_statistics_backward(
    ops: Any,
    grad_strength: Tensor,
    grad_confidence: Tensor,
    image: Tensor,
    bank: Tensor,
    positions: Tensor,
    index: Tensor,
    spread: bool,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    """By the formula, so many rows at a time that their responses stay small."""
    N, _, H, W = index.shape
    count, size, _ = bank.shape
    grad_image, grad_bank = _fake_statistics_backward(
        grad_strength, grad_confidence, image, bank, positions, index, spread, eps, wanted
    )
    grad_image.zero_()
    grad_bank.zero_()
    rows = max(1, _RESPONSES // (count * W))
    precision = {"enabled": torch.backends.cudnn.enabled, "deterministic": True}
    with torch.backends.cudnn.flags(allow_tf32=False, **precision):
        for n in range(N):
            for row in range(0, H, rows):
                band = (slice(n, n + 1), slice(None), slice(row, row + rows))
                reached = (*band[:2], slice(row, row + rows + size - 1))
                of_image, of_bank = reference.oriented_filter_statistics_backward(
                    grad_strength[band],
                    grad_confidence[band],
                    image[reached],
                    bank,
                    positions,
                    index[band],
                    spread,
                    eps,
                    wanted,
                )
                if wanted[0]:
                    grad_image[reached] += of_image
                if wanted[1]:
                    grad_bank += of_bank
    return grad_image, grad_bank


_RESPONSES = 1 << 22  # at a time in the backward: 16 MiB of float32, several times


def _fake_statistics_backward(
    grad_strength: Tensor,
    grad_confidence: Tensor,
    image: Tensor,
    bank: Tensor,
    positions: Tensor,
    index: Tensor,
    spread: bool,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    return (
        bank.new_empty(image.shape if wanted[0] else (0,)),
        bank.new_empty(bank.shape if wanted[1] else (0,)),
    )


ORIENTED_FILTER_STATISTICS = Op(
    name="oriented_filter_statistics",
    fake=_fake_statistics,
    keep=("image", "bank", "positions", "spread", "eps", "index"),
    backward=_statistics_backward,
    outputs=2,
)
ORIENTED_FILTER_STATISTICS_BACKWARD = Op(
    name="oriented_filter_statistics_backward",
    fake=_fake_statistics_backward,
    compose=_compose_statistics_backward,
)
ORIENTED_FILTER_MAX = Op(
    name="oriented_filter_max",
    fake=_fake,
    keep=("image", "bank", "absolute", "response", "index"),
    backward=_backward,
    twice="backward",
)
ORIENTED_FILTER_MAX_BACKWARD_IMAGE = Op(
    name="oriented_filter_max_backward_image",
    fake=lambda grad, index, bank: grad.new_empty(grad.shape),
)
ORIENTED_FILTER_MAX_BACKWARD_BANK = Op(
    name="oriented_filter_max_backward_bank", fake=_fake_backward_bank
)
