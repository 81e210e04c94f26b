"""DAGAN: networks beside the golden files, published files, label maps, training and editing."""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from torchext.models import checkpoint, papers
from torchext.models.__main__ import main
from torchext.models.blocks import folded, iterated, spectral
from torchext.models.checkpoint import MisfitError
from torchext.models.dagan import (
    DATA_SETS,
    PAPER,
    AttentionTail,
    Config,
    DualAttention,
    LabelledPhotos,
    SPADEGenerator,
    instance_edges,
    load_published,
    networks,
    synthesise,
)
from torchext.models.dagan.checkpoint import with_right_vectors
from torchext.models.dagan.labels import Windows, classes, one_hot
from torchext.models.dagan.networks import Network
from torchext.models.discriminators import MultiscaleDiscriminator
from torchext.models.label_maps import read_numbers, read_palette
from torchext.models.loop import Loop
from torchext.models.paper import configure
from torchext.models.training import checkpoints
from torchext.nn import ChannelAttention, SpatialAttention

SMALL = {"width": 4, "labels": 5, "dont_care": False, "first_label": 0, "size": 64, "margin": 8}


def small(**changes: object) -> Config:
    return configure(Config, {**SMALL, **changes})


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, generator, discriminator",
    [
        ("ade20k", 96_578_709, 151),
        ("cityscapes", 93_134_229, 36),
        ("celeba", 92_625_045, 19),
        ("coco", 97_567_125, 184),
        ("deepfashion", 92_654_997, 20),
        ("facades", 92_445_333, 13),
    ],
)
def test_parameters_of_the_published_networks(name, generator, discriminator):
    config = configure(Config, DATA_SETS[name])
    with torch.device("meta"):
        built = networks(config)
    assert papers.parameters(built["generator"]) == generator
    assert len(built["generator"].state_dict()) == 241
    assert config.network.channels == discriminator
    assert 5.54e6 < papers.parameters(built["discriminator"]) < 5.91e6
    assert len(built["discriminator"].state_dict()) == 26


def test_what_the_attention_adds():
    with torch.device("meta"):
        tail = AttentionTail()
    parts = {name: papers.parameters(child) for name, child in tail.named_children()}
    del parts["conv_img"]
    assert parts == {"conv_64": 73_792, "cab": 12_416, "spatialAtt": 18}
    assert sum(parts.values()) == 86_226


@pytest.mark.parametrize(
    "name, size, operations",
    [
        ("ade20k", (256, 256), 372),
        ("cityscapes", (256, 512), 582),
        ("celeba", (512, 512), 1168),
        ("coco", (256, 256), 392),
        ("deepfashion", (256, 256), 293),
        ("facades", (1024, 1024), 4615),
    ],
)
def test_sizes_and_operations(name, size, operations):
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = configure(Config, DATA_SETS[name])
    assert config.network.height_and_width == size
    with FakeTensorMode():
        network, inputs = networks(config)["generator"].eval(), PAPER.example(config)["generator"]
        assert network(*inputs).shape == (1, 3, *size)
        count = papers.floating_point_operations(network, inputs)
    assert count / 1e9 == pytest.approx(operations, rel=0.002)


