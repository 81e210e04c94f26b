"""The files of hair reconstruction projects: names, folders, interrupted runs, memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from torchext import orientation

Image = pytest.importorskip("PIL.Image")

PROJECTS = ("neuralhaircut", "gaussianhaircut", "monohair", "im2haircut")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {
    "OMP_NUM_THREADS": "1"
}


def noise(height: int = 40, width: int = 50, channels: int = 3, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    shape = (height, width, channels)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).numpy()


def save(array: np.ndarray, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def photos_in(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        save(noise(seed=seed), folder / name)
    return folder


def masks_in(folder: Path, *names: str) -> Path:
    for name in names:
        save(np.full((40, 50), 255, np.uint8), folder / name)
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    """All of them, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read(path: Path) -> np.ndarray:
    return np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))


def maps_of(photo: Path, preset: str, **options: object) -> dict[str, np.ndarray]:
    image = torch.from_numpy(np.array(Image.open(photo).convert("RGB"))).permute(2, 0, 1)
    found = orientation.orientation_maps(image, preset=preset, **options)
    return {name: value.numpy() for name, value in found.items()}


# --- one photograph -------------------------------------------------------------------------------

NAMES = {
    ("neuralhaircut", False): ["orientation_maps/a.png", "confidence_maps/a.npy"],
    ("neuralhaircut", True): ["orientation_maps/a.b.png", "confidence_maps/a.b.npy"],
    ("gaussianhaircut", False): [
        "orientations_2/angles/a.png", "orientations_2/vars/a.npy",
        "orientations_2/filtered_imgs/a.png", "orientations_2/vis_imgs/a.png",
    ],
    ("gaussianhaircut", True): [
        "orientations_2/angles/a.b.png", "orientations_2/vars/a.b.npy",
        "orientations_2/filtered_imgs/a.b.png", "orientations_2/vis_imgs/a.b.png",
    ],
    ("monohair", False): ["best_ori/a.b.tif", "conf/a.b.tif", "Ori/a.b.tif"],
    ("monohair", True): ["best_ori/a.b.png", "conf/a.b.png", "Ori/a.b.png"],
    ("im2haircut", False): ["orientation_maps/a.b.tif", "confidence_maps/a.b.npy"],
    ("im2haircut", True): ["orientation_maps/a.b.png", "confidence_maps/a.b.npy"],
}  # fmt: skip


@pytest.mark.parametrize("preset, clean", list(NAMES))
def test_files_are_the_maps(preset: str, clean: bool, tmp_path: Path) -> None:
    photo, out = save(noise(), tmp_path / "a.b.tif"), tmp_path / "out"
    arguments = [str(photo), "-o", str(out), "--preset", preset] + ["--clean"] * clean
    assert orientation.main(arguments) == 0
    expected = maps_of(photo, preset, clean=clean)
    names = NAMES[preset, clean]
    assert sorted(files_in(out)) == sorted(names)
    for name, value in zip(names, expected.values(), strict=True):
        found = read(out / name)
        assert found.dtype == value.dtype
        assert np.array_equal(found, value)


def test_gaussianhaircut_names_files_after_masks(tmp_path: Path) -> None:
    photo, mask = (
        save(noise(), tmp_path / "frame.png"),
        save(noise(channels=1)[..., 0], tmp_path / "m.png"),
    )
    for preset, name in (("gaussianhaircut", "m"), ("im2haircut", "frame")):
        written = orientation.write_maps(photo, tmp_path / preset, mask, preset=preset)
        assert {path.stem for path in written} == {name}


@pytest.mark.parametrize("preset", ["gaussianhaircut", "im2haircut"])
def test_soft_masks_keep_their_shades(preset: str, tmp_path: Path) -> None:
    photo, shades = save(noise(), tmp_path / "a.png"), noise(channels=1)[..., 0]
    mask = save(shades, tmp_path / "m.png")
    orientation.write_maps(photo, tmp_path / "out", mask, preset=preset)
    soft = torch.from_numpy(shades)[None].float() / 255
    paths = orientation.map_paths(photo, preset, mask=mask)
    for name, value in maps_of(photo, preset, mask=soft).items():
        assert np.array_equal(read(tmp_path / "out" / paths[name]), value)


