"""The demo on a small photo: it learns, never reads the hole, keeps to its seconds, and refuses
what it cannot use.
"""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("skimage")

from PIL import Image

from examples import inpaint_one_photo as demo


@pytest.fixture(scope="module")
def photo() -> Tensor:
    import skimage.data

    picture = Image.fromarray(skimage.data.chelsea()).resize((72, 56))
    return demo.pictures.to_tensor(picture)[None]


def hole() -> Tensor:
    known = torch.ones(1, 1, 56, 72)
    known[..., 20:30, 20:50] = 0
    return known


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes whenever the time is read: a run depends on nothing else."""
    seconds = count()
    monkeypatch.setattr(demo.time, "perf_counter", lambda: float(next(seconds)))


def pool(photo: Tensor, known: Tensor) -> list[demo.Exercise]:
    return demo.exercises(photo * known, known, np.random.default_rng(0), seconds=0)


@pytest.mark.slow
def test_the_hole_is_never_read(photo, monkeypatch):
    runs = []
    for image in (photo, torch.where(hole() > 0, photo, torch.nan)):
        seconds = count()
        monkeypatch.setattr(demo.time, "perf_counter", lambda seconds=seconds: float(next(seconds)))
        with monkeypatch.context() as patch:
            patch.setattr(demo, "measured", lambda title, filled, *_: filled)
            runs.append(demo.run(image, hole(), seconds=80))
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one * hole(), photo * hole())
    assert not torch.equal(runs[0][0], runs[0][1])


@pytest.mark.slow
@pytest.mark.usefixtures("clock")
def test_networks_are_better_than_the_fill_they_start_from():
    fills = demo.run(*demo.load(None, None, demo.SIZE), seconds=700)
    assert [fill.title for fill in fills[1:]] == ["partial convolutions", "region normalisation"]
    assert all(fill.beats(fills[0]) for fill in fills[1:]), demo.verdict(fills)
    assert "NOT" not in demo.verdict(fills)


def test_the_verdict_admits_what_is_worse(photo):
    smooth, better, blurred = (
        demo.Fill(title, photo, psnr, ssim, "")
        for title, psnr, ssim in (("b", 20, 0.5), ("x", 20.5, 0.6), ("y", 21, 0.4))
    )
    first, second = demo.verdict([smooth, better, blurred]).splitlines()
    assert first == "x: better than the biharmonic fill, +0.50 dB, SSIM +0.100"
    assert second == "y: NOT better in both than the biharmonic fill, +1.00 dB, SSIM -0.100"


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("make", [demo.partial_convolution, demo.region_normalization])
def test_training_keeps_to_its_seconds_and_shows_them(make, photo):
    known, lines = hole(), []
    learnt = demo.learn(make(), photo * known, known, pool(photo, known), 5, lines.append)
    assert learnt.steps == len(lines) == 5
    assert learnt.seconds == 5
    assert "5 steps, loss" in lines[-1]
    again = demo.learn(make(), photo * known, known, pool(photo, known), -1, lines.append)
    assert again.steps == 1  # what is drawn has learnt something


@pytest.mark.parametrize("make", [demo.partial_convolution, demo.region_normalization])
def test_published_layers_compute_the_same(make, photo):
    torch.manual_seed(0)
    variant = make()
    image, known = photo[..., :32, :64], hole()[..., :32, :64]
    # The demo trains the papers' forms, the published layers have the code's.
    if make is demo.partial_convolution:
        ours = demo.PConvUNet(4, width=16)
        theirs = demo.published.UNet(ours)
    else:
        ours = demo.G_Net(width=12, residual_blocks=2)
        theirs = demo.published.with_published_region_norm(ours)
    assert str(theirs) == str(variant.with_published_layers)
    results = [variant.predict(network.train(), image, known) for network in (ours, theirs)]
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [demo.partial_convolution, demo.region_normalization])
def test_networks_start_at_the_smooth_fill(make, photo):
    variant, image, known = make(), photo[..., :32, :64], hole()[..., :32, :64]
    prediction = variant.predict(variant.network.train(), image, known)
    assert torch.equal(prediction, image)
    (prediction - 1).square().sum().backward()
    assert any(p.grad.abs().sum() > 0 for p in variant.network.parameters() if p.grad is not None)


def test_exercises_have_more_holes_and_the_photo_beside_them(photo):
    known = hole()
    for exercise in pool(photo, known):
        assert (exercise.known <= known).all()
        assert exercise.known.sum() < known.sum()
        kept = exercise.known > 0
        torch.testing.assert_close(
            torch.where(kept, exercise.smooth, 0), torch.where(kept, photo, 0)
        )


def test_crops_ask_for_known_pixels_alone(photo):
    known = hole()
    image = torch.where(known > 0, photo, 0)
    given = demo.crops(image, known, pool(photo, known), 6, np.random.default_rng(1))
    cut = given.of_photo * (1 - given.known)
    assert (cut.mean((1, 2, 3)) > 0.03).all()
    assert (given.image * (1 - given.of_photo) == 0).all()
    both = given.known.expand_as(given.image) > 0
    torch.testing.assert_close(given.image[both], given.smooth[both])  # one contrast, one tint

    prediction = given.smooth.clone().requires_grad_()
    demo.loss_of(prediction, given, 0.5).backward()
    assert prediction.grad.abs().sum() > 0
    assert (prediction.grad * (1 - cut) == 0).all()


def test_similarity_is_that_of_scikit_image(photo):
    from skimage.metrics import structural_similarity

    other = (
        photo + 0.1 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    ).clamp(0, 1)
    pair = [x[0].numpy() for x in (photo, other)]
    _, expected = structural_similarity(
        *pair, channel_axis=0, data_range=1, full=True, use_sample_covariance=False
    )
    inner = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(
        demo.similarity(photo, other)[inner][0],
        torch.from_numpy(expected)[inner].float(),
        rtol=1e-3,
        atol=1e-3,
    )


def test_fill_turns_every_orientation_back(photo):
    shapes = []

    def predict(network: nn.Module, smooth: Tensor, known: Tensor) -> Tensor:
        shapes.append(tuple(smooth.shape[2:]))
        return smooth

    variant = demo.Variant("", nn.Identity(), nn.Identity(), predict, 1, 0.0)
    torch.testing.assert_close(demo.fill(variant, photo, hole()), photo)
    assert set(shapes) == {(64, 80), (80, 64)}
    images = {demo.oriented(photo[..., :56], i).numpy().tobytes() for i in range(8)}
    assert len(images) == 8


def test_the_detail_is_where_most_is_missing():
    known = hole()
    known[..., 30:50, 40:60] = 0
    rows, columns = demo.widest_of_hole(known)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (18, 24)
    assert known[..., rows, columns].sum() == 18 * 4


@pytest.mark.slow
def test_sheet_is_written(tmp_path, photo, capsys):
    demo.pictures.write(demo.pictures.to_picture(photo[0]), tmp_path / "photo.png")
    arguments = ["--image", str(tmp_path / "photo.png"), "--seconds", "3"]
    assert demo.main([*arguments, "--output", str(tmp_path / "sheet.png")]) == 0
    assert np.asarray(Image.open(tmp_path / "sheet.png").convert("L")).std() > 10
    text, progress = capsys.readouterr()
    assert "This takes 3 s" in text.splitlines()[0]
    assert "of 3 s" in progress
    assert all(name in text for name in ("partial convolutions", "region norm", "biharmonic", "dB"))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path.write_text("no picture"), "not a picture that Pillow knows"),
        (lambda path: Image.new("RGB", (20, 90)).save(path), "at least 32 pixels a side"),
    ],
)
def test_refused_photos(make: Callable[[Path], object], message: str, tmp_path, capsys):
    make(tmp_path / "photo.png")
    with pytest.raises(SystemExit):
        demo.main(["--image", str(tmp_path / "photo.png")])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "white, message",
    [(60, "at most half the photo, got 83%"), (0, "at most half the photo, got 0%")],
)
def test_refused_masks(white: int, message: str, tmp_path, capsys):
    values = np.zeros((64, 72), np.uint8)
    values[:, :white] = 255
    Image.fromarray(values).save(tmp_path / "mask.png")
    Image.new("RGB", (72, 64)).save(tmp_path / "photo.png")
    arguments = ["--image", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png")]
    with pytest.raises(SystemExit):
        demo.main(arguments)
    assert message in capsys.readouterr().err


def test_refused_seconds(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--seconds", "0"])
    assert "--seconds: expected more than 0, got 0" in capsys.readouterr().err
