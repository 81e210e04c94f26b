"""DAGAN: networks beside the golden files, published files, label maps, training and editing."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchext.models import papers
from torchext.models.blocks import spectral
from torchext.models.checkpoint import MisfitError
from torchext.models.dagan import (
    DATA_SETS,
    PAPER,
    AttentionTail,
    ChannelAttention,
    Config,
    SPADEGenerator,
    SpatialAttention,
    dual_attention,
    load_published,
    networks,
)
from torchext.models.dagan.checkpoint import with_right_vectors
from torchext.models.paper import configure

SMALL = {"width": 4, "labels": 5, "dont_care": False, "first_label": 0, "size": 64, "load": 72}


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

    def ours(high: Tensor, low: Tensor) -> Tensor:
        return dual_attention(high, low, tail.cab.gate([high, low]), tail.spatialAtt.attention(low))

    torch.testing.assert_close(ours(high, low), published_tail(high, low, tail))
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
    tolerance = 1e-4 if stored else 0.1
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


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
