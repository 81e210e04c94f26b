"""Mask files as a person sees them, and files that appear whole or not at all."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from torchext.models import files

Image = pytest.importorskip("PIL.Image")

SHAPE = np.zeros((40, 60), bool)
SHAPE[10:25, 20:50] = True
RANDOM = np.random.default_rng(0)


def grey(dtype: type, low: int, high: int) -> Image.Image:
    return Image.fromarray(np.where(SHAPE, high, low).astype(dtype))


def layer(colours: np.ndarray, alpha: np.ndarray) -> Image.Image:
    """RGB of one colour or of an array, with alpha."""
    colours = np.broadcast_to(np.asarray(colours, np.uint8), (*SHAPE.shape, 3))
    return Image.fromarray(np.dstack((colours, alpha.astype(np.uint8))))


def palette(colours: list[int]) -> Image.Image:
    picture = Image.fromarray(SHAPE.astype(np.uint8), mode="P")
    picture.putpalette(colours)
    return picture


def white_and_black_strokes() -> Image.Image:
    """White where the shape is and around it, corrected in black around the shape."""
    visible = np.zeros_like(SHAPE)
    visible[5:30, 15:55] = True
    return layer(np.where(SHAPE, 255, 0)[..., None].repeat(3, 2), visible * 255)


PHOTO = RANDOM.integers(0, 256, (*SHAPE.shape, 3), np.uint8)
MASKS = {
    "grey": grey(np.uint8, 0, 255),
    "one bit": grey(np.uint8, 0, 255).convert("1"),
    "labels": grey(np.uint8, 0, 1),
    "labels of 16 bits": grey(np.uint16, 0, 1),
    "labels of 32 bits": grey(np.int32, 0, 3),
    "16 bits": grey(np.uint16, 0, 65535),
    "16 bits, not all black": grey(np.uint16, 300, 50000),
    "8 bits in 16": grey(np.uint16, 20, 250),
    "floats": grey(np.float32, 0, 1),
    "floats, not all black": Image.fromarray(np.where(SHAPE, 0.9, 0.2).astype(np.float32)),
    "grey and opaque": grey(np.uint8, 0, 255).convert("LA"),
    "colours": Image.fromarray(np.where(SHAPE[..., None], [255, 0, 0], 0).astype(np.uint8)),
    "colours and opaque": layer(np.where(SHAPE[..., None], [255, 0, 0], 0), SHAPE * 0 + 255),
    "palette": palette([0, 0, 0, 0, 200, 0]),
    "palette of labels": palette([0, 0, 0, 1, 1, 1]),
    "white strokes": layer([255, 255, 255], SHAPE * 255),
    "white strokes over white": layer([255, 255, 255], SHAPE * 200),
    "red strokes": layer([255, 0, 0], SHAPE * 255),
    "black strokes": layer([0, 0, 0], SHAPE * 255),
    "white and black strokes": white_and_black_strokes(),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_seen_as_a_person_does(name, tmp_path):
    path = tmp_path / "mask.tif"
    MASKS[name].save(path)
    mask = files.read_mask(path)
    assert np.array_equal(mask.white == 1, SHAPE)
    assert mask.white.dtype == np.float32
    assert mask.kind == ("drawn" if "strokes" in name else "opaque")


def test_soft_strokes_on_transparency(tmp_path):
    alpha = np.clip(np.minimum(*np.meshgrid(np.arange(60), np.arange(40))) * 16, 0, 255)
    layer([255, 255, 255], alpha).save(tmp_path / "mask.png")
    mask = files.read_mask(tmp_path / "mask.png")
    assert np.array_equal(mask.white == 1, alpha > 127)
    assert mask.soft == pytest.approx(((alpha > 0) & (alpha < 255)).mean())
    assert "% of the mask is neither black nor white" in mask.warning(tmp_path / "mask.png", 127)


@pytest.mark.parametrize("erased", ["white", "black"])
def test_an_erased_photo(erased, tmp_path):
    layer(PHOTO, ~SHAPE * 255).save(tmp_path / "photo.png")
    mask = files.read_mask(tmp_path / "photo.png", erased=erased)
    assert mask.kind == "cut out"
    assert np.array_equal(mask.white == 1, SHAPE if erased == "white" else ~SHAPE)


def test_a_transparent_palette_of_a_photo(tmp_path):
    picture = Image.fromarray(PHOTO).quantize(255)
    index = np.where(SHAPE, 255, np.asarray(picture)).astype(np.uint8)
    colours = (picture.getpalette() + 768 * [0])[:768]
    picture = Image.fromarray(index, mode="P")
    picture.putpalette(colours)
    picture.save(tmp_path / "photo.png", transparency=255)
    mask = files.read_mask(tmp_path / "photo.png")
    assert mask.kind == "cut out"
    assert np.array_equal(mask.white == 1, SHAPE)


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
def test_a_jpeg_does_not_grow(quality, tmp_path):
    grey(np.uint8, 0, 255).save(tmp_path / "mask.jpg", quality=quality)
    mask = files.read_mask(tmp_path / "mask.jpg")
    assert (mask.white == 1).sum() == pytest.approx(SHAPE.sum(), rel=0.02)
    published = files.read_mask(tmp_path / "mask.jpg", threshold=0)
    assert (published.white == 1).sum() > 1.05 * SHAPE.sum()


@pytest.mark.parametrize("threshold, share", [(0, 0.75), (60, 0.75), (64, 0.5), (200, 0.25)])
def test_the_threshold(threshold, share, tmp_path):
    values = np.repeat(np.array([0, 64, 128, 255], np.uint8), 10)[None].repeat(20, 0)
    Image.fromarray(values).save(tmp_path / "mask.png")
    mask = files.read_mask(tmp_path / "mask.png", threshold=threshold)
    assert mask.white.mean() == share
    assert mask.soft == 0.5
    fractions = files.read_mask(tmp_path / "mask.png", threshold=None)
    assert np.allclose(fractions.white, values / 255)


def test_a_mask_of_black_and_white_is_not_warned_of(tmp_path):
    for picture in MASKS["grey"], MASKS["labels"], MASKS["white strokes"]:
        picture.save(tmp_path / "mask.png")
        mask = files.read_mask(tmp_path / "mask.png")
        assert mask.soft == 0
        assert mask.warning(tmp_path / "mask.png", 127) == ""


def test_a_map_of_labels_is_named(tmp_path):
    Image.fromarray(RANDOM.integers(0, 19, (20, 20), np.uint8)).save(tmp_path / "labels.png")
    with pytest.raises(files.PictureError, match=r"labels\.png: .*shades up to 18 of 255.*labels"):
        files.read_mask(tmp_path / "labels.png")
    assert files.read_mask(tmp_path / "labels.png", threshold=0).white.mean() > 0.9


@pytest.mark.parametrize("value", [-1.0, float("nan"), 1e9])
def test_values_that_mean_nothing(value, tmp_path):
    Image.fromarray(np.where(SHAPE, value, 0.5).astype(np.float32)).save(tmp_path / "mask.tif")
    with pytest.raises(files.PictureError, match="expected values from 0 to 65535, got"):
        files.read_mask(tmp_path / "mask.tif")


def test_anything_that_a_decoder_raises_names_the_file(tmp_path, monkeypatch):
    MASKS["grey"].save(tmp_path / "mask.png")

    def fail(self: object) -> None:
        raise IndexError("of a broken table")

    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(files.PictureError, match=r"cannot read .*mask\.png: of a broken table"):
        files.open_picture(tmp_path / "mask.png")


# --- writing ------------------------------------------------------------------------------------


def write(target: Path, text: str) -> None:
    with files.whole_or_nothing(target) as partial:
        partial.write_text(text)


def test_written_whole_or_not_at_all(tmp_path):
    write(tmp_path / "a", "first")
    write(tmp_path / "a", "second")

    def fail(partial: Path) -> None:
        partial.write_text("thi")
        raise OSError("disk full")

    with pytest.raises(OSError, match="full"), files.whole_or_nothing(tmp_path / "a") as partial:
        fail(partial)
    assert (tmp_path / "a").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("call, number", [("open", errno.EACCES), ("fsync", errno.EINVAL)])
def test_where_folders_cannot_be_flushed(call, number, tmp_path, monkeypatch):
    """As on Windows, and on network drives."""
    real = getattr(os, call)
    refused = []

    def refuse(what: object, *arguments: object, **options: object) -> object:
        folder = os.path.isdir(what) if call == "open" else os.path.isdir(f"/proc/self/fd/{what}")
        if folder:
            refused.append(what)
            raise OSError(number, os.strerror(number))
        return real(what, *arguments, **options)

    monkeypatch.setattr(os, call, refuse)
    write(tmp_path / "a", "text")
    assert refused
    assert (tmp_path / "a").read_text() == "text"


@pytest.mark.parametrize("kind", [PermissionError, FileExistsError])
def test_where_files_cannot_be_renamed_over(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if Path(target).exists():
            raise kind(13, "refused")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", rename)
    monkeypatch.setattr(Path, "rename", rename)
    write(tmp_path / "a", "first")
    write(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_refused_rename_leaves_the_old_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    write(tmp_path / "a", "first")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise PermissionError(13, "refused")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", rename)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(PermissionError):
        write(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_that_is_read_for_a_moment_is_replaced_later(is_there, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(files.time, "sleep", pauses.append)
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if len(pauses) < 2:
            raise PermissionError(13, "in use")
        return real(self, target)

    if is_there:
        write(tmp_path / "a", "first")
    monkeypatch.setattr(Path, "replace", replace)
    write(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "second"
    assert len(pauses) == 2
