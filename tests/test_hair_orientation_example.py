"""The example of hair orientation, on scikit-image's photo."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("skimage")

from PIL import Image

from examples import hair_orientation


def test_hair_orientation(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert hair_orientation.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.count("$ python -m torchext.orientation") == 3
    angles = np.asarray(Image.open(tmp_path / "neuralhaircut/orientation_maps/photo.png"))
    assert angles.shape == (512, 512)
    assert set(np.unique(angles)) == set(range(180))
    sheet = np.asarray(Image.open(tmp_path / "hair-orientation.png").convert("L"))
    panels = [part for row in np.array_split(sheet, 2) for part in np.array_split(row, 3, axis=1)]
    assert all(panel.std() > 10 for panel in panels)
