"""One geometry for all fields of a sample, and what each field makes of it."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchext.models.data import PairedImages
from torchext.models.geometry import Field, Geometry, Preparation, middle
from torchext.models.pictures import UnreadableError

HEIGHT, WIDTH = 40, 60


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Photos whose red is the column and green the row, with labels and angles of the same."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for i in range(3):
        photo = np.stack((4 * columns, 6 * rows, np.full_like(rows, 60 * i)), -1)
        contents = {"image": photo, "labels": columns // 20 + 3 * i, "angle": 4 * columns}
        for name, values in contents.items():
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(path)
    return {name: tmp_path / name for name in ("image", "labels", "angle")}


FIELDS = {"image": Field(), "labels": Field("labels"), "angle": Field("angle")}


@pytest.mark.parametrize("fit", ["stretch", "square", "crop"])
@pytest.mark.parametrize("size", [16, (20, 30), (30, 16)])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_all_fields_lie_on_each_other(folders, fit, size, flip):
    dataset = PairedImages(folders, FIELDS, Preparation(size, fit, flip=flip), seed=3)
    height, width = size if isinstance(size, tuple) else (size, size)
    for index in range(3):
        sample = dataset[0, index, index]
        assert sample["image"].shape == (3, height, width)
        assert sample["labels"].shape == sample["angle"].shape == (1, height, width)
        column = sample["image"][0] * 255 / 4
        sign = -1 if flip else 1
        assert (sign * column.diff(dim=-1))[:, 2:-2].min() > 0  # mirrored, or not
        assert (sample["labels"][0] % 3 - column / 20).sub(-0.5).abs().max() < 0.7
        code = 4 * column * (math.pi / 255)
        angle = (math.pi - code) % math.pi if flip else code
        away = (sample["angle"][0] - angle).abs()
        assert torch.minimum(away, math.pi - away).max() < 0.12
        assert sample["angle"].min() >= 0
        assert sample["angle"].max() < math.pi


def test_an_angle_in_the_mirror():
    codes = Image.fromarray(np.array([[0, 51, 255, 204]], np.uint8))
    geometry = Geometry((4, 1), None, (4, 1), None, mirrored=True)
    angle = Field("angle").tensor(codes, geometry)[0, 0]
    expected = torch.tensor([math.pi / 5, 0.0, 4 * math.pi / 5, 0.0])
    torch.testing.assert_close(angle, expected)


def test_left_and_right_change_places_in_the_mirror():
    labels = Image.fromarray(np.array([[4, 5, 0, 7]], np.int32))
    field = Field("labels", swapped={4: 5})
    plain, mirrored = (Geometry((4, 1), None, (4, 1), None, m) for m in (False, True))
    assert field.tensor(labels, plain).tolist() == [[[4, 5, 0, 7]]]
    assert field.tensor(labels, mirrored).tolist() == [[[7, 0, 4, 5]]]


def test_labels_keep_their_numbers(tmp_path):
    values = np.array([[0, 1], [150, 300]])
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "16.png")
    palette = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).convert("P")
    palette.putpalette([9, 8, 7] * 256)
    palette.save(tmp_path / "palette.png")
    geometry = Geometry((2, 2), None, (4, 4), None, False)
    field = Field("labels")
    for name, wanted in (("16.png", {0, 1, 150, 300}), ("palette.png", {0, 1, 2, 3})):
        tensor = field.tensor(field.read(tmp_path / name), geometry)
        assert tensor.dtype == torch.int64
        assert set(tensor.flatten().tolist()) == wanted  # nearest neighbour: none between
    Image.new("RGB", (2, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(UnreadableError, match=r"rgb\.png: expected labels, .* got RGB"):
        field.read(tmp_path / "rgb.png")


def test_middle_box():
    assert middle((60, 40), (1, 1)) == (10, 0, 50, 40)
    assert middle((41, 60), (1, 1)) == (0, 9, 41, 50)
    assert middle((100, 100), (320, 512)) == (19, 0, 81, 100)
    assert middle((1, 50), (100, 1)) == (0, 24, 1, 25)


def test_samples_follow_from_seed_and_place_alone(folders):
    preparation = Preparation((20, 16), "crop", flip=0.5)
    first, again, other = (
        PairedImages(folders, FIELDS, preparation, seed=seed, noise=(2,)) for seed in (0, 0, 1)
    )
    places = [(epoch, i, i) for epoch in range(3) for i in range(3)]
    for place in places:
        assert all(torch.equal(first[place][key], again[place][key]) for key in (*FIELDS, "noise"))
    assert any(not torch.equal(first[p]["image"], other[p]["image"]) for p in places)


def test_missing_and_misfitting_files_are_named(folders):
    (folders["labels"] / "1.png").unlink()
    with pytest.raises(ValueError, match=r"labels: expected a file 1\.\* in .* beside .*1\.png"):
        PairedImages(folders, FIELDS, Preparation(16))
    Image.new("L", (5, 5)).save(folders["labels"] / "1.png")
    dataset = PairedImages(folders, FIELDS, Preparation(16))
    with pytest.warns(UserWarning, match=r"expected the size of .* 60 x 40 pixels, got 5 x 5"):
        assert dataset[0, 0, 1]["name"].endswith("2.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dataset[0, 0, 1]["name"].endswith("2.png")
    with pytest.raises(ValueError, match="folders: expected one for each of"):
        PairedImages({"image": folders["image"]}, FIELDS, Preparation(16))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": 0}, "size: expected at least 1, got 0"),
        ({"size": (4, 0)}, r"size: expected at least 1, got \(4, 0\)"),
        ({"fit": "zoom"}, "fit: expected 'stretch', 'square' or 'crop', got 'zoom'"),
        ({"flip": 2}, "flip: expected a probability from 0 to 1, got 2"),
    ],
)
def test_bad_preparation(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preparation(**arguments)
    with pytest.raises(ValueError, match="kind: expected 'picture', 'grey', 'labels' or 'angle'"):
        Field("depth")
