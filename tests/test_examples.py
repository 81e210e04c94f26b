"""The examples that train and edit, in two iterations."""

import json
from dataclasses import asdict

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("skimage")

from PIL import Image

from benchmarks import networks
from examples import commands, dagan_edit, gallery, train_and_edit
from torchext.models import papers


@pytest.mark.parametrize(
    "paper, stages",
    [("region_normalization", 1), ("partial_convolutions", 1), ("pd_gan", 2)],
)
def test_training_and_editing_meet(paper, stages, tmp_path, capsys):
    output = tmp_path / "output"
    how = ["--iterations", "2", "--output", str(output), "--paper", paper]
    assert train_and_edit.main(how) == 0
    text = capsys.readouterr().out
    assert text.count(f"$ python -m torchext.models {paper} train") == stages
    assert text.count(f"$ python -m torchext.models {paper} edit") == 1
    assert text.count(" dB, SSIM ") == 2
    assert " of the paper's width" in text
    assert f"{' and '.join(['2'] * stages)} iterations on" in text

    photo, mask, filled = (
        np.asarray(Image.open(output / f"{name}.png")) for name in ("photo", "mask", "filled")
    )
    changed = (photo != filled).any(axis=2)
    assert not changed[mask == 0].any()
    assert changed[mask > 0].mean() > 0.9
    assert np.asarray(Image.open(output / "sheet.png").convert("L")).std() > 10
    _, config = papers.load(output / "network.safetensors", papers.find(paper))
    assert config.network.width == train_and_edit.EXAMPLES[paper].settings["width"]


def test_label_maps_become_photos(tmp_path, capsys):
    output = tmp_path / "output"
    assert dagan_edit.main(["--iterations", "2", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert text.count("$ python -m torchext.models dagan train") == 1
    assert text.count("$ python -m torchext.models dagan edit") == 3
    assert "2 iterations of a quarter of the paper's width" in text
    assert "without trained weights" in text
    pictures = {path.stem: np.asarray(Image.open(path)) for path in output.glob("*.png")}
    assert pictures["random"].shape == (256, 256, 3)  # the paper's size
    assert pictures["photo-of-map"].shape == (dagan_edit.SIZE, dagan_edit.SIZE, 3)
    maps = pictures["map"], pictures["changed"]
    assert 0.05 < (maps[0] != maps[1]).mean() < 0.15
    assert not np.array_equal(pictures["photo-of-map"], pictures["photo-of-changed"])
    assert pictures["sheet"].std() > 10
    networks, config = papers.load(output / "network.safetensors", papers.find("dagan"))
    assert networks["generator"].conv_img.in_channels == dagan_edit.SETTINGS["width"]
    assert config.network.labels == dagan_edit.CLASSES


@pytest.mark.parametrize(
    "name, most", [("astronaut", 0.4), ("coffee", 0.4), (dagan_edit.EDITED, 0.8)]
)
def test_classes_are_colours_of_segments(name, most):
    labels, photo = dagan_edit.label_map(name), dagan_edit.photograph(name).astype(float)
    assert len(np.unique(labels)) > 5
    assert labels.max() < dagan_edit.CLASSES
    distance = np.abs(dagan_edit.class_colours()[labels] - photo).mean()
    assert distance < most * np.abs(photo.mean((0, 1)) - photo).mean()


def test_gallery_shows_a_paper(tmp_path):
    rows = [asdict(networks.Row("PConv U-Net L=7 256", "float32", "inference", 30, 10, None))]
    machine = {"processor": "a processor", "threads": 2, "torch": "2"}
    results = tmp_path / "networks.json"
    results.write_text(json.dumps({"machine": machine, "rows": rows}))
    folders = ["--output", str(tmp_path), "--results", str(tmp_path)]
    assert gallery.main(["--iterations", "2", "--papers", "partial_convolutions", *folders]) == 0
    page = (tmp_path / "gallery.md").read_text()
    assert page.count("\n## ") == 1
    assert "![photo, not in the training; hole; fill](gallery/partial_convolutions.jpg)" in page
    assert "No trained weights come with the\npackage" in page
    assert "2 iterations on" in page
    assert "inference**: published 30 ms, ours 10 ms, **3.00x**" in page
    assert "a processor, 2 threads" in page
    picture = np.asarray(Image.open(tmp_path / "gallery" / "partial_convolutions.jpg"))
    assert picture.shape[1] > 3 * 250
    assert picture.std() > 10
    (tmp_path / "gallery.md").unlink()
    assert gallery.main(["--papers", *folders]) == 0  # of what is known
    assert (tmp_path / "gallery.md").read_text() == page


def test_gallery_has_every_paper():
    assert set(gallery.ENTRIES) == set(papers.NAMES)
    assert {entry.network for entry in gallery.ENTRIES.values()} == set(networks.NETWORKS)


@pytest.mark.parametrize("example", [train_and_edit, dagan_edit])
def test_the_photo_to_edit_is_not_learnt_from(example, tmp_path):
    count = example.write_tiles(tmp_path / "photos")
    names = {path.name for path in tmp_path.rglob("*.png")}
    assert len(names) == count > 100
    assert not any(example.EDITED in name for name in names)
    assert {name.split("-")[0] for name in names} == set(example.LEARNT)


@pytest.mark.parametrize("seconds, expected", [(100, [20, 38, 56, 75, 94]), (8, [20])])
def test_training_fills_the_seconds_in_stretches(seconds, expected, monkeypatch):
    now, trained = 0.0, [0]

    def train(iterations: int) -> None:
        """A second for each iteration and one for every start."""
        nonlocal now
        now += 1 + iterations - trained[-1]
        trained.append(iterations)

    monkeypatch.setattr(commands.time, "perf_counter", lambda: now)
    assert commands.train_for(seconds, train) == expected[-1]
    assert trained[1:] == expected
    assert now <= max(seconds, 21)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seconds", "0"], "--seconds: expected more than 0, got 0"),
        (["--iterations", "0"], "--iterations: expected at least 1, got 0"),
    ],
)
def test_refusals(arguments, message, capsys):
    for example in (train_and_edit, dagan_edit):
        with pytest.raises(SystemExit):
            example.main(arguments)
        assert message in capsys.readouterr().err


def test_a_command_that_fails_ends_the_example(tmp_path):
    with pytest.raises(SystemExit, match="the command above failed"):
        commands.run("dagan", "edit", tmp_path, "-o", "x.png", "--checkpoint", tmp_path)
