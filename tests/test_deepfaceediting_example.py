"""The example that edits a face part by part, in two iterations of each stage."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("skimage")

from PIL import Image

from examples import deepfaceediting_edit
from torchext.models import papers


def test_a_face_is_edited(tmp_path, capsys):
    output = tmp_path / "output"
    assert deepfaceediting_edit.main(["--iterations", "2", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert text.count("$ python -m torchext.models deepfaceediting train") == 4
    assert text.count("$ python -m torchext.models deepfaceediting edit") == 4
    assert "2 of sketch, 2 of image, 2 of appearance, 2 of fusion" in text
    assert "without trained weights" in text
    pictures = {path.stem: np.asarray(Image.open(path)) for path in output.glob("*.png")}
    assert pictures["random"].shape == (512, 512, 3)  # the paper's size
    small = [pictures[name] for name in ("again", "look", "mouth", "both")]
    for i, one in enumerate(small):
        assert one.shape == (deepfaceediting_edit.SIZE, deepfaceediting_edit.SIZE, 3)
        assert all(not np.array_equal(one, other) for other in small[:i])
    redrawn = pictures["redrawn"].astype(int)
    sketch = np.asarray(Image.open(output / "sketches" / "face.png")).astype(int)
    assert (redrawn != sketch)[160:216].any()
    assert not (redrawn != sketch)[:150].any()
    assert pictures["sheet"].std() > 10
    networks, config = papers.load(output / "networks.safetensors", papers.find("deepfaceediting"))
    assert {"fusion", "generator_mouth", "image_encoder_bg", "sketch_encoder_nose"} <= {*networks}
    assert config.network.width == deepfaceediting_edit.SETTINGS["width"]