@pytest.mark.parametrize(
    "size, aspect, upsampling, start, image",
    [
        (512, 2.0, "more", (4, 8), (256, 512)),
        (64, 0.5, "normal", (4, 2), (128, 64)),
        (96, 1.25, "normal", (2, 3), (64, 96)),  # 2.4 rows
        (96, 1.1, "normal", (3, 3), (96, 96)),  # 2.7 rows
        (100, 1.0, "normal", (3, 3), (96, 96)),  # rounded down
    ],
)
def test_start_sizes(size, aspect, upsampling, start, image):
    generator = SPADEGenerator(2, 3, size, aspect, upsampling)
    assert generator.start == start
    labels = torch.randint(3, (2, 1, 50, 70))
    seen: list[tuple[int, ...]] = []
    for name in ("head_0", "G_middle_0", "G_middle_1", "up_0"):
        block = generator.get_submodule(name)
        block.register_forward_hook(lambda block, given, result: seen.append(result.shape[2:]))
    assert generator(labels).shape == (2, 3, *image)
    growth = [b[0] // a[0] for a, b in pairwise(seen)]
    assert growth == [2, 2 if upsampling == "more" else 1, 2]


@pytest.mark.parametrize("norm", ["spectralspadesyncbatch3x3", "spadeinstance5x5"])
@pytest.mark.parametrize("dims", [3, 4])
def test_classes_equal_their_one_hot_form(norm, dims):
    generator = SPADEGenerator(2, 5, 64, norm_G=norm, kernel_size=7).double().eval()
    labels = torch.randint(5, (2, 1, 50, 70), generator=torch.Generator().manual_seed(1))
    one_hot = F.one_hot(labels[:, 0], 5).movedim(-1, 1).double()
    result = generator(labels if dims == 4 else labels[:, 0])
    torch.testing.assert_close(result, generator(one_hot))
    generator.fc = nn.Sequential(generator.fc)  # wrapped, as LoRA does
    torch.testing.assert_close(result, generator(labels))


def published_tail(high: Tensor, low: Tensor, tail: AttentionTail) -> Tensor:
    """As the card writes it, maximum and mean by hand."""
    pooled = torch.cat((high, low), 1).mean((2, 3), keepdim=True)
    delta = torch.sigmoid(tail.cab.conv2(F.relu(tail.cab.conv1(pooled))))
    map_ = torch.cat((low.mean(1, keepdim=True), low.max(1, keepdim=True)[0]), 1)
    attention = torch.sigmoid(tail.spatialAtt.conv(map_))
    return F.leaky_relu((delta * low + high) + low * attention, 0.2)


def test_the_tail_in_few_passes_and_its_gradients():
    tail = AttentionTail(3).double()
    high, low = random(2, 3, 5, 6).requires_grad_(), random(2, 3, 5, 6).flip(0).requires_grad_()

    tail.conv_64 = nn.Identity()
    tail.conv_img = nn.Identity()

    def ours(high: Tensor, low: Tensor) -> Tensor:
        return tail.tail(high, low)

    torch.testing.assert_close(ours(high, low), published_tail(high, low, tail).tanh())
    assert torch.autograd.gradcheck(ours, (high, low))


def test_the_largest_channel_alone_gets_the_gradient():
    attention = SpatialAttention().double()
    x = torch.ones(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        attention.conv.weight[:, 0] = 0  # the mean counts for nothing
    attention.attention(x).sum().backward()
    index = x.max(dim=1, keepdim=True).indices
    assert x.grad.gather(1, index).count_nonzero() == 4
    assert x.grad.count_nonzero() == 4


def test_a_replaced_attention_is_called():
    tail = AttentionTail(4).double()
    wide, x = random(1, 8, 5, 6), random(1, 4, 5, 6)
    before = tail.tail(wide, x)
    seen = []
    tail.spatialAtt.register_forward_hook(lambda module, given, result: seen.append(result))
    torch.testing.assert_close(tail.tail(wide, x), before)
    assert len(seen) == 1


def test_attention_of_all_scales():
    """As the paper has it: averages of maps that are brought to one size."""
    attention = ChannelAttention(2 + 6 + 4 + 4, 4).double()
    maps = [random(2, 2, 2, 3), random(2, 6, 4, 6), random(2, 4, 8, 12), random(2, 4, 8, 12).cos()]
    resized = [F.interpolate(x, size=(8, 12), mode="nearest") for x in maps]
    gate = torch.cat(resized, 1).mean((2, 3), keepdim=True)
    gate = attention.conv2(F.relu(attention.conv1(gate))).sigmoid()
    torch.testing.assert_close(attention(maps), gate * maps[3] + maps[2])

    generator = networks(small(scales="all"), ["generator"])["generator"]
    assert generator.cab.conv1.in_channels == 4 * (16 * 3 + 8 + 4 + 2)
    generator(torch.randint(5, (2, 1, 64, 64))).sum().backward()
    assert generator.cab.conv1.weight.grad.abs().amax(dim=(0, 2, 3)).count_nonzero() == 248


def test_a_code_of_a_photo():
    built = networks(small(vae=True, code=7))
    assert list(built) == ["generator", "discriminator", "encoder"]
    labels = torch.randint(5, (2, 1, 64, 64))
    mean, log_variance = built["encoder"].eval()(torch.rand(2, 3, 40, 50))
    assert mean.shape == log_variance.shape == (2, 7)
    generator = built["generator"].eval()
    with torch.no_grad():
        first, second = generator(labels, mean), generator(labels, mean + 1)
        assert first.equal(generator(labels, mean))
        assert not generator(labels).equal(generator(labels))  # drawn
    assert not first.equal(second)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_upsampling_layers": "most"}, "upsampling: expected one of .*'most' does not fit"),
        ({"crop_size": 31}, "size: expected at least 32 for up-sampling 'normal'"),
        ({"crop_size": 64, "aspect_ratio": 8.0}, "size: expected at least 256 .* aspect 8, got 64"),
        ({"aspect_ratio": 0.0}, "aspect: expected width / height, above 0, got 0.0"),
        ({"kernel_size": 5}, "kernel_size: expected 3 or 7, got 5"),
        ({"scales": "three"}, "scales: expected 'two' or 'all', got 'three'"),
    ],
)
def test_bad_constructor_arguments(arguments, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        SPADEGenerator(2, 3, **arguments)


@pytest.mark.parametrize(
    "labels, z, error, message",
    [
        (torch.zeros(1, 4, 8, 8), None, ValueError, r"labels: expected the shape \(N, 5, H, W\)"),
        (torch.full((1, 1, 8, 8), 5), None, ValueError, "labels: expected classes from 0 to 4"),
        (torch.zeros(1, 5, 8, 8, dtype=torch.int64), None, ValueError, r"\(N, H, W\) or \(N, 1"),
        (torch.zeros(1, 8, 8, dtype=torch.bool), None, TypeError, "labels: expected integers"),
        (torch.zeros(1, 1, 8, 8).long(), torch.zeros(1, 256), ValueError, "z: expected None"),
    ],
)
def test_bad_label_maps(labels, z, error, message):
    generator = networks(small(), ["generator"])["generator"]
    with pytest.raises(error, match=message):
        generator(labels, z)


@pytest.mark.parametrize(
    "maps, message",
    [
        ([random(1, 4, 3, 3)], "maps: expected at least two, got 1"),
        ([random(1, 4, 3, 3), random(1, 4, 3, 4)], r"expected the last two of the shape \(N, 4"),
        ([random(1, 2, 3, 3), random(1, 2, 3, 3)], r"expected the last two of the shape \(N, 4"),
        ([random(1, 3, 2, 2), *2 * [random(1, 4, 3, 3)]], "expected 8 channels together, got 11"),
    ],
)
def test_bad_maps(maps, message):
    with pytest.raises(ValueError, match=message):
        ChannelAttention(8, 4).double()(maps)


def test_power_iterations_without_a_forward():
    layer = iterated(spectral(nn.Conv2d(6, 8, 3)), 100).eval()
    norm = torch.linalg.matrix_norm(layer.weight_orig.flatten(1), 2)
    layer(torch.zeros(1, 6, 3, 3))
    torch.testing.assert_close(layer.weight * norm, layer.weight_orig)


def test_one_graph_for_compilers():
    generator = folded(networks(small(), ["generator"])["generator"])
    labels = torch.randint(5, (2, 1, 64, 64))
    expected = generator(labels)
    compiled = torch.compile(generator, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(labels), expected)
    exported = torch.export.export(generator, (labels,)).module()
    torch.testing.assert_close(exported(labels), expected)


def test_widths_and_sizes_of_the_discriminator():
    """More scales and layers than the published two and four: widths stop at 512."""
    with torch.device("meta"):
        scales = MultiscaleDiscriminator(3, 6, 64, 8)(torch.empty(1, 8, 256, 128))
    assert [len(scale) for scale in scales] == [7, 7, 7]
    assert [x.shape[1] for x in scales[0]] == [64, 128, 256, 512, 512, 512, 1]
    # A stride of 2 with padding 2 gives n // 2 + 1, one of 1 gives n + 1.
    assert [x.shape[2] for x in scales[0]] == [129, 65, 33, 17, 9, 10, 11]
    assert [scale[0].shape[2] for scale in scales] == [129, 65, 33]


# --- published files ------------------------------------------------------------------------------


def test_published_files_load_strictly(tmp_path):
    torch.manual_seed(0)
    config = small()
    built = networks(config)
    for name, letter in (("generator", "G"), ("discriminator", "D")):
        torch.save(built[name].state_dict(), tmp_path / f"200_net_{letter}.pth")
    found, _ = papers.load(tmp_path, PAPER, config)
    assert list(found) == ["generator", "discriminator"]
    for name, network in found.items():
        for key, value in built[name].state_dict().items():
            assert value.equal(network.state_dict()[key])
    alone, _ = papers.load(tmp_path / "200_net_D.pth", PAPER, config)
    assert list(alone) == ["discriminator"]

    state = built["generator"].state_dict()
    del state["cab.conv1.bias"]
    with pytest.raises(MisfitError, match=r"file: .* lacks cab\.conv1\.bias"):
        load_published(state, config, "file")
    state = {**built["generator"].state_dict(), "up_4.conv_0.bias": torch.zeros(1)}
    with pytest.raises(MisfitError, match=r"holds unexpected up_4\.conv_0\.bias"):
        load_published(state, config, "file")
    encoder = networks(small(vae=True), ["encoder"])["encoder"].state_dict()
    with pytest.raises(ValueError, match="holds an image encoder, which needs the option vae"):
        load_published(encoder, config, "file")


@pytest.mark.parametrize("stored", [False, True])
def test_files_from_before_right_vectors(stored):
    """PyTorch below 1.0 kept u alone, and the normalised weight."""
    torch.manual_seed(0)
    network = networks(small(), ["generator"])["generator"].train()
    labels = torch.randint(5, (2, 1, 64, 64))
    network(labels)  # u and v belong together
    network.eval()
    state = dict(network.state_dict())
    if stored:
        for key in [key for key in state if key.endswith("_orig")]:
            layer = network.get_submodule(key.rpartition(".")[0])
            sigma = torch.dot(layer.weight_u, layer.weight_orig.flatten(1) @ layer.weight_v)
            state[key.removesuffix("_orig")] = layer.weight_orig.detach() / sigma
    old = {key: value for key, value in state.items() if not key.endswith("weight_v")}
    assert len(old) < len(state)
    loaded = load_published(old, small(), "file")["generator"].eval()
    with torch.no_grad():
        result, expected = loaded(labels), network(labels)
    # Without the normalised weight v is that of one further half of an iteration.
    if stored:
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    else:
        assert (result - expected).abs().mean() < 0.03


def test_right_vectors_of_a_converged_weight():
    torch.manual_seed(0)
    layer = spectral(nn.Conv2d(3, 4, 3)).train()
    for _ in range(200):
        layer(torch.zeros(1, 3, 3, 3))
    state = layer.state_dict()
    v = state.pop("weight_v")
    state = {f"layer.{key}": value for key, value in state.items()}
    torch.testing.assert_close(with_right_vectors(state)["layer.weight_v"], v)


def test_a_misfit_names_the_options(tmp_path):
    path = tmp_path / "200_net_G.pth"
    given = {"width": 4, **DATA_SETS["cityscapes"], "attention_kernel": 7}
    torch.save(networks(configure(Config, given), ["generator"])["generator"].state_dict(), path)
    with pytest.raises(ValueError) as caught:
        papers.load(path, PAPER, configure(Config, {"width": 4}))
    text = str(caught.value)
    for setting in (
        "labels=35", "dont_care=False", "instances=True", "first_label=0", "size=512",
        "aspect=2.0", "upsampling=more", "attention_kernel=7",
    ):  # fmt: skip
        assert f"--set {setting}" in text
    assert "width" not in text.split("options than the given ones")[1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"labels": 7, "scales": "all", "norm": "spadeinstance5x5"},
        {"vae": True, "code": 9, "discriminators": 3},
    ],
)
def test_options_are_those_of_the_file(changes):
    config = small(**changes)
    told = {}
    for network in networks(config, ["generator", "discriminator"]).values():
        told |= PAPER.options(network.state_dict())
    given = dict(papers.options_of(config))
    assert {name: given[name] for name in told} == told
    assert told.keys() >= changes.keys()


