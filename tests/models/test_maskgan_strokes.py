"""MaskGAN's strokes: OpenCV's lines pixel for pixel, and what covers what."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchext.models import papers
from torchext.models.__main__ import main
from torchext.models.maskgan import PAPER, Config, Stroke, networks, paint, read_strokes
from torchext.models.maskgan.strokes import draw_line
from torchext.models.paper import configure


def test_lines_are_those_of_opencv():
    """Pixels and checksums of `cv2.line` (5.0.0) on the same seeded lines, 60 x 64 pixels."""
    random = np.random.default_rng(5)
    for low, high, count, thickest, pixels, checksum in (
        (0, 60, 400, 15, 142_764, 215_623_894),  # inside
        (-40, 110, 400, 15, 99_124, 1_398_306_015),  # across the border
        (-20, 90, 100, 60, 103_919, 2_962_149_271),  # broad
    ):
        found = total = 0
        lines = [
            (*map(int, random.integers(low, high, 4)), int(random.integers(1, thickest + 1)))
            for _ in range(count)
        ]
        for x0, y0, x1, y1, thickness in lines:
            image = np.zeros((60, 64), np.int64)
            draw_line(image, (x0, y0), (x1, y1), 1, thickness)
            found = zlib.crc32(np.packbits(image.astype(np.uint8)).tobytes(), found)
            total += int(image.sum())
        assert (total, found) == (pixels, checksum)


def test_a_thin_line_joins_its_ends():
    image = np.zeros((8, 9), np.int64)
    draw_line(image, (1, 6), (7, 2), 5, 1)
    assert image[6, 1] == image[2, 7] == 5
    assert (image == 5).sum(0).tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0]


def test_what_covers_what():
    labels = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
    strokes = [Stroke(13, [(4, 4), (28, 4)], 3), Stroke(2, [(16, 0), (16, 31)], 5)]
    in_time = paint(labels, strokes)
    assert in_time.shape == (1, 1, 32, 32)
    assert in_time.dtype == torch.int64
    assert labels.eq(1).all()
    points = [(4, 4), (4, 16), (20, 16), (20, 4)]  # row, column
    assert [in_time[0, 0, y, x].item() for y, x in points] == [13, 2, 2, 1]
    by_label = paint(labels, strokes, order="label")
    assert [by_label[0, 0, y, x].item() for y, x in points] == [13, 13, 2, 1]
    assert paint(labels, strokes[::-1]).equal(by_label)
    assert paint(by_label, strokes, order="label").equal(by_label)  # drawn again
    dot = paint(labels, [Stroke(7, [(10, 20)], 1)])
    assert dot.ne(1).nonzero().tolist() == [[0, 0, 20, 10]]
    outside = paint(labels, [Stroke(7, [(-50, -50), (-40, 80)], 4)])
    assert outside.eq(1).all()


LABELS = torch.zeros(1, 1, 8, 8, dtype=torch.int64)


@pytest.mark.parametrize(
    "labels, stroke, order, error, message",
    [
        (LABELS, Stroke(1, [(0, 0)]), "size", ValueError, "order: expected 'time' or 'label'"),
        (LABELS[0, 0], Stroke(1, [(0, 0)]), "time", ValueError, "labels: expected the shape"),
        (LABELS.repeat(2, 1, 1, 1), Stroke(1, [(0, 0)]), "time", ValueError, r"\(1, 1, H, W\)"),
        (LABELS.float(), Stroke(1, [(0, 0)]), "time", TypeError, "labels: expected integers"),
        (LABELS + 19, Stroke(1, [(0, 0)]), "time", ValueError, "labels: .* 0 to 18, got 19"),
        (LABELS, Stroke(19, [(0, 0)]), "time", ValueError, r"strokes\[0\]: .* 0 to 18, got 19"),
        (LABELS, Stroke(1, []), "time", ValueError, r"strokes\[0\]: expected points .* one"),
        (LABELS, Stroke(1, [(0, 1 << 20)]), "time", ValueError, r"strokes\[0\]: expected points"),
        (LABELS, Stroke(1, [(0, 0)], 0), "time", ValueError, r"strokes\[0\]: .* 1 to 255, got 0"),
        (LABELS, Stroke(1, [(0, 0.5)]), "time", TypeError, r"strokes\[0\]: .* all integers"),
        (LABELS, Stroke(1, [3]), "time", TypeError, r"strokes\[0\]: expected a label, points"),
    ],
)
def test_bad_strokes(labels, stroke, order, error, message):
    with pytest.raises(error, match=message):
        paint(labels, [stroke], order=order)


def test_files_of_strokes(tmp_path: Path):
    path = tmp_path / "strokes.json"
    given = [
        {"label": "hair", "points": [[1, 2], [3, 4]], "thickness": 9},
        {"label": 4, "points": [[5, 6]]},
    ]
    path.write_text(json.dumps(given))
    expected = [Stroke(13, [(1, 2), (3, 4)], 9), Stroke(4, [(5, 6)], 6)]
    assert read_strokes(path) == expected
    for text in (
        "no JSON",
        "7",
        "[7]",
        '[{"label": "beard", "points": [[0, 0]]}]',
        '[{"label":1}]',
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"strokes\.json: expected strokes as"):
            read_strokes(path)
    with pytest.raises(FileNotFoundError):
        read_strokes(tmp_path / "none.json")


# --- the command ----------------------------------------------------------------------------------


SMALL = {"size": 128, "width": 4, "downsamplings": 2, "residual_blocks": 1}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small generator, a photo with its label map, and strokes; the paper is known."""
    if PAPER.name not in papers.names():
        monkeypatch.setitem(papers._added, PAPER.name, PAPER)
    torch.manual_seed(0)
    config = configure(Config, SMALL)
    papers.save(tmp_path / "saved", PAPER, config, networks(config, ["generator"]))
    random = np.random.default_rng(0)
    photo = random.integers(0, 256, (128, 128, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(np.ones((128, 128), np.uint8)).save(tmp_path / "labels.png")
    strokes = [
        {"label": "hair", "points": [[10, 20], [100, 20]], "thickness": 15},
        {"label": 2, "points": [[50, 0], [50, 100]], "thickness": 9},
    ]
    (tmp_path / "strokes.json").write_text(json.dumps(strokes))
    return tmp_path


def edit(folder: Path, *more: str) -> int:
    words = [str(folder / word) if (folder / word).exists() else word for word in more]
    command = ["maskgan", "edit", str(folder / "photo.png"), *words]
    command += ["-o", str(folder / "out.png"), "--checkpoint", str(folder / "saved")]
    return main(command)


@pytest.mark.parametrize("order", ["time", "label"])
def test_strokes_are_painted_over_the_map(order, folder):
    labels = torch.ones(1, 1, 128, 128, dtype=torch.int64)
    painted = paint(labels, read_strokes(folder / "strokes.json"), order=order)
    Image.fromarray(painted[0, 0].numpy().astype(np.uint8)).save(folder / "edited.png")
    results = []
    for more in (["edited.png"], ["--strokes", "strokes.json", "--order", order]):
        assert edit(folder, *more, "--labels", "labels.png") == 0
        results.append(np.asarray(Image.open(folder / "out.png")))
    assert np.array_equal(*results)
    assert edit(folder, "labels.png", "--labels", "labels.png") == 0
    assert not np.array_equal(results[0], np.asarray(Image.open(folder / "out.png")))


def test_a_style_alone_is_an_edit(folder, capsys):
    given = ("--labels", "labels.png", "--style", "photo.png", "--style-labels", "labels.png")
    assert edit(folder, *given) == 0
    with_style = (folder / "out.png").read_bytes()
    assert edit(folder, "labels.png", "--labels", "labels.png") == 0
    assert (folder / "out.png").read_bytes() == with_style  # the photo's own style


def test_nothing_to_edit(folder, capsys):
    assert edit(folder, "--labels", "labels.png") == 1
    assert "edited: expected a changed label map, --strokes or --style" in capsys.readouterr().err
    (folder / "strokes.json").write_text('[{"label": 19, "points": [[0, 0]]}]')
    assert edit(folder, "--labels", "labels.png", "--strokes", "strokes.json") == 1
    assert "strokes.json: expected strokes as" in capsys.readouterr().err
    assert not (folder / "out.png").exists()
