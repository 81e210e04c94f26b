"""The modulated layers: keys, forms, label maps. Their numbers are held by the golden files."""

import pytest
import torch
import torch.nn.functional as F
from support.backends import parameters, running
from support.tolerance import assert_close

from torchext import nn


def test_state_keys() -> None:
    assert list(nn.SPDNorm(4, "position").state_dict()) == [
        "mlp_activate.0.weight",
        "mlp_activate.0.bias",
        "mlp_gamma.weight",
        "mlp_gamma.bias",
        "mlp_beta.weight",
        "mlp_beta.bias",
    ]
    buffers = ["running_mean", "running_var", "num_batches_tracked"]
    keys = list(nn.SPDNorm(4, "batch").state_dict())
    assert keys[:3] == [f"param_free_norm.{name}" for name in buffers]
    assert not list(nn.AdaptiveInstanceNorm2d(4).state_dict())
    block = nn.SPDNormResnetBlock(8, 4, 2, 3)
    assert block.state_dict()["mask_conv.mask_conv.weight"].eq(1).all()
    block = nn.SPADEResnetBlock(4, 4, "spadebatch3x3", 3)
    assert [name for name, _ in block.named_children()] == ["conv_0", "conv_1", "norm_0", "norm_1"]


@pytest.mark.parametrize("name", parameters("cpu", "reference"))
@pytest.mark.parametrize("kind", ["spadeinstance3x3", "spadebatch5x5"])
@pytest.mark.parametrize("size", [(12, 10), (24, 20), (17, 13)])
def test_spade_of_labels_is_spade_of_their_one_hot_form(kind: str, size: tuple, name: str) -> None:
    torch.manual_seed(0)
    layer = nn.SPADE(kind, 6, 5)
    x = torch.randn(2, 6, 12, 10)
    labels = torch.randint(0, 5, (2, *size))
    one_hot = F.one_hot(labels, 5).permute(0, 3, 1, 2).float()
    with running(name):
        expected = layer(x, one_hot)
        for given in (labels, labels[:, None], labels.to(torch.uint8)):
            assert_close("y", layer(x, given), expected.double(), length=2000)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float32])
def test_one_hot_labels_of_any_dtype(dtype: torch.dtype) -> None:
    """(N,K,H,W) is one-hot in every dtype; an integer map of one channel is a map of classes."""
    layer = nn.SPADE("spadeinstance3x3", 6, 5)
    x, labels = torch.randn(2, 6, 12, 10), torch.randint(0, 5, (2, 12, 10))
    one_hot = F.one_hot(labels, 5).movedim(-1, 1)
    expected = layer(x, one_hot.float())
    assert_close("y", layer(x, one_hot.to(dtype)), expected.double(), length=2000)
    with pytest.raises(RuntimeError, match="to have 5 channels, but got 4"):
        layer(x, one_hot[:, :4].to(dtype))


class Options:
    """As published code parses them."""

    def __init__(self, **values: object) -> None:
        vars(self).update(values)


def test_published_options_object() -> None:
    spectral = [name for name in nn.SPDNormResnetBlock(8, 4, 3, 3).state_dict() if "orig" in name]
    assert len(spectral) == 3
    for options in (Options(norm_G="spectral"), {"norm_G": "spectral"}):
        block = nn.SPDNormResnetBlock(8, 4, 3, 3, options)
        assert [name for name in block.state_dict() if "orig" in name] == spectral
    assert not any("orig" in n for n in nn.SPDNormResnetBlock(8, 4, 3, 3, "none").state_dict())
    with pytest.raises(TypeError, match=r"^norm_G: expected a text, or options with a text"):
        nn.SPDNormResnetBlock(8, 4, 3, 3, Options(ngf=64))