# --- label maps -----------------------------------------------------------------------------------


def test_numbers_of_published_data_sets():
    def of(name: str, *numbers: int) -> list[int]:
        network = configure(Config, DATA_SETS[name]).network
        return classes(torch.tensor(numbers), network).tolist()

    assert of("ade20k", 0, 1, 150, 255) == [150, 0, 149, 150]  # 0 is unknown, the rest moves
    assert of("coco", 0, 181, 255) == [0, 181, 182]
    assert of("celeba", 0, 18) == [0, 18]


@pytest.mark.parametrize(
    "name, number, message",
    [
        ("ade20k", 151, "labels: expected labels from 1 to 150, or 255 for unknown, got 151"),
        ("ade20k", -1, "labels: expected labels from 1 to 150, .* got -1"),
        ("coco", 182, "labels: expected labels from 0 to 181, or 255 for unknown, got 182"),
        ("celeba", 19, "labels: expected labels from 0 to 18, got 19"),
        ("celeba", 255, "labels: expected a label at every pixel, .* dont_care is off, got 255"),
    ],
)
def test_numbers_that_are_no_labels(name, number, message):
    with pytest.raises(ValueError, match=message):
        classes(torch.tensor([1, number]), configure(Config, DATA_SETS[name]).network)
    with pytest.raises(TypeError, match="labels: expected integers, got"):
        classes(torch.ones(1), Network())


