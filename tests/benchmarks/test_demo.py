"""The demo on a small photo: it learns, never reads the hole, and refuses what it cannot use."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("skimage")

from PIL import Image

from benchmarks import demo


@pytest.fixture(scope="module")
def photo() -> Path:
    import skimage.data

    picture = Image.fromarray(skimage.data.chelsea()).resize((72, 56))
    return demo.pictures.to_tensor(picture)[None]


def hole() -> torch.Tensor:
    known = torch.ones(1, 1, 56, 72)
    known[..., 20:30, 20:50] = 0
    return known


@pytest.mark.slow
def test_the_hole_is_never_read(photo):
    fills = [demo.run(image, hole(), scale=0.03) for image in (photo, photo * hole())]
    for one, other in zip(*fills, strict=True):
        assert torch.equal(one.image * (1 - hole()), other.image * (1 - hole()))
        assert torch.equal(one.image * hole(), photo * hole())
        assert one.psnr > 8


@pytest.mark.parametrize("make", [demo.partial_convolution, demo.region_normalization])
def test_published_layers_compute_the_same(make, photo):
    torch.manual_seed(0)
    variant = make(1.0)
    image = photo[..., :32, :64]
    ours = variant.network
    theirs = variant.with_published_layers
    if make is demo.partial_convolution:  # the demo trains the paper's form, they have the other
        ours = demo.PConvUNet(5, width=24)
        theirs = demo.published.UNet(ours)
    results = [
        variant.predict(network.train(), image, hole()[..., :32, :64]) for network in (ours, theirs)
    ]
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_sheet_is_written(tmp_path, photo, capsys):
    demo.pictures.write(demo.pictures.to_picture(photo[0]), tmp_path / "photo.png")
    arguments = ["--image", str(tmp_path / "photo.png"), "--scale", "0.01"]
    assert demo.main([*arguments, "--output", str(tmp_path / "sheet.png")]) == 0
    assert np.asarray(Image.open(tmp_path / "sheet.png").convert("L")).std() > 10
    text = capsys.readouterr().out
    assert all(name in text for name in ("partial convolutions", "region norm", "biharmonic", "dB"))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path.write_text("no picture"), "not a picture that Pillow knows"),
        (lambda path: Image.new("RGB", (20, 90)).save(path), "at least 32 pixels a side"),
    ],
)
def test_refusals(make, message, tmp_path, capsys):
    make(tmp_path / "photo.png")
    with pytest.raises(SystemExit):
        demo.main(["--image", str(tmp_path / "photo.png")])
    assert message in capsys.readouterr().err
