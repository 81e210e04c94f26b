"""Pictures as files and as tensors: (N,3,H,W) RGB in [0,1], masks (N,1,H,W) 1 known, 0 hole."""

import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from torchext.ops.checks import check_mask_values

from .checks import check_image_and_mask
from .files import PictureError as UnreadableError
from .files import is_hidden, open_picture, whole_or_nothing
from .files import read_mask as read_mask_file

__all__ = [
    "Files",
    "Photo",
    "UnreadableError",
    "as_rgb",
    "check_format",
    "check_image_and_mask",
    "composite",
    "find_images",
    "grid",
    "open_picture",
    "pad_to_multiple",
    "read_image",
    "read_mask",
    "read_photo",
    "to_picture",
    "to_tensor",
    "write",
    "write_photo",
]


T = TypeVar("T")


def find_images(folder: Path) -> list[Path]:
    """The files in a folder, at any depth, whose names end as pictures' do; sorted.

    Hidden ones, whose name or folder begins with a dot, are left out.

    Raises:
        ValueError: no such folder, or none in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of images, found none")
    suffixes = Image.registered_extensions()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    files = [path for path in files if path.is_file() and not is_hidden(path, folder)]
    if not files:
        raise ValueError(f"{folder}: expected images (.png, .jpg, ...), found none")
    return files


class Files:
    """Files of which some may be broken: those are named once, and the next one is read instead.

    Args:
        paths: in an order that stays, so that what replaces a broken file does too.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        # Of all the processes that load: one of them names a broken file.
        self.broken = torch.zeros(len(paths), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Path]:
        return iter(self.paths)

    def __getitem__(self, index: int) -> Path:
        return self.paths[index]

    def read(self, index: int, reader: Callable[[Path], T]) -> tuple[Path, T]:
        """The file at an index, or the next one that can be read, and what the reader gives of it.

        Raises:
            UnreadableError: none can be read; the text gives the last reason.
        """
        reason = ""
        for shift in range(len(self.paths)):
            place = (index + shift) % len(self.paths)
            if self.broken[place]:
                continue
            try:
                return self.paths[place], reader(self.paths[place])
            except UnreadableError as error:
                reason = f": {error}"
                self.broken[place] = True
                warnings.warn(f"left out: {error}", stacklevel=2)
        raise UnreadableError(f"none of {len(self.paths)} files can be read{reason}")


