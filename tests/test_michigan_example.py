"""The example that edits hair, in two iterations."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("skimage")

from PIL import Image

from examples import michigan_edit
from torchext.models import papers


def test_hair_is_edited(tmp_path, capsys):
    output = tmp_path / "output"
    assert michigan_edit.main(["--iterations", "2", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert text.count("$ python -m torchext.models michigan train") == 2
    assert text.count("$ python -m torchext.models michigan edit") == 6
    assert "2 iterations of the networks that fill orientations, 2 of the generator" in text
    assert "without trained weights" in text
    pictures = {path.stem: np.asarray(Image.open(path)) for path in output.glob("*.png")}
    assert pictures["random"].shape == (512, 512, 3)  # the paper's size
    small = [pictures[name] for name in ("again", "look", "shape", "strokes")]
    for i, one in enumerate(small):
        assert one.shape == (michigan_edit.SIZE, michigan_edit.SIZE, 3)
        assert all(not np.array_equal(one, other) for other in small[:i])
    photo = np.asarray(Image.open(output / "photos" / "head.png"))
    assert pictures["all"].shape == photo.shape
    changed = (pictures["all"] != photo).any(axis=2)
    assert changed[pictures["longer"] > 0].mean() > 0.9
    assert changed.mean() < 0.5  # the face and the background stayed
    assert pictures["sheet"].std() > 10
    networks, config = papers.load(output / "networks.safetensors", papers.find("michigan"))
    assert {*networks} == {"generator", "discriminator", "orientation", "strokes"}
    assert config.network.width == michigan_edit.SETTINGS["width"]
