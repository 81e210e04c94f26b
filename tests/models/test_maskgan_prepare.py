"""MaskGAN's data set: parts merged, photos split, masks decoded beforehand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchext.models import papers
from torchext.models.maskgan import PAPER, Config, MaskVAE, networks
from torchext.models.maskgan.prepare import decode, distribute, main, merge_data_set, split
from torchext.models.paper import configure

SIZE = 128


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Masks of three photos, in the folders that their numbers say."""
    folder = tmp_path / "masks"
    for number, parts in ((0, ("skin", "hair")), (7, ("skin",)), (2003, ("hair",))):
        (folder / str(number // 2000)).mkdir(parents=True, exist_ok=True)
        for part in parts:
            mask = np.zeros((6, 8), np.uint8)
            mask[: 4 if part == "skin" else 2] = 255
            path = folder / str(number // 2000) / f"{number:05d}_{part}.png"
            Image.fromarray(mask).convert("RGB").save(path)
    return folder


def test_all_photos_are_merged(annotations, tmp_path, capsys):
    output = tmp_path / "labels"
    assert main(["merge", str(annotations), "-o", str(output)]) == 0
    assert capsys.readouterr().out == "3 label maps\n"
    assert sorted(path.name for path in output.iterdir()) == ["0.png", "2003.png", "7.png"]
    rows = {0: [13, 13, 1, 1, 0, 0], 7: [1, 1, 1, 1, 0, 0], 2003: [13, 13, 0, 0, 0, 0]}
    for number, column in rows.items():
        labels = np.asarray(Image.open(output / f"{number}.png"))
        assert labels.dtype == np.uint8
        assert labels.T.tolist() == [column] * 8
    with pytest.raises(ValueError, match=r"expected folders 0, 1, \.\.\. with masks such as"):
        merge_data_set(output, tmp_path / "again")


MAPPING = """idx  orig_idx  orig_file
0    119613    119614.jpg
1    182638    182639.jpg
2    162770    162771.jpg
3    162771    162772.jpg
4    182637    182638.jpg
5    0         000001.jpg
"""


def test_photos_are_split_by_their_places(tmp_path, capsys):
    mapping = tmp_path / "mapping.txt"
    mapping.write_text(MAPPING)
    found = split(mapping)
    assert found == {"train": [0, 2, 5], "validation": [3, 4], "test": [1]}
    folder, output = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for number in (0, 1, 3, 4, 5):  # one is not there
        Image.new("RGB", (2, 2), (number, 0, 0)).save(folder / f"{number}.png")
    assert main(["split", str(mapping), str(folder), "-o", str(output)]) == 0
    assert capsys.readouterr().out == "train: 2, validation: 2, test: 1\n"
    reds = {
        str(path.relative_to(output)): Image.open(path).getpixel((0, 0))[0]
        for path in output.rglob("*.png")
    }
    assert reds == {
        "train/0.png": 0, "train/1.png": 5, "validation/0.png": 3, "validation/1.png": 4,
        "test/0.png": 1,
    }  # fmt: skip
    Image.new("RGB", (2, 2)).save(folder / "0.bmp")
    with pytest.raises(ValueError, match=r"expected one file of each number, got 0\.png twice"):
        distribute(folder, found, output)
    (folder / "0.bmp").unlink()
    with pytest.raises(ValueError, match=r"expected files such as 0\.png of the photos"):
        distribute(folder, {"train": [90]}, output)
    mapping.write_text(MAPPING + "6 here 7.jpg\n")
    assert main(["split", str(mapping), str(folder), "-o", str(output)]) == 1
    assert "mapping.txt, line 8: expected a photo's number and its place" in capsys.readouterr().err


def test_masks_are_decoded_once(tmp_path, capsys):
    folder, output = tmp_path / "labels", tmp_path / "decoded"
    folder.mkdir()
    for i in range(3):
        labels = np.full((SIZE, SIZE), i, np.uint8)
        Image.fromarray(labels).save(folder / f"{i}.png")
    torch.manual_seed(0)
    config = configure(Config, {"size": SIZE, "vae_width": 1, "code": 8})
    saved = tmp_path / "vae.safetensors"
    papers.save(saved, PAPER, config, networks(config, ["mask_vae"]))
    command = ["decode", str(folder), "--checkpoint", str(saved), "-o"]
    assert main([*command, str(output)]) == 0
    assert capsys.readouterr().out == "3 label maps\n"
    names = [f"{part}/{i}.png" for part in ("inter", "outer") for i in range(3)]
    assert sorted(str(path.relative_to(output)) for path in output.rglob("*.png")) == names
    decoded = np.asarray(Image.open(output / "inter" / "1.png"))
    assert decoded.shape == (SIZE, SIZE)
    assert decoded.max() < 19
    assert main([*command, str(tmp_path / "again")]) == 0
    for name in names:
        assert (output / name).read_bytes() == (tmp_path / "again" / name).read_bytes()

    # With a step of nothing, both are what MaskVAE makes of the map itself.
    vae = MaskVAE(19, 1, 1, 8, size=SIZE)
    assert decode(vae, folder, tmp_path / "own", lambda_inter=float("inf")) == 3
    labels = torch.from_numpy(np.asarray(Image.open(folder / "2.png")).copy())[None, None].long()
    with torch.no_grad():
        wanted = vae.decode(vae.encode(labels)[0]).argmax(1)[0]
    for part in ("inter", "outer"):
        own = np.asarray(Image.open(tmp_path / "own" / part / "2.png"))
        assert np.array_equal(own, wanted.numpy())

    papers.save(saved, PAPER, config, networks(config, ["parser"]))
    assert main([*command, str(output)]) == 1
    assert "expected a MaskVAE, found ['parser']" in capsys.readouterr().err
