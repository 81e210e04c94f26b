"""`python -m torchext.models`: train, edit and info of every paper, on plain files."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.training import SMALL

from torchext.models import papers
from torchext.models.__main__ import main

# Parameters at the published size, as the papers' cards count them.
PARAMETERS = {
    # Those that are trained; the published count has as many frozen ones in the mask kernels.
    "partial_convolutions": {"generator": 25_779_796},
    "region_normalization": {"generator": 11_596_591, "discriminator": 2_763_776},
    "pd_gan": {
        "encoder": 60_039_936,
        "decoder": 18_098_499,
        "generator": 186_007_263,
        "discriminator": 5_533_826,
    },
}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    values = np.random.default_rng(0).integers(0, 256, (75, 90, 3), np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.png"
    values = np.zeros((75, 90), np.uint8)
    values[20:40, 30:70] = 255
    Image.fromarray(values).save(path)
    return path


def small_checkpoint(name: str, folder: Path, seed: int = 0) -> Path:
    paper = papers.find(name)
    config = papers.configure(paper.config, SMALL[name])
    torch.manual_seed(seed)
    path = folder / f"{name}.safetensors"
    papers.save(path, paper, config, paper.networks(config))
    return path


@pytest.mark.parametrize("name", papers.NAMES)
def test_edit_fills_the_hole_of_a_photo_of_any_size(name, photo, mask, tmp_path, capsys):
    checkpoint = small_checkpoint(name, tmp_path)
    output = tmp_path / "out.png"
    command = [name, "edit", str(photo), str(mask), "-o", str(output)]
    assert main([*command, "--checkpoint", str(checkpoint)]) == 0
    assert f"wrote {output}" in capsys.readouterr().out
    before, after = (np.asarray(Image.open(path)) for path in (photo, output))
    hole = np.asarray(Image.open(mask)) > 0
    assert np.array_equal(before[~hole], after[~hole])
    assert (before[hole] != after[hole]).mean() > 0.5


def test_edit_writes_several_samples(photo, mask, tmp_path):
    checkpoint = small_checkpoint("pd_gan", tmp_path)
    command = ["pd_gan", "edit", str(photo), str(mask), "-o", str(tmp_path / "out.png")]
    assert main([*command, "--checkpoint", str(checkpoint), "--samples", "3"]) == 0
    pictures = [np.asarray(Image.open(tmp_path / f"out-{i}.png")) for i in range(3)]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])


def test_edit_does_not_read_the_hole(photo, mask, tmp_path):
    for name in papers.NAMES:
        checkpoint = small_checkpoint(name, tmp_path)
        results = []
        for value in (0, 200):
            values = np.asarray(Image.open(photo)).copy()
            values[np.asarray(Image.open(mask)) > 0] = value
            other = tmp_path / "other.png"
            Image.fromarray(values).save(other)
            output = tmp_path / "out.png"
            command = [name, "edit", str(other), str(mask), "-o", str(output)]
            assert main([*command, "--checkpoint", str(checkpoint)]) == 0
            results.append(np.asarray(Image.open(output)))
        if name != "pd_gan":  # scales the photo first, so that hole and known pixels mix
            assert np.array_equal(*results)


@pytest.mark.parametrize("name", papers.NAMES)
def test_info_counts_as_published(name, capsys):
    if name == "pd_gan":  # counted without a forward pass, which takes seconds at this size
        paper = papers.find(name)
        with torch.device("meta"):
            networks = paper.networks(paper.config())
        assert {k: papers.parameters(n) for k, n in networks.items()} == PARAMETERS[name]
        return
    assert main([name, "info"]) == 0
    text = capsys.readouterr().out
    for network, count in PARAMETERS[name].items():
        assert f"{network}: {count:,} parameters" in text
    assert "our layers" in text


def test_train_and_resume(photos, vgg_file, tmp_path, capsys):
    command = ["partial_convolutions", "train", str(photos), "-o", str(tmp_path / "run")]
    command += ["--vgg", str(vgg_file), "--device", "cpu", "--workers", "0", "--batch", "2"]
    for name, value in SMALL["partial_convolutions"].items():
        command += ["--set", f"{name}={value}"]
    assert main([*command, "--iterations", "1"]) == 0
    assert main([*command, "--iterations", "2"]) == 1
    assert "earlier run" in capsys.readouterr().err
    assert main([*command, "--iterations", "2", "--resume"]) == 0
    assert "2 iterations" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mask": "small.png"}, "expected the photo's size, 90 x 75 pixels, got 10 x 10"),
        ({"photo": "absent.png"}, "cannot read .*absent.png: No such file"),
        ({"photo": "text.png"}, "text.png: not a picture that Pillow knows"),
        ({"checkpoint": "absent.pth"}, "absent.pth: expected a checkpoint, found no such file"),
        ({"checkpoint": "cut.safetensors"}, "cut.safetensors: cut off"),
        ({"checkpoint": "cut.pth"}, "cut.pth: cut off, or no checkpoint"),
        (
            {"checkpoint": "partial_convolutions.safetensors"},
            "a checkpoint of partial_convolutions, expected region_normalization",
        ),
        ({"output": "out.txt"}, "expected a name that ends as pictures do"),
    ],
)
def test_bad_input_is_named(change, message, photo, mask, tmp_path, capsys):
    whole = small_checkpoint("region_normalization", tmp_path)
    small_checkpoint("partial_convolutions", tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:5000])
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:500])
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (10, 10)).save(tmp_path / "small.png")
    given = {"photo": photo, "mask": mask, "checkpoint": whole, "output": tmp_path / "out.png"}
    given |= {key: tmp_path / value for key, value in change.items()}
    command = ["region_normalization", "edit", str(given["photo"]), str(given["mask"])]
    command += ["-o", str(given["output"]), "--checkpoint", str(given["checkpoint"])]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error


@pytest.mark.parametrize(
    "setting, message",
    [
        ("depth=3", "depth: expected one of the options"),
        ("threshold", "expected NAME=VALUE"),
        ("scope=image", "scope: expected one of"),
        ("width=wide", "width: expected int"),
        ("sigmoid=perhaps", "sigmoid: expected true or false"),
        ("sigmoid=false", "'probability' needs the option sigmoid"),
    ],
)
def test_bad_settings_are_named(setting, message, capsys):
    assert main(["region_normalization", "info", "--set", setting]) == 1
    assert message in capsys.readouterr().err


def test_folder_without_images_is_named(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("nothing to see")
    command = ["region_normalization", "train", str(tmp_path), "-o", str(tmp_path / "run")]
    assert main([*command, "--device", "cpu"]) == 1
    assert "expected images" in capsys.readouterr().err