def test_options_of_gaussianhaircut(tmp_path: Path) -> None:
    photo, out = save(noise(), tmp_path / "a.png"), tmp_path / "out"
    options = {"num_sigmas_x": 2, "num_frequencies": 2, "num_offsets": 2}
    written = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    arguments = [str(photo), "-o", str(out), "--preset", "gaussianhaircut", *written]
    assert orientation.main([*arguments, "--num_sigmas_y", "2"]) == 0
    filters = orientation.Filters(**options, num_sigmas_y=2)
    expected = maps_of(photo, "gaussianhaircut", filters=filters)
    one = maps_of(photo, "gaussianhaircut")
    assert np.array_equal(read(out / "orientations_2/angles/a.png"), expected["angles"])
    assert np.array_equal(read(out / "orientations_2/vars/a.npy"), expected["vars"])
    assert (expected["angles"] != one["angles"]).mean() > 0.1


@pytest.mark.parametrize("preset", PROJECTS)
def test_jpegs(preset: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    y, x = np.mgrid[:60, :80]
    waves = np.stack([127 + 100 * np.sin(x * 0.9 + y * s) for s in (0.4, 0.5, 0.6)], -1)
    photo = save(waves.astype(np.uint8), tmp_path / "a.jpg", quality=90)
    arguments = [str(photo), "--preset", preset, "-o"]
    assert orientation.main([*arguments, str(tmp_path / "kept")]) == 0
    lossy = preset in ("monohair", "im2haircut")
    assert ("whose angles are not exact" in capsys.readouterr().err) == lossy
    paths = orientation.map_paths(photo, preset)
    for name, value in maps_of(photo, preset).items():
        found = read(tmp_path / "kept" / paths[name])
        assert found.shape == value.shape
        if paths[name].suffix == ".jpg":
            kind = Image.open(tmp_path / "kept" / paths[name]).format
            assert kind == "JPEG"
            off = np.abs(found.astype(float) - value)
            assert 0 < np.median(off[off > 0]) <= 8
        else:
            assert np.array_equal(found, value)
    assert any(path.suffix == ".jpg" for path in paths.values()) == lossy
    assert orientation.main([*arguments, str(tmp_path / "clean"), "--clean"]) == 0
    assert "not exact" not in capsys.readouterr().err
    for name, path in orientation.map_paths(photo, preset, clean=True).items():
        assert path.suffix in (".png", ".npy")
        assert np.array_equal(
            read(tmp_path / "clean" / path), maps_of(photo, preset, clean=True)[name]
        )


@pytest.mark.parametrize("preset", PROJECTS)
def test_kinds_of_photos(preset: str, tmp_path: Path) -> None:
    colours, grey = noise(), noise(channels=1)[..., 0]
    grey_colours = np.repeat(grey[..., None], 3, -1)
    opaque = np.dstack((colours, noise(channels=1, seed=1)))
    kinds = {
        "rgba": (Image.fromarray(opaque), colours),  # alpha is not looked at
        "grey": (Image.fromarray(grey), grey_colours),
        "sixteen": (
            Image.fromarray(grey.astype(np.uint16) * 257),
            np.repeat(grey[..., None], 3, -1),
        ),
        "palette": (Image.fromarray(colours).quantize(256), None),
    }
    for kind, (picture, same_as) in kinds.items():
        picture.save(tmp_path / f"{kind}.png")
        if same_as is None:
            same_as = np.asarray(picture.convert("RGB"))
        save(same_as, tmp_path / f"{kind}_same.png")
        angles = []
        for name in (kind, f"{kind}_same"):
            written = orientation.write_maps(
                tmp_path / f"{name}.png", tmp_path / "out", preset=preset
            )
            angles.append(read(written[0]))
        assert (angles[0] == angles[1]).mean() > 0.999


def test_clean_transparent_places_are_white(tmp_path: Path) -> None:
    photo = save(np.dstack((noise(), np.zeros((40, 50), np.uint8))), tmp_path / "a.png")
    for clean in (False, True):
        (angles, *_) = orientation.write_maps(
            photo, tmp_path / "out", preset="neuralhaircut", clean=clean
        )
        assert read(angles).any() != clean


def test_exif_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    picture = Image.fromarray(noise())
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "plain.png")
    for preset in PROJECTS:
        turned, plain = (
            orientation.write_maps(tmp_path / name, tmp_path / "out", preset=preset)
            for name in ("turned.png", "plain.png")
        )
        assert np.array_equal(read(turned[0]), read(plain[0]))


