"""The partial convolution layers: published constructors, state keys and quirks."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.tolerance import assert_close

from torchext import nn

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, 4, 9, 10, generator=GENERATOR)
MASK = (torch.rand(2, 1, 9, 10, generator=GENERATOR) > 0.5).float()


def published(layer: nn.PartialConv2d, x: torch.Tensor, mask: torch.Tensor | None) -> tuple:
    """The published layer's formula, in float64."""
    x, weight = x.double(), layer.weight.detach().double()
    known = torch.ones_like(x[:1, :1] if not layer.multi_channel else x) if mask is None else mask
    geometry = (None, layer.stride, layer.padding, layer.dilation)
    ones = torch.ones_like(weight) if layer.multi_channel else torch.ones_like(weight[:1, :1])
    s = F.conv2d(known.double(), ones, *geometry)
    u = s.clamp(0, 1)
    ratio = ones[0].numel() / (s + layer.eps) * u
    y = F.conv2d(x if mask is None else x * mask.double(), weight, *geometry)
    if layer.bias is None:
        return y * ratio, u
    return (y * ratio + layer.bias.detach().double().view(1, -1, 1, 1)) * u, u


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("multi_channel", [False, True])
@pytest.mark.parametrize("given", ["none", "binary", "fractional"])
def test_published_layer(given: str, multi_channel: bool, bias: bool) -> None:
    layer = nn.PartialConv2d(
        4, 6, 3, stride=2, padding=1, bias=bias, multi_channel=multi_channel, return_mask=True
    )
    mask = None
    if given != "none":
        mask = MASK.repeat(1, 4 if multi_channel else 1, 1, 1)
        mask = mask * (0.1 if given == "fractional" else 1)
    y, updated = layer(X, mask)
    wanted, wanted_mask = published(layer, X, mask)
    assert_close("y", y, wanted, length=36)
    assert_close("mask", updated, wanted_mask, length=36)
    again = nn.PartialConv2d(4, 6, 3, 2, 1, bias=bias, multi_channel=multi_channel)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(X, mask), y)


def test_published_state_keys() -> None:
    assert list(nn.PartialConv2d(4, 6, 3).state_dict()) == ["weight", "bias"]
    assert list(nn.PartialConv3d(4, 6, 3, bias=False).state_dict()) == ["weight"]
    keys = ["input_conv.weight", "input_conv.bias", "mask_conv.weight"]
    assert list(nn.PartialConv(4, 6, 3).state_dict()) == keys
    trained = [key for key, p in nn.PartialConv(4, 6, 3).named_parameters() if p.requires_grad]
    assert trained == keys[:2]


def test_mask_without_mask_argument_has_batch_size_one() -> None:
    _, updated = nn.PartialConv2d(4, 6, 3, padding=1, return_mask=True)(X)
    assert updated.shape == (1, 1, 9, 10)
    layer = nn.PartialConv2d(4, 6, 3, padding=1, return_mask=True, multi_channel=True)
    assert layer(X)[1].shape == (2, 6, 9, 10)


def test_no_stale_mask_is_used() -> None:
    layer = nn.PartialConv2d(4, 6, 3, padding=1)
    without = layer(X)
    attributes = copy.copy(vars(layer))
    masked = layer(X, MASK)
    assert vars(layer) == attributes
    assert not torch.equal(masked, without)
    assert torch.equal(layer(X), without)


def test_published_cache_reuses_the_last_mask() -> None:
    layer = nn.PartialConv2d(4, 6, 3, padding=1, published_cache=True)
    plain = nn.PartialConv2d(4, 6, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    layer(X, MASK)
    s = F.conv2d(MASK, torch.ones(1, 1, 3, 3), padding=1).double()
    raw = F.conv2d(X, layer.weight, padding=1).double()  # the input is not masked
    bias = layer.bias.double().view(1, -1, 1, 1)
    assert_close("y", layer(X), (raw * 9 / (s + 1e-8) + bias) * (s > 0), length=36)
    other = torch.randn(2, 4, 5, 5)
    assert torch.equal(layer(other), plain(other))  # another shape: no mask


def test_padding_modes_of_the_layer() -> None:
    for mode in ("reflect", "circular", "replicate"):
        layer = nn.PartialConv2d(4, 6, 3, padding=1, padding_mode=mode)
        plain = torch.nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode)
        plain.load_state_dict(layer.state_dict())
        assert_close("inside", layer(X)[..., 1:-1, 1:-1], plain(X)[..., 1:-1, 1:-1].double(),
                     length=36)  # fmt: skip


def test_u_net_layer() -> None:
    layer = nn.PartialConv(4, 6, 3, 1, 1)
    mask = torch.cat((MASK, MASK.flip(3), MASK.flip(2), MASK), 1)
    y, updated = layer(X, mask)
    s = F.conv2d(mask.double(), torch.ones(6, 4, 3, 3).double(), padding=1)
    raw = F.conv2d((X * mask).double(), layer.input_conv.weight.double(), padding=1)
    wanted = torch.where(s == 0, 0, raw / s + layer.input_conv.bias.double().view(1, -1, 1, 1))
    assert_close("y", y, wanted, length=36)
    assert torch.equal(updated, (s != 0).float())
    again, _ = nn.PartialConv(6, 6, 3, 1, 1)(y, updated)  # a mask expanded over channels
    assert again.shape == (2, 6, 9, 10)


def test_mask_kernel_must_be_ones() -> None:
    state = nn.PartialConv(4, 6, 3).state_dict()
    state["mask_conv.weight"][0, 0, 0, 0] = 2
    with pytest.raises(RuntimeError, match=r"mask_conv\.weight: expected only ones"):
        nn.PartialConv(4, 6, 3).load_state_dict(state)


@pytest.mark.parametrize("multi_channel, channels, wanted", [(False, 4, 1), (True, 1, 4)])
def test_mask_of_other_channels(multi_channel: bool, channels: int, wanted: int) -> None:
    layer = nn.PartialConv2d(4, 6, 3, multi_channel=multi_channel)
    text = f"mask_in: expected {wanted} channels with multi_channel={multi_channel}, got {channels}"
    with pytest.raises(ValueError, match=text):
        layer(X, torch.ones(2, channels, 9, 10))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_whole_module_in_another_dtype(dtype: torch.dtype) -> None:
    for layer in (nn.PartialConv2d(4, 6, 3), nn.PartialConv(4, 6, 3)):
        y = layer.to(dtype)(X.to(dtype), MASK)
        y = y[0] if isinstance(y, tuple) else y
        assert y.dtype == dtype
        assert y.isfinite().all()


def test_autocast() -> None:
    layer = nn.PartialConv2d(4, 6, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(X, MASK)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    wanted, _ = published(layer, X, MASK)
    assert_close("y", y, wanted, length=36, scale=4 * wanted.abs().max().item())


@pytest.mark.parametrize("layer", [nn.PartialConv2d(4, 6, 3), nn.PartialConv(4, 6, 3)], ids=str)
def test_copies_and_pickles(layer: torch.nn.Module) -> None:
    expected = layer(X, MASK)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        got = other(X, MASK)
        pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
        assert all(torch.equal(a, b) for a, b in pairs)
        assert str(other) == str(layer)
