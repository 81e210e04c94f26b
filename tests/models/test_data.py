"""Pictures, masks, and the order in which they come."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from torchext.models import masks, pictures
from torchext.models.data import EpochBatches, MaskedImages, Preparation, find_images, loader


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
def test_mask_files(white, binary, tmp_path):
    values = np.zeros((20, 30), np.uint8)
    values[:, 10:20] = 255
    values[0, 10] = 1
    Image.fromarray(values).save(tmp_path / "mask.png")
    source = masks.MaskFolder(tmp_path, white=white, binary=binary)
    known = source(20, 20, np.random.default_rng(0))
    bright = known == 1 if white == "known" else known == 0
    assert bright[5, 5:15].all()
    assert not bright[5, 0]
    assert bright[0, 5] == binary


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