@pytest.mark.parametrize("preset", PROJECTS)
def test_black_and_tiny_photos(preset: str, tmp_path: Path) -> None:
    black = save(np.zeros((30, 20, 3), np.uint8), tmp_path / "black.png")
    tiny = save(noise(1, 1), tmp_path / "tiny.png")
    for photo in (black, tiny):
        for clean in (False, True):
            arguments = [str(photo), "-o", str(tmp_path / f"out{clean}"), "--preset", preset]
            assert orientation.main(arguments + ["--clean"] * clean) == 0
            paths = orientation.map_paths(photo, preset, clean=clean)
            values = {n: read(tmp_path / f"out{clean}" / path) for n, path in paths.items()}
            assert all(value.shape[:2] == read(photo).shape[:2] for value in values.values())
            if photo == black:
                assert not next(iter(values.values())).any()
            if clean:
                assert all(np.isfinite(value).all() for value in values.values())


# --- folders --------------------------------------------------------------------------------------


def test_folder_with_masks_and_broken_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos = photos_in(tmp_path / "photos", "a.png", "b.jpg", "unmasked.png", "._a.png")
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:500])
    save(noise(41, 50), photos / "other.png")
    masks = masks_in(tmp_path / "masks", "a.jpg", "b.png", "broken.png", "other.png")
    arguments = [str(photos), "--mask", str(masks), "-o", str(tmp_path / "out")]
    assert orientation.main([*arguments, "--preset", "gaussianhaircut"]) == 1
    errors = capsys.readouterr().err
    for name, reason in (
        ("broken.png", "truncated"),
        ("other.png", "50 x 40 pixels, but"),
        ("unmasked.png", "No such file"),
    ):
        assert any(name in line and reason in line for line in errors.splitlines()), errors
    assert "3 of 5 pictures were skipped" in errors
    assert {Path(name).stem for name in files_in(tmp_path / "out")} == {"a", "b"}
    assert len(files_in(tmp_path / "out")) == 8


def test_masks_that_are_not_needed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos = photos_in(tmp_path / "photos", "a.png")
    masks = masks_in(tmp_path / "masks", "b.png")
    arguments = [str(photos), "--mask", str(masks), "--preset", "monohair", "-o"]
    assert orientation.main([*arguments, str(tmp_path / "out")]) == 0
    assert "monohair's files do not depend on masks; with --clean" in capsys.readouterr().err
    assert orientation.main([*arguments, str(tmp_path / "clean"), "--clean"]) == 1
    assert not files_in(tmp_path / "clean")


def test_a_mask_without_hair_draws_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photo, mask = save(noise(), tmp_path / "a.png"), tmp_path / "m.png"
    save(np.zeros((40, 50), np.uint8), mask)
    arguments = [str(photo), "--mask", str(mask), "-o", str(tmp_path / "out")]
    assert orientation.main([*arguments, "--preset", "im2haircut"]) == 0
    assert "m.png: no hair" in capsys.readouterr().err
    assert not read(tmp_path / "out/orientation_maps/a.png").any()


