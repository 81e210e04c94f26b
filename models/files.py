"""Files that people give and get: pictures and masks as a person sees them, written whole.

Every command reads masks by `read_mask`. Needs Pillow and NumPy.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
MASK_THRESHOLD = 127  # of 255: half of full scale
# A mask drawn on transparency has few colours, which cover nearly all that is visible.
DRAWN_COLOURS, DRAWN_SHARE = 4, 0.95
SOFT = 1e-3  # the share of grey pixels from which on a mask is said not to be black and white
SOLID = 0.9  # of the greatest opacity: not the edge of a stroke


class PictureError(ValueError):
    """A picture that cannot be used; the text names the file and why."""


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a name below the folder begins with a dot, as those that systems leave behind."""
    return any(name.startswith(".") for name in path.relative_to(folder).parts)


def open_picture(path: Path) -> Any:
    """The first frame of any file that Pillow reads, turned as its EXIF orientation says.

    Raises:
        PictureError: it cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            picture.load()
            return ImageOps.exif_transpose(picture)
    except Image.UnidentifiedImageError:
        reason = "not a picture that Pillow knows"
    except Exception as error:  # Pillow's decoders raise anything when a file is broken
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise PictureError(f"cannot read {path}: {reason}")


# --- masks --------------------------------------------------------------------------------------


class Mask(NamedTuple):
    """A mask file as it was understood.

    Attributes:
        white: float32 (H,W), 1 white and 0 black; between only where no threshold was given.
        kind: "opaque"; "drawn" on transparency; "cut out" of a photo.
        soft: the share of pixels that are neither black nor white in the file.
    """

    white: Any
    kind: Literal["opaque", "drawn", "cut out"]
    soft: float

    def warning(self, path: Path, threshold: int) -> str:
        """What is to be said of a mask that is not black and white; "" of one that is."""
        if self.soft < SOFT:
            return ""
        return (
            f"{path}: {self.soft:.1%} of the mask is neither black nor white (soft edges, or a"
            f" JPEG); above {threshold} of 255 counts as white"
        )


def read_mask(
    path: Path,
    *,
    threshold: int | None = MASK_THRESHOLD,
    erased: Literal["white", "black"] = "white",
) -> Mask:
    """A mask as a person sees it.

    Opaque masks count by their brightest channel, so that strokes of any colour do. Of masks with
    black and one other value alone, that value is white, however small (labels 0 and 1). Where a
    part is transparent, few colours are strokes: what is drawn counts as white, unless it is black
    among brighter colours. Many colours are a photo, whose transparent places were erased.

    Args:
        path: any picture: grey of 1, 8, 16 or 32 bits, colours, a palette, with or without alpha.
        threshold: white is above this, of 255; None keeps the values between.
        erased: what the transparent places of a photo count as.

    Raises:
        PictureError: it cannot be read, or is a map of several labels below the threshold.
    """
    import numpy as np

    values, kind = _white(path, erased)
    soft = float(((values > 0) & (values < 1)).mean())
    if threshold is None:
        return Mask(values, kind, soft)
    white = values * 255 > threshold
    if soft and kind == "opaque" and not white.any():
        raise PictureError(
            f"{path}: expected a mask of black and white, got shades up to"
            f" {values.max() * 255:.3g} of 255, none above the threshold of {threshold}. In a map"
            " of labels give the wanted one the value 255 and all others 0; a threshold of 0 takes"
            " all that is not black"
        )
    return Mask(white.astype(np.float32), kind, soft)


def _white(path: Path, erased: str) -> tuple[Any, Literal["opaque", "drawn", "cut out"]]:
    import numpy as np

    picture = open_picture(path)
    if picture.has_transparency_data and not picture.mode.startswith(("I", "F")):
        pixels = np.asarray(picture.convert("RGBA"))
        alpha = pixels[..., 3].astype(np.float32) / 255
        if alpha.min() < 1:
            solid = pixels[alpha > SOLID * alpha.max()][:, :3]
            if not _is_drawn(solid):
                return 1 - alpha if erased == "white" else alpha, "cut out"
            brightness = pixels[..., :3].max(axis=2).astype(np.float32) / 255
            several = len(solid) and solid.max(axis=1).min() <= MASK_THRESHOLD < solid.max()
            return alpha * brightness if several else alpha, "drawn"
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture).astype(np.float32)
    elif picture.mode in ("1", "L"):
        values = np.asarray(picture.convert("L")).astype(np.float32)
    else:
        values = np.asarray(picture.convert("RGB")).max(axis=2).astype(np.float32)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):
        raise PictureError(f"{path}: expected values from 0 to 65535, got {low:g} to {high:g}")
    if ((values == 0) | (values == high)).all() and low < high:
        return (values > 0).astype(np.float32), "opaque"
    if picture.mode == "F" and high <= 1:
        return values, "opaque"
    return values / (255 if high <= 255 else 65535), "opaque"


def _is_drawn(colours: Any) -> bool:
    """Whether colours, uint8 (P,3), are few: nearly all in the commonest of 16 x 16 x 16 boxes."""
    import numpy as np

    if not len(colours):
        return True
    coarse = (colours.astype(np.int64) + 8) // 16  # black, white and what noise makes of them
    counts = np.bincount(coarse @ np.array((289, 17, 1)))
    return np.sort(counts)[-DRAWN_COLOURS:].sum() >= DRAWN_SHARE * len(colours)


# --- writing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_or_nothing(target: Path) -> Iterator[Path]:
    """A path beside the target, for a file that becomes the target when all has gone well.

    The file is flushed to the disk before it is renamed, so a target that is there is whole.

    Raises:
        OSError: the target cannot be replaced; what was there before is there still.
    """
    target = Path(target)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("r+b") as file:  # Windows flushes no file that is open for reading
            os.fsync(file.fileno())
        _rename(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    # The new name too, where a system can: some open or flush no folders (Windows, network drives).
    with contextlib.suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _rename(partial: Path, target: Path, attempts: int = 5, pause: float = 0.1) -> None:
    """Rename over what is there; where that is refused, with the old file moved aside first."""
    for _ in range(attempts - 1):
        with contextlib.suppress(PermissionError, FileExistsError):
            partial.replace(target)
            return
        time.sleep(pause)  # a virus scanner or an indexer looks at one of them
    if not target.is_file():
        partial.replace(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    with contextlib.suppress(OSError):  # still looked at: hidden, and in nobody's way
        old.unlink()


def is_same(path: Path, other: Path) -> bool:
    """Whether two names lead to one file that is there."""
    return path.exists() and other.exists() and path.samefile(other)
