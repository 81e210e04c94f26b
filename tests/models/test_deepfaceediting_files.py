"""DeepFaceEditing on plain files: edits of the command line, and published files."""

import functools
import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from support.training import SMALL
from torch import nn

from torchext.models import papers
from torchext.models.__main__ import main
from torchext.models.deepfaceediting import (
    PAPER,
    PARTS,
    FaceEditor,
    Geometry,
    GeometryEncoder,
    PartGenerator,
    boxes,
    read_bank,
    write_bank,
)
from torchext.models.deepfaceediting.checkpoint import FILES
from torchext.models.deepfaceediting.editing import read_picture
from torchext.models.deepfaceediting.training import start_plain

skimage = pytest.importorskip("skimage.data")
CONFIG = papers.configure(PAPER.config, SMALL["deepfaceediting"])


@functools.cache
def _state(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """Of new networks through which signals of a sensible size pass, as through trained ones."""
    torch.manual_seed(seed)
    networks = PAPER.networks(CONFIG)
    for network in networks.values():
        if isinstance(network, PartGenerator):
            start_plain(network)
    fusion = networks["coarse_fusion"]
    for module in fusion.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of one forward
    with torch.no_grad():
        fusion(torch.rand(1, 2, 128, 128))
    return {name: network.state_dict() for name, network in networks.items()}


def new_networks(seed: int = 0) -> dict[str, nn.Module]:
    networks = PAPER.networks(CONFIG)
    for name, network in networks.items():
        network.load_state_dict(_state(seed)[name])
    return networks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and their sketches, banks of codes, and a checkpoint."""
    folder = tmp_path_factory.mktemp("edits")
    for name, left in (("photo", 120), ("other", 20)):
        crop = Image.fromarray(skimage.astronaut()).crop((left, 0, left + 200, 200))
        crop.save(folder / f"{name}.png")
        edges = ImageOps.invert(crop.convert("L").filter(ImageFilter.FIND_EDGES))
        edges.save(folder / f"{name}-sketch.png")
    random = np.random.default_rng(0)
    (folder / "bin").mkdir()
    for part in PARTS:
        for gender in ("man", "female"):
            codes = random.standard_normal((20, 16)).astype(np.float32)
            codes.tofile(folder / "bin" / f"{gender}_{part}_feature")
    papers.save(folder / "all.safetensors", PAPER, CONFIG, new_networks())
    return folder


def run(folder: Path, *options: str, checkpoint: str = "all.safetensors") -> int:
    """Edit; options that name a file of the folder, behind a part or not, mean it."""

    def meant(text: str) -> str:
        part, separator, name = text.rpartition("=")
        return f"{part}{separator}{folder / name}" if (folder / name).exists() and name else text

    given = [str(folder / "photo.png"), *map(meant, options), "-o", str(folder / "out.png")]
    return main(["deepfaceediting", "edit", *given, "--checkpoint", str(folder / checkpoint)])


def output(folder: Path, *options: str, **named: str) -> np.ndarray:
    assert run(folder, *options, **named) == 0
    with Image.open(folder / "out.png") as picture:
        return np.asarray(picture)


COARSE = ("--coarse", "photo-sketch.png", "--banks", "bin")
EDITS = {
    "nothing": (),
    "sketch": ("--sketch", "photo-sketch.png"),
    "another sketch": ("--sketch", "other-sketch.png"),
    "sketched mouth": ("--sketch", "mouth=photo-sketch.png"),
    "geometry": ("--geometry", "other.png"),
    "nose of another": ("--geometry", "nose=other.png"),
    "appearance": ("--appearance", "other.png"),
    "eye of another": ("--appearance", "eye1=other.png"),
    "sketch and appearance": ("--sketch", "photo-sketch.png", "--appearance", "other.png"),
    "coarse": COARSE,
    "coarse man": (*COARSE, "--gender", "man"),
    "coarse, unrefined": ("--coarse", "photo-sketch.png", "--refine", "0"),
    "coarse, half": (*COARSE, "--refine", "0.5"),
    "coarse, a refined mouth": (*COARSE, "--refine", "0", "--refine", "mouth=1"),
    "coarse in another appearance": (*COARSE, "--appearance", "other.png"),
    "extract": ("--extract",),
}


def test_every_edit_of_the_command_line(folder):
    results = {name: output(folder, *options) for name, options in EDITS.items()}
    names = list(results)
    for i, name in enumerate(names):
        assert results[name].shape == (128, 128, 3)  # the network's size
        for other in names[:i]:
            assert not np.array_equal(results[name], results[other]), (name, other)


def test_the_last_of_several_files_counts(folder):
    one = output(folder, "--sketch", "photo-sketch.png", "--sketch", "nose=other-sketch.png")
    other = output(folder, "--sketch", "nose=other-sketch.png", "--sketch", "photo-sketch.png")
    assert not np.array_equal(one, other)
    assert np.array_equal(other, output(folder, "--sketch", "photo-sketch.png"))


def test_the_command_line_writes_what_python_makes(folder):
    networks = {name: network.eval() for name, network in new_networks().items()}
    editor = FaceEditor(networks, CONFIG.network.boxes, 128)
    photo, other, sketch = (
        read_picture(folder / f"{name}.png", CONFIG) for name in ("photo", "other", "photo-sketch")
    )
    geometry = dict.fromkeys(PARTS, Geometry(photo)) | {"mouth": Geometry(sketch, "sketch")}
    appearance = dict.fromkeys(PARTS, photo) | {"bg": other}
    made = editor(geometry, appearance)
    assert made.shape == (1, 3, 128, 128)
    assert made.min() >= 0
    assert made.max() <= 1
    written = output(folder, "--sketch", "mouth=photo-sketch.png", "--appearance", "bg=other.png")
    wanted = (made[0] * 255).floor().byte().permute(1, 2, 0).numpy()  # cut off, as published
    assert np.abs(wanted.astype(int) - written).max() <= 1
    assert (wanted != written).mean() < 0.01
    both = editor(
        {part: Geometry(x.picture.repeat(2, 1, 1, 1), x.source) for part, x in geometry.items()},
        appearance,
    )
    torch.testing.assert_close(both[1:], made, atol=3e-3, rtol=0)


def test_a_part_changes_its_own_place_before_the_fusion(folder):
    networks = {name: network.eval() for name, network in new_networks().items()}
    networks["fusion"] = nn.Identity()
    editor = FaceEditor(networks, CONFIG.network.boxes, 128)
    photo, other = (read_picture(folder / f"{name}.png", CONFIG) for name in ("photo", "other"))
    plain = dict.fromkeys(PARTS, Geometry(photo)), dict.fromkeys(PARTS, photo)
    before = editor(*plain)
    for part in PARTS[1:]:
        after = editor(plain[0] | {part: Geometry(other)}, plain[1])
        changed = (before != after).any(dim=1)[0]
        inside = torch.zeros_like(changed)
        CONFIG.network.boxes[part].crop(inside)[:] = True
        assert changed[inside].any(), part
        assert not changed[~inside].any(), part


def test_a_bank_of_ones_own_sketches(folder, tmp_path):
    """A sketch in the middle of a bank that is nothing but itself stays what it is."""
    networks = {name: network.eval() for name, network in new_networks().items()}
    editor = FaceEditor(networks, CONFIG.network.boxes, 128)
    photo, sketch = (read_picture(folder / f"{n}.png", CONFIG) for n in ("photo", "photo-sketch"))
    for part in PARTS:
        code = editor.code(part, sketch)
        assert code.shape == (1, 16)
        write_bank(code.repeat(15, 1), tmp_path / part)
    banks = {part: read_bank(tmp_path / part, 16) for part in PARTS}
    photos = dict.fromkeys(PARTS, photo)
    plain = editor.of_coarse_sketch(sketch, photos, amount=0)
    same = editor.of_coarse_sketch(sketch, photos, banks=banks)
    rounding = (same - plain).abs().max()
    assert rounding < 1e-3
    elsewhere = {part: bank + 1 for part, bank in banks.items()}
    moved = editor.of_coarse_sketch(sketch, photos, banks=elsewhere)
    assert (moved - plain).abs().max() > 10 * rounding + 1e-3


def test_other_shapes_give_the_middle_square(folder, tmp_path):
    with Image.open(folder / "photo.png") as picture:
        wide = Image.new("RGB", (300, 200), "red")
        wide.paste(picture, (50, 0))
    wide.save(tmp_path / "wide.png")
    square = read_picture(folder / "photo.png", CONFIG)
    torch.testing.assert_close(
        read_picture(tmp_path / "wide.png", CONFIG)[..., 2:-2], square[..., 2:-2], atol=0.02, rtol=0
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (("--sketch", "absent.png"), "cannot read .*absent.png"),
        (("--sketch", "chin=photo-sketch.png"), "cannot read chin="),
        (("--geometry", "text.txt"), "text.txt: not a picture"),
        (("--coarse", "photo-sketch.png"), "--banks: expected a folder, as --refine is above 0"),
        ((*COARSE, "--refine", "2"), "--refine: expected a number from 0 to 1, got '2'"),
        ((*COARSE, "--refine", "mouth=x"), "--refine: expected a number from 0 to 1, got 'x'"),
        ((*COARSE, "--sketch", "photo-sketch.png"), "--coarse: expected it without --sketch"),
        (("--refine", "1"), "--refine: expected it with --coarse alone"),
        (("--banks", "bin"), "--banks: expected it with --coarse alone"),
        (("--extract", "--sketch", "photo-sketch.png"), "--extract: expected a photo alone"),
        (
            ("--coarse", "photo-sketch.png", "--banks", "empty"),
            "female_bg_feature: expected a file of codes, found none",
        ),
        (
            ("--coarse", "photo-sketch.png", "--banks", "few"),
            "female_bg_feature: expected at least 15 rows, got 3",
        ),
        (("--appearance", "out.png"), "--output: .*out.png is the appearance itself"),
    ],
)
def test_bad_input_is_named(options, message, folder, capsys):
    (folder / "text.txt").write_text("no picture")
    for name in ("empty", "few"):
        (folder / name).mkdir(exist_ok=True)
    np.zeros((3, 16), np.float32).tofile(folder / "few" / "female_bg_feature")
    Image.new("RGB", (9, 9)).save(folder / "out.png")
    assert run(folder, *options) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "missing, options",
    [
        ("image_encoder_nose", ()),
        ("sketch_encoder_mouth", ("--sketch", "photo-sketch.png")),
        ("generator_eye2", ()),
        ("fusion", ()),
        ("coarse_fusion", COARSE),
        ("drawing_decoder_bg", COARSE),
        ("extractor", ("--extract",)),
    ],
)
def test_missing_networks_are_named(missing, options, folder, tmp_path, capsys):
    networks = {name: network for name, network in new_networks().items() if name != missing}
    papers.save(tmp_path / "part.safetensors", PAPER, CONFIG, networks)
    (folder / "part.safetensors").write_bytes((tmp_path / "part.safetensors").read_bytes())
    assert run(folder, *options, checkpoint="part.safetensors") == 1
    assert f"networks: expected {missing} for this edit" in capsys.readouterr().err


def test_bad_pictures_from_python_are_named():
    networks = {n: x.eval() for n, x in new_networks().items() if n.endswith(("_bg", "fusion"))}
    editor = FaceEditor(networks, CONFIG.network.boxes, 128)
    photo = torch.rand(1, 3, 128, 128)
    photos = dict.fromkeys(PARTS, photo)
    with pytest.raises(ValueError, match=r"geometry: expected one for each of .*got \('bg',\)"):
        editor({"bg": Geometry(photo)}, photos)
    with pytest.raises(ValueError, match="source: expected 'photo' or 'sketch', got 'draft'"):
        editor.geometry("bg", Geometry(photo, "draft"))
    with pytest.raises(ValueError, match="geometry: expected a height and width of 128"):
        editor.geometry("bg", Geometry(photo[..., :64]))
    with pytest.raises(TypeError, match=r"torch\.uint8; divide 8-bit images by 255"):
        editor.geometry("bg", Geometry((photo * 255).byte()))
    with pytest.raises(ValueError, match="banks: expected one for bg, as its amount is 1"):
        editor.coarse_geometry("bg", photo, None, 1.0)


# --- published files ------------------------------------------------------------------------------


def jittor(state: Mapping[str, torch.Tensor], path: Path, checksum: bool = True) -> None:
    """As the published files are: a pickle of arrays, and what Jittor adds behind it."""
    arrays = {k: v.numpy() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    data = pickle.dumps(arrays, 4)
    if checksum:
        data += hashlib.sha1(data).digest() + b"HCAJSLHD"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def publish(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """A folder as it was released, of reduced networks."""
    networks = new_networks(3)
    states = {name: networks[name].state_dict() for name in FILES}
    for name, state in states.items():
        jittor(state, folder / FILES[name].removesuffix("*"))
    return states


def test_a_published_folder_loads_whole_and_file_by_file(tmp_path):
    states = publish(tmp_path)
    assert len(states) == 7 * 5 + 3
    found, _ = papers.load(tmp_path, PAPER, CONFIG)
    assert found.keys() == states.keys()
    for name, state in states.items():
        alone, _ = papers.load(tmp_path / FILES[name].removesuffix("*"), PAPER, CONFIG)
        assert alone.keys() == {name}
        for networks in (found, alone):
            loaded = networks[name].state_dict()
            assert loaded.keys() == state.keys()
            for key in state:
                if not key.endswith("num_batches_tracked"):  # which no published file has
                    assert state[key].equal(loaded[key]), (name, key)


def test_the_keys_are_the_published_ones():
    with torch.device("meta"):
        networks = PAPER.networks(PAPER.config())
    state = networks["image_encoder_bg"].state_dict()
    assert len(state) == 2 * 10 + 6 * 8
    assert state["model.21.conv_block.1.norm.bias"].shape == (1024,)
    assert state["model.13.weight"].shape == (1024, 512, 3, 3)
    state = networks["generator_mouth"].state_dict()
    assert len(state) == 4 * 4 + 2 * 4 + 2 + 2 * 7
    assert state["model.13.weight"].shape == (128, 64, 3, 3)
    assert state["model.17.weight"].shape == (3, 64, 7, 7)
    assert state["enc_style.model.7.weight"].shape == (18304, 64, 1, 1)
    state = networks["coarse_generator_mouth"].state_dict()
    assert state["model.14.bias"].shape == (32,)
    assert state["enc_style.model.7.bias"].shape == (8192,)
    state = networks["fusion"].state_dict()
    assert state["model.20.weight"].shape == (1024, 512, 3, 3)
    assert state["model.30.weight"].shape == (64,)
    assert state["model.33.weight"].shape == (3, 64, 7, 7)
    state = networks["drawing_encoder_bg"].state_dict()
    assert state["fc_mu.0.weight"].shape == (512, 512 * 16 * 16)
    assert state["conv.9.conv_block.1.norm.running_var"].shape == (512,)
    state = networks["drawing_decoder_nose"].state_dict()
    assert state["conv.3.conv.0.weight"].shape == (256, 256, 4, 4)
    assert state["conv.12.weight"].shape == (32, 64, 5, 5)


@pytest.mark.parametrize("checksum", [True, False])
def test_pickles_with_and_without_a_checksum(checksum, tmp_path):
    state = GeometryEncoder(3, 2).state_dict()
    jittor(state, tmp_path / "sketch_encoder_eye1", checksum)
    found, _ = papers.load(tmp_path / "sketch_encoder_eye1", PAPER, CONFIG)
    loaded = found["sketch_encoder_eye1"].state_dict()
    assert all(value.equal(loaded[key]) for key, value in state.items())


@pytest.mark.parametrize("change", ["cut", "changed", "code", "tensor"])
def test_broken_pickles_are_named(change, tmp_path):
    path = tmp_path / "generator_bg"
    jittor(GeometryEncoder(3, 2).state_dict(), path)
    data = path.read_bytes()
    message = r"generator_bg: cut off, or no checkpoint"
    if change == "cut":
        data = data[: len(data) // 2]
    elif change == "changed":
        data = data[:999] + bytes([data[999] ^ 1]) + data[1000:]
    elif change == "tensor":
        data, message = pickle.dumps({"a.b": torch.zeros(2)}), r"holds an object of the class torch"
    else:
        data, message = pickle.dumps({"a": print}), r"holds an object of the class builtins\.print"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        papers.load(path, PAPER, CONFIG)


def test_the_part_must_be_told(tmp_path):
    jittor(
        PAPER.networks(CONFIG, ["generator_bg"])["generator_bg"].state_dict(), tmp_path / "a.pkl"
    )
    with pytest.raises(ValueError, match=r"expected the part in the file's name.*generator_mouth"):
        papers.load(tmp_path / "a.pkl", PAPER, CONFIG)
    torch.save({"a.weight": torch.zeros(3)}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"expected a network of DeepFaceEditing, found a\.weight"):
        papers.load(tmp_path / "b.pth", PAPER, CONFIG)


@pytest.mark.parametrize("name", ["generator_nose", "fusion", "drawing_encoder_mouth"])
def test_a_missing_entry_is_named(name, tmp_path):
    publish(tmp_path)
    path = tmp_path / FILES[name].removesuffix("*")
    state = new_networks()[name].state_dict()
    gone = next(key for key in state if key.endswith("conv.bias"))
    del state[gone]
    jittor(state, path)
    for source in (tmp_path, path):
        with pytest.raises(ValueError, match=f"lacks {re.escape(gone)}"):
            papers.load(source, PAPER, CONFIG)


@pytest.mark.parametrize(
    "name, trained, told",
    [
        ("sketch_encoder_bg", {"width": 3}, {"width": 3}),
        ("image_encoder_bg", {"image_blocks": 5}, {"image_blocks": 5}),
        (
            "generator_eye1",
            {"width": 3, "appearance_width": 5},
            {"width": 3, "appearance_width": 5},
        ),
        ("generator_eye1", {"generator_blocks": 2}, {"generator_blocks": 2}),
        ("fusion", {"width": 5, "fusion_blocks": 1}, {"width": 5, "fusion_blocks": 1}),
        ("extractor", {"extractor_width": 5}, {"extractor_width": 5}),
        ("coarse_fusion", {"coarse_width": 4}, {"coarse_width": 4}),
        ("coarse_generator_nose", {"coarse_width": 4}, {"coarse_width": 4}),
        ("coarse_encoder_nose", {"coarse_width": 4}, {"coarse_width": 4}),
        ("drawing_encoder_nose", {"code": 9}, {"code": 9}),
        ("drawing_decoder_nose", {"drawing_downsamplings": 2}, {"drawing_downsamplings": 2}),
        ("discriminator_nose", {"discriminators": 3}, {"discriminators": 3}),
        ("sketch_decoder_bg", {"width": 3}, {"width": 3}),
    ],
)
def test_other_options_are_told(name, trained, told, tmp_path):
    other = papers.configure(PAPER.config, {**SMALL["deepfaceediting"], **trained})
    state = PAPER.networks(other, [name])[name].state_dict()
    jittor(state, tmp_path / name)
    wanted = " ".join(f"--set {option}={value}" for option, value in told.items())
    with pytest.raises(ValueError, match=f"other options than the given ones: {wanted}$"):
        papers.load(tmp_path / name, PAPER, CONFIG)
    found, _ = papers.load(tmp_path / name, PAPER, other)
    assert found.keys() == {name}


def test_the_boxes_of_a_checkpoint_are_those_of_its_size():
    assert CONFIG.network.boxes == boxes(128, 16)
    assert PAPER.config().network.boxes == boxes()
    assert isinstance(new_networks()["generator_bg"], PartGenerator)
