"""The example that paints on a label map, in two iterations."""

import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("skimage")

from PIL import Image

from examples import maskgan_edit
from torchext.models import papers


def test_strokes_change_a_photo(tmp_path, capsys):
    output = tmp_path / "output"
    assert maskgan_edit.main(["--iterations", "2", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert text.count("$ python -m torchext.models maskgan train") == 1
    assert text.count("$ python -m torchext.models maskgan edit") == 4
    assert "2 iterations of a quarter of the paper's width" in text
    assert "without trained weights" in text
    pictures = {path.stem: np.asarray(Image.open(path)) for path in output.glob("*.png")}
    assert pictures["random"].shape == (512, 512, 3)  # the paper's size
    size = maskgan_edit.SIZE
    assert pictures["edited"].shape == pictures["again"].shape == (size, size, 3)
    assert not np.array_equal(pictures["edited"], pictures["again"])
    assert pictures["pasted"].shape == pictures["photo"].shape
    changed = (pictures["pasted"] != pictures["photo"]).any(axis=2)
    [stroke] = json.loads((output / "strokes.json").read_text())
    scale = len(changed) / size
    on_stroke = [changed[int(y * scale), int(x * scale)] for x, y in stroke["points"]]
    assert np.mean(on_stroke) > 0.7  # where the map was not of that class before
    assert 0.1 < changed.mean() < 0.6
    assert pictures["sheet"].std() > 10
    networks, config = papers.load(output / "networks.safetensors", papers.find("maskgan"))
    assert [*networks] == ["generator", "discriminator", "mask_vae"]
    assert config.network.labels == maskgan_edit.CLASSES