def test_edges_of_instances():
    instances = torch.zeros(2, 1, 4, 5, dtype=torch.int64)
    instances[0, :, 1:3, 2:4] = 70_000
    instances[1] = 7
    expected = [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 1, 0]]
    edges = instance_edges(instances)
    assert edges[0, 0].int().tolist() == expected
    assert not edges[1].any()  # the border is none
    assert instance_edges(instances[..., :1, :1]).shape == (2, 1, 1, 1)


def test_channels_of_the_condition():
    network = small(dont_care=True, instances=True).network
    labels = torch.tensor([[[[0, 5, 4, 4]]]])
    result = one_hot(labels, network, torch.tensor([[[[1, 1, 1, 2]]]]))
    assert result.dtype == torch.float32
    assert result.shape == (1, 7, 1, 4)
    assert result[0, :6].argmax(0).tolist() == [[0, 5, 4, 4]]
    assert result[0, 6].tolist() == [[0, 0, 1, 1]]
    with pytest.raises(ValueError, match="instances: expected a map of them"):
        one_hot(labels, network)
    with pytest.raises(ValueError, match="instances: expected none, as the option instances is of"):
        one_hot(labels, small().network, labels)


def test_windows_of_stretched_photos():
    random, source = np.random.default_rng(0), (300, 100)
    drawn = [
        Windows((64, 128), flip=0.5, stretched=(72, 144)).draw(source, random) for _ in "x" * 99
    ]
    assert {geometry.scaled for geometry in drawn} == {(144, 72)}
    assert {geometry.mirrored for geometry in drawn} == {False, True}
    lefts, tops = ({geometry.window[i] for geometry in drawn} for i in (0, 1))
    assert lefts == set(range(17))
    assert tops == set(range(9))
    assert all(right - left == 128 for left, _, right, _ in (g.window for g in drawn))
    fixed = Windows((64, 128), stretched=(64, 128)).draw(source, random)
    assert (fixed.scaled, fixed.window) == ((128, 64), (0, 0, 128, 64))


