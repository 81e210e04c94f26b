"""The demo on pictures that are awkward to read, and its refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

from PIL import Image

from examples import region_norm_layer as demo


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    rows, columns = np.mgrid[:41, :63]
    return np.stack((rows * 6, columns * 4, rows + columns), axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    "mode, suffix",
    [
        ("RGB", "jpg"), ("L", "png"), ("LA", "png"), ("RGBA", "png"), ("P", "gif"), ("1", "png"),
        ("CMYK", "jpg"), ("I;16", "png"), ("F", "tif"),
    ],
)  # fmt: skip
def test_reads_every_kind_of_picture(
    mode: str, suffix: str, picture: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / f"picture.{suffix}"
    if mode == "I;16":
        made = Image.fromarray(picture[..., 0].astype(np.uint16) * 256)
    else:
        made = Image.fromarray(picture).convert(mode)
    made.save(path)
    image = demo.load_image(path)
    assert image.shape == (1, 3, 40, 60)
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.std() > 0.05


def test_orientation_is_followed(picture: np.ndarray, tmp_path: Path) -> None:
    made = Image.fromarray(picture)
    exif = made.getexif()
    exif[0x0112] = 6  # turned by a quarter
    made.save(tmp_path / "turned.jpg", exif=exif)
    assert demo.load_image(tmp_path / "turned.jpg").shape == (1, 3, 60, 40)


def test_mask_is_resized_and_not_black_is_hole(tmp_path: Path) -> None:
    values = np.zeros((20, 30), dtype=np.uint8)
    values[5:10, 5:10] = 1
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert demo.load_mask(tmp_path / "mask.png", 20, 30).sum() == 25
    assert demo.load_mask(tmp_path / "mask.png", 40, 60).unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    "content, message", [(b"no picture", "not a picture"), (None, "No such file")]
)
def test_unreadable_files_are_named(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    for option in ("--image", "--mask"):
        arguments = [option, str(path), "--output", str(tmp_path / "out.png")]
        if option == "--mask":
            Image.new("RGB", (16, 16)).save(tmp_path / "good.png")
            arguments += ["--image", str(tmp_path / "good.png")]
        with pytest.raises(SystemExit):
            demo.main(arguments)
        error = capsys.readouterr().err
        assert f"{option}: cannot read" in error
        assert message in error


def test_truncated_and_tiny_pictures(picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(demo.pictures.UnreadableError, match="--image: cannot read"):
        demo.load_image(tmp_path / "half.png")
    Image.new("RGB", (100, 8)).save(tmp_path / "tiny.png")
    with pytest.raises(demo.pictures.UnreadableError, match="at least 12 pixels a side"):
        demo.load_image(tmp_path / "tiny.png")


@pytest.mark.parametrize("hole", [None, 0, 255], ids=["strokes", "no hole", "all hole"])
def test_sheet(
    hole: int | None, picture: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.fromarray(picture).save(tmp_path / "picture.png")
    arguments = ["--image", str(tmp_path / "picture.png"), "--output", str(tmp_path / "sheet.png")]
    if hole is not None:
        Image.new("L", (8, 8), hole).save(tmp_path / "mask.png")
        arguments += ["--mask", str(tmp_path / "mask.png")]
    threads = torch.get_num_threads()
    assert demo.main(arguments) == 0
    torch.set_num_threads(threads)
    assert "region norm" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] == 1200


def test_regions_are_centred_and_forms_agree() -> None:
    image = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    hole = demo.load_mask(None, 48, 64)
    result = demo.run(image, hole)
    assert result.difference.max() < 1e-3
    assert result.encoder_difference < 1e-3
    plain, region = result.statistics[1:]
    assert abs(plain.known[0]) > 0.05
    assert abs(region.known[0]) < 1e-4
    assert abs(region.hole[0]) < 1e-4