def test_what_is_there_is_left(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos, out = photos_in(tmp_path / "photos", "a.png", "b.png"), tmp_path / "out"
    arguments = [str(photos), "-o", str(out), "--preset", "neuralhaircut"]
    assert orientation.main(arguments) == 0
    assert "already" not in capsys.readouterr().err
    whole = files_in(out)
    (out / "confidence_maps/b.npy").unlink()  # half of b
    (out / "orientation_maps/a.png").write_bytes(b"mine")
    save(noise(seed=7), photos / "c.png")
    assert orientation.main(arguments) == 0
    text = "1 of 3 photos have their files already and are left as they are; --overwrite writes"
    assert text in capsys.readouterr().err
    now = files_in(out)
    assert now.pop("orientation_maps/a.png") == b"mine"
    assert {name: now[name] for name in whole if name in now} == {
        name: data for name, data in whole.items() if name != "orientation_maps/a.png"
    }
    assert "orientation_maps/c.png" in now
    assert orientation.main([*arguments, "--overwrite"]) == 0
    assert "already" not in capsys.readouterr().err
    assert files_in(out)["orientation_maps/a.png"] == whole["orientation_maps/a.png"]


def test_michigan_always_writes(tmp_path: Path) -> None:
    photos, out = photos_in(tmp_path / "photos", "a.png"), tmp_path / "out"
    for preset in ([], ["--preset", "michigan"]):
        out.mkdir(exist_ok=True)
        (out / "a.png").write_bytes(b"old")
        assert orientation.main([str(photos), "-o", str(out), *preset]) == 0
        assert read(out / "a.png").shape == (40, 50)
    published = files_in(out)
    assert orientation.main([str(photos), "-o", str(out), "--exact"]) == 0
    exact = files_in(out)
    assert exact != published
    assert orientation.main([str(photos), "-o", str(out), "--clean"]) == 0
    assert files_in(out) == exact


def test_files_that_would_be_lost(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos = photos_in(tmp_path / "photos", "a.1.png", "a.2.png")
    arguments = [str(photos), "-o", str(tmp_path / "out"), "--preset", "neuralhaircut"]
    with pytest.raises(SystemExit) as exit_:
        orientation.main(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "a.1.png and a.2.png would both be written to" in error
    assert not (tmp_path / "out").exists()
    assert orientation.main([*arguments, "--clean"]) == 0
    assert len(files_in(tmp_path / "out")) == 4


def test_inputs_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photo = save(noise(), tmp_path / "best_ori" / "a.png")
    before = photo.read_bytes()
    arguments = [str(photo), "-o", str(tmp_path), "--preset", "monohair", "--overwrite"]
    assert orientation.main(arguments) == 1
    assert "is read too, and is not overwritten" in capsys.readouterr().err
    assert files_in(tmp_path) == {"best_ori/a.png": before}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["in.png", "-o", "out", "--preset", "hair"], "--preset: invalid choice"),
        (["in.png", "-o", "out", "--preset", "monohair", "--show"], "--show: expected preset"),
        (["in.png", "-o", "out", "--preset", "monohair", "--exact"], "--exact: expected preset"),
        (
            ["in.png", "-o", "in2.png", "--preset", "monohair"],
            "folder, in2.png is a file",
        ),
        (["in.png", "-o", "o.png", "--preset", "monohair"], "o.png is a picture's name"),
        (["in.png", "-o", "o.png", "--num-offsets", "2"], "--num-offsets: expected 1, as preset"),
        (
            ["in.png", "-o", "out", "--preset", "gaussianhaircut", "--num-sigmas-x", "5"],
            "--num-sigmas-x: expected 1 to 4, got 5",
        ),
        (
            ["in.png", "-o", "out", "--preset", "neuralhaircut", "--sigma-y", "20"],
            "--sigma-y: expected at most 10.3, got 20.0",
        ),
        (["missing.png", "-o", "out", "--preset", "monohair"], "missing.png: No such file"),
        (["in.gif", "-o", "out", "--preset", "monohair"], "cannot be of its kind; a clean map"),
        (["nan.tif", "-o", "out", "--preset", "monohair"], "nan.tif: holds values that are not"),
        (["empty", "-o", "out", "--preset", "monohair"], "empty: no pictures"),
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
    for name in ("in.png", "in2.png", "in.gif"):
        save(noise(), Path(name))
    save(np.full((20, 20), np.nan, np.float32), Path("nan.tif"))
    Path("empty").mkdir()
    try:
        status = orientation.main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err
    assert not Path("out").exists() or not files_in(Path("out"))


def test_michigan_has_no_folders_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="preset: expected one of neuralhaircut"):
        orientation.write_maps(tmp_path / "a.png", tmp_path, preset="michigan")


# --- runs that end early --------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PROJECTS)
def test_nothing_half_written(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo, out = save(noise(), tmp_path / "a.png"), tmp_path / "out"
    orientation.write_maps(photo, out, preset=preset)
    before = files_in(out)
    last = next(reversed(orientation.map_paths(photo, preset).values()))
    save(noise(seed=1), photo)

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    module, name = (np, "save") if last.suffix == ".npy" else (Image.Image, "save")
    monkeypatch.setattr(module, name, full_disk)
    with pytest.raises(orientation.PictureError, match="No space left on device"):
        orientation.write_maps(photo, out, preset=preset)
    assert files_in(out) == before


def test_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    photos, out = photos_in(tmp_path / "photos", "a.png", "b.png", "c.png"), tmp_path / "out"
    arguments = [str(photos), "-o", str(out), "--preset", "neuralhaircut"]
    original, calls = np.save, []

    def interrupt(file: object, value: np.ndarray) -> None:
        original(file, value)
        calls.append(file)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", interrupt)
        assert orientation.main(arguments) == 130
    text = "interrupted after 1 of 3 photos; the same command goes on from there"
    assert text in capsys.readouterr().err
    assert {Path(name).stem for name in files_in(out)} == {"a"}
    assert orientation.main(arguments) == 0
    assert "1 of 3 photos have their files already" in capsys.readouterr().err
    assert {Path(name).stem for name in files_in(out)} == {"a", "b", "c"}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed(tmp_path: Path) -> None:
    """Whatever is there after a kill is whole, and the next run completes the rest."""
    photos = tmp_path / "photos"
    for number in range(40):
        save(noise(120, 150, seed=number), photos / f"{number:02}.png")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torchext.orientation", str(photos)]
    command += ["--preset", "gaussianhaircut", "-o"]
    process = subprocess.Popen([*command, str(out)], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("orientations_2/angles/05.png")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    there = {name: data for name, data in files_in(out).items() if "partial" not in name}
    assert 10 < len(there) < 160
    assert orientation.main([*command[3:], str(out)]) == 0
    assert orientation.main([*command[3:], str(tmp_path / "whole")]) == 0
    expected = files_in(tmp_path / "whole")
    assert len(expected) == 160
    assert {name: expected[name] for name in there} == there
    now = {name: data for name, data in files_in(out).items() if "partial" not in name}
    assert now == expected


# --- memory ---------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from pathlib import Path
from torchext import orientation

small, photo, mask, out, preset = sys.argv[1:]
for is_small in (True, False):
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = Path(small if is_small else photo)
    orientation.write_maps(path, Path(out), None if is_small else Path(mask), preset=preset)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in KiB")
@pytest.mark.parametrize("preset", PROJECTS)
def test_memory(preset: str, tmp_path: Path) -> None:
    """In sizes of the grey photograph in float32."""
    small = save(noise(), tmp_path / "small.png")
    photo = save(noise(2000, 3000), tmp_path / "photo.png")
    mask = save(np.full((2000, 3000), 255, np.uint8), tmp_path / "mask.png")
    result = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, (small, photo, mask, tmp_path / "out")), preset],
        env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    band = 150 * orientation.BAND_PIXELS  # bytes, whatever the size of the photograph
    assert int(result.stdout) < 6 * 2000 * 3000 * 4 + band
