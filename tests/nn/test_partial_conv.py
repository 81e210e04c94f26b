"""The partial convolution layers: published constructors, state keys and quirks."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.tolerance import assert_close

import torchext
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
    assert list(nn.PartialConv(4, 6, 3, bias=True).state_dict()) == keys
    trained = [
        key for key, p in nn.PartialConv(4, 6, 3, bias=True).named_parameters() if p.requires_grad
    ]
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
    layer = nn.PartialConv(4, 6, 3, 1, 1, bias=True)
    mask = torch.cat((MASK, MASK.flip(3), MASK.flip(2), MASK), 1)
    y, updated = layer(X, mask)
    s = F.conv2d(mask.double(), torch.ones(6, 4, 3, 3).double(), padding=1)
    raw = F.conv2d((X * mask).double(), layer.input_conv.weight.double(), padding=1)
    wanted = torch.where(s == 0, 0, raw / s + layer.input_conv.bias.double().view(1, -1, 1, 1))
    assert_close("y", y, wanted, length=36)
    assert torch.equal(updated, (s != 0).float())
    again, _ = nn.PartialConv(6, 6, 3, 1, 1, bias=True)(y, updated)  # a mask expanded over channels
    assert again.shape == (2, 6, 9, 10)


def test_mask_kernel_must_be_ones() -> None:
    state = nn.PartialConv(4, 6, 3, bias=True).state_dict()
    state["mask_conv.weight"][0, 0, 0, 0] = 2
    with pytest.raises(RuntimeError, match=r"mask_conv\.weight: expected only ones"):
        nn.PartialConv(4, 6, 3, bias=True).load_state_dict(state)


@pytest.mark.parametrize("multi_channel, channels, wanted", [(False, 4, 1), (True, 1, 4)])
def test_mask_of_other_channels(multi_channel: bool, channels: int, wanted: int) -> None:
    layer = nn.PartialConv2d(4, 6, 3, multi_channel=multi_channel)
    text = f"mask_in: expected {wanted} channels with multi_channel={multi_channel}, got {channels}"
    with pytest.raises(ValueError, match=text):
        layer(X, torch.ones(2, channels, 9, 10))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_whole_module_in_another_dtype(dtype: torch.dtype) -> None:
    for layer in (nn.PartialConv2d(4, 6, 3), nn.PartialConv(4, 6, 3, bias=True)):
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


@pytest.mark.parametrize(
    "layer", [nn.PartialConv2d(4, 6, 3), nn.PartialConv(4, 6, 3, bias=True)], ids=str
)
def test_copies_and_pickles(layer: torch.nn.Module) -> None:
    expected = layer(X, MASK)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        got = other(X, MASK)
        pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
        assert all(torch.equal(a, b) for a, b in pairs)
        assert str(other) == str(layer)


def test_published_positions_of_the_arguments() -> None:
    """Dilation stands sixth in one published layer, the bias in another."""
    layer = nn.PartialConv(8, 8, 3, 1, 1, 1, 1, True)
    assert (layer.input_conv.dilation, layer.input_conv.bias is None) == ((1, 1), False)
    layer = nn.PartialConv(8, 8, 3, 1, 2, 2, bias=False)
    assert (layer.input_conv.dilation, layer.input_conv.bias) == ((2, 2), None)
    layer = nn.PartialConv(8, 8, 3, 1, 1, False)
    assert (layer.input_conv.dilation, layer.input_conv.bias) == ((1, 1), None)
    for arguments in ((8, 8, 3), (8, 8, 3, 1, 1), (8, 8, 3, 1, 1, 1)):
        with pytest.raises(ValueError, match=r"^bias: expected True or False, got None"):
            nn.PartialConv(*arguments)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("mask", ["one", "many"])
def test_dilation_and_groups_of_the_u_net_layer(groups: int, mask: str, bias: bool) -> None:
    layer = nn.PartialConv(4, 8, 3, 1, 2, 2, groups, bias).double()
    x = X.double()
    known = MASK.double()
    if mask == "many":
        known = torch.cat((MASK, MASK.flip(3), MASK.flip(2), 1 - MASK), 1).double()
    conv = layer.input_conv
    ones = torch.ones_like(conv.weight)
    options = {"padding": 2, "dilation": 2, "groups": groups}
    s = F.conv2d(known.expand(-1, 4, -1, -1), ones, **options)
    raw = F.conv2d(x * known, conv.weight, **options) / s
    wanted = torch.where(s == 0, 0, raw if conv.bias is None else raw + conv.bias.view(1, -1, 1, 1))
    y, updated = layer(x, known)
    torch.testing.assert_close(y, wanted)
    assert torch.equal(updated, (s != 0).double())
    assert list(layer.state_dict())[-1] == "mask_conv.weight"
    assert layer.state_dict()["mask_conv.weight"].shape == conv.weight.shape


def test_mask_channels_of_the_module() -> None:
    layer = nn.PartialConv2d(4, 6, 3, multi_channel=True, return_mask=True)
    masks = torch.cat((MASK, MASK.flip(3)), 1)
    y, _ = layer(X, masks, mask_channels=(3, 1))
    wanted, _ = layer(X, masks.repeat_interleave(torch.tensor([3, 1]), dim=1))
    assert_close("y", y, wanted.double(), length=36)
    with pytest.raises(ValueError, match=r"^mask_channels: expected mask_in and multi"):
        nn.PartialConv2d(4, 6, 3)(X, MASK, mask_channels=(4,))
    with pytest.raises(ValueError, match=r"^mask_channels: expected numbers that add up"):
        layer(X, masks, mask_channels=(3, 2))


def test_autocast_leaves_float64_alone() -> None:
    """As PyTorch's own convolution does."""
    for layer in (nn.PartialConv2d(4, 6, 3, padding=1), nn.PartialConv(4, 6, 3, 1, 1, bias=True)):
        layer = layer.double()
        expected = layer(X.double(), MASK)
        with torch.autocast("cpu", torch.bfloat16):
            got = layer(X.double(), MASK)
        pairs = [(got, expected)] if isinstance(got, torch.Tensor) else zip(got, expected)  # noqa: B905
        assert all(a.dtype == torch.float64 and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "mask, shown",
    [
        (2 * MASK - 1, "-1"),
        (255 * MASK, "255"),
        ((255 * MASK).to(torch.uint8), "255"),
        (torch.where(MASK > 0, MASK, torch.nan), "nan"),
        (torch.cat((MASK, MASK, 255 * MASK, MASK), 1), "255"),
        (MASK * 1.01, "1.01"),
    ],
)
def test_mask_values(mask: torch.Tensor, shown: str) -> None:
    message = f"^mask: expected values from 0 to 1, got {shown}$"
    with pytest.raises(ValueError, match=message):
        nn.PartialConv(4, 6, 3, bias=True)(X, mask)
    layer = nn.PartialConv2d(4, 6, 3, multi_channel=mask.shape[1] > 1)
    with pytest.raises(ValueError, match=message):
        layer(X, mask)
    with pytest.raises(ValueError, match=message):
        torchext.mask_window(mask.float(), 3)
    nn.PartialConv2d(4, 6, 3)(X, MASK * 0.5)  # fractions are fine


