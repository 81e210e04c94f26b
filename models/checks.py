"""Checks that every paper shares, before any work: images, features and masks from Python."""

from torch import Tensor

from torchext import backend
from torchext.ops.checks import FLOATING, check_device, check_mask_values, check_tensor

RANGE = (0.0, 1.0)
SLACK = 1e-3  # of a resize, or of a half-precision type


def check_images(name: str, x: Tensor, channels: int | None = None) -> None:
    """(N,channels,H,W), floating point, H and W at least 1.

    Raises:
        TypeError: no tensor, or of another dtype.
        ValueError: another shape.
    """
    check_tensor(name, x)
    if x.dim() != 4 or channels not in (None, x.shape[1]) or 0 in x.shape[2:]:
        shape = f"(N, {'C' if channels is None else channels}, H, W)"
        hint = "; x[None] makes a batch of one" if x.dim() == 3 else ""
        raise ValueError(f"{name}: expected the shape {shape}, got {tuple(x.shape)}{hint}")
    if x.dtype not in FLOATING:
        hint = "; divide 8-bit images by 255" if str(x.dtype) == "torch.uint8" else ""
        raise TypeError(f"{name}: expected a floating-point tensor, got {x.dtype}{hint}")


def check_mask(name: str, mask: Tensor, x: Tensor, channels: tuple[int, ...] = (1,)) -> None:
    """A mask of x: (N or 1, one of `channels`, H, W), values from 0 to 1, on x's device.

    Raises:
        TypeError: no tensor.
        ValueError: another shape or device, or a value outside.
    """
    check_tensor(name, mask)
    N, _, H, W = x.shape
    fits = mask.dim() == 4 and mask.shape[0] in (1, N) and mask.shape[1] in channels
    if not fits or mask.shape[2:] != (H, W):
        batch = f"{N} or 1" if N != 1 else "1"
        wanted = " or ".join(map(str, dict.fromkeys(channels)))
        raise ValueError(
            f"{name}: expected the shape ({batch}, {wanted}, {H}, {W}) of the image,"
            f" got {tuple(mask.shape)}"
        )
    check_device(name, mask, x)
    check_mask_values(name, mask)


def check_image_and_mask(image: Tensor, known: Tensor) -> None:
    """A photo (N,3,H,W) in [0,1] and its mask (N or 1,1,H,W), 1 known, 0 hole.

    What the holes hold is not looked at.

    Raises:
        TypeError: no tensor, or an image that is not floating point.
        ValueError: another shape or device, or a value outside.
    """
    check_images("image", image, 3)
    check_mask("known", known, image)
    if image.numel() == 0 or not backend.checks_values(image):
        return
    seen = image.detach().masked_fill(known == 0, 0)
    low, high = (bound.item() for bound in seen.aminmax())
    if not (low >= RANGE[0] - SLACK and high <= RANGE[1] + SLACK):
        raise ValueError(
            f"image: expected values from 0 to 1 where it is known, got {low:g} to {high:g}"
        )
