"""The example that changes the colour of hair, in two iterations of each stage."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("skimage")

from PIL import Image

from examples import maggan_edit
from torchext.models import papers
from torchext.models.face_labels import BISENET_NAMES


def test_hair_gets_another_colour(tmp_path, capsys):
    output = tmp_path / "output"
    assert maggan_edit.main(["--iterations", "2", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert text.count("$ python -m torchext.models maggan train") == 2
    assert text.count("$ python -m torchext.models maggan edit") == 5
    assert "2 iterations of the parser and 2 of the generator" in text
    assert "without trained weights" in text
    pictures = {path.stem: np.asarray(Image.open(path)) for path in output.glob("*.png")}
    assert pictures["random"].shape == (1024, 1024, 3)  # the paper's size
    small = [pictures[name] for name in ("blond", "black", "stronger")]
    for i, one in enumerate(small):
        assert one.shape == (maggan_edit.SIZE, maggan_edit.SIZE, 3)
        assert all(not np.array_equal(one, other) for other in small[:i])
    assert pictures["pasted"].shape == pictures["photo"].shape
    assert pictures["sheet"].std() > 10
    networks, config = papers.load(output / "editing.safetensors", papers.find("maggan"))
    assert [*networks] == ["generator", "discriminator"]
    assert config.network.attributes == maggan_edit.COLOURS
    assert [*papers.load(output / "parser.safetensors", papers.find("maggan"))[0]] == ["parser"]


def test_the_photos_that_are_learnt_from(tmp_path):
    maggan_edit.write_files(tmp_path)
    labels = np.asarray(Image.open(tmp_path / "labels.png"))
    assert {BISENET_NAMES[label] for label in np.unique(labels)} == {
        "background",
        *(name for name, _ in maggan_edit.PARTS),
    }
    hair = labels == BISENET_NAMES.index("hair")
    folder = tmp_path / "windows" / "photos"
    photo, black, blond = (
        np.asarray(Image.open(path)).astype(float)
        for path in (
            tmp_path / "photo.png",
            folder / "Black_Hair-0.png",
            folder / "Blond_Hair-0.png",
        )
    )
    assert black[hair].mean() < 0.5 * photo[hair].mean()
    assert blond[hair].mean() > 1.2 * photo[hair].mean()
    assert np.array_equal(
        black[labels == BISENET_NAMES.index("mouth")], photo[labels == BISENET_NAMES.index("mouth")]
    )
    lines = (tmp_path / "attributes.txt").read_text().splitlines()
    assert len(lines) == 1 + len([*folder.iterdir()]) == 1 + 3 * maggan_edit.WINDOWS
