"""Pictures, masks, and the order in which they come."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from torchext.models import masks, pictures
from torchext.models.data import EpochBatches, MaskedImages, loader
from torchext.models.geometry import Preparation
from torchext.models.pictures import find_images


@pytest.mark.parametrize("kind", masks.KINDS)
@pytest.mark.parametrize("border", [True, False])
@pytest.mark.parametrize("share", masks.SHARE_BINS[1:])
def test_generated_masks_keep_to_their_bin(kind, border, share):
    source = masks.GeneratedMasks(kind, share, border=border)
    known = source(64, 80, np.random.default_rng(3))
    assert known.dtype == np.float32
    assert set(np.unique(known)) == {0, 1}
    hole = 1 - known.mean()
    assert share[0] <= hole + 0.02
    assert hole <= share[1] + 0.12  # a stroke or box is added whole
    if not border:
        assert known[0].all()
        assert known[:, -1].all()


def test_a_walk_as_published_covers_a_sixth():
    shares = [masks.random_walk(128, 128, seed=seed).mean() for seed in range(4)]
    assert 0.08 < np.mean(shares) < 0.35


def test_masks_depend_on_their_generator_alone():
    for kind in masks.KINDS:
        source = masks.GeneratedMasks(kind)
        one, same, other = (source(40, 40, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)


@pytest.mark.parametrize("white", ["hole", "known"])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.filterwarnings("ignore:.*neither black nor white")
def test_mask_files(white, binary, tmp_path):
    values = np.zeros((20, 30), np.uint8)
    values[:, 10:20] = 255
    values[0, 10] = 1
    Image.fromarray(values).save(tmp_path / "mask.png")
    source = masks.MaskFolder(tmp_path, white=white, binary=binary, threshold=0)
    known = source(20, 20, np.random.default_rng(0))
    bright = known == 1 if white == "known" else known == 0
    assert bright[5, 5:15].all()
    assert not bright[5, 0]
    assert bright[0, 5] == binary  # at the published threshold
    known = masks.MaskFolder(tmp_path, white=white)(20, 20, np.random.default_rng(0))
    assert (known[0, 5] == 1) == (white == "hole")


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_split_the_same_batches(world):
    whole = EpochBatches(14, 6, seed=4)
    parts = [EpochBatches(14, 6 // world, seed=4, rank=rank, world=world) for rank in range(world)]
    for joined, *split in itertools.islice(zip(whole, *parts, strict=True), 7):
        assert joined == [place for part in split for place in part]


def test_batches_start_anywhere():
    whole = list(itertools.islice(EpochBatches(7, 2, seed=1), 9))
    for start in (1, 3, 5):
        rest = list(itertools.islice(EpochBatches(7, 2, seed=1, start=start), 9 - start))
        assert rest == whole[start:]
    assert [place[0] for place, _ in whole[:6]] == [0, 0, 0, 1, 1, 1]


def test_a_folder_smaller_than_a_batch_is_repeated():
    (batch,) = itertools.islice(EpochBatches(3, 8, seed=1), 1)
    assert [place[1] for place in batch] == list(range(8))
    assert {place[2] for place in batch} == {0, 1, 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_do_not_depend_on_workers(workers, photos):
    preparation = Preparation(32, fit="crop", flip=0.5, flip_mask="apart")
    dataset = MaskedImages(photos, masks.GeneratedMasks(), preparation, noise=(2, 3), seed=5)
    batches = loader(dataset, EpochBatches(len(dataset), 2, seed=5), workers=workers)
    got = list(itertools.islice(batches, 4))
    assert got[0]["image"].shape == (2, 3, 32, 32)
    assert got[0]["known"].shape == (2, 1, 32, 32)
    assert got[0]["noise"].shape == (2, 2, 3)
    places = list(itertools.islice(EpochBatches(len(dataset), 2, seed=5), 4))
    for batch, wanted in zip(got, places, strict=True):
        for i, place in enumerate(wanted):
            sample = dataset[place]
            assert all(batch[key][i].equal(sample[key]) for key in ("image", "known", "noise"))
            assert batch["name"][i] == sample["name"]


def test_a_broken_file_is_named_and_replaced(tmp_path, photos):
    for path in sorted(photos.iterdir())[:2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    dataset = MaskedImages(tmp_path, None, Preparation(16))
    index = [path.name for path in dataset.files].index("broken.png")
    with pytest.warns(UserWarning, match=r"left out: cannot read .*broken\.png"):
        sample = dataset[0, 0, index]
    assert "known" not in sample
    assert not sample["name"].endswith("broken.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # named once
        assert dataset[0, 0, index]["image"].equal(sample["image"])
    again = MaskedImages(tmp_path, None, Preparation(16))
    with pytest.warns(UserWarning, match="left out"):
        assert again[0, 0, index]["name"] == sample["name"]


@pytest.mark.filterwarnings("ignore:left out")
def test_workers_replace_broken_files_alike(tmp_path, photos):
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "coffee-2.png").write_bytes(b"\x89PNG nothing")
    (tmp_path / "chelsea-9.png").write_bytes((tmp_path / "chelsea-0.png").read_bytes()[:600])
    names = []
    for workers in (0, 2):
        dataset = MaskedImages(tmp_path, masks.GeneratedMasks(), Preparation(16))
        batches = loader(dataset, EpochBatches(len(dataset), 2, seed=5), workers=workers)
        names.append([batch["name"] for batch in itertools.islice(batches, 8)])
        assert int(dataset.files.broken.sum()) == 2
    assert names[0] == names[1]


def test_none_readable_is_an_error(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"nothing")
    dataset = MaskedImages(tmp_path, None, Preparation(16))
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match=r"none of 2 files can be read: cannot read .*png"),
    ):
        dataset[0, 0, 1]


def test_hidden_files_are_left_out(tmp_path, photos):
    (tmp_path / "inner" / ".cache").mkdir(parents=True)
    (tmp_path / "__MACOSX").mkdir()
    source = next(iter(photos.iterdir())).read_bytes()
    for name in ("inner/a.png", "inner/.cache/b.png"):
        (tmp_path / name).write_bytes(source)
    for name in ("._a.png", "__MACOSX/._a.png", ".DS_Store", "inner/Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert find_images(tmp_path) == [tmp_path / "inner" / "a.png"]
    hidden = tmp_path / "inner" / ".cache"
    assert find_images(hidden) == [hidden / "b.png"]  # given by name


def test_masks_that_cannot_be_used_are_replaced(tmp_path):
    good = np.zeros((20, 20), np.uint8)
    good[5:15, 5:15] = 255
    Image.fromarray(good).save(tmp_path / "good.png")
    Image.fromarray(good * 0).save(tmp_path / "empty.png")
    Image.fromarray(good * 0 + 255).save(tmp_path / "full.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    source = masks.MaskFolder(tmp_path)
    with pytest.warns(UserWarning, match="left out") as warned:
        drawn = [source(20, 20, np.random.default_rng(seed)) for seed in range(20)]
    assert all(np.array_equal(known == 0, good > 0) for known in drawn)
    texts = sorted(str(warning.message).split("/")[-1].split(":")[0] for warning in warned)
    assert texts == ["broken.png", "empty.png", "full.png"]
    (tmp_path / "good.png").unlink()
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="none of 3 files can be read"),
    ):
        masks.MaskFolder(tmp_path)(20, 20, np.random.default_rng(0))


def test_soft_masks_are_warned_of_once(tmp_path):
    values = np.zeros((40, 40), np.uint8)
    values[10:30, 10:30] = 255
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(values).filter(ImageFilter.GaussianBlur(2)).save(tmp_path / name)
    source = masks.MaskFolder(tmp_path)
    with pytest.warns(UserWarning, match="neither black nor white") as warned:
        drawn = [source(40, 40, np.random.default_rng(seed)) for seed in range(6)]
    assert len(warned) == 1
    for known in drawn:
        assert (known == 0).sum() == pytest.approx(400, rel=0.1)


@pytest.mark.parametrize(
    "given, message",
    [
        (np.full((16, 16), 255, np.uint8), "masks: expected values from 0 to 1, got 255"),
        (np.full((16, 16), np.nan), "masks: expected values from 0 to 1, got nan"),
        (np.ones((1, 16, 16)), r"masks: expected an array of the shape \(16, 16\) .*\(1, 16, 16\)"),
    ],
)
def test_a_source_of_other_masks_is_named(given, message, photos):
    dataset = MaskedImages(photos, lambda height, width, random: given, Preparation(16))
    with pytest.raises(ValueError, match=message):
        dataset[0, 0, 0]


def test_a_source_may_give_bools(photos):
    dataset = MaskedImages(photos, lambda *_: np.eye(16, dtype=bool), Preparation(16))
    assert dataset[0, 0, 0]["known"].equal(torch.eye(16)[None])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_any_picture_becomes_rgb(mode, tmp_path):
    path = tmp_path / ("picture.tif" if mode in ("CMYK", "I;16") else "picture.png")
    values = np.tile(np.arange(0, 240, 8, dtype=np.uint8), (20, 1))
    if mode == "I;16":
        Image.fromarray(values.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(values).convert("RGB").convert(mode).save(path)
    tensor = pictures.to_tensor(pictures.read_image(path))
    assert tensor.shape == (3, 20, 30)
    assert 0 <= tensor.min() <= 0.05
    assert tensor.max() > 0.85


def test_folders_without_images(tmp_path):
    with pytest.raises(ValueError, match="expected a folder of images"):
        find_images(tmp_path / "absent")
    with pytest.raises(ValueError, match="expected images"):
        find_images(tmp_path)


def test_pictures_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    picture = pictures.to_picture(torch.rand(3, 8, 8))
    pictures.write(picture, tmp_path / "a.png")

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        pictures.write(picture, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Image.open(tmp_path / "a.png").load()


def test_composite_keeps_nan_out():
    known = torch.tensor([1.0, 0.0, 0.25])[None, None, None]
    image, filled = torch.full((1, 3, 1, 3), 4.0), torch.full((1, 3, 1, 3), 8.0)
    image[..., 1] = filled[..., 0] = float("nan")
    result = pictures.composite(image, known, filled)
    assert result[0, 0, 0].tolist() == [4, 8, 7]


@pytest.mark.parametrize("value", [2.0, -0.5, float("nan")])
def test_composite_refuses_other_masks(value):
    image = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"known: expected values from 0 to 1"):
        pictures.composite(image, torch.full((1, 1, 4, 4), value), image)


def test_composite_takes_bools():
    known = torch.eye(4, dtype=torch.bool)[None, None]
    result = pictures.composite(torch.ones(1, 3, 4, 4), known, torch.zeros(1, 3, 4, 4))
    assert result.equal(known.float().expand(1, 3, 4, 4))


@pytest.mark.parametrize("make", [masks.irregular_hole, masks.random_walk, masks.boxes])
@pytest.mark.parametrize("share", [1.5, -0.1, float("nan")])
def test_shares_that_never_end_are_refused(make, share):
    with pytest.raises(ValueError, match="share: expected 0 to 1, got"):
        make(8, 8, share=share)
    with pytest.raises(ValueError, match="height, width: expected at least 1, got 0 x 8"):
        make(0, 8, share=0.5)


def test_a_flip_is_a_probability():
    with pytest.raises(ValueError, match="flip: expected a probability from 0 to 1, got 5"):
        Preparation(16, flip=5)


def test_a_picture_of_nan_is_a_broken_file(tmp_path):
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(pictures.UnreadableError, match=r"cannot read .*a\.tif: .*finite"):
        pictures.read_image(tmp_path / "a.tif")
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    values[0, 0], values[7, 7] = np.inf, np.nan
    Image.fromarray(values).save(tmp_path / "b.tif")
    assert np.asarray(pictures.read_image(tmp_path / "b.tif")).max() == 255


@pytest.mark.parametrize("white", ["hole", "known"])
def test_masks_with_alpha_in_a_folder(white, tmp_path):
    shape = np.zeros((20, 20), bool)
    shape[5:15, 5:15] = True
    photo = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    for name, colours, alpha in (
        ("strokes", np.full_like(photo, 255), shape),
        ("cut", photo, ~shape),
    ):
        folder = tmp_path / name
        folder.mkdir()
        pixels = np.dstack((colours, alpha.astype(np.uint8) * 255))
        Image.fromarray(pixels).save(folder / "mask.png")
        known = masks.MaskFolder(folder, white=white)(20, 20, np.random.default_rng(0))
        drawn_is_known = name == "strokes" and white == "known"
        assert np.array_equal(known == 1, shape if drawn_is_known else ~shape), name