@pytest.mark.parametrize("layer", [nn.PartialConv2d(4, 6, 3), nn.PartialConv(4, 6, 3, bias=True)])
def test_image_without_a_batch(layer: torch.nn.Module) -> None:
    with pytest.raises(
        ValueError, match=r"^input: expected the shape \(N, C, H, W\), got \(4, 9, 10\)"
    ):
        layer(X[0], MASK[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "layer", [nn.PartialConv2d(4, 6, 3), nn.PartialConv(4, 6, 3, bias=True), nn.RN_B(4)]
)
def test_tracing_says_what_to_use(layer: torch.nn.Module) -> None:
    with pytest.raises(NotImplementedError, match=r"use torch\.export\.export or torch\.compile"):
        torch.jit.trace(layer, (X, MASK))


def test_numpy_numbers() -> None:
    three, one = np.int64(3), np.int32(1)
    weight = torch.randn(6, 4, 3, 3)
    got = torchext.partial_conv2d(
        X, MASK, weight, stride=one, padding=(one, one), groups=np.int64(1), eps=np.float32(1e-3)
    )
    wanted = torchext.partial_conv2d(X, MASK, weight, padding=1, eps=float(np.float32(1e-3)))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert torch.equal(
        torchext.diversity_map(MASK, three, three, size=(np.int64(5), np.int64(7))),
        torchext.diversity_map(MASK, 3, 3, size=(5, 7)),
    )
    labels = torch.randint(0, 3, (2, 1, 9, 10))
    assert torch.equal(
        torchext.region_norm(X, labels, num_regions=three, eps=np.float64(1e-4)),
        torchext.region_norm(X, labels, num_regions=3, eps=1e-4),
    )
    nn.PartialConv(np.int64(4), np.int64(6), three, one, one, bias=True)(X, MASK)
