"""`python -m torchext.orientation` and the functions behind it."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torchext import orientation, orientation_angle

Image = pytest.importorskip("PIL.Image")

GENERATOR = torch.Generator().manual_seed(0)


def stripes(angle: float, height: int = 90, width: int = 120) -> np.ndarray:
    """A grey picture of lines in one direction, counted counter-clockwise."""
    y, x = np.mgrid[:height, :width]
    across = y * math.cos(angle) + x * math.sin(angle)
    return (127 + 100 * np.cos(2 * np.pi / 7 * across)).astype(np.uint8)


def noise(height: int = 200, width: int = 70) -> np.ndarray:
    shape = (height, width, 3)
    return torch.randint(0, 256, shape, generator=GENERATOR, dtype=torch.uint8).numpy()


def code_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "L"
        return np.asarray(picture)


def save(array: np.ndarray, path: Path) -> Path:
    Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.5])
def test_stripes_give_their_angle(angle: float, tmp_path: Path) -> None:
    photo, target = save(stripes(angle), tmp_path / "in.png"), tmp_path / "out.png"
    assert orientation.main([str(photo), "-o", str(target), "--exact"]) == 0
    codes = code_of(target)[25:-25, 25:-25].astype(float) / 255 * math.pi
    off = (codes - angle + math.pi / 2) % math.pi - math.pi / 2
    assert np.abs(off).max() < math.pi / 64 + 0.02


def test_published_angles_are_those_of_31_steps(tmp_path: Path) -> None:
    image = torch.from_numpy(stripes(2.5)).float()[None, None]
    exact = orientation_angle(orientation.orientation_flow(image, exact=True), "cos_sin")
    published = orientation_angle(orientation.orientation_flow(image), "cos_sin")
    inner = (..., slice(25, -25), slice(25, -25))
    assert torch.allclose(published[inner], exact[inner] * 32 / 31, atol=0.01)


def test_bands_meet_without_a_seam(tmp_path: Path) -> None:
    picture = noise()
    photo = save(picture, tmp_path / "in.png")
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[20:170, 10:60] = 255
    masked = save(mask, tmp_path / "mask.png")
    results = []
    for number, band in enumerate((1 << 20, 70 * 64, 1)):  # 32 rows are the least
        target = tmp_path / f"{number}.png"
        orientation.convert_photo(photo, target, masked, show=True, band_pixels=band)
        shown = np.asarray(Image.open(orientation.shown_path(target)))
        results.append((code_of(target), shown))
    for code, shown in results[1:]:
        assert np.array_equal(code, results[0][0])
        assert np.array_equal(shown, results[0][1])
    assert not results[0][0][mask == 0].any()
    image = torch.from_numpy(picture).float().permute(2, 0, 1)[None]
    hair = torch.from_numpy(mask)[None, None].float() / 255
    code = orientation.orientation_code(orientation.orientation_flow(image, hair), hair)
    assert np.array_equal(results[0][0], code[0, 0].numpy())


def test_modes_of_pictures(tmp_path: Path) -> None:
    grey = stripes(0.8)
    colour = np.stack([grey] * 3, axis=-1)
    alpha = np.concatenate([colour, np.full_like(grey, 255)[..., None]], axis=-1)
    pictures = {
        "grey": Image.fromarray(grey),
        "rgb": Image.fromarray(colour),
        "rgba": Image.fromarray(alpha),
        "sixteen": Image.fromarray(grey.astype(np.uint16) * 257),
        "palette": Image.fromarray(colour).quantize(256),
        "float": Image.fromarray(grey.astype(np.float32)),
    }
    codes = {}
    for name, picture in pictures.items():
        photo = tmp_path / f"{name}.tif"
        picture.save(photo)
        orientation.convert_photo(photo, tmp_path / "out.png", exact=True)
        codes[name] = code_of(tmp_path / "out.png")[25:-25, 25:-25].astype(int)
    for code in codes.values():
        assert np.abs(code - codes["grey"]).max() <= 2


def test_transparent_places_are_white(tmp_path: Path) -> None:
    alpha = np.zeros((60, 60, 4), np.uint8)
    alpha[..., :3] = noise(60, 60)  # of which nothing shows
    orientation.convert_photo(save(alpha, tmp_path / "in.png"), tmp_path / "a.png")
    white = np.full((60, 60, 3), 255, np.uint8)
    orientation.convert_photo(save(white, tmp_path / "w.png"), tmp_path / "b.png")
    assert np.array_equal(code_of(tmp_path / "a.png"), code_of(tmp_path / "b.png"))


def test_exif_rotation(tmp_path: Path) -> None:
    picture = Image.fromarray(stripes(0.5))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    orientation.convert_photo(tmp_path / "turned.png", tmp_path / "a.png")
    picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "plain.png")
    orientation.convert_photo(tmp_path / "plain.png", tmp_path / "b.png")
    assert code_of(tmp_path / "a.png").shape == (120, 90)
    assert np.array_equal(code_of(tmp_path / "a.png"), code_of(tmp_path / "b.png"))


@pytest.mark.parametrize("scale, dtype", [(1, np.uint8), (255, np.uint8), (65535, np.uint16)])
def test_masks(scale: int, dtype: type, tmp_path: Path) -> None:
    photo = save(noise(60, 60), tmp_path / "in.png")
    mask = np.zeros((60, 60), dtype)
    mask[20:40, 15:50] = scale
    orientation.convert_photo(photo, tmp_path / "o.png", save(mask, tmp_path / "m.png"))
    code = code_of(tmp_path / "o.png")
    assert not code[mask == 0].any()
    assert (code[mask > 0] > 0).mean() > 0.9


HAIR = np.zeros((60, 60), bool)
HAIR[20:40, 15:50] = True


def rgba(colour: int | np.ndarray, alpha: np.ndarray) -> np.ndarray:
    colours = np.broadcast_to(np.asarray(colour, np.uint8), (60, 60, 3))
    return np.dstack((colours, alpha.astype(np.uint8) * 255))


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(rgba(255, HAIR), id="white strokes on transparency"),
        pytest.param(rgba(0, HAIR), id="black strokes on transparency"),
        pytest.param(rgba(noise(60, 60), HAIR), id="a photo without its background"),
        pytest.param(rgba(HAIR[..., None] * 255, HAIR | True), id="opaque"),
        pytest.param(HAIR.astype(np.uint16), id="labels of 16 bits"),
        pytest.param(HAIR, id="one bit"),
    ],
)
def test_masks_as_a_person_sees_them(mask: np.ndarray, tmp_path: Path) -> None:
    photo = save(noise(60, 60), tmp_path / "in.png")
    orientation.convert_photo(photo, tmp_path / "o.png", save(mask, tmp_path / "m.png"))
    code = code_of(tmp_path / "o.png")
    assert not code[~HAIR].any()
    assert (code[HAIR] > 0).mean() > 0.9


def test_a_mask_that_is_not_black_and_white(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photo = save(noise(60, 60), tmp_path / "in.png")
    Image.fromarray(HAIR.astype(np.uint8) * 255).save(tmp_path / "m.jpg", quality=30)
    arguments = [str(photo), "-o", str(tmp_path / "o.png"), "--mask", str(tmp_path / "m.jpg")]
    assert orientation.main(arguments) == 0
    assert "% of the mask is neither black nor white" in capsys.readouterr().err
    code = code_of(tmp_path / "o.png")
    assert not code[~HAIR].any()
    assert (code[HAIR] > 0).mean() > 0.9


@pytest.mark.parametrize(
    "mask, message",
    [
        (HAIR * np.uint8(0), "expected hair in white, got a mask without any above 130 of 255"),
        (HAIR * np.uint8(3) + np.uint8(1), "shades up to 4 of 255, none above the threshold"),
    ],
)
def test_a_mask_without_hair_is_an_error(
    mask: np.ndarray, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photo, masked = save(noise(60, 60), tmp_path / "in.png"), save(mask, tmp_path / "m.png")
    assert orientation.main([str(photo), "-o", str(tmp_path / "o.png"), "--mask", str(masked)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()


def test_hidden_files_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    save(noise(60, 64), photos / "a.png")
    (photos / "._a.png").write_bytes(b"\0\5\x16\7")
    (photos / ".DS_Store").write_bytes(b"nothing")
    (photos / "folder.png").mkdir()
    assert orientation.main([str(photos), "-o", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_inputs_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photo, mask = save(noise(60, 60), tmp_path / "in.png"), save(HAIR, tmp_path / "m.png")
    before = photo.read_bytes(), mask.read_bytes()
    for output, name in ((photo, "photo"), (mask, "mask")):
        with pytest.raises(SystemExit):
            orientation.main([str(photo), "--mask", str(mask), "-o", str(output)])
        assert f"is the {name} itself; choose another name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        orientation.main([str(tmp_path), "-o", str(tmp_path)])
    shown = photo.rename(tmp_path / "x.show.png")
    with pytest.raises(orientation.PictureError, match=r"x\.show\.png: is read too"):
        orientation.convert_photo(shown, tmp_path / "x.png", show=True)
    assert (shown.read_bytes(), mask.read_bytes()) == before
    assert not (tmp_path / "x.png").exists()


def test_folder_with_a_broken_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos, masks, out = tmp_path / "photos", tmp_path / "masks", tmp_path / "out"
    photos.mkdir()
    masks.mkdir()
    for name in ("a.png", "b.jpg", "nomask.png", "a.bmp"):
        save(noise(60, 64), photos / name)
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:500])
    (photos / "small.png").write_bytes(b"no picture")
    (photos / "notes.txt").write_text("no picture either")
    for name in ("a", "b", "broken", "small"):
        save(np.full((60, 64), 255, np.uint8), masks / f"{name}.png")
    arguments = [str(photos), "--mask", str(masks), "-o", str(out), "--show"]
    assert orientation.main(arguments) == 1
    errors = capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == [
        "a.bmp.png", "a.bmp.show.png", "a.png.png", "a.png.show.png", "b.png", "b.show.png",
    ]  # fmt: skip
    for name, reason in (
        ("broken.png", "truncated"),
        ("small.png", "not a picture that Pillow knows"),
        ("nomask.png", "No such file"),
    ):
        assert any(name in line and reason in line for line in errors.splitlines()), errors
    assert "3 of 6 pictures were skipped" in errors


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo, out = save(noise(60, 64), tmp_path / "in.png"), tmp_path / "out"
    out.mkdir()
    original = Image.Image.save

    def full_disk(self: object, file: object, *arguments: object, **options: object) -> None:
        original(self, file, *arguments, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(orientation.PictureError, match="No space left on device"):
        orientation.convert_photo(photo, out / "o.png", show=True)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing.png", "-o", "o.png"], "missing.png: No such file or directory"),
        (["tiny.png", "-o", "o.png"], "tiny.png: 10 x 9 pixels, expected more than 16 each way"),
        (["in.png", "--mask", "tiny.png", "-o", "o.png"], "10 x 9 pixels, but in.png has 64 x 60"),
        (["in.png", "-o", "o.jpg"], "--output: expected a name that ends in .png, got o.jpg"),
        (["in.png", "-o", "o.png", "--threshold", "255"], "--threshold: expected 0 to 254"),
        (["in.png", "--mask", ".", "-o", "o.png"], "--mask: expected a folder for a folder"),
        (["empty", "-o", "out"], "empty: no pictures"),
    ],
)
def test_errors_of_the_command_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(noise(60, 64), Path("in.png"))
    save(noise(9, 10), Path("tiny.png"))
    Path("empty").mkdir()
    try:
        status = orientation.main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err
    assert not Path("o.png").exists()


def test_as_a_command(tmp_path: Path) -> None:
    photo = save(noise(60, 64), tmp_path / "in.png")
    command = [sys.executable, "-m", "torchext.orientation", str(photo), "-o"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    for target, status in ((tmp_path / "new" / "o.png", 0), (tmp_path / "o.txt", 2)):
        result = subprocess.run([*command, str(target)], capture_output=True, env=environment)
        assert result.returncode == status, result.stderr
    assert code_of(tmp_path / "new" / "o.png").shape == (60, 64)


# --- strokes ------------------------------------------------------------------------------------


def test_draw_strokes() -> None:
    mask = orientation.draw_strokes([[(10, 5), (30, 5)], [(50, 20)]], 40, 60, thickness=5)[0, 0]
    assert mask[5, 8:33].all()
    assert mask[3:8, 20].all()
    assert not mask[2, 20]
    assert not mask[8, 20]
    assert not mask[5, 7]
    assert mask[18:23, 50].all()
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    outside = orientation.draw_strokes(torch.tensor([[[-50.0, -50.0], [-20, -9]]]), 40, 60)
    assert not outside.any()
    across = orientation.draw_strokes([[(-50, 20), (100, 20)]], 40, 60, thickness=1)
    assert across[0, 0, 20].all()
    assert across.sum() == 60


@pytest.mark.parametrize("angle", [0.0, 0.7, math.pi / 2, 2.2])
def test_stroke_guidance_follows_the_stroke(angle: float) -> None:
    reach = 30
    x, y = reach * math.cos(angle), -reach * math.sin(angle)  # y counts down
    hair = torch.ones(1, 1, 100, 100)
    hair[..., :2, :] = 0
    guidance = orientation.stroke_guidance(
        [[(50 - x, 50 - y), (50 + x, 50 + y)]], hair, thickness=3
    )
    inside = guidance.stroke[0, 0] > 0
    found = orientation_angle(2 * guidance.rgb[:, :2] - 1, "cos_sin")[0, 0][inside]
    off = (found - angle + math.pi / 2) % math.pi - math.pi / 2
    assert off.abs().median() < math.pi / 32
    assert not guidance.rgb[:, :, ~inside].any()
    assert (guidance.hole[0, 0][inside] == 1).all()
    assert not guidance.hole[..., :2, :].any()


@pytest.mark.parametrize("diameter", [1, 2, 7, 50])
def test_stroke_hole_is_a_dilation(diameter: int) -> None:
    stroke = (torch.rand(2, 1, 40, 60, generator=GENERATOR) > 0.995).double()
    expected = torch.zeros_like(stroke)
    radius = diameter // 2
    for row in range(diameter):
        share = ((row - radius) / radius) ** 2 if radius else 1
        reach = round(radius * math.sqrt(1 - share))
        for column in range(max(radius - reach, 0), min(radius + reach, diameter - 1) + 1):
            dy, dx = row - radius, column - radius
            target = expected[:, :, max(-dy, 0) : 40 - max(dy, 0), max(-dx, 0) : 60 - max(dx, 0)]
            source = stroke[:, :, max(dy, 0) : 40 + min(dy, 0), max(dx, 0) : 60 + min(dx, 0)]
            target.copy_(torch.maximum(target, source))
    assert torch.equal(orientation.stroke_hole(stroke, diameter), expected)


def test_bad_input() -> None:
    hair = torch.ones(1, 1, 40, 40)
    for call, kind, message in (
        (
            lambda: orientation.draw_strokes([[1, 2, 3]], 4, 4),
            ValueError,
            "strokes[0]: expected finite points of the shape (P, 2) with P at least 1, got (3,)",
        ),
        (
            lambda: orientation.draw_strokes([[(0, 0)], "line"], 4, 4),
            TypeError,
            "strokes[1]: expected a sequence of points (x, y)",
        ),
        (
            lambda: orientation.draw_strokes([], 0, 4),
            ValueError,
            "height: expected 1 to 1048576, got 0",
        ),
        (
            lambda: orientation.stroke_guidance([], hair[0]),
            ValueError,
            "hair: expected the shape (1, 1, H, W), got (1, 40, 40)",
        ),
        (
            lambda: orientation.orientation_flow(hair[..., :16]),
            ValueError,
            "image: expected a height and width above 16, got (1, 1, 40, 16)",
        ),
        (
            lambda: orientation.orientation_flow(hair, hair * 255),
            ValueError,
            "mask: expected values from 0 to 1, got 255",
        ),
        (
            lambda: orientation.orientation_code(hair.expand(1, 2, 40, 40), hair * 255),
            ValueError,
            "mask: expected values from 0 to 1, got 255",
        ),
        (
            lambda: orientation.stroke_guidance([], hair * 255),
            ValueError,
            "hair: expected values from 0 to 1, got 255",
        ),
        (
            lambda: orientation.stroke_orientation(hair * 255),
            ValueError,
            "stroke: expected values from 0 to 1, got 255",
        ),
        (
            lambda: orientation.stroke_hole(hair * 255),
            ValueError,
            "stroke: expected values from 0 to 1, got 255",
        ),
        (
            lambda: orientation.orientation_flow(hair, hair[..., :8]),
            ValueError,
            "mask: expected the shape (1, 1, 40, 40), got (1, 1, 40, 8)",
        ),
    ):
        with pytest.raises(kind) as error:
            call()
        assert str(error.value) == message
