"""Pictures as files and as tensors: (N,3,H,W) RGB in [0,1], masks (N,1,H,W) 1 known, 0 hole."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


class UnreadableError(ValueError):
    """A picture that cannot be used; the text names the file and why."""


def open_picture(path: Path) -> Image.Image:
    """The first frame of any file that Pillow reads, turned as its EXIF orientation says.

    Raises:
        UnreadableError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError:
        reason = "not a picture that Pillow knows"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise UnreadableError(f"cannot read {path}: {reason}")


def as_rgb(picture: Image.Image) -> Image.Image:
    """RGB from grey (8 or 16 bits), palettes, CMYK, or anything with alpha (over white)."""
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture, dtype=np.float64)
        if picture.mode == "F":
            low, high = np.nanmin(values), np.nanmax(values)
        else:
            low, high = 0, 65535 if values.max() > 255 else 255
        scaled = (np.nan_to_num(values) - low) / max(high - low, 1e-12)
        return Image.fromarray((scaled.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert(
            "RGB"
        )
    return picture.convert("RGB")


def read_image(path: Path) -> Image.Image:
    """Any picture as RGB."""
    return as_rgb(open_picture(path))


def read_mask(path: Path) -> Image.Image:
    """A mask as grey values, 0 to 255."""
    return as_rgb(open_picture(path)).convert("L")


def to_tensor(picture: Image.Image) -> Tensor:
    """float32 (C,H,W) in [0,1]."""
    values = np.array(picture)
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(values)).float() / 255


def to_picture(image: Tensor) -> Image.Image:
    """A Pillow picture from (3,H,W), values cut to [0,1]."""
    values = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def write(picture: Image.Image, path: Path) -> None:
    """Write a picture at once or not at all; the suffix says the format.

    Raises:
        ValueError: a suffix that Pillow cannot write.
    """
    formats = Image.registered_extensions()
    kind = formats.get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise ValueError(f"{path}: expected a name that ends as pictures do, such as .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            picture.save(file, format=kind)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def grid(rows: Sequence[Tensor], *, gap: int = 2) -> Image.Image:
    """Pictures in rows and columns.

    Args:
        rows: tensors (N,3,H,W) in [0,1], one for each row; all of one height and width.
        gap: white pixels between them.
    """
    lines = []
    for images in rows:
        cells = [F.pad(image.detach().float().cpu(), (0, gap, 0, gap), value=1) for image in images]
        lines.append(torch.cat(cells, dim=2))
    width = max(line.shape[2] for line in lines)
    lines = [F.pad(line, (0, width - line.shape[2], 0, 0), value=1) for line in lines]
    return to_picture(torch.cat(lines, dim=1))


def composite(image: Tensor, known: Tensor, filled: Tensor) -> Tensor:
    """`image` where known is 1, `filled` where it is 0; selected, so a NaN stays in its region."""
    mixed = known * image + (1 - known) * filled  # of fractions
    return torch.where(known == 1, image, torch.where(known == 0, filled, mixed))


def check_image_and_mask(image: Tensor, known: Tensor) -> None:
    """(N,3,H,W) and (N or 1,1,H,W).

    Raises:
        ValueError: other shapes.
    """
    if image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(f"image: expected the shape (N, 3, H, W), got {tuple(image.shape)}")
    N, _, H, W = image.shape
    if known.dim() != 4 or known.shape[0] not in (1, N) or known.shape[1:] != (1, H, W):
        raise ValueError(
            f"mask: expected the shape ({N} or 1, 1, {H}, {W}) of the image,"
            f" got {tuple(known.shape)}"
        )


def pad_to_multiple(x: Tensor, multiple: int, *, least: int = 0, mode: str = "replicate") -> Tensor:
    """Pad at the right and at the bottom until both sides are multiples, and at least `least`.

    The original is `padded[..., :H, :W]`.
    """
    H, W = x.shape[-2:]
    height, width = (-(-max(side, least) // multiple) * multiple for side in (H, W))
    return F.pad(x, (0, width - W, 0, height - H), mode=mode)
