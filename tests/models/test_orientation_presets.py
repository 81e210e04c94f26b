"""The maps of hair reconstruction projects, as arrays and as files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchext
from torchext import orientation

Image = pytest.importorskip("PIL.Image")

DATA = Path(__file__).parents[1] / "golden" / "data"
PROJECTS = ("neuralhaircut", "gaussianhaircut", "monohair", "im2haircut")
GAP = 1e-5  # of the two best responses: below, rounding decides between them
OPTIONS = (
    "num_filters", "sigma_x", "sigma_y", "freq",
    "num_sigmas_x", "num_sigmas_y", "num_frequencies", "num_offsets",
)  # fmt: skip


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)


# --- against published files and the formulas -----------------------------------------------------


class Case:
    """A golden file: its photograph, mask, options, and what is known of the files."""

    def __init__(self, path: Path) -> None:
        self.arrays = dict(np.load(path))
        arguments = json.loads(str(self.arrays["config"]))["args"]
        self.project = path.stem.split("-")[1]
        given = {}
        if self.project in ("neuralhaircut", "gaussianhaircut"):
            given = {name: arguments[name] for name in OPTIONS if name in arguments}
        self.filters = orientation.Filters(**given)
        self.photo = self.arrays["image.u8"]
        self.mask = self.arrays.get("mask.u8", np.full(self.photo.shape[:2], 255, np.uint8))
        gap = self.arrays["f64.gap"]
        dark = self.arrays.get("f64.strength", self.arrays.get("out.strength", gap)) == 0
        self.decided = (gap > GAP) | dark
        if "f64.choice_gap" in self.arrays:
            self.decided &= self.arrays["f64.choice_gap"] > GAP

    def maps(self, **options: Any) -> dict[str, np.ndarray]:
        found = orientation.orientation_maps(
            torch.from_numpy(self.photo[..., :3]).permute(2, 0, 1),
            torch.from_numpy(self.mask)[None].float() / 255,
            preset=self.project,
            filters=self.filters,
            **options,
        )
        return {name: value.numpy() for name, value in found.items()}

    def published(self) -> dict[str, np.ndarray]:
        """The files as the projects' own scripts wrote them; empty if they are not there."""
        names = {
            "neuralhaircut": ("file_orient", "file_conf"),
            "gaussianhaircut": ("index", "file_conf", "file_filtered", "file_vis"),
            "monohair": ("file_best", "file_conf", "file_ori"),
            "im2haircut": ("file_orient", "file_conf"),
        }[self.project]
        if f"out.{names[0]}" not in self.arrays:
            return {}
        files = [self.arrays[f"out.{name}"] for name in names]
        if self.project == "gaussianhaircut":
            files[3] = files[3][..., ::-1]  # B, G, R
        if self.project == "monohair":
            files[1:] = [np.repeat(files[1][..., None], 3, 2), files[2][..., ::-1]]
        return dict(zip(orientation_names(self.project), files, strict=True))

    def computed(self) -> dict[str, np.ndarray]:
        """The files by their formulas, of index and confidence computed apart in float64."""
        names = orientation_names(self.project)
        if self.project == "neuralhaircut":
            index, variance = neuralhaircut(self.photo, self.filters)
            return dict(zip(names, (index, variance), strict=True))
        index = self.arrays["f64.index"]
        if self.project == "monohair":
            confidence = np.floor(255 * self.arrays["f64.confidence"].astype(float) + 0.5)
            turn = np.deg2rad(index.astype(float))
            colours = np.stack((np.ones(index.shape), (np.sin(turn) + 1) / 2), -1)
            last = np.where(index == 90, 127, np.rint((np.cos(turn) + 1) / 2 * 255))
            colours = np.concatenate((np.rint(colours * 255), last[..., None]), -1)
            confidence = np.repeat(confidence[..., None], 3, 2)
            files = (index, confidence.astype(np.uint8), colours.astype(np.uint8))
        elif self.project == "im2haircut":
            code = self.mask / np.float32(255) * (index / np.float32(180) * np.float32(255))
            variance = self.arrays["f64.confidence"].astype(np.float16)
            files = (np.rint(code).astype(np.uint8), variance)
        else:
            variance = self.arrays["f64.variance"].astype(np.float16)
            files = (index, variance, filtered(self.photo), shown(index, self.mask))
        return dict(zip(names, files, strict=True))


