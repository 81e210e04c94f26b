"""`python -m torchext.models`: train, edit and info of every paper, on plain files."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from support.training import FILLING, KINDS, SMALL, write_mask, write_photo

from torchext.models import papers, pictures
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
    "dagan": {"generator": 96_578_709, "discriminator": 5_836_930},
    "maskgan": {"generator": 89_702_595},
    "michigan": {
        "generator": 109_474_755,
        "discriminator": 5_535_874,
        "orientation": 16_118_211,
    },
    "fe_gan": {
        "parsing": 182_590_100,
        "parsing_discriminator": 1_413_250,
        "generator": 42_876_300,
        "discriminator": 2_793_472,
    },
    "maggan": {
        "generator": 79_482_867,
        "discriminator": 61_498_254 + 2 * 661_633,
        "parser": 13_300_416,
    },
}

# Convolutions and matrix products of one image in GFLOP, mask convolutions left out; the U-Net's
# up-sampled features are convolved by phases (18.9 otherwise).
OPERATIONS = {
    "partial_convolutions": {"generator": 15.1},
    "pd_gan": {"encoder": 4.6, "generator": 128.2, "discriminator": 9.3},
    "dagan": {"generator": 372.0},
    "fe_gan": {"parsing": 313.0, "generator": 1011.7, "discriminator": 18.4},
    "maggan": {"generator": 1261.8, "parser": 27.5},
}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write_photo(tmp_path)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    return write_mask(tmp_path)


def small_checkpoint(name: str, folder: Path, seed: int = 0) -> Path:
    paper = papers.find(name)
    config = papers.configure(paper.config, SMALL[name])
    torch.manual_seed(seed)
    path = folder / f"{name}.safetensors"
    papers.save(path, paper, config, paper.networks(config))
    return path


@pytest.mark.parametrize("name", papers.NAMES)
def test_edit_takes_pictures_of_any_size(name, tmp_path, capsys):
    checkpoint = small_checkpoint(name, tmp_path)
    output = tmp_path / "out.png"
    command = [name, "edit", *KINDS[name].edit(tmp_path), "-o", str(output)]
    assert main([*command, "--checkpoint", str(checkpoint)]) == 0
    assert f"wrote {output}" in capsys.readouterr().out
    KINDS[name].check(tmp_path, output)


def test_edit_writes_several_samples(photo, mask, tmp_path):
    checkpoint = small_checkpoint("pd_gan", tmp_path)
    command = ["pd_gan", "edit", str(photo), str(mask), "-o", str(tmp_path / "out.png")]
    assert main([*command, "--checkpoint", str(checkpoint), "--samples", "3"]) == 0
    pictures = [np.asarray(Image.open(tmp_path / f"out-{i}.png")) for i in range(3)]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])


def test_edit_does_not_read_the_hole(photo, mask, tmp_path):
    for name in FILLING:
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
    assert main([name, "info"]) == 0
    text = capsys.readouterr().out
    assert "our layers" in text
    assert re.search(r"[1-9][\d.]* GFLOP for \d+x", text)
    for network, count in PARAMETERS.get(name, {}).items():
        assert f"{network}: {count:,} parameters" in text
    for network, count in OPERATIONS.get(name, {}).items():
        assert re.search(rf"{network}: [\d,]+ parameters, {count} GFLOP", text), text


def test_info_of_a_smaller_network(capsys):
    settings = ["--set", "stage=1", "--set", "width=8", "--set", "size=128"]
    assert main(["pd_gan", "info", *settings]) == 0
    text = capsys.readouterr().out
    assert "encoder" in text
    assert "GFLOP for 1x3x128x128 and 1x1x128x128" in text
    assert "generator:" not in text


def train_command(name: str, photos: Path, pretrained: dict[str, Path], output: Path) -> list[str]:
    """Of the last stage, behind one that needs no other."""
    stage = papers.find(name).stage()
    command = [name, "train", *KINDS[name].train(photos), "-o", str(output)]
    command += [f"--pretrained={weights}={pretrained[weights]}" for weights in stage.pretrained]
    if stage.needs:
        command += ["--checkpoint", str(small_checkpoint(name, output.parent))]
    command += ["--device", "cpu", "--workers", "0", "--batch", "1"]
    for option, value in SMALL[name].items():
        command += ["--set", f"{option}={value}"]
    return command


@pytest.mark.parametrize("name", papers.NAMES)
def test_train_writes_what_edit_reads(name, photos, pretrained, tmp_path, capsys):
    command = train_command(name, photos, pretrained, tmp_path / "run")
    assert main([*command, "--iterations", "2"]) == 0
    assert "2 iterations" in capsys.readouterr().out
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*.safetensors")
    output = tmp_path / "out.png"
    command = [name, "edit", *KINDS[name].edit(tmp_path), "-o", str(output)]
    assert main([*command, "--checkpoint", str(checkpoint)]) == 0
    KINDS[name].check(tmp_path, output)


def test_train_and_resume(photos, pretrained, tmp_path, capsys):
    command = ["partial_convolutions", "train", str(photos), "-o", str(tmp_path / "run")]
    command += ["--vgg", str(pretrained["vgg16"]), "--device", "cpu", "--workers", "0"]
    command += ["--batch", "2"]
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


@pytest.mark.parametrize(
    "options, message",
    [
        (["--batch", "0"], "--batch: expected at least 1, got 0"),
        (["--workers", "-1"], "--workers: expected at least 0, got -1"),
        (["--iterations", "0"], "--iterations: expected at least 1, got 0"),
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--accumulate", "0"], "--accumulate: expected at least 1, got 0"),
        (["--save-every", "0"], "--save-every: expected at least 1, got 0"),
        (["--keep", "0"], "--keep: expected at least 1, got 0"),
        (["--seed", "-1"], "--seed: expected at least 0, got -1"),
        (["--average", "1"], "--average: expected at least 0 and below 1, got 1.0"),
        (["--share", ".5", ".2"], "--share: expected 0 <= LOW <= HIGH <= 0.8, got 0.5 0.2"),
        (["--threshold", "255"], "--threshold: expected 0 to 254, got 255"),
        (["--device", "gpu"], "--device: expected cpu, cuda, cuda:1 or the like, got 'gpu'"),
        (["--device", "cuda:63"], "--device: expected one that is there, got 'cuda:63'"),
        (["--device", "meta"], "--device: expected one that is there, got 'meta'"),
    ],
)
def test_bad_options_of_train_are_named_before_any_work(options, message, tmp_path, capsys):
    # There is no folder of photos: the option is looked at first.
    command = ["region_normalization", "train", "absent", "-o", str(tmp_path / "run")]
    assert main([*command, "--device", "cpu", *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_cuda_without_a_device_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for command in (["train", "absent"], ["edit", "absent", "absent", "--checkpoint", "absent"]):
        output = ["-o", str(tmp_path / "out.png"), "--device", "cuda"]
        assert main(["region_normalization", *command, *output]) == 1
        assert "--device: expected one that is there, got 'cuda'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("pd_gan", ["--samples", "0"], "--samples: expected at least 1, got 0"),
        ("region_normalization", ["--quality", "0"], "--quality: expected 1 to 100, got 0"),
        ("region_normalization", ["--threshold", "-1"], "--threshold: expected 0 to 254, got -1"),
    ],
)
def test_bad_options_of_edit_are_named(name, options, message, photo, mask, tmp_path, capsys):
    checkpoint = small_checkpoint(name, tmp_path)
    command = [name, "edit", str(photo), str(mask), "-o", str(tmp_path / "out.png")]
    assert main([*command, "--checkpoint", str(checkpoint), *options]) == 1
    assert message in capsys.readouterr().err


# --- what edit keeps ------------------------------------------------------------------------------


def edit(photo: Path, mask: Path, output: Path, *options: str) -> int:
    checkpoint = small_checkpoint("region_normalization", output.parent)
    command = ["region_normalization", "edit", str(photo), str(mask), "-o", str(output)]
    return main([*command, "--checkpoint", str(checkpoint), *options])


def profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("source", ["photo.png", "photo.jpg", "photo.tif", "photo.webp"])
def test_edit_keeps_profile_exif_and_resolution(source, mask, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (90, 75, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    exif[0x010F] = "a camera"
    exif[0x8769] = {0x9003: "2020:01:02 03:04:05"}
    exif[0x8825] = {0x0003: "E"}
    icc = profile()
    photo = tmp_path / source
    Image.fromarray(values).save(photo, exif=exif.tobytes(), icc_profile=icc, dpi=(300, 300))
    with Image.open(photo) as picture:
        values = np.asarray(picture.convert("RGB"))  # of a JPEG, what it holds
        turned = values.shape[:2] == (90, 75)  # Pillow may turn a TIFF itself
    for name in ("out.png", "out.tif", "out.jpg", "out.webp"):
        assert edit(photo, mask, tmp_path / name) == 0
        with Image.open(tmp_path / name) as written:
            assert written.size == (90, 75)
            assert written.info["icc_profile"] == icc
            assert written.getexif().get(0x0112, 1) == 1
            assert written.getexif()[0x010F] == "a camera"
            assert written.getexif().get_ifd(0x8769)[0x9003] == "2020:01:02 03:04:05"
            assert written.getexif().get_ifd(0x8825)[0x0003] == "E"
            if "webp" not in name + source:  # has no place for it
                assert written.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            after = np.asarray(written)
        upright = np.rot90(values, -1) if turned else values
        known = np.asarray(Image.open(mask)) == 0
        if name != "out.jpg":
            assert np.array_equal(after[known], upright[known]), name


PHOTOS = {
    "L": (np.uint8, 1),
    "LA": (np.uint8, 2),
    "RGB": (np.uint8, 3),
    "RGBA": (np.uint8, 4),
    "I;16": (np.uint16, 1),
    "LA;16": (np.uint16, 2),
    "RGB;16": (np.uint16, 3),
    "RGBA;16": (np.uint16, 4),
}


def photo_file(kind: str, path: Path) -> np.ndarray:
    """A file of random values; Pillow writes none of 16-bit colours."""
    dtype, channels = PHOTOS[kind]
    random = np.random.default_rng(0)
    values = random.integers(0, np.iinfo(dtype).max + 1, (75, 90, channels), dtype)
    if dtype == np.uint16 and channels > 1:
        path.write_bytes(pictures._png_of_16_bits(values, {}))
    else:
        Image.fromarray(values[..., 0] if channels == 1 else values).save(path)
    return values


@pytest.mark.parametrize("kind", PHOTOS)
def test_edit_keeps_bits_and_alpha_of_known_pixels(kind, mask, tmp_path):
    values = photo_file(kind, tmp_path / "photo.png")
    assert edit(tmp_path / "photo.png", mask, tmp_path / "out.png") == 0
    after = pictures.read_photo(tmp_path / "out.png").values
    assert after.dtype == values.dtype
    assert after.shape == values.shape
    hole = np.asarray(Image.open(mask)) > 0
    assert np.array_equal(after[~hole], values[~hole])
    assert not np.array_equal(after[hole], values[hole])
    if values.shape[2] % 2 == 0:  # what was painted is seen
        assert (after[hole][:, -1] == np.iinfo(values.dtype).max).all()


def test_16_bits_are_those_of_an_independent_reader(tmp_path):
    values = photo_file("RGB;16", tmp_path / "photo.png")
    data = (tmp_path / "photo.png").read_bytes()
    begin = data.index(b"IDAT")
    length = int.from_bytes(data[begin - 4 : begin], "big")
    rows = np.frombuffer(zlib.decompress(data[begin + 4 : begin + 4 + length]), np.uint8)
    rows = rows.reshape(75, -1)
    assert (rows[:, 0] == 2).all()  # each row is the difference from the one above
    plain = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8)
    assert np.array_equal(plain.view(">u2").reshape(values.shape), values)
    with Image.open(tmp_path / "photo.png") as picture:
        assert np.array_equal(np.asarray(picture), (values >> 8).astype(np.uint8))


def test_16_bits_are_lost_to_jpeg_and_that_is_said(mask, tmp_path, capsys):
    photo_file("RGB;16", tmp_path / "photo.png")
    assert edit(tmp_path / "photo.png", mask, tmp_path / "out.jpg") == 0
    text = capsys.readouterr().out
    assert "note: JPEG took 8 of its 16 bits" in text
    assert "note: JPEG changes known pixels too; a PNG keeps them as they were" in text


def test_jpeg_is_written_well(photo, mask, tmp_path, capsys):
    smooth = Image.open(photo).resize((9, 8)).resize((90, 75), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "smooth.png")
    known = np.asarray(Image.open(mask)) == 0
    before, sizes = np.asarray(smooth).astype(int), []
    for options in ((), ("--quality", "30")):
        assert edit(tmp_path / "smooth.png", mask, tmp_path / "out.jpg", *options) == 0
        assert "JPEG changes known pixels" in capsys.readouterr().out
        with Image.open(tmp_path / "out.jpg") as written:
            assert written.layer[0][1:3] == written.layer[1][1:3]  # colours at full resolution
            after = np.asarray(written).astype(int)
        sizes.append((tmp_path / "out.jpg").stat().st_size)
        if not options:
            far = ~np.asarray(Image.open(mask).filter(ImageFilter.MaxFilter(17))).astype(bool)
            assert np.abs(after - before)[known & far].max() <= 8
    assert sizes[1] < sizes[0] / 2
    assert edit(tmp_path / "smooth.png", mask, tmp_path / "out.png") == 0
    assert "note" not in capsys.readouterr().out


@pytest.mark.parametrize("what", ["photo", "mask"])
def test_edit_does_not_overwrite_what_it_reads(what, photo, mask, tmp_path, capsys):
    given = {"photo": photo, "mask": mask}
    before = given[what].read_bytes()
    link = tmp_path / "link.png"
    link.symlink_to(given[what])
    for output in (given[what], link):
        assert edit(photo, mask, output) == 1
        assert f"is the {what} itself; choose another name" in capsys.readouterr().err
    assert given[what].read_bytes() == before


def test_samples_do_not_overwrite_what_is_read(photo, mask, tmp_path, capsys):
    checkpoint = small_checkpoint("pd_gan", tmp_path)
    source = photo.rename(tmp_path / "out-1.png")
    before = source.read_bytes()
    command = ["pd_gan", "edit", str(source), str(mask), "-o", str(tmp_path / "out.png")]
    assert main([*command, "--checkpoint", str(checkpoint), "--samples", "2"]) == 1
    assert "out-1.png is the photo itself" in capsys.readouterr().err
    assert source.read_bytes() == before
    assert not (tmp_path / "out-0.png").exists()


# --- masks ----------------------------------------------------------------------------------------


def test_the_hole_is_said_and_a_soft_mask_warned_of(photo, tmp_path, capsys):
    values = np.zeros((75, 90), np.uint8)
    values[20:40, 30:70] = 255
    blurred = Image.fromarray(values).filter(ImageFilter.GaussianBlur(2))
    blurred.save(tmp_path / "mask.jpg", quality=50)
    assert edit(photo, tmp_path / "mask.jpg", tmp_path / "out.png") == 0
    output = capsys.readouterr()
    assert re.search(r"warning: .*mask\.jpg: [\d.]+% of the mask is neither black", output.err)
    share = float(re.search(r"the hole is ([\d.]+)% of the photo", output.out)[1])
    assert share == pytest.approx(100 * 800 / (75 * 90), rel=0.05)


@pytest.mark.parametrize("value, share", [(0, "0.00%"), (255, "100.00%"), (7, "100.00%")])
def test_a_mask_of_all_or_nothing_is_an_error(value, share, photo, tmp_path, capsys):
    Image.fromarray(np.full((75, 90), value, np.uint8)).save(tmp_path / "mask.png")
    status = edit(photo, tmp_path / "mask.png", tmp_path / "out.png", "--threshold", "5")
    assert status == 1
    error = capsys.readouterr().err
    assert f"expected a hole and something known beside it, got a hole of {share}" in error
    assert "--white known turns it around; --threshold moves the limit" in error
    assert not (tmp_path / "out.png").exists()


def test_an_erased_photo_is_its_own_mask(photo, tmp_path, capsys):
    pixels = np.asarray(Image.open(photo).convert("RGBA")).copy()
    pixels[20:40, 30:70, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "erased.png")
    for options in ((), ("--white", "known")):
        output = tmp_path / "out.png"
        assert edit(tmp_path / "erased.png", tmp_path / "erased.png", output, *options) == 0
        assert "the hole is 11.85% of the photo, where the photo" in capsys.readouterr().out
        after = np.asarray(Image.open(output))
        assert (after[..., 3] == 255).all()
        known = pixels[..., 3] > 0
        assert np.array_equal(after[known], pixels[known])


def test_more_processes_than_devices_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    command = ["region_normalization", "train", "absent", "-o", str(tmp_path / "run")]
    assert main([*command, "--device", "cuda"]) == 1
    assert "got 'cuda'; this PyTorch" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize("what", ["photos", "masks"])
def test_folders_without_a_readable_file_are_named_at_once(
    what, photos, pretrained, tmp_path, capsys
):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"nothing")
    given = tmp_path / "broken" if what == "photos" else photos
    command = train_command("region_normalization", given, pretrained, tmp_path / "run")
    command += ["--iterations", "1", "--workers", "2", "--vgg", str(pretrained["vgg16"])]
    command += ["--masks", str(tmp_path / "broken")] if what == "masks" else []
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "error: none of 1 files can be read: cannot read" in error
    assert "Traceback" not in error
