"""The example that edits a photo by strokes on a generator's code, in two iterations."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("skimage")

from PIL import Image

from examples import semantic_photo_edit
from torchext.models import papers


def test_strokes_change_a_photo(tmp_path, capsys):
    output = tmp_path / "output"
    assert semantic_photo_edit.main(["--iterations", "2", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    name = semantic_photo_edit.PAPER
    assert text.count(f"$ python -m torchext.models {name} train") == 3
    assert text.count(f"$ python -m torchext.models {name} edit") == 5
    assert "2, 2, 2 iterations of its three stages" in text
    pictures = {path.stem: np.asarray(Image.open(path)) for path in output.glob("*.png")}
    assert pictures["random"].shape == (256, 256, 3)  # the paper's size
    size = semantic_photo_edit.SETTINGS["resolution"]
    assert pictures["edited"].shape == pictures["interactive"].shape == (size, size, 3)
    assert not np.array_equal(pictures["edited"], pictures["plain"])
    changed = (pictures["pasted"] != pictures["photo"]).any(axis=2)
    assert changed[pictures["mask"] > 0].mean() > 0.9
    assert 0.04 < changed.mean() < 0.5
    assert pictures["sheet"].std() > 10
    networks, config = papers.load(output / "networks.safetensors", papers.find(name))
    assert [*networks] == ["generator", "encoder"]
    assert config.network.width == semantic_photo_edit.SETTINGS["width"]
