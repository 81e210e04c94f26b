"""The example that edits a suit, in two iterations."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("skimage")

from PIL import Image

from examples import fe_gan_edit
from torchext.models import papers


def test_a_suit_is_edited(tmp_path, capsys):
    output = tmp_path / "output"
    assert fe_gan_edit.main(["--iterations", "2", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert text.count("$ python -m torchext.models fe_gan train") == 2
    assert text.count("$ python -m torchext.models fe_gan edit") == 5
    assert "2 iterations of the parsing network, 2 of the inpainting network" in text
    assert "without trained weights" in text
    pictures = {path.stem: np.asarray(Image.open(path)) for path in output.glob("*.png")}
    photo = np.asarray(Image.open(output / "photos" / "rgb.png"))
    assert photo.shape == (512, 320, 3)  # the paper's size
    inside = pictures["hole"] > 0
    edits = [pictures[name] for name in ("random", "plain", "lines", "strokes", "both")]
    for i, one in enumerate(edits):
        assert np.array_equal(one[~inside], photo[~inside])
        assert (one[inside] != photo[inside]).any(axis=1).mean() > 0.9
        assert all(not np.array_equal(one, other) for other in edits[:i])
    assert pictures["both-parsing"].shape == photo.shape[:2]
    assert pictures["sheet"].std() > 10
    networks, config = papers.load(output / "networks.safetensors", papers.find("fe_gan"))
    assert {*networks} == {"parsing", "generator", "discriminator"}
    assert config.network.width == fe_gan_edit.SETTINGS["width"]