COLOURS = np.array([[220, 30, 30], [30, 200, 60], [40, 60, 220], [230, 220, 40], [20, 20, 20]])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Photos whose colours are those of their classes, label maps, and instances."""
    random = np.random.default_rng(0)
    for i in range(4):
        cells = random.integers(0, 5, (4, 5))
        labels = cells.repeat(20, 0).repeat(20, 1)
        photo = COLOURS[labels] + random.integers(-8, 9, (80, 100, 3))
        instances = np.arange(20).reshape(4, 5).repeat(20, 0).repeat(20, 1) * 1500
        for name, picture in (
            ("photos", Image.fromarray(photo.clip(0, 255).astype(np.uint8))),
            ("labels", Image.fromarray(labels.astype(np.uint8))),
            ("instances", Image.fromarray(instances.astype(np.uint16))),
        ):
            (tmp_path / name).mkdir(exist_ok=True)
            picture.save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_samples_of_one_geometry(pairs):
    config = small(instances=True)
    folders = {"image": pairs / "photos", "labels": pairs / "labels"}
    folders["instances"] = pairs / "instances"
    preparation = Windows(64, flip=0.5, stretched=(72, 72))
    data = LabelledPhotos(folders, config.network, preparation, seed=3)
    for i in range(4):
        sample = data[0, i, i]
        assert sample["labels"].shape == sample["instances"].shape == (1, 64, 64)
        assert sample["instances"].max() > 20_000
        painted = torch.from_numpy(COLOURS / 255).float()[sample["labels"][0]].permute(2, 0, 1)
        assert (sample["image"] - painted).abs().median() < 0.04
    fixed = LabelledPhotos(folders, config.network, Windows(64, stretched=(64, 64)))
    photo = Image.open(pairs / "photos" / "0.png").resize((64, 64), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255
    assert fixed[0, 0, 0]["image"].equal(expected)
    with pytest.raises(ValueError, match="instances: expected a map of them"):
        LabelledPhotos(dict(list(folders.items())[:2]), config.network, preparation)
    fewer = LabelledPhotos(folders, small(labels=3, instances=True).network, preparation)
    with pytest.raises(ValueError, match=r"\d\.png: expected labels from 0 to 2, got [34]"):
        [fewer[0, i, i] for i in range(4)]


@pytest.mark.parametrize(
    "changes, size, stretched, flip",
    [
        ({}, (64, 64), (72, 72), 0.5),
        ({"margin": 0, "flip": 0.0}, (64, 64), (64, 64), 0.0),
        ({"aspect": 2.0}, (32, 64), (36, 72), 0.5),
    ],
)
def test_photos_are_stretched_to_the_option(changes, size, stretched, flip, pairs):
    given = argparse.Namespace(images=pairs / "photos", labels=pairs / "labels", instances=None)
    given.seed = 0
    preparation = PAPER.dataset(given, small(**changes), PAPER.stage()).preparation
    assert preparation == Windows(size, flip=flip, stretched=stretched)


# --- training -------------------------------------------------------------------------------------


@pytest.fixture
def vgg19(pretrained: dict[str, Path]) -> Path:
    return pretrained["vgg19"]


def recipe(config: Config, vgg19: Path) -> DualAttention:
    torch.manual_seed(0)
    return DualAttention(networks(config), config, pretrained={"vgg19": vgg19})


def batch(config: Config) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = config.network.height_and_width
    return {
        "image": torch.rand(2, 3, *size, generator=generator),
        "labels": torch.randint(config.network.labels, (2, 1, *size), generator=generator),
    }


def test_two_rates_and_their_fall(vgg19):
    rates = recipe(small(), vgg19).learning_rates
    for epoch, share in ((0, 1), (99, 1), (100, 1), (101, 0.99), (150, 0.5), (199, 0.01), (200, 0)):
        expected = {"generator": 1e-4 * share, "discriminator": 4e-4 * share}
        assert rates(epoch, 7) == pytest.approx(expected)


def test_first_weights(vgg19):
    built = recipe(small(), vgg19).networks
    for layer in (
        built["generator"].up_1.conv_0,
        built["discriminator"].discriminator_0.model2[0][0],
    ):
        weight = layer.weight_orig
        outputs, inputs = weight[:, 0].numel(), weight[0].numel()
        expected = 0.02 * (2 / (outputs + inputs)) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.1)
    assert not built["generator"].fc.bias.any()


def test_terms_and_their_order(vgg19):
    """Labels, edges and image, fakes first; sums of the losses as the card weights them."""
    config = small(instances=True, dont_care=True)
    trained, given = recipe(config, vgg19), batch(config)
    given["instances"] = given["labels"]
    seen: list[Tensor] = []
    trained.networks["discriminator"].register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[0])
    )
    fake = trained.fakes(given)
    terms = trained.generator_loss(given, fake)
    (x,) = seen
    condition = one_hot(given["labels"], config.network, given["instances"])
    real = given["image"] * 2 - 1
    assert x.equal(torch.cat((torch.cat((condition, fake), 1), torch.cat((condition, real), 1))))

    maps = [[layer.chunk(2) for layer in scale] for scale in trained.networks["discriminator"](x)]
    pairs = [pair for scale in maps for pair in scale[:-1]]
    vgg = [trained.vgg(image) for image in (fake, real)]
    weights = {"relu1_1": 1 / 32, "relu2_1": 1 / 16, "relu3_1": 1 / 8, "relu4_1": 1 / 4}
    weights["relu5_1"] = 1
    expected = {
        "adversarial": -sum(scale[-1][0].mean() for scale in maps) / 2,
        "matching": 10 / 2 * sum(F.l1_loss(a, b) for a, b in pairs),
        "vgg": 10 * sum(w * F.l1_loss(vgg[0][tap], vgg[1][tap]) for tap, w in weights.items()),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():  # the power iteration goes on between both passes
        torch.testing.assert_close(terms[name], value, rtol=0.05, atol=1e-3)
    terms = trained.discriminator_loss(given, fake.detach())
    assert sum(terms.values()).item() == pytest.approx(2, abs=0.1)  # hinges of scores about 0


def test_vgg_of_no_weight_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="vgg19: "):
        DualAttention(networks(small()), small())
    config = small(vgg_weight=0)
    loop = Loop(DualAttention(networks(config), config))
    losses = loop.step([batch(config)], epoch=0)
    assert [*losses] == ["adversarial", "matching", "discriminator_fake", "discriminator_real"]


def test_steps_of_both(vgg19):
    config = small()
    loop = Loop(recipe(config, vgg19))
    order: list[str] = []
    for name, network in loop.recipe.networks.items():
        network.register_forward_pre_hook(
            lambda module, given, name=name: order.append(
                f"{name} {module.training} {torch.is_grad_enabled()}"
            )
        )
    before = {name: loop.recipe.optimizers[name] for name in ("generator", "discriminator")}
    losses = loop.step([loop.moved(batch(config))], epoch=0)
    assert order == [
        "generator True True",
        "discriminator True True",
        "generator True False",  # a fresh fake for the discriminator
        "discriminator True True",
    ]
    assert [optimizer.param_groups[0]["lr"] for optimizer in before.values()] == [1e-4, 4e-4]
    assert all(optimizer.param_groups[0]["betas"] == (0.0, 0.9) for optimizer in before.values())
    assert list(losses) == [
        "adversarial", "matching", "vgg", "discriminator_fake", "discriminator_real"
    ]  # fmt: skip


@pytest.mark.parametrize("how", [{"precision": "bfloat16"}, {"channels_last": True}])
@pytest.mark.parametrize("changes", [{}, {"instances": True}, {"vae": True, "code": 8}])
def test_other_precisions_and_layouts(how, changes, vgg19):
    config = small(**changes)
    given = batch(config)
    if config.network.instances:
        given["instances"] = given["labels"]
    losses = []
    for options in ({}, how):
        loop = Loop(recipe(config, vgg19), **options)
        losses.append(loop.step([loop.moved(given)], epoch=0))
    assert losses[1] == pytest.approx(losses[0], rel=0.15, abs=0.02)


def test_the_image_encoder_learns_with_the_generator(vgg19):
    config = small(vae=True, code=8)
    loop = Loop(recipe(config, vgg19))
    encoder = loop.recipe.networks["encoder"]
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    losses = loop.step([loop.moved(batch(config))], epoch=0)
    assert losses["kld"] > 0
    assert not encoder.fc_mu.weight.equal(before["fc_mu.weight"])
    assert not encoder.layer1[0].weight_orig.equal(before["layer1.0.weight_orig"])
    rows = loop.recipe.eval().samples(batch(config))
    assert [row.shape for row in rows] == [(2, 3, 64, 64)] * 3
    assert all(row.min() >= 0 and row.max() <= 1 for row in rows)


def test_a_code_is_drawn_about_its_mean(vgg19):
    trained = recipe(small(vae=True, code=8), vgg19)
    mean, log_variance = random(2, 8).float(), torch.full((2, 8), 4.0).log()
    trained.networks["encoder"].register_forward_hook(lambda *given: (mean, log_variance))
    seen: list[Tensor] = []
    trained.networks["generator"].register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[1])
    )
    torch.manual_seed(5)
    trained.fakes(batch(small()))
    torch.manual_seed(5)
    torch.testing.assert_close(seen, [mean + 2 * torch.randn(2, 8)])


def train(pairs: Path, output: Path, vgg19: Path, *more: str, **changes: object) -> int:
    settings = [f"--set={n}={v}" for n, v in {**SMALL, "rate": 4e-3, **changes}.items()]
    return main(
        [
            *("dagan", "train", str(pairs / "photos"), "--labels", str(pairs / "labels")),
            *("-o", str(output), "--pretrained", f"vgg19={vgg19}", *settings),
            *("--workers", "0", "--device", "cpu", "--batch", "2", "--log-every", "1", *more),
        ]
    )


def test_from_training_to_a_photo(pairs, vgg19, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(pairs, run, vgg19, "--iterations", "40") == 0
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    values = [line["vgg"] for line in lines]
    assert np.mean(values[-5:]) < 0.5 * np.mean(values[:5])

    command = ["dagan", "edit", "--checkpoint", str(checkpoints(run)[-1]), "-o"]
    labels = np.array([[0, 1], [2, 3]], np.uint8).repeat(45, 0).repeat(45, 1)
    Image.fromarray(labels).save(tmp_path / "map.png")
    assert main([*command, str(tmp_path / "out.png"), str(tmp_path / "map.png")]) == 0
    photo = np.asarray(Image.open(tmp_path / "out.png")).astype(float)
    assert photo.shape == (64, 64, 3)
    means = photo.reshape(2, 32, 2, 32, 3)[:, 8:-8, :, 8:-8].mean((1, 3)).reshape(4, 3)
    # Nearest to the colour of its own class; one may not be there yet, as how so short a run ends
    # depends on every rounding.
    nearest = [np.abs(COLOURS[:4] - mean).sum(1).argmin() for mean in means]
    assert sum(found == i for i, found in enumerate(nearest)) >= 3, means

    # The same map in colours, by a palette.
    Image.fromarray(COLOURS[labels].astype(np.uint8)).save(tmp_path / "colours.png")
    lines = [f"{i} {r} {g} {b} class {i}" for i, (r, g, b) in enumerate(COLOURS[:3].tolist())]
    palette = tmp_path / "palette.txt"
    palette.write_text("\n".join(["// number and colour", *lines, "3 #E6DC28", ""]))
    given = [str(tmp_path / "colours.png"), "--palette", str(palette)]
    assert main([*command, str(tmp_path / "again.png"), *given]) == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()


def test_resume_is_exact(pairs, vgg19, tmp_path, capsys):
    changes = {"instances": True, "dont_care": True}
    more = ["--instances", str(pairs / "instances"), "--average", "0.9"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(pairs, whole, vgg19, "--iterations", "4", *more, **changes) == 0
    assert train(pairs, parts, vgg19, "--iterations", "2", *more, **changes) == 0
    assert train(pairs, parts, vgg19, "--iterations", "4", "--resume", *more, **changes) == 0
    (one, _), (other, _) = (checkpoint.load(checkpoints(folder)[-1]) for folder in (whole, parts))
    assert one.keys() == other.keys()
    assert any(key.startswith("averaged.generator") for key in one)
    assert all(value.equal(other[key]) for key, value in one.items())
    assert (whole / "log.jsonl").read_text() == (parts / "log.jsonl").read_text()

    more = ["--iterations", "5", "--resume", *more]
    assert train(pairs, parts, vgg19, *more, **{**changes, "labels": 6}) == 1
    assert "labels was 5 there, 6 is given" in capsys.readouterr().err


# --- editing --------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = small(instances=True, size=64, aspect=2.0)
    path = tmp_path / "checkpoint.safetensors"
    papers.save(path, PAPER, config, networks(config))
    return path


def edit(saved: Path, labels: np.ndarray, *more: str) -> int:
    path = saved.parent / "map.png"
    Image.fromarray(labels).save(path)
    command = ["dagan", "edit", str(path), "-o", str(saved.parent / "out.png")]
    return main([*command, "--checkpoint", str(saved), *more])


def test_edges_of_instances_change_the_photo(saved, capsys):
    labels = np.zeros((20, 40), np.uint8)
    results = []
    for instances in (labels, np.arange(800, dtype=np.uint16).reshape(20, 40)):
        Image.fromarray(instances).save(saved.parent / "instances.png")
        assert edit(saved, labels, "--instances", str(saved.parent / "instances.png")) == 0
        results.append(np.asarray(Image.open(saved.parent / "out.png")))
    assert "warning" not in capsys.readouterr().err
    assert results[0].shape == (32, 64, 3)
    assert not np.array_equal(*results)


def test_the_photo_is_that_of_the_map(saved):
    random = np.random.default_rng(0)
    labels, instances = random.integers(0, 5, (32, 64)), random.integers(0, 9, (32, 64))
    Image.fromarray(instances.astype(np.uint8)).save(saved.parent / "instances.png")
    given = ["--instances", str(saved.parent / "instances.png")]
    assert edit(saved, labels.astype(np.uint8), *given) == 0
    (built, config) = papers.load(saved, PAPER)
    maps = [torch.from_numpy(values)[None, None] for values in (labels, instances)]
    photo = synthesise(built["generator"].eval(), maps[0], config.network, instances=maps[1])
    written = torch.from_numpy(np.array(Image.open(saved.parent / "out.png")))
    assert ((photo[0].permute(1, 2, 0) * 255).round() - written).abs().max() <= 1


LABELS = np.zeros((20, 40), np.uint8)


@pytest.mark.parametrize(
    "labels, more, message",
    [
        (LABELS, [], "instances: expected a map of them, as the option instances is on"),
        (LABELS + 5, ["--instances", "INSTANCES"], "map.png: expected labels from 0 to 4, got 5"),
        (LABELS + 255, ["--instances", "INSTANCES"], "map.png: expected a label at every pixel"),
        (
            LABELS[..., None] + np.arange(3, dtype=np.uint8),
            ["--instances", "INSTANCES"],
            "map.png: expected labels, one number for each pixel, got RGB; --palette FILE says",
        ),
        (LABELS[:10], ["--instances", "INSTANCES"], "expected the label map's size, 40 x 10"),
        (LABELS, ["--instances", "INSTANCES", "--style", "map.png"], "--style: expected none, as"),
    ],
)
def test_bad_edits(labels, more, message, saved, capsys):
    Image.fromarray(LABELS).save(saved.parent / "instances.png")
    more = [str(saved.parent / "instances.png") if word == "INSTANCES" else word for word in more]
    assert edit(saved, labels, *more) == 1
    assert message in capsys.readouterr().err
    assert not (saved.parent / "out.png").exists()


def test_a_map_of_another_shape_is_stretched(saved, capsys):
    Image.fromarray(LABELS[:, :20]).save(saved.parent / "instances.png")
    assert edit(saved, LABELS[:, :20], "--instances", str(saved.parent / "instances.png")) == 0
    assert "20 x 20 pixels are stretched to the networks' 64 x 32" in capsys.readouterr().err


def test_style_and_seed(tmp_path):
    torch.manual_seed(0)
    config = small(vae=True, code=8)
    saved = tmp_path / "checkpoint.safetensors"
    papers.save(saved, PAPER, config, networks(config))
    Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)).save(tmp_path / "style.png")
    results = []
    for more in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"], ["--style", "style.png"]):
        more = [str(tmp_path / word) if word.endswith("png") else word for word in more]
        assert edit(saved, np.eye(64, dtype=np.uint8), *more) == 0
        results.append((tmp_path / "out.png").read_bytes())
    assert results[0] == results[1]
    assert len(set(results)) == 3
    built = {name: network.eval() for name, network in papers.load(saved, PAPER)[0].items()}
    style = torch.from_numpy(np.array(Image.open(tmp_path / "style.png"))).permute(2, 0, 1) / 255
    with torch.no_grad():
        z = built["encoder"](style[None] * 2 - 1)[0]
    labels = torch.eye(64, dtype=torch.int64)[None, None]
    photo = synthesise(built["generator"], labels, config.network, z=z)
    written = torch.from_numpy(np.array(Image.open(tmp_path / "out.png")))
    assert ((photo[0].permute(1, 2, 0) * 255).round() - written).abs().max() <= 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected a line for each colour, found none"),
        ("1 2 3", "line 1: expected a number and its colour, .* got '1 2 3'"),
        ("0 0 0 0\n1 0 256 0", "line 2: expected a number and its colour, .* got '1 0 256 0'"),
        ("0 #00ff0", "line 1: expected a number and its colour"),
        ("0 1 2 3\n1 #010203", r"line 2: expected one number for the colour \(1, 2, 3\), got 1"),
    ],
)
def test_bad_palettes(text, message, tmp_path):
    path = tmp_path / "palette.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_palette(path)


def test_palettes(tmp_path):
    path = tmp_path / "palette.txt"
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match=r"palette\.txt: expected a text, a line for each colour"):
        read_palette(path)
    path.write_bytes(b"\xef\xbb\xbf1 2 3 4\r\n")  # as an editor of Windows writes it
    assert read_palette(path) == {(2, 3, 4): 1}
    path.write_text("7 1 2 3 sky\n\n// grass\n9,4,5,6\n7 #00ff00 tree\n")
    palette = read_palette(path)
    assert palette == {(1, 2, 3): 7, (4, 5, 6): 9, (0, 255, 0): 7}
    pixels = np.array([[[1, 2, 3], [4, 5, 6]], [[0, 255, 0], [4, 5, 6]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "map.png")
    assert np.asarray(read_numbers(tmp_path / "map.png", palette)).tolist() == [[7, 9], [7, 9]]
    pixels[1, 1] = 8
    Image.fromarray(pixels).save(tmp_path / "map.png")
    with pytest.raises(ValueError, match=r"map\.png: .* got #080808 at row 1, column 1"):
        read_numbers(tmp_path / "map.png", palette)
    indexed = Image.fromarray(np.array([[3, 1]], np.uint8))
    indexed.putpalette([0, 0, 0, 9, 9, 9, 5, 5, 5, 7, 7, 7])
    indexed.save(tmp_path / "indexed.png")  # numbers that show as colours
    assert np.asarray(read_numbers(tmp_path / "indexed.png")).tolist() == [[3, 1]]


@pytest.mark.parametrize(
    "labels, instances, error, message",
    [
        (torch.zeros(1, 8, 8).long(), None, ValueError, r"labels: expected the shape \(N, 1, h"),
        (torch.zeros(1, 1, 8, 8), None, TypeError, "labels: expected integers, got torch.float32"),
        (torch.full((1, 1, 8, 8), 9), None, ValueError, "labels: expected labels from 0 to 4"),
        (
            torch.zeros(1, 1, 8, 8).long(),
            torch.zeros(1, 1, 8, 9).long(),
            ValueError,
            r"instances: expected the labels' shape \(1, 1, 8, 8\), got \(1, 1, 8, 9\)",
        ),
        (
            torch.zeros(1, 1, 8, 8).long(),
            torch.zeros(1, 1, 8, 8).long(),
            ValueError,
            "instances: expected none, as the option instances is off",
        ),
    ],
)
def test_bad_input_of_synthesise(labels, instances, error, message):
    config = small()
    generator = networks(config, ["generator"])["generator"].eval()
    with pytest.raises(error, match=message):
        synthesise(generator, labels, config.network, instances=instances)


def test_info_and_bad_options(capsys, pairs, vgg19, tmp_path):
    assert main(["dagan", "info"]) == 0
    text = capsys.readouterr().out
    assert "generator: 96,578,709 parameters, 372.0 GFLOP for 1x151x256x256" in text
    assert "7 SPADEResnetBlock" in text
    for setting, message in (
        ("margin=-1", "margin: expected at least 0, got -1"),
        ("decay_epochs=0", "decay_epochs: expected at least 1, got 0"),
        ("first_label=-1", "first_label: expected at least 0, got -1"),
        ("code=0", "code: expected at least 1, got 0"),
        ("upsampling=most", "upsampling: expected one of ('normal', 'more'), got 'most'"),
    ):
        more = ("--iterations", "1", "--set", setting)
        assert train(pairs, tmp_path / "run", vgg19, *more) == 1
        assert message in capsys.readouterr().err