def test_published_options_of_spade_blocks() -> None:
    expected = nn.SPADEResnetBlock(8, 4, "spectralspadesyncbatch3x3", 5).state_dict()
    shapes = {key: value.shape for key, value in expected.items()}
    for options in (
        Options(norm_G="spectralspadesyncbatch3x3", semantic_nc=5),
        {"norm_G": "spectralspadesyncbatch3x3", "semantic_nc": 5},
        Options(norm_G="spectralspadesyncbatch3x3", label_nc=3, orient_nc=2),
    ):
        block = nn.SPADEResnetBlock(8, 4, options)
        assert {key: value.shape for key, value in block.state_dict().items()} == shapes
    block = nn.SPADEResnetBlock(8, 4, "spadespectralinstance", 5, False, 2)
    assert block.conv_0.dilation == block.conv_0.padding == (2, 2)
    assert block.conv_1.dilation == (2, 2)
    assert "conv_0.weight_orig" in block.state_dict()
    assert block(torch.randn(1, 8, 9, 9), torch.rand(1, 5, 9, 9)).shape == (1, 4, 9, 9)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: nn.SPADE(6, 5), TypeError, "missing 1 required positional argument"),
        (lambda: nn.SPADE(6, 5, "spadeinstance3x3"), TypeError, "^config_text: expected a text"),
        (
            lambda: nn.SPADEResnetBlock(8, 4, Options(norm_G="spadebatch3x3")),
            TypeError,
            "^norm_G: expected options with semantic_nc, or label_nc and orient_nc",
        ),
        (
            lambda: nn.SPADEResnetBlock(8, 4, "spadebatch3x3"),
            ValueError,
            "^semantic_nc: expected the channels of the label map, got None",
        ),
        (
            lambda: nn.SPADEResnetBlock(8, 4, Options(norm_G="spadebatch3x3", semantic_nc=2), 2),
            ValueError,
            "^semantic_nc: expected nothing beside an options object",
        ),
        (
            lambda: nn.SPADEResnetBlock(8, 4, "spadebatch3x3", 5, True),
            ValueError,
            "^use_se: expected False, got True",
        ),
    ],
)
def test_calls_that_cannot_be_told(call, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_paper_form_of_spdnorm_is_weight_times_all() -> None:
    layer = nn.SPDNorm(4, "instance", form="paper").double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    prior = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    weight = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    hidden = layer.mlp_activate(prior)
    expected = weight * (layer.mlp_gamma(hidden) * F.instance_norm(x) + layer.mlp_beta(hidden))
    assert_close("y", layer(x, prior, weight), expected, length=1000)


def test_anl_without_the_one() -> None:
    layer = nn.ANLs(4, 5, one_plus=False).double().eval()
    x, condition = torch.randn(1, 4, 6, 6).double(), torch.randn(1, 5, 12, 12).double()
    t = layer.shared(F.interpolate(condition, size=(6, 6)))
    n = x / (1 + 1e-5) ** 0.5
    h = n * torch.sigmoid(layer.gamma(t)) + layer.beta(t)
    assert_close("y", layer(x, condition), x + layer.conv(F.leaky_relu(h, 0.2)), length=1000)


def test_pixel_norm_and_adain() -> None:
    x = torch.randn(2, 5, 4, 3)
    expected = x.double() / (x.double().square().mean(1, keepdim=True) + 1e-8).sqrt()
    assert_close("pixel norm", nn.PixelNorm()(x), expected, length=5)
    scale, shift = torch.randn(2, 2, 5, 1, 1)
    got = nn.AdaptiveInstanceNorm2d(5)(x, scale, shift)
    expected = F.instance_norm(x.double()) * scale.double() + shift.double()
    assert_close("adain", got, expected, length=30)


def test_autocast_keeps_the_half() -> None:
    layer = nn.SPADE("spadeinstance3x3", 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(1, 4, 8, 8).bfloat16(), torch.randn(1, 3, 8, 8))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "layer", [nn.SPADE("spadebatch3x3", 4, 3), nn.SPADE("spadeinstance3x3", 4, 3)], ids=["b", "i"]
)
def test_compile_fullgraph_and_export(layer: nn.SPADE) -> None:
    layer = layer.eval()
    x, labels = torch.randn(1, 4, 8, 8), torch.randint(0, 3, (1, 16, 16))
    expected = layer(x, labels)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close("compiled", compiled(x, labels), expected.double(), length=1000)
    exported = torch.export.export(layer, (x, labels))
    assert_close("exported", exported.module()(x, labels), expected.double(), length=1000)


@pytest.mark.parametrize("text", ["spadelayer3x3", "spadebatch3x5", "batch3x3"])
def test_bad_config_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"^config_text: expected 'spade', 'batch', 'syncbatch'"):
        nn.SPADE(text, 4, 3)


def test_bad_norm_type() -> None:
    with pytest.raises(ValueError, match=r"^norm_type: expected 'position', 'instance' or 'batch'"):
        nn.SPDNorm(4, "layer")
    with pytest.raises(ValueError, match=r"^norm_type: .*, got None"):
        nn.SPDNorm(4)
    with pytest.raises(ValueError, match=r"^form: expected 'published' or 'paper', got 'both'"):
        nn.SPDNorm(4, "position", form="both")
