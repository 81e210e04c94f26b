"""MaskGAN: networks beside the golden files, published files, label maps, training and editing."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from torchext.models import checkpoint, papers
from torchext.models.__main__ import main
from torchext.models.checkpoint import MisfitError
from torchext.models.face_labels import BISENET_NAMES, COLOURS, NAMES, read_labels
from torchext.models.geometry import Preparation
from torchext.models.loop import Loop
from torchext.models.maskgan import (
    PAPER,
    AlphaBlender,
    Config,
    DenseMapping,
    DenseMappingNetwork,
    EditingSimulation,
    FaceEditor,
    FaceParser,
    LabelledFaces,
    MaskVAE,
    coloured,
    from_bisenet,
    interpolated,
    load_published,
    merge_files,
    merge_parts,
    networks,
    parse,
)
from torchext.models.maskgan.editing import as_bytes, working_size
from torchext.models.maskgan.labels import LABELS, check_labels, published_values
from torchext.models.maskgan.losses import parsing_loss
from torchext.models.maskgan.networks import Network
from torchext.models.paper import configure
from torchext.models.training import checkpoints

SIZE = 128
SMALL = {
    "size": SIZE,
    "width": 4,
    "downsamplings": 2,
    "residual_blocks": 1,
    "blender_width": 2,
    "blender_downsamplings": 2,
    "blender_blocks": 1,
    "discriminator_width": 4,
    "discriminator_layers": 2,
    "vae_width": 1,
    "code": 8,
    "parser_scale": 16,
}


def small(**changes: object) -> Config:
    return configure(Config, {**SMALL, **changes})


@pytest.fixture(autouse=True)
def added() -> Iterator[None]:
    """The paper among those that the command line knows."""
    if PAPER.name in papers.NAMES:
        yield
        return
    papers.add(PAPER)
    try:
        yield
    finally:
        del papers._added[PAPER.name]


def drawn_labels(*shape: int, seed: int = 0) -> Tensor:
    """Labels in fields of 8 x 8 pixels."""
    generator = torch.Generator().manual_seed(seed)
    *batch, height, width = shape
    fields = torch.randint(19, (*batch, height // 8, width // 8), generator=generator)
    return fields.repeat_interleave(8, -2).repeat_interleave(8, -1)


def one_hot(labels: Tensor) -> Tensor:
    return F.one_hot(labels[:, 0], 19).movedim(-1, 1).double()


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, parameters, keys",
    [
        ("generator", 89_702_595, 94),
        ("blender", 4_329_443, 28),
        ("mask_vae", 170_619_571, 99),
        ("parser", 1_944_355, 136),
        # 2 * (128 + 256 + 512) biases before instance norms fewer than in the files
        ("discriminator", 5_568_386 - 1792, 20 - 6),
    ],
)
def test_parameters_of_the_published_networks(name, parameters, keys):
    with torch.device("meta"):
        network = networks(Config(), [name])[name]
    assert papers.parameters(network) == parameters
    assert len(network.state_dict()) == keys


def test_parameters_of_the_generators_parts():
    with torch.device("meta"):
        generator = DenseMappingNetwork()
    parts = {name: papers.parameters(child) for name, child in generator.named_children()}
    assert parts == {"model": 88_111_363, "enc_style": 1_338_464, "enc_label": 252_768}


def test_operations():
    from torch._subclasses.fake_tensor import FakeTensorMode

    counts = {"generator": 283, "blender": 50.9, "discriminator": 38.0, "mask_vae": 25.3}
    counts["parser"] = 24.4
    with FakeTensorMode():
        for name, expected in counts.items():
            network = networks(Config(), [name])[name].eval()
            count = papers.floating_point_operations(network, PAPER.example(Config())[name])
            # MaskVAE's doublings are taken by phases, with fewer operations.
            if name == "mask_vae":
                assert count / 1e9 < expected
            else:
                assert count / 1e9 == pytest.approx(expected, rel=0.005), name


@pytest.mark.parametrize("dims", [3, 4])
def test_classes_equal_their_one_hot_form(dims):
    torch.manual_seed(0)
    generator = networks(small(), ["generator"])["generator"].double()
    labels, style_labels = drawn_labels(2, 1, 64, 96), drawn_labels(2, 1, 72, 40, seed=1)
    image = torch.rand(2, 3, 72, 40).double() * 2 - 1
    given = [x if dims == 4 else x[:, 0] for x in (labels, style_labels)]
    results = []
    for maps in (given, [one_hot(labels), one_hot(style_labels)]):
        result = generator(*maps, image)
        gradients = torch.autograd.grad(result.square().sum(), list(generator.parameters()))
        results.append([result, *gradients])
    assert results[0][0].shape == (2, 3, 64, 96)
    torch.testing.assert_close(*results)

    vae = MaskVAE(19, 1, 1, 8, size=128).double().eval()
    labels = drawn_labels(2, 1, 128, 128)
    torch.testing.assert_close(vae.encode(labels), vae.encode(one_hot(labels)))


def test_one_style_serves_several_layouts():
    torch.manual_seed(0)
    generator = networks(small(), ["generator"])["generator"].double()
    layouts, labels = drawn_labels(3, 1, 64, 64), drawn_labels(1, 1, 32, 48, seed=1)
    image = torch.rand(1, 3, 32, 48).double() * 2 - 1
    style = generator.encode_style(labels, image)
    assert style.shape == (1, 2 * 16 * 2)
    together = generator.generate(layouts, style)
    alone = torch.cat([generator(layout[None], labels, image) for layout in layouts])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("output_nc", [1, 3])
def test_the_blend_lies_between_both(output_nc):
    blender = AlphaBlender(6, output_nc, 2, 2, 1)
    first, second = torch.zeros(2, 3, 16, 24), torch.ones(2, 3, 16, 24)
    blend, alpha = blender(first, second)
    assert alpha.shape == (2, output_nc, 16, 24)
    torch.testing.assert_close(blend, (1 - alpha).expand(2, 3, 16, 24))


IMAGE = torch.zeros(1, 3, 32, 32)
MAP = torch.zeros(1, 1, 32, 32, dtype=torch.int64)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda g: g(MAP[..., :30], MAP, IMAGE),
            ValueError,
            "labels: expected sides that are mult",
        ),
        (lambda g: g(MAP[..., :4], MAP, IMAGE), ValueError, "labels: expected sides .* at least 8"),
        (lambda g: g(MAP, MAP[..., :16], IMAGE), ValueError, "style_labels: expected the height"),
        (
            lambda g: g(MAP, MAP[..., :16], IMAGE[..., :16]),
            ValueError,
            "style_labels: .* at least 32",
        ),
        (lambda g: g(MAP, MAP, IMAGE[:, :2]), ValueError, "style_image: expected the shape"),
        (lambda g: g(IMAGE, MAP, IMAGE), ValueError, r"labels: expected the shape \(N, 19"),
        (
            lambda g: AlphaBlender(6, 3, 2, 2, 1)(IMAGE, IMAGE[:, :2]),
            ValueError,
            "second: expected",
        ),
        (
            lambda g: AlphaBlender(6, 3, 2, 2, 1)(IMAGE, IMAGE[..., :16]),
            ValueError,
            "second: expected the shape of first",
        ),
        (
            lambda g: AlphaBlender(6, 3, 2, 2, 1)(IMAGE[..., :30], IMAGE[..., :30]),
            ValueError,
            "first: expected sides",
        ),
        (lambda g: MaskVAE(size=100), ValueError, "size: expected a multiple of 128, got 100"),
        (lambda g: g(MAP + 19, MAP, IMAGE), ValueError, "labels: .* from 0 to 18, got 19"),
        (
            lambda g: MaskVAE(19, 1, 1, 4, size=128)(MAP + 19),
            ValueError,
            "labels: expected classes from 0 to 18, got 19",
        ),
        (
            lambda g: MaskVAE(19, 1, 1, 4, size=128)(MAP),
            ValueError,
            "labels: expected 128 x 128 pixels",
        ),
        (
            lambda g: MaskVAE(19, 1, 1, 4, size=128).decode(torch.zeros(2, 5)),
            ValueError,
            r"z: expected the shape \(N, 4\), got \(2, 5\)",
        ),
        (lambda g: FaceParser(16)(IMAGE[..., :30]), ValueError, "image: expected sides that are"),
        (lambda g: Network(size=200), ValueError, "size: expected a multiple of 128, got 200"),
        (lambda g: Network(blender_width=0), ValueError, "blender_width: expected at least 1"),
    ],
)
def test_bad_input_of_networks(call, error, message):
    generator = networks(small(), ["generator"])["generator"]
    with pytest.raises(error, match=message):
        call(generator)


# --- published files ------------------------------------------------------------------------------


def norm(key: str, channels: int) -> dict[str, tuple[int, ...]]:
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{key}.{n}": (channels,) for n in names} | {f"{key}.num_batches_tracked": ()}


def layer(key: str, *shape: int, bias: int | None = None) -> dict[str, tuple[int, ...]]:
    return {f"{key}.weight": shape, f"{key}.bias": (shape[0] if bias is None else bias,)}


def generator_table() -> dict[str, tuple[int, ...]]:
    table = layer("model.1", 64, 19, 7, 7)
    for key, wide in zip((4, 7, 10, 13), (128, 256, 512, 1024), strict=True):
        table |= layer(f"model.{key}", wide, wide // 2, 3, 3)
    for key in (16, 17, 18, 19):
        for i in (0, 1):
            block = f"model.{key}.conv_block.{i}"
            table |= layer(f"{block}.conv", 1024, 1024, 3, 3)
            table |= {f"{block}.norm.running_mean": (1024,), f"{block}.norm.running_var": (1024,)}
    for key, wide in zip((20, 23, 26, 29), (1024, 512, 256, 128), strict=True):
        table |= layer(f"model.{key}", wide, wide // 2, 3, 3, bias=wide // 2)
    table |= layer("model.33", 3, 64, 7, 7)
    for name, channels, inner, first in (
        ("enc_style", 3, "model_middle", 0),
        ("enc_label", 19, "model_last", 1),
    ):
        table |= layer(f"{name}.model.0.conv", 16, channels, 7, 7)
        table |= layer(f"{name}.model.1.conv", 32, 16, 4, 4)
        table |= layer(f"{name}.model.2.conv", 64, 32, 4, 4)
        for i in range(first, first + 3):
            table |= layer(f"{name}.{inner}.{i}.conv", 64, 64, 4, 4)
    table |= layer("enc_style.model_last.1", 16384, 64, 1, 1)
    for sft in ("sft1", "sft2"):
        for kind in ("scale", "shift"):
            for i in (1, 2):
                table |= layer(f"enc_style.{sft}.SFT_{kind}_conv{i}", 64, 64, 1, 1)
    return table


def blender_table() -> dict[str, tuple[int, ...]]:
    table = layer("model.1", 32, 6, 7, 7)
    for key, wide in zip((4, 7, 10), (64, 128, 256), strict=True):
        table |= layer(f"model.{key}", wide, wide // 2, 3, 3)
    for key in (13, 14, 15):
        for i in (0, 1):
            table |= layer(f"model.{key}.conv_block.{i}.conv", 256, 256, 3, 3)
    for key, wide in zip((16, 19, 22), (256, 128, 64), strict=True):
        table |= layer(f"model.{key}", wide, wide // 2, 3, 3, bias=wide // 2)
    return table | layer("model.26", 3, 32, 7, 7)


def discriminator_table() -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {}
    channels = (22, 64, 128, 256, 512, 1)
    for scale in (0, 1):
        for i in range(5):
            table |= layer(f"scale{scale}_layer{i}.0", channels[i + 1], channels[i], 4, 4)
    return table


def mask_vae_table() -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {}
    channels = [19, *(32 * 2**i for i in range(7))]
    for i in range(1, 8):
        table |= layer(f"e{i}", channels[i], channels[i - 1], 4, 4)
        table |= norm(f"bn{i}", channels[i])
    table |= layer("fc1", 1024, 32768) | layer("fc2", 1024, 32768) | layer("d1", 32768, 1024)
    for i in range(2, 8):
        wide = channels[9 - i]
        table |= layer(f"d{i}", wide // 2, wide, 3, 3)
        table |= norm(f"bn{i + 6}", wide // 2)
    return table | layer("d8", 19, 32, 3, 3)


def parser_table() -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {}

    def double(key: str, inner: int, outer: int) -> None:
        for i, channels in ((1, inner), (2, outer)):
            table.update(layer(f"{key}.conv{i}.0", outer, channels, 3, 3))
            table.update(norm(f"{key}.conv{i}.1", outer))

    widths = (3, 16, 32, 64, 128, 256)
    for i in range(1, 5):
        double(f"conv{i}", widths[i - 1], widths[i])
    double("center", 128, 256)
    for i in range(1, 5):
        double(f"up_concat{i}.conv", widths[i + 1], widths[i])
        table.update(layer(f"up_concat{i}.up", widths[i + 1], widths[i], 2, 2, bias=widths[i]))
    return table | layer("final", 19, 16, 1, 1)


@pytest.mark.parametrize(
    "name, table, keys",
    [
        ("generator", generator_table(), 94),
        ("blender", blender_table(), 28),
        ("discriminator", discriminator_table(), 20),
        ("mask_vae", mask_vae_table(), 99),
        ("parser", parser_table(), 136),
    ],
)
def test_published_files_load(name, table, keys):
    assert len(table) == keys
    # The values' own memory would be 680 MB of MaskVAE.
    state = {key: torch.zeros(()).expand(shape) for key, shape in table.items()}
    first = next(key for key in table if key.endswith(".bias"))
    state[first] = torch.arange(table[first][0]) + 1.0
    wrapped = {f"module.{key}": value for key, value in state.items()}
    (loaded,) = load_published(wrapped, Config(), "file").items()
    assert loaded[0] == name
    values = loaded[1].state_dict()
    assert any(value.equal(state[first]) for value in values.values())
    told = PAPER.options(state)
    published = vars(Network())
    assert told == {key: published[key] for key in told}
    assert told["labels" if name != "blender" else "blender_blocks"]

    for change, message in (
        ({"extra.weight": torch.zeros(3)}, "holds unexpected extra.weight"),
        ({first: torch.zeros(5)}, rf"{first.split('.')[0]}.*\(5,\)|bias has the shape \(5,\)"),
    ):
        with pytest.raises(MisfitError, match=message):
            load_published({**state, **change}, Config(), "file")
    del state[first]
    with pytest.raises(MisfitError, match="lacks"):
        load_published(state, Config(), "file")


def test_biases_before_a_norm_must_be_there():
    state = {key: torch.zeros(shape) for key, shape in discriminator_table().items()}
    del state["scale1_layer2.0.bias"]
    message = r"file: .* expected scale1_layer2\.0\.bias of the shape \(256,\)"
    with pytest.raises(MisfitError, match=message):
        load_published(state, Config(), "file")


def test_a_folder_of_files(tmp_path):
    torch.manual_seed(0)
    config = small()
    built = networks(config)
    for name, file in (
        ("generator", "latest_net_G.pth"),
        ("blender", "latest_net_B.pth"),
        ("parser", "model.pth"),
    ):
        torch.save(built[name].state_dict(), tmp_path / file)
    loaded, _ = papers.load(tmp_path, PAPER, config)
    assert [*loaded] == ["generator", "blender", "parser"]
    for name, network in loaded.items():
        wanted = built[name].state_dict()
        assert all(value.equal(wanted[key]) for key, value in network.state_dict().items())
    told = PAPER.options(built["mask_vae"].state_dict())
    assert told == {"code": 8, "vae_width": 1, "labels": 19, "size": SIZE}


# --- label maps -----------------------------------------------------------------------------------


def test_names_and_colours():
    assert len(NAMES) == len(COLOURS) == len(set(COLOURS)) == 19
    assert sorted(NAMES) == sorted(BISENET_NAMES)
    assert {NAMES[a]: NAMES[b] for a, b in LABELS.swapped.items()} == {
        "l_eye": "r_eye",
        "l_brow": "r_brow",
        "l_ear": "r_ear",
    }
    labels = torch.arange(19).reshape(1, 1, 1, 19)
    colours = (coloured(labels) * 255).round().int()[0, :, 0].T
    assert colours.tolist() == [list(colour) for colour in COLOURS]
    assert [NAMES[i] for i in from_bisenet(labels).flatten()] == list(BISENET_NAMES)


def test_what_the_published_demo_makes_of_labels():
    labels = torch.arange(19).reshape(1, 1, 1, 19)
    values = published_values(labels)
    assert values.round().long().equal(labels)
    changed = (values.long() != labels).flatten().nonzero().flatten().tolist()
    assert changed == [7, 13, 14, 15]


@pytest.mark.parametrize(
    "labels, error, message",
    [
        (torch.full((1, 1, 4, 4), 19), ValueError, "map: expected labels from 0 to 18, got 19"),
        (torch.full((1, 1, 4, 4), -1), ValueError, "map: expected labels from 0 to 18, got -1"),
        (torch.zeros(1, 1, 4, 4), TypeError, "map: expected integers, got torch.float32"),
        (torch.zeros(1, 2, 4, 4).long(), ValueError, r"map: expected the shape \(N, H, W\)"),
    ],
)
def test_bad_labels(labels, error, message):
    with pytest.raises(error, match=message):
        check_labels(labels, 19, "map")


def test_merging_parts(tmp_path):
    skin, hair, neck = (np.zeros((6, 8), np.uint8) for _ in range(3))
    skin[1:5, 1:5], hair[:3], neck[4:, 3:] = 255, 1, 128
    expected = np.zeros((6, 8), np.uint8)
    expected[1:5, 1:5] = 1
    expected[:3] = 13
    expected[4:, 3:] = 17
    parts = {"neck": neck, "hair": hair, "skin": skin}  # in any order
    assert np.array_equal(merge_parts(parts), expected)
    folder = tmp_path / "1"
    folder.mkdir()
    for name, mask in parts.items():
        Image.fromarray(mask).convert("RGB" if name == "skin" else "L").save(
            folder / f"02345_{name}.png"
        )
    assert np.array_equal(merge_files(tmp_path, 2345), expected)
    with pytest.raises(ValueError, match=r"expected masks such as 02346_skin\.png, found none"):
        merge_files(tmp_path, 2346)
    with pytest.raises(ValueError, match=r"parts: expected .* got 'beard'"):
        merge_parts({"beard": skin})
    with pytest.raises(ValueError, match=r"parts: .* got none"):
        merge_parts({})
    with pytest.raises(ValueError, match=r"parts: expected masks of one size, got \[\(3, 8\)"):
        merge_parts({"skin": skin, "hair": hair[:3]})


def test_label_files(tmp_path):
    labels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(labels).save(tmp_path / "grey.png")
    Image.fromarray(labels).convert("RGB").save(tmp_path / "three.png")
    for name in ("grey", "three"):
        assert np.array_equal(np.asarray(read_labels(tmp_path / f"{name}.png")), labels)
    colours = np.stack([labels, labels, labels + 1], axis=-1)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    with pytest.raises(
        ValueError, match=r"colours\.png: expected colours of the palette, got #000"
    ):
        read_labels(tmp_path / "colours.png")
    published = (coloured(torch.from_numpy(labels)[None])[0] * 255).movedim(0, -1).byte().numpy()
    Image.fromarray(published).save(tmp_path / "published.png")
    assert np.array_equal(np.asarray(read_labels(tmp_path / "published.png")), labels)
    other = {tuple(colours[i, j].tolist()): int(labels[i, j]) for i in range(4) for j in range(4)}
    assert np.array_equal(np.asarray(read_labels(tmp_path / "colours.png", other)), labels)


def test_numbers_of_a_bisenet(tmp_path):
    labels = np.array([[17, 0], [10, 1]], np.uint8)  # hair, background, nose, skin
    Image.fromarray(labels).save(tmp_path / "map.png")
    found = np.asarray(read_labels(tmp_path / "map.png", numbering="bisenet"))
    assert [[NAMES[number] for number in row] for row in found] == [
        ["hair", "background"],
        ["nose", "skin"],
    ]
    Image.fromarray(labels + 5).save(tmp_path / "map.png")
    with pytest.raises(ValueError, match=r"map\.png: expected labels from 0 to 18, got 22"):
        read_labels(tmp_path / "map.png", numbering="bisenet")


def test_parsing_loss_leaves_pixels_out():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 19, 4, 4), torch.randint(19, (1, 1, 4, 4))
    labels[..., :2] = 250
    expected = F.cross_entropy(logits[..., 2:], labels[:, 0, :, 2:])
    torch.testing.assert_close(parsing_loss(logits, labels), expected)


# --- training -------------------------------------------------------------------------------------


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Photos whose colours are those of their labels: four large fields."""
    for name in ("photos", "labels", "inter", "outer"):
        (tmp_path / name).mkdir()
    for i in range(4):
        fields = np.roll([0, 1, 13, 17], i).reshape(2, 2)
        labels = fields.repeat(SIZE // 2, 0).repeat(SIZE // 2, 1).astype(np.uint8)
        photo = (coloured(torch.from_numpy(labels)[None])[0] * 255).movedim(0, -1)
        Image.fromarray(photo.round().numpy().astype(np.uint8)).save(
            tmp_path / "photos" / f"{i}.jpg", quality=95
        )
        for name in ("labels", "inter", "outer"):
            Image.fromarray(labels).save(tmp_path / name / f"{i}.png")
    return tmp_path


def batch(seed: int = 0) -> dict[str, Tensor]:
    labels = drawn_labels(2, 1, SIZE, SIZE, seed=seed)
    return {
        "image": coloured(labels),
        "labels": labels,
        "reference": drawn_labels(2, 1, SIZE, SIZE, seed=seed + 1),
    }


def recipe(kind: type, pretrained: dict[str, Path], **changes: object) -> object:
    torch.manual_seed(0)
    config = small(**changes)
    names = {"generator", "discriminator", "mask_vae"}
    names |= {"blender"} if kind is EditingSimulation else set()
    files = {"vgg19": pretrained["vgg19"]} if config.loss.vgg_weight else {}
    return kind(networks(config, names), config, pretrained=files)


def test_samples(faces):
    folders = {"image": faces / "photos", "labels": faces / "labels"}
    data = LabelledFaces(folders, 19, Preparation(SIZE, "stretch"), references=True)
    samples = [data[0, position, 1] for position in range(8)]
    maps = [np.array(Image.open(faces / "labels" / f"{i}.png")) for i in range(4)]
    assert all(np.array_equal(sample["labels"][0], maps[1]) for sample in samples)
    drawn = [
        next(i for i, values in enumerate(maps) if np.array_equal(sample["reference"][0], values))
        for sample in samples
    ]
    assert len(set(drawn)) > 2
    assert data[0, 3, 1]["reference"].equal(samples[3]["reference"])
    Image.fromarray(np.full((SIZE, SIZE), 19, np.uint8)).save(faces / "labels" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: expected labels from 0 to 18, got 19"):
        data[0, 0, 1]


def test_weights_as_the_published_script_fills_them(pretrained):
    trained = recipe(EditingSimulation, pretrained, width=32, vgg_weight=0)
    state = trained.networks["generator"].state_dict()
    first = state["model.1.weight"]
    assert first.std().item() == pytest.approx(0.02, rel=0.05)
    assert state["enc_style.model_last.1.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    bound = (first[0].numel()) ** -0.5  # PyTorch's own
    assert bound / 2 < state["model.1.bias"].abs().max() <= bound
    transposed = state["model.11.weight"]  # uniform: its deviation is bound / sqrt(3)
    bound = transposed[0].numel() ** -0.5
    assert transposed.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_codes_move_toward_the_reference_and_away():
    torch.manual_seed(0)
    vae = MaskVAE(19, 1, 1, 8, size=128).eval()
    codes: list[Tensor] = []
    vae.d1.register_forward_pre_hook(lambda module, given: codes.append(given[0]))
    given = batch()
    inter, outer = interpolated(vae, given["labels"], given["reference"])
    z, other = (vae.encode(given[name])[0] for name in ("labels", "reference"))
    torch.testing.assert_close(codes, [0.6 * z + 0.4 * other, 1.4 * z - 0.4 * other])
    assert inter.shape == outer.shape == (2, 1, SIZE, SIZE)
    assert inter.dtype == torch.int64
    same, _ = interpolated(vae, given["labels"], given["labels"])
    assert same.equal(vae.decode(z).argmax(1, keepdim=True))
    codes.clear()
    interpolated(vae, given["labels"], given["labels"], noise=True)
    middle = (codes[0] + codes[1]) / 2  # a code that was drawn
    assert 0.1 < (middle - z).std() < 10


@pytest.mark.parametrize("decoded", [False, True])
def test_steps_of_simulated_edits(decoded, pretrained):
    loop = Loop(recipe(EditingSimulation, pretrained))
    given = batch()
    if decoded:
        given = {"image": given["image"], "labels": given["labels"]}
        given |= {"inter": given["labels"], "outer": given["labels"]}
    order: list[str] = []
    for name, optimizer in loop.recipe.optimizers.items():
        optimizer.register_step_pre_hook(lambda *given, name=name: order.append(name))
    frozen = {k: v.clone() for k, v in loop.recipe.networks["mask_vae"].state_dict().items()}
    losses = loop.step([given], epoch=0)
    assert order == ["discriminator", "generator", "discriminator", "joint"]
    assert list(losses) == [
        *("discriminator_fake", "discriminator_real_fake", "adversarial", "matching", "vgg"),
        *("discriminator_blend", "discriminator_real_blend"),
        *("blend_adversarial", "blend_matching", "blend_vgg"),
    ]
    after = loop.recipe.networks["mask_vae"].state_dict()
    assert all(value.equal(after[key]) for key, value in frozen.items())
    rows = loop.recipe.samples(given)
    assert [row.shape for row in rows] == [(2, 3, SIZE, SIZE)] * 6
    assert all(row.min() >= 0 and row.max() <= 1 for row in rows)


@pytest.mark.parametrize("how", [{"precision": "bfloat16"}, {"channels_last": True}])
@pytest.mark.parametrize("kind", [DenseMapping, EditingSimulation])
def test_other_precisions_and_layouts(kind, how, pretrained):
    losses = []
    for options in ({}, how):
        loop = Loop(recipe(kind, pretrained, rate=0), **options)
        given = batch() | {"inter": batch(2)["labels"], "outer": batch(3)["labels"]}
        losses.append(loop.step([loop.moved(given)], epoch=0))
    assert losses[1] == pytest.approx(losses[0], rel=0.15, abs=0.02)


@pytest.mark.parametrize("epoch, share", [(0, 1), (99, 1), (100, 1), (150, 0.5), (200, 0)])
def test_rates(epoch, share, pretrained):
    rates = recipe(EditingSimulation, pretrained, vgg_weight=0).learning_rates(epoch, 0)
    assert rates == pytest.approx(
        dict.fromkeys(("generator", "discriminator", "joint"), 5e-5 * share)
    )
    rates = recipe(DenseMapping, pretrained, vgg_weight=0).learning_rates(epoch, 0)
    assert rates["mask_vae"] == 1e-4


def train(faces: Path, output: Path, stage: str, *more: str, **changes: object) -> int:
    settings = [f"--set={n}={v}" for n, v in {**SMALL, **changes}.items()]
    return main(
        [
            *("maskgan", "train", str(faces / "photos"), "--labels", str(faces / "labels")),
            *("-o", str(output), "--stage", stage, *settings, "--workers", "0", "--device", "cpu"),
            *("--batch", "2", "--log-every", "1", *more),
        ]
    )


def losses_of(run: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (run / "log.jsonl").read_text().splitlines()]


def test_from_training_to_an_edit(faces, pretrained, tmp_path, capsys):
    vgg = ("--pretrained", f"vgg19={pretrained['vgg19']}")
    first, second, again = (tmp_path / name for name in ("first", "second", "again"))
    rates = {"rate": 2e-3, "vae_rate": 3e-2}
    assert train(faces, first, "1", "--iterations", "16", *vgg, **rates) == 0
    for name in ("vgg", "mask_vae"):
        values = losses_of(first, name)
        assert np.mean(values[-3:]) < 0.8 * np.mean(values[:3]), name

    assert train(faces, second, "2", "--iterations", "4", *vgg, **rates) == 1
    assert "expected a file with mask_vae, which stage 2 uses" in capsys.readouterr().err
    given = ("--checkpoint", str(checkpoints(first)[-1]), *vgg)
    assert train(faces, second, "2", "--iterations", "4", *given, **rates) == 0
    assert train(faces, again, "2", "--iterations", "2", *given, **rates) == 0
    assert train(faces, again, "2", "--iterations", "4", "--resume", *vgg, **rates) == 0
    (one, _), (other, _) = (checkpoint.load(checkpoints(path)[-1]) for path in (second, again))
    assert one.keys() == other.keys()
    assert all(value.equal(other[key]) for key, value in one.items())

    labels = np.asarray(Image.open(faces / "labels" / "0.png")).copy()
    labels[:64] = 13
    Image.fromarray(labels).save(tmp_path / "edited.png")
    output = tmp_path / "out.png"
    command = ["maskgan", "edit", str(faces / "photos" / "0.jpg"), str(tmp_path / "edited.png")]
    command += ["-o", str(output), "--checkpoint", str(checkpoints(second)[-1])]
    assert main([*command, "--labels", str(faces / "labels" / "0.png")]) == 0
    assert Image.open(output).size == (SIZE, SIZE)
    assert main(command) == 1
    assert (
        "--labels: expected a label map, as the checkpoint has no face" in capsys.readouterr().err
    )


def test_masks_decoded_beforehand(faces, tmp_path, capsys):
    torch.manual_seed(0)
    config = small(vgg_weight=0)
    papers.save(tmp_path / "all.safetensors", PAPER, config, networks(config))
    given = ["--iterations", "1", "--checkpoint", str(tmp_path / "all.safetensors")]
    folders = ["--inter", str(faces / "inter"), "--outer", str(faces / "outer")]
    assert train(faces, tmp_path / "run", "2", *given, *folders, vgg_weight=0) == 0
    assert train(faces, tmp_path / "run", "2", *given, *folders[:2], vgg_weight=0) == 1
    assert "--inter, --outer: expected both or none" in capsys.readouterr().err


def test_the_parser_learns(faces, tmp_path):
    run = tmp_path / "run"
    assert train(faces, run, "parser", "--iterations", "80", parser_rate=1e-2) == 0
    values = losses_of(run, "parsing")
    assert np.mean(values[-5:]) < 0.5 * np.mean(values[:5])
    built, _ = papers.load(checkpoints(run)[-1], PAPER)
    labels = torch.from_numpy(np.array(Image.open(faces / "labels" / "2.png")))[None, None].long()
    found = parse(built["parser"].eval(), coloured(labels))
    assert found.shape == labels.shape
    assert found.dtype == torch.int64
    # Three of the four regions: the rate is high, and how a run ends depends on every rounding.
    assert (found == labels).float().mean() > 0.6


# --- editing --------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = small()
    path = tmp_path / "checkpoint.safetensors"
    papers.save(path, PAPER, config, networks(config, {"generator", "parser"}))
    return path


@pytest.fixture
def files(saved: Path) -> dict[str, Path]:
    """A photo of 150 x 150 pixels with its label map, that map changed, and another photo."""
    folder = saved.parent
    random = np.random.default_rng(0)
    labels = np.kron(random.integers(0, 19, (5, 5)), np.ones((30, 30))).astype(np.uint8)
    edited = labels.copy()
    edited[:60] = 13
    images = {
        "photo": random.integers(0, 256, (150, 150, 3), np.uint8),
        "labels": labels,
        "edited": edited,
        "style": random.integers(0, 99, (90, 60, 3), np.uint8),
        "style_labels": np.ones((90, 60), np.uint8),
    }
    paths = {name: folder / f"{name}.png" for name in images}
    for name, values in images.items():
        Image.fromarray(values).save(paths[name])
    return paths


def edit(saved: Path, files: dict[str, Path], *more: object) -> np.ndarray:
    output = saved.parent / "out.png"
    command = ["maskgan", "edit", files["photo"], files["edited"], "-o", output]
    words = [*command, "--checkpoint", saved, *more]
    assert main([str(word) for word in words]) == 0
    return np.asarray(Image.open(output))


def test_edits_of_files(saved, files):
    given = ("--labels", files["labels"])
    photo = edit(saved, files, *given)
    built, _ = papers.load(saved, PAPER)
    generator = built["generator"].eval()

    def small_map(name: str, size: tuple[int, int]) -> Tensor:
        picture = Image.open(files[name]).resize(size, Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(picture)).long()[None, None]

    def small_photo(name: str, size: tuple[int, int]) -> Tensor:
        picture = Image.open(files[name]).resize(size, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(picture)).movedim(-1, 0)[None] / 127.5 - 1

    size = (SIZE, SIZE)
    with torch.no_grad():
        wanted = generator(
            small_map("edited", size), small_map("labels", size), small_photo("photo", size)
        )
    wanted = as_bytes((wanted + 1) / 2)[0].numpy().astype(int)
    assert np.abs(photo - wanted).max() <= 1

    more = ("--style", files["style"], "--style-labels", files["style_labels"])
    copied = edit(saved, files, *given, *more)
    tall = (SIZE, 192)
    with torch.no_grad():
        wanted = generator(
            small_map("edited", size), small_map("style_labels", tall), small_photo("style", tall)
        )
    wanted = as_bytes((wanted + 1) / 2)[0].numpy().astype(int)
    assert np.abs(copied - wanted).max() <= 1
    assert not np.array_equal(copied, photo)
    assert not np.array_equal(edit(saved, files, *given, "--truncate"), photo)  # hair is 13
    assert edit(saved, files).shape == photo.shape  # the labels as the parser has them


def test_pasting_keeps_what_was_not_edited(saved, files):
    given = ("--labels", files["labels"], "--paste")
    before = np.asarray(Image.open(files["photo"]))
    after = edit(saved, files, *given, "--margin", "4")
    assert after.shape == before.shape
    assert np.array_equal(after[66:], before[66:])  # 60 rows, and 4 of 128 more
    same = (after[:60] == before[:60]).all(-1).mean()
    assert same < 0.3
    Image.open(files["labels"]).save(files["edited"])
    assert np.array_equal(edit(saved, files, *given), before)


def test_the_style_is_computed_once():
    torch.manual_seed(0)
    generator = networks(small(), ["generator"])["generator"].eval()
    calls: list[int] = []
    generator.enc_style.register_forward_hook(lambda *given: calls.append(1))
    photo, labels = torch.rand(1, 3, 64, 64), drawn_labels(1, 1, 64, 64)
    editor = FaceEditor(generator, photo, labels)
    edits = labels.repeat(2, 1, 1, 1)
    edits[1, :, :16, :32] = 13
    results = editor(edits)
    assert results.shape == (2, 3, 64, 64)
    torch.testing.assert_close(editor(edits[1:]), results[1:])
    assert len(calls) == 1
    pasted = editor.paste(edits)
    assert pasted[0].equal(photo[0])
    changed = edits[1:] != labels
    assert 0 < changed.sum() < changed.numel()
    assert pasted[1:].equal(torch.where(changed, results[1:], photo))
    kept = editor.unedited(edits[1:], 3)
    assert kept[..., 19:, :].all()
    assert not kept[changed].any()
    assert (kept == 0).sum() > changed.sum()
    for call, message in (
        (lambda: editor(edits[..., :32]), "edited: expected the height and width"),
        (lambda: editor(edits + 19), "edited: expected labels from 0 to 18"),
        (lambda: editor.unedited(edits, -1), "margin: expected at least 0, got -1"),
        (lambda: FaceEditor(generator, photo, labels[..., :8]), "labels: expected one photo, and"),
        (
            lambda: FaceEditor(generator, photo, labels, style=(photo, labels[..., :8])),
            "style: expected one photo, and",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_working_sizes():
    assert working_size((1024, 1024), Network()) == (512, 512)
    assert working_size((600, 900), Network()) == (512, 768)
    assert working_size((1000, 1013), Network()) == (512, 512)  # 518.7 rows
    assert working_size((1000, 10), Network()) == (512, 32)
    assert working_size((100, 103), small().network) == (SIZE, 128)  # as the parser needs it


@pytest.mark.parametrize(
    "more, message",
    [
        (["--style-labels", "labels"], "--style-labels: expected --style, the photo"),
        (["--margin", "-1"], "--margin: expected at least 0, got -1"),
        (["--labels", "style_labels"], "style_labels.png: expected the photo's aspect, 150 x 150"),
        (["--labels", "photo"], "photo.png: expected colours of the palette"),
    ],
)
def test_bad_edits(more, message, saved, files, capsys):
    words = [str(files.get(word, word)) for word in more]
    output = saved.parent / "out.png"
    command = ["maskgan", "edit", str(files["photo"]), str(files["edited"]), "-o", str(output)]
    assert main([*command, "--checkpoint", str(saved), *words]) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_info(capsys):
    assert main(["maskgan", "info"]) == 0
    text = capsys.readouterr().out
    assert "generator: 89,702,595 parameters" in text
    assert "2 trains generator, blender, discriminator (needs mask_vae" in text