def as_rgb(picture: Image.Image) -> Image.Image:
    """RGB from grey (8 or 16 bits), palettes, CMYK, or anything with alpha (over white)."""
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture, dtype=np.float64)
        if picture.mode == "F":
            finite = values[np.isfinite(values)]
            if not finite.size:
                raise UnreadableError("a picture without any finite value")
            low, high = finite.min(), finite.max()
        else:
            low, high = 0, 65535 if values.max() > 255 else 255
        scaled = (np.nan_to_num(values, posinf=high, neginf=low) - low) / max(high - low, 1e-12)
        return Image.fromarray((scaled.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert(
            "RGB"
        )
    return picture.convert("RGB")


def read_image(path: Path) -> Image.Image:
    """Any picture as RGB.

    Raises:
        UnreadableError: it cannot be read.
    """
    picture = open_picture(path)
    try:
        return as_rgb(picture)
    except UnreadableError as error:
        raise UnreadableError(f"cannot read {path}: {error}") from None


def read_mask(path: Path, **options: Any) -> Image.Image:
    """A mask as grey values, 0 to 255; the options of `files.read_mask`."""
    white = read_mask_file(path, **options).white
    return Image.fromarray((white * 255).round().astype(np.uint8))


def to_tensor(picture: Image.Image) -> Tensor:
    """float32 (C,H,W) in [0,1]."""
    values = np.array(picture)
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(values)).float() / 255


def to_picture(image: Tensor) -> Image.Image:
    """A Pillow picture from (3,H,W), values cut to [0,1]."""
    values = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def check_format(path: Path) -> str:
    """Pillow's name of the format that a suffix says.

    Raises:
        ValueError: one that Pillow cannot write.
    """
    formats = Image.registered_extensions()
    kind = formats.get(Path(path).suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise ValueError(f"{path}: expected a name that ends as pictures do, such as .png")
    return kind


def write(picture: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture at once or not at all; the suffix says the format.

    Args:
        picture: of a mode that the format has.
        path: a file there is replaced.
        options: of the format; see Pillow's documentation.

    Raises:
        ValueError: a suffix that Pillow cannot write.
    """
    kind = check_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(path) as partial, partial.open("wb") as file:
        picture.save(file, format=kind, **options)


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
    """`image` where known is 1, `filled` where it is 0; selected, so a NaN stays in its region.

    Raises:
        ValueError: a value of `known` outside 0 to 1.
    """
    check_mask_values("known", known)
    known = known.to(image.dtype)
    mixed = known * image + (1 - known) * filled  # of fractions
    return torch.where(known == 1, image, torch.where(known == 0, filled, mixed))


def pad_to_multiple(x: Tensor, multiple: int, *, least: int = 0, mode: str = "replicate") -> Tensor:
    """Pad at the right and at the bottom until both sides are multiples, and at least `least`.

    The original is `padded[..., :H, :W]`.
    """
    H, W = x.shape[-2:]
    height, width = (-(-max(side, least) // multiple) * multiple for side in (H, W))
    return F.pad(x, (0, width - W, 0, height - H), mode=mode)


# --- photos whose known pixels come back as they were ---------------------------------------------

LOSSLESS = ("PNG", "TIFF", "BMP", "PPM")
# Of a TIFF's tags those that say something of the photo; the others, of how it lies in the file.
_TIFF_EXIF = (0x10E, 0x10F, 0x110, 0x131, 0x132, 0x13B, 0x8298)
_INNER_EXIF = (0x8769, 0x8825)  # of the camera, and of the place
_COLOURS = ("RGB", "RGBA")
# Pillow's ways of reading 16-bit samples by their high bytes, and those by which it takes the low
# ones for high. Grey with alpha it makes RGBA; four channels of 8 bits are its four bytes.
_NATIVE = "16B" if sys.byteorder == "little" else "16L"
_OTHER_BYTES = {
    f"{mode};{order}": f"{mode};{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("16B", "16L"), ("16L", "16B"), ("16N", _NATIVE))
} | {"LA;16B": "RGBA"}


@dataclass(frozen=True)
class Photo:
    """A photo as it lies in its file, turned upright.

    Attributes:
        values: uint8 or uint16 (H,W,C): grey, grey and alpha, RGB, or RGB and alpha.
        extras: what goes into the next file as it is: icc_profile, exif, dpi.
        notes: what of the file could not be kept, in words.
    """

    values: np.ndarray
    extras: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.values.shape[1], self.values.shape[0]

    @property
    def scale(self) -> int:
        """The value of white."""
        return 255 if self.values.dtype == np.uint8 or self.values.max() <= 255 else 65535

    def tensor(self) -> Tensor:
        """RGB, float32 (3,H,W) in [0,1]; transparent places over white."""
        values = torch.from_numpy(self.values.astype(np.float32)).permute(2, 0, 1) / self.scale
        colours = values[:3] if len(values) > 2 else values[:1].expand(3, -1, -1)
        if len(values) % 2 == 0:
            colours = values[-1:] * colours + (1 - values[-1:])
        return colours.contiguous()

    def with_fill(self, filled: Tensor, known: Tensor) -> "Photo":
        """The photo with other pixels wherever `known` is not 1; these become opaque.

        Args:
            filled: (3,H,W) in [0,1].
            known: (1,H,W).
        """
        colours = filled.detach().float().clamp(0, 1).permute(1, 2, 0).cpu()
        channels = self.values.shape[2]
        if channels < 3:  # as Pillow's grey of RGB
            colours = (colours @ torch.tensor((0.299, 0.587, 0.114)))[..., None]
        if channels % 2 == 0:
            colours = torch.cat((colours, torch.ones_like(colours[..., :1])), dim=2)
        new = (colours.double() * self.scale).round().numpy().astype(self.values.dtype)
        kept = (known == 1)[0, ..., None].cpu().numpy()
        return Photo(np.where(kept, self.values, new), self.extras, self.notes)


def read_photo(path: Path) -> Photo:
    """A photo with all that a file may hold of it.

    Raises:
        UnreadableError: it cannot be read.
    """
    picture = open_picture(path)
    lost, extras = [], {}
    mode, transparent = picture.mode, picture.has_transparency_data
    sixteen, is_deep = _sixteen_bits(path, picture)
    if sixteen is not None and (mode != "RGB" or not transparent):
        values = sixteen
    elif mode.startswith("I;16") or (mode == "I" and _fits_in_16_bits(picture)):
        values = np.asarray(picture).astype(np.uint16)
    elif mode in ("1", "L"):
        values = np.asarray(picture.convert("LA" if transparent else "L"))
    elif mode in ("LA", "La"):
        values = np.asarray(picture.convert("LA"))
    elif mode in ("RGB", "RGBA", "RGBa", "P", "PA"):
        values = np.asarray(picture.convert("RGBA" if transparent else "RGB"))
    else:
        values = np.asarray(read_image(path))
        lost.append(f"its colours of the kind {mode}, which became RGB")
    if is_deep and values.dtype == np.uint8:
        lost.append("8 of its 16 bits")
    values = values if values.ndim == 3 else values[..., None]
    if profile := picture.info.get("icc_profile"):
        space = profile[16:20]
        if space == (b"GRAY" if values.shape[2] < 3 else b"RGB "):
            extras["icc_profile"] = profile
        else:
            lost.append(f"its {space.decode('ascii', 'replace').strip()} colour profile")
    if exif := _exif(path):
        extras["exif"] = exif
    if dpi := picture.info.get("dpi"):
        extras["dpi"] = tuple(float(value) for value in dpi)
    return Photo(values, extras, tuple(f"{path}: could not keep {what}" for what in lost))


def _fits_in_16_bits(picture: Image.Image) -> bool:
    low, high = picture.getextrema()
    return low >= 0 and high <= 65535


def _exif(path: Path) -> bytes:
    """Without the orientation, which has been applied; b"" if there is none."""
    with Image.open(path) as picture:
        exif = picture.getexif()
        inner = {tag: exif.get_ifd(tag) for tag in _INNER_EXIF}  # read while the file is open
    if 0x111 in exif or 0x144 in exif:  # offsets of strips or tiles: a TIFF's own tags
        told = {tag: exif[tag] for tag in _TIFF_EXIF if tag in exif}
        exif = Image.Exif()
        exif.update(told | {tag: dict(entries) for tag, entries in inner.items() if entries})
    exif.pop(0x112, None)
    return exif.tobytes() if len(exif) or any(inner.values()) else b""


def _sixteen_bits(path: Path, high: Image.Image) -> tuple[np.ndarray | None, bool]:
    """Colours or alpha of 16 bits, of which Pillow decodes one byte of each sample.

    So the file is decoded again, for the other bytes; of grey with alpha for all four at once.

    Returns:
        The values, None where they are not to be had; and whether the file has 16 bits.
    """
    with Image.open(path) as picture:
        tags = getattr(picture, "tag_v2", {})  # of a TIFF: bits of each channel, and planes
        is_deep = any(";16" in str(tile[3]) for tile in picture.tile)
        is_deep = is_deep or max(tags.get(258, (8,))) > 8
        tiles = [_of_other_bytes(tile) for tile in picture.tile]
        if not is_deep or None in tiles or tags.get(284, 1) != 1 or high.mode not in _COLOURS:
            return None, is_deep
        is_grey = any("LA;16" in str(tile[3]) for tile in picture.tile)
        picture.tile = tiles
        picture.load()
        other = np.asarray(ImageOps.exif_transpose(picture)).astype(np.uint16)
    if is_grey:
        return other[..., ::2] << 8 | other[..., 1::2], True
    return np.asarray(high).astype(np.uint16) << 8 | other, True


def _of_other_bytes(tile: Any) -> Any | None:
    """A tile of a file that is read another way; None of one without 16-bit colours or alpha."""
    alone = isinstance(tile[3], str)
    first, *rest = tile[3] if isinstance(tile[3], tuple) and tile[3] else (tile[3],)
    swapped = _OTHER_BYTES.get(str(first))
    if swapped is None:
        return None
    changed = (*tile[:3], swapped if alone else (swapped, *rest))
    return type(tile)._make(changed) if hasattr(tile, "_make") else changed  # as Pillow has them


def write_photo(photo: Photo, path: Path, *, quality: int | None = None) -> list[str]:
    """Write a photo at once or not at all; the suffix says the format.

    Args:
        photo: keeps its bits, alpha and extras where the format has them.
        path: a file there is replaced.
        quality: 1 to 100, for formats that lose something (JPEG: 95 by default; WebP is lossless
            without it). JPEG keeps colours at full resolution.

    Returns:
        What the format could not keep, in words.

    Raises:
        ValueError: a suffix that Pillow cannot write.
    """
    kind = check_format(path)
    notes, values, options = list(photo.notes), photo.values, dict(photo.extras)
    if values.dtype == np.uint16:
        channels = values.shape[2]
        if kind == "PNG" and channels > 1:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_or_nothing(path) as partial:
                partial.write_bytes(_png_of_16_bits(values, photo.extras))
            return notes
        if channels > 1 or kind not in ("PNG", "TIFF"):
            values = (values.astype(np.float64) * (255 / photo.scale)).round().astype(np.uint8)
            notes.append(f"{kind} took 8 of its 16 bits")
    picture = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
    if values.shape[2] % 2 == 0 and kind not in ("PNG", "TIFF", "WEBP", "JPEG2000", "AVIF"):
        if values[..., -1].min() < 255:
            notes.append(f"{kind} has no alpha: transparent places are white")
        picture = as_rgb(picture)
    if kind in ("WEBP", "AVIF") and not picture.mode.startswith("RGB"):
        picture = picture.convert("RGBA" if picture.mode == "LA" else "RGB")
    if picture.mode.startswith("RGB") and options.get("icc_profile", b"")[16:20] == b"GRAY":
        del options["icc_profile"]
        notes.append(f"{kind} has no colour profile of grey")
    exact = kind in LOSSLESS or (kind in ("WEBP", "JPEG2000") and quality is None)
    if kind == "JPEG":
        options |= {"quality": 95 if quality is None else quality, "subsampling": 0}
    elif kind == "WEBP" and exact:
        options |= {"lossless": True, "exact": True}
    elif kind == "TIFF" and "exif" not in options:  # libtiff writes no EXIF
        options["compression"] = "tiff_deflate"
    elif quality is not None and not exact:
        options["quality"] = quality
    if not exact:
        notes.append(f"{kind} changes known pixels too; a PNG keeps them as they were")
    write(picture, path, **options)
    return notes


def _png_of_16_bits(values: np.ndarray, extras: dict[str, Any]) -> bytes:
    """A PNG of grey with alpha, RGB or RGBA of 16 bits, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width, channels = values.shape
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    above = np.concatenate((np.zeros_like(rows[:1]), rows[:-1]))
    filtered = np.concatenate((np.full((height, 1), 2, np.uint8), rows - above), axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header)]
    if profile := extras.get("icc_profile"):
        parts.append(chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile)))
    if dpi := extras.get("dpi"):
        parts.append(chunk(b"pHYs", struct.pack(">IIB", *(round(d / 0.0254) for d in dpi), 1)))
    if exif := extras.get("exif"):
        parts.append(chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    parts += [chunk(b"IDAT", zlib.compress(filtered.tobytes())), chunk(b"IEND", b"")]
    return b"".join(parts)
