"""The example that trains and edits, in two iterations."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("skimage")

from PIL import Image

from examples import train_and_edit
from torchext.models import papers


def test_training_and_editing_meet(tmp_path, capsys):
    output = tmp_path / "output"
    assert train_and_edit.main(["--iterations", "2", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert text.count("$ python -m torchext.models region_normalization train") == 1
    assert text.count("$ python -m torchext.models region_normalization edit") == 1
    assert text.count(" dB, SSIM ") == 2
    assert "a quarter of the paper's width" in text
    assert "2 iterations on" in text

    photo, mask, filled = (
        np.asarray(Image.open(output / f"{name}.png")) for name in ("photo", "mask", "filled")
    )
    changed = (photo != filled).any(axis=2)
    assert not changed[mask == 0].any()
    assert changed[mask > 0].mean() > 0.9
    assert np.asarray(Image.open(output / "sheet.png").convert("L")).std() > 10
    networks, _ = papers.load(output / "network.safetensors", papers.find(train_and_edit.PAPER))
    assert networks["generator"].encoder_conv1.out_channels == train_and_edit.SETTINGS["width"]


def test_the_photo_to_edit_is_not_learnt_from(tmp_path):
    count = train_and_edit.write_tiles(tmp_path / "photos")
    names = [path.name for path in (tmp_path / "photos").iterdir()]
    assert len(names) == count > 100
    assert not any(train_and_edit.EDITED in name for name in names)
    assert {name.split("-")[0] for name in names} == set(train_and_edit.LEARNT)


@pytest.mark.parametrize("seconds, expected", [(100, [20, 38, 56, 75, 94]), (8, [20])])
def test_training_fills_the_seconds_in_stretches(seconds, expected, tmp_path, monkeypatch):
    now, trained = 0.0, [0]

    def train(photos: Path, folder: Path, iterations: int) -> None:
        """A second for each iteration and one for every start."""
        nonlocal now
        now += 1 + iterations - trained[-1]
        trained.append(iterations)

    monkeypatch.setattr(train_and_edit, "train", train)
    monkeypatch.setattr(train_and_edit.time, "perf_counter", lambda: now)
    assert train_and_edit.train_for(seconds, tmp_path, tmp_path) == expected[-1]
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
    with pytest.raises(SystemExit):
        train_and_edit.main(arguments)
    assert message in capsys.readouterr().err


def test_a_command_that_fails_ends_the_example(tmp_path):
    with pytest.raises(SystemExit, match="the command above failed"):
        train_and_edit.run("edit", tmp_path, tmp_path, "-o", "x.png", "--checkpoint", tmp_path)