def orientation_names(project: str) -> tuple[str, ...]:
    return {
        "neuralhaircut": ("orientation_maps", "confidence_maps"),
        "gaussianhaircut": ("angles", "vars", "filtered_imgs", "vis_imgs"),
        "monohair": ("best_ori", "conf", "Ori"),
        "im2haircut": ("orientation_maps", "confidence_maps"),
    }[project]


def grey(photo: np.ndarray) -> np.ndarray:
    return photo[..., :3].astype(float) @ np.array((0.2989, 0.587, 0.114))


def neuralhaircut(photo: np.ndarray, filters: orientation.Filters) -> tuple[np.ndarray, np.ndarray]:
    """By scikit-image and scipy."""
    pytest.importorskip("skimage")
    from benchmarks.baselines.oriented_filter_statistics import orientation as published

    with np.errstate(invalid="ignore"):
        index, _, variance = published(
            grey(photo), filters.num_filters, filters.freq, filters.sigma_x, filters.sigma_y
        )
    return index.astype(np.uint8), variance.astype(np.float16)


def filtered(photo: np.ndarray) -> np.ndarray:
    skimage = pytest.importorskip("skimage.filters")
    values = skimage.difference_of_gaussians(grey(photo), 0.4, 10).astype(np.float32)
    values = values.astype(float)
    return ((values - values.min()) / (values.max() - values.min()) * 255).astype(np.uint8)


def shown(index: np.ndarray, mask: np.ndarray) -> np.ndarray:
    def near(angle: float) -> np.ndarray:
        return np.clip(1 - np.abs(index.astype(float) - angle) / 45, 0, 1)

    colours = (near(0) + near(180) + near(45), near(90) + near(135), near(45) + near(135))
    return (np.clip(np.stack(colours, -1), 0, 1) * (mask / 255)[..., None] * 255).astype(np.uint8)


