"""The files that projects of hair reconstruction read, of one photograph: all of them, or none."""

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import PictureError, is_same, open_picture, read_mask, whole_or_nothing
from .photos import MASK_THRESHOLD, named, photo_rows, photo_scale
from .presets import (
    BAND_PIXELS,
    Filters,
    Preset,
    Progress,
    Rows,
    check_filters,
    maps_of_rows,
    uses_mask,
)

# Where each map goes, with the name that it gets: the photograph's, the same up to its first dot
# or to its last one.
_NAME, _SHORT, _STEM = "name", "short", "stem"
_FOLDERS: dict[str, dict[str, tuple[str, str, str]]] = {
    "neuralhaircut": {
        "orientation_maps": ("orientation_maps", _SHORT, ".png"),
        "confidence_maps": ("confidence_maps", _SHORT, ".npy"),
    },
    "gaussianhaircut": {
        "angles": ("orientations_2/angles", _SHORT, ".png"),
        "vars": ("orientations_2/vars", _SHORT, ".npy"),
        "filtered_imgs": ("orientations_2/filtered_imgs", _SHORT, ".png"),
        "vis_imgs": ("orientations_2/vis_imgs", _SHORT, ".png"),
    },
    "monohair": {
        "best_ori": ("best_ori", _NAME, ""),
        "conf": ("conf", _NAME, ""),
        "Ori": ("Ori", _NAME, ""),
    },
    "im2haircut": {
        "orientation_maps": ("orientation_maps", _NAME, ""),
        "confidence_maps": ("confidence_maps", _STEM, ".npy"),
    },
}
# As OpenCV writes pictures by default, and Pillow for torchvision; PNGs fast, as both are exact.
_OPENCV = {
    "PNG": {"compress_level": 1},
    "JPEG": {"quality": 95, "subsampling": "4:2:0"},
    "WEBP": {"lossless": True},
}
_TORCHVISION = {"PNG": {"compress_level": 1}, "JPEG": {"quality": 75}}
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")


def map_paths(
    photo: Path, preset: Preset, *, mask: Path | None = None, clean: bool = False
) -> dict[str, Path]:
    """Where a photograph's maps go, by their names in `orientation_maps`, below the output.

    Args:
        photo: whose name counts.
        preset: all but michigan.
        mask: after which GaussianHaircut names its files.
        clean: names keep their dots, but for the last one, and every picture is a PNG. As
            published, MonoHair and Im2Haircut write JPEGs for JPEGs, whose angles are not exact.

    Raises:
        ValueError: no such preset, or michigan, whose one file goes where one likes.
    """
    if preset not in _FOLDERS:
        raise ValueError(f"preset: expected one of {', '.join(_FOLDERS)}, got {preset!r}")
    source = mask if mask is not None and preset == "gaussianhaircut" else photo
    stem = Path(source.name).stem
    paths = {}
    for name, (folder, kind, suffix) in _FOLDERS[preset].items():
        short = source.name.split(".")[0]
        if clean:
            file = stem + (suffix or ".png")
        else:
            file = {_NAME: source.name, _SHORT: short + suffix, _STEM: stem + suffix}[kind]
        paths[name] = Path(folder, file)
    return paths


def write_maps(
    photo: Path,
    output: Path,
    mask: Path | None = None,
    *,
    preset: Preset,
    clean: bool = False,
    filters: Filters | None = None,
    threshold: int = MASK_THRESHOLD,
    band_pixels: int = BAND_PIXELS,
    progress: Progress = lambda _done, _all: None,
    warn: Callable[[str], object] = warnings.warn,
) -> list[Path]:
    """Write the maps of a photograph into the folders that a project reads.

    See `orientation_maps` for their values and `map_paths` for their names. The photograph is
    turned as its EXIF orientation says. As published its alpha is not looked at; where `clean`,
    transparent places are white.

    Args:
        photo: any picture; its pixels, of 0 to 255, are read some rows at a time.
        output: the folder that holds the folders; they are made.
        mask: of the photograph's size, soft as published; see `files.read_mask`. None is hair
            everywhere; not looked at where no file depends on it.
        preset: all but michigan, for which see `convert_photo`.
        clean, filters, band_pixels: see `orientation_maps`.
        threshold: hair is above this, of 255, where `clean`.
        progress: called with the steps that are done, and all.
        warn: called with the text where a mask has no hair.

    Returns:
        The files, each of which replaced what was there.

    Raises:
        PictureError: a file cannot be read, written, or does not fit; nothing was written.
        ValueError: a choice or option does not fit the preset.
    """
    places = map_paths(photo, preset, mask=mask, clean=clean)
    check_filters(preset, filters)
    targets = {name: output / place for name, place in places.items()}
    kinds = {name: _format(target) for name, target in targets.items()}
    for target in targets.values():
        if is_same(target, photo) or (mask is not None and is_same(target, mask)):
            raise PictureError(f"{target}: is read too, and is not overwritten; choose another")
    picture = open_picture(photo)
    hair = None
    if mask is not None and uses_mask(preset, clean):
        hair = _hair(mask, picture, photo, threshold, clean, warn)
    scale = named(photo, lambda: photo_scale(picture))
    rows = Rows(
        lambda top, bottom: photo_rows(picture, top, bottom, scale, opaque=not clean),
        picture.height,
        picture.width,
    )
    maps = maps_of_rows(
        rows, hair, preset, clean=clean, filters=filters, band_pixels=band_pixels,
        progress=progress,
    )  # fmt: skip
    try:
        with contextlib.ExitStack() as stack:  # each file is whole before the first is renamed
            for name, target in targets.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = stack.enter_context(whole_or_nothing(target))
                options = _TORCHVISION if name == "conf" else _OPENCV
                _save(maps[name], partial, kinds[name], options)
    except OSError as error:
        raise PictureError(f"{target}: {error.strerror or error}") from error
    return list(targets.values())


def _format(target: Path) -> str:
    """The kind of file that a suffix says: a picture's, or "NPY"."""
    from PIL import Image

    if target.suffix == ".npy":
        return "NPY"
    kind = Image.registered_extensions().get(target.suffix.lower())
    if kind not in _FORMATS:
        raise PictureError(
            f"{target}: the maps have the photograph's name, and cannot be of its kind; a clean map"
            " (--clean) is a PNG"
        )
    return kind


def _hair(
    path: Path,
    picture: Any,
    photo: Path,
    threshold: int,
    clean: bool,
    warn: Callable[[str], object],
) -> Tensor:
    """A mask file as float32 (1,H,W)."""
    mask = read_mask(path, threshold=threshold if clean else None, erased="black")
    height, width = mask.white.shape
    if (width, height) != picture.size:
        raise PictureError(
            f"{path}: {width} x {height} pixels, but {photo} has {picture.width} x {picture.height}"
        )
    if not mask.white.any():
        warn(f"{path}: no hair")
    return torch.from_numpy(mask.white)[None]


def _save(value: Tensor, path: Path, kind: str, options: dict[str, dict[str, Any]]) -> None:
    import numpy as np
    from PIL import Image

    with path.open("wb") as file:
        if kind == "NPY":
            np.save(file, value.numpy())
        else:
            Image.fromarray(value.numpy()).save(file, format=kind, **options.get(kind, {}))