def assert_same(found: np.ndarray, expected: np.ndarray, where: np.ndarray, step: int) -> None:
    """Equal, at some pixels, up to so many steps of 8 bits, or units in the last place."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    found, expected = found[where], expected[where]
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    usual = ~np.isnan(expected)
    unit = np.spacing(np.abs(expected[usual])) if found.dtype == np.float16 else 1
    off = np.abs(found[usual].astype(float) - expected[usual])
    assert (off <= step * unit).all()


def golden_files(config: pytest.Config) -> list[Path]:
    folder = config.getoption("golden_dir") or DATA
    return sorted(path for path in folder.glob("hair-*.npz") if "bank" not in path.stem)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_file" in metafunc.fixturenames:
        files = golden_files(metafunc.config)
        metafunc.parametrize("golden_file", files, ids=[path.stem for path in files])


@pytest.mark.parametrize("band_pixels", [1 << 20, 1])
def test_maps_are_the_published_ones(golden_file: Path, band_pixels: int) -> None:
    case = Case(golden_file)
    found = case.maps(band_pixels=band_pixels)
    for files in filter(None, (case.computed(), case.published())):
        assert list(found) == list(files)
        angles = next(iter(files))
        same = found[angles] == files[angles]
        assert same[case.decided].all()
        if case.project == "im2haircut":  # outside the mask the angle does not show in its file
            same &= case.decided | (case.mask > 0)
        assert same.mean() > 0.97
        for name, expected in files.items():
            # single precision, with a unit for its rounding; the other project is in double
            step = int(expected.dtype == np.float16 and case.project != "neuralhaircut")
            step = 1 if name == "conf" else step
            assert_same(found[name], expected, same, step)


def test_all_golden_files_are_met(pytestconfig: pytest.Config) -> None:
    names = {path.stem.split("-")[1] for path in golden_files(pytestconfig)}
    assert names == set(PROJECTS)


# --- oddities kept, and clean ---------------------------------------------------------------------

UNSURE = np.float16(orientation.UNSURE)
SURENESS = {  # of black, as published and clean
    "neuralhaircut": ("confidence_maps", np.float16("nan"), UNSURE),
    "gaussianhaircut": ("vars", np.float16(0), UNSURE),
    "monohair": ("conf", 0, 0),
    "im2haircut": ("confidence_maps", np.float16("nan"), UNSURE),
}


def maps(photo: torch.Tensor, project: str, **options: Any) -> dict[str, np.ndarray]:
    found = orientation.orientation_maps(photo, preset=project, **options)
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize("project", PROJECTS)
def test_black(project: str) -> None:
    name, published, clean = SURENESS[project]
    black = torch.zeros(3, 70, 90, dtype=torch.uint8)
    for is_clean, sureness in ((False, published), (True, clean)):
        found = maps(black, project, clean=is_clean)
        assert not found[orientation_names(project)[0]].any()
        expected = np.full_like(found[name], sureness)
        assert np.array_equal(found[name], expected, equal_nan=found[name].dtype == np.float16)
        if project == "gaussianhaircut":
            assert not found["filtered_imgs"].any()


@pytest.mark.parametrize("project", PROJECTS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (9, 12)])
def test_tiny(project: str, shape: tuple[int, int]) -> None:
    for clean in (False, True):
        found = maps(noise(*shape), project, clean=clean)
        assert {value.shape[:2] for value in found.values()} == {shape}


@pytest.mark.parametrize("project", PROJECTS)
def test_clean_flat_grey_is_not_hair(project: str) -> None:
    photo = torch.full((3, 70, 90), 127, dtype=torch.uint8)
    photo[:, :, 80:] = noise(70, 10)
    flat = (slice(None), slice(25))  # the band pass reaches 40 pixels, the filters 8
    name, _, clean = SURENESS[project]
    found = maps(photo, project, clean=True)
    assert not found[orientation_names(project)[0]][flat].any()
    assert (found[name][flat] == clean).all()
    assert not (found[name][:, 82:] == clean).all()


def test_clean_border_has_no_seam() -> None:
    """What lies at the opposite edge does not matter."""
    photo, other = noise(90, 60), noise(90, 60)
    other[:, :, 53:] = 255 - other[:, :, 53:]
    left = (slice(None), slice(4))  # the filters reach 8 pixels, the finer Gaussian 2
    for clean in (False, True):
        found, changed = (maps(value, "neuralhaircut", clean=clean) for value in (photo, other))
        same = found["orientation_maps"][left] == changed["orientation_maps"][left]
        assert (same.mean() > 0.9) == clean


def test_clean_values_are_those_meant() -> None:
    photo = noise(70, 90)
    grey_photo = (photo.double() * torch.tensor((0.2989, 0.587, 0.114))[:, None, None]).sum(0)
    image = torchext.difference_of_gaussians(grey_photo[None, None])
    bank = torchext.gabor_kernel_bank(dtype=torch.float64)
    index, _, variance = torchext.oriented_filter_statistics(image, bank)
    for project in ("neuralhaircut", "gaussianhaircut", "im2haircut"):
        for band_pixels in (1 << 20, 1):
            found = maps(photo, project, clean=True, band_pixels=band_pixels)
            angles = found[orientation_names(project)[0]].astype(float)
            if project == "im2haircut":
                angles = np.rint(angles * 180 / 255)
            same = angles == index[0, 0].numpy()
            assert same.mean() > 0.995
            name = SURENESS[project][0]
            off = np.abs(found[name].astype(float) - variance[0, 0].numpy())[same]
            assert off.max() < 1e-3


@pytest.mark.parametrize("project", PROJECTS)
def test_mask(project: str) -> None:
    photo = noise(40, 50)
    mask = torch.zeros(1, 40, 50)
    mask[:, 10:30, 15:45] = 1
    outside = mask[0].numpy() == 0
    with_mask = maps(photo, project, mask=mask)
    without = maps(photo, project)
    of_mask = {"gaussianhaircut": {"vis_imgs"}, "im2haircut": {"orientation_maps"}}
    for name in orientation_names(project):
        changed = name in of_mask.get(project, ())
        if changed:
            assert not with_mask[name][outside].any()
        inside = ~outside if changed else slice(None)
        assert np.array_equal(with_mask[name][inside], without[name][inside])
    clean = maps(photo, project, mask=mask, clean=True)
    name, _, sureness = SURENESS[project]
    assert (clean[name][outside] == sureness).all()
    assert not clean[orientation_names(project)[0]][outside].any()
    assert (clean[name][~outside] != sureness).mean() > 0.9


def test_kinds_of_masks() -> None:
    photo, mask = noise(40, 50), torch.zeros(1, 40, 50)
    mask[:, 10:30, 15:45] = 1
    expected = maps(photo, "im2haircut", mask=mask)
    for kind in (torch.bool, torch.uint8, torch.float64):
        found = maps(photo, "im2haircut", mask=mask.to(kind))
        assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_clean_soft_masks_do_not_turn_angles() -> None:
    photo = noise(40, 50)
    soft = torch.full((1, 40, 50), 0.6)
    whole = maps(photo, "im2haircut", clean=True)["orientation_maps"]
    assert np.array_equal(
        maps(photo, "im2haircut", mask=soft, clean=True)["orientation_maps"], whole
    )
    faded = maps(photo, "im2haircut", mask=soft)["orientation_maps"]
    unfaded = maps(photo, "im2haircut")["orientation_maps"]
    assert np.abs(faded - unfaded * 0.6).max() < 1


@pytest.mark.parametrize("preset", orientation.PRESETS)
def test_kinds_of_images(preset: str) -> None:
    photo = noise(60, 70)
    expected = maps(photo, preset)
    for image in (photo.float(), photo.double()):
        found = maps(image, preset)
        for name, value in expected.items():
            assert np.array_equal(found[name], value, equal_nan=value.dtype == np.float16)
    alike = maps(photo[:1], preset)
    coloured = maps(photo[:1].expand(3, -1, -1), preset)
    for name, value in alike.items():
        assert np.array_equal(value, coloured[name]) or preset == "michigan"


def test_michigan_is_the_map_of_its_own_tool() -> None:
    photo, mask = noise(60, 70), torch.zeros(1, 60, 70)
    mask[:, :, 20:] = 1
    for clean in (False, True):
        flow = orientation.orientation_flow(photo[None].float(), mask[None], exact=clean)
        expected = orientation.orientation_code(flow, mask[None])[0, 0]
        found = orientation.orientation_maps(photo, mask, preset="michigan", clean=clean)
        assert list(found) == ["map"]
        assert torch.equal(found["map"], expected)


@pytest.mark.parametrize(
    "given, kind, message",
    [
        ({"preset": "hair"}, ValueError, "preset: expected one of"),
        ({"image": torch.zeros(4, 9, 9)}, ValueError, "image: expected the shape (3, H, W) or"),
        ({"image": torch.zeros(3, 0, 9)}, ValueError, "image: expected the shape (3, H, W) or"),
        ({"image": torch.zeros(3, 9, 9).int()}, TypeError, "image: expected uint8 or floating"),
        (
            {"image": torch.full((3, 9, 9), -1.0)},
            ValueError,
            "values from 0 to 255, got -1",
        ),
        ({"image": torch.full((3, 9, 9), math.nan)}, ValueError, "image: expected values from 0"),
        ({"mask": torch.ones(9, 9)}, ValueError, "mask: expected the shape (1, 9, 9), got (9, 9)"),
        ({"mask": torch.full((1, 9, 9), 255)}, ValueError, "mask: expected values from 0 to 1"),
        ({"filters": 3}, TypeError, "filters: expected Filters, got int"),
        (
            {"filters": orientation.Filters(num_offsets=2)},
            ValueError,
            "num_offsets: expected 1, as preset neuralhaircut has no such option, got 2",
        ),
        (
            {"preset": "monohair", "filters": orientation.Filters(sigma_x=2.0)},
            ValueError,
            "sigma_x: expected 1.8, as preset monohair has no such option, got 2.0",
        ),
    ],
)
def test_bad_input(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments = {"image": torch.zeros(3, 9, 9), "preset": "neuralhaircut"} | given
    with pytest.raises(kind) as error:
        orientation.orientation_maps(**arguments)
    assert message in str(error.value)


def test_bad_filters() -> None:
    with pytest.raises(ValueError, match="num_sigmas_x: expected 1 to 4, got 5"):
        orientation.Filters(num_sigmas_x=5)
    with pytest.raises(ValueError, match="num_filters: expected 1 to 256, got 300"):
        orientation.Filters(num_filters=300)
    with pytest.raises(ValueError, match="sigma_y"):
        orientation.Filters(sigma_y=0.0)
