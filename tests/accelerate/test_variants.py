"""Published layers as projects vary them: what their neighbours read, pass, get and write into."""

import copy
import inspect
import math
import runpy
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import living_layers
from support.tolerance import assert_close
from torch import Tensor, nn

import torchext
from benchmarks.baselines import modulated_layers as modulated
from benchmarks.baselines import region_norm as published
from torchext.accelerate.layer import AcceleratedLayer, PublishedCodeWarning
from torchext.accelerate.recognise import FAMILIES


class Authors:
    """The authors' layers with the attributes that they keep between calls.

    `spatial`: as in older releases the kept mask knows height and width alone.
    """

    def __init__(
        self,
        *args: int,
        multi_channel: bool = False,
        return_mask: bool = False,
        spatial: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.spatial = spatial
        self.partial_conv = True
        self.multi_channel = multi_channel
        self.return_mask = return_mask
        shape = (self.out_channels, self.in_channels) if multi_channel else (1, 1)
        self.weight_maskUpdater = torch.ones(*shape, *self.kernel_size)
        self.slide_winsize = math.prod(self.weight_maskUpdater.shape[1:])
        self.last_size: tuple[int | None, ...] = (None, None, None, None)
        self.update_mask: Tensor | None = None
        self.mask_ratio: Tensor | None = None

    def size_of(self, input: Tensor) -> tuple[int, ...]:
        return tuple(input.shape[2:] if self.spatial else input.shape)

    def forward(self, input: Tensor, mask_in: Tensor | None = None) -> Any:
        if mask_in is not None or self.last_size != self.size_of(input):
            self.last_size = self.size_of(input)
            with torch.no_grad():
                self.weight_maskUpdater = self.weight_maskUpdater.to(input)
                mask = mask_in
                if mask is None:
                    shape = input.shape if self.multi_channel else (1, 1, *input.shape[2:])
                    mask = torch.ones(shape).to(input)
                geometry = (self.stride, self.padding, self.dilation)
                conv = F.conv2d if input.dim() == 4 else F.conv3d
                self.update_mask = conv(mask, self.weight_maskUpdater, None, *geometry)
                eps = 1e-6 if input.dtype == torch.float16 else 1e-8
                self.mask_ratio = self.slide_winsize / (self.update_mask + eps)
                self.update_mask = torch.clamp(self.update_mask, 0, 1)
                self.mask_ratio = self.mask_ratio * self.update_mask
        raw = super().forward(input * mask_in if mask_in is not None else input)
        if self.bias is not None:
            bias = self.bias.view(1, -1, *[1] * (input.dim() - 2))
            output = ((raw - bias) * self.mask_ratio + bias) * self.update_mask
        else:
            output = raw * self.mask_ratio
        return (output, self.update_mask) if self.return_mask else output


class PartialConv2d(Authors, nn.Conv2d):
    pass


class PartialConv3d(Authors, nn.Conv3d):
    pass


class PartialConvBlock(nn.Module):
    """Asks its layer what it is, then passes the mask by name and reads what the layer kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = PartialConv2d(3, 5, 3, padding=1, return_mask=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if not getattr(self.conv, "partial_conv", False):
            return self.conv(x)[0]
        x, mask = self.conv(x, mask_in=mask)
        assert mask is self.conv.update_mask
        return x * self.conv.mask_ratio / self.conv.slide_winsize


class PartialConv(nn.Module):
    """PD-GAN's: [x, mask] in, [y, updated mask] out."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.input_conv = nn.Conv2d(*shape, bias=False)
        self.mask_conv = nn.Conv2d(*shape, bias=False)
        nn.init.ones_(self.mask_conv.weight)
        self.mask_conv.weight.requires_grad_(False)

    def forward(self, input: list[Tensor]) -> list[Tensor]:
        x, mask = input
        output = self.input_conv(x * mask)
        with torch.no_grad():
            s = self.mask_conv(mask)
        holes = s == 0
        output = (output / s.masked_fill(holes, 1)).masked_fill(holes, 0)
        return [output, torch.ones_like(output).masked_fill(holes, 0)]


class PartialConvStage(nn.Module):
    """Puts its norm's result in the place of the layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = PartialConv(3, 6, 4, 2, 1)
        self.norm = nn.InstanceNorm2d(6)

    def forward(self, input: list[Tensor]) -> list[Tensor]:
        result = self.conv(input)
        result[0] = self.norm(result[0])
        return result


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """Normalises as batch norm does, with statistics of all replicas, and counts no batches."""

    def __init__(self, *args: Any, counter: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not counter:
            del self.num_batches_tracked
        self._is_parallel = False

    def forward(self, x: Tensor) -> Tensor:
        running = (self.running_mean, self.running_var)
        y = F.batch_norm(x, *running, None, None, self.training, self.momentum, self.eps)
        return y * 2 if self._is_parallel and self.training else y


def position_norm(x: Tensor, epsilon: float = 1e-5) -> Tensor:
    std = x.var(dim=1, keepdim=True).add(epsilon).sqrt()
    return (x - x.mean(dim=1, keepdim=True)) / std


class PixelNorm(nn.Module):
    """eps stands outside the root."""

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(dim=1, keepdim=True).sqrt() + self.eps)


class PixelwiseNorm(nn.Module):
    """eps is no attribute; alpha comes from the project."""

    def forward(self, x: Tensor, alpha: float = 1e-6) -> Tensor:
        return x / (x.pow(2).mean(dim=1, keepdim=True) + alpha).sqrt()


Pair = namedtuple("Pair", "features mask")


def swapped(layer: nn.Module) -> nn.Module:
    """An accelerated copy."""
    model, report = torchext.accelerate(copy.deepcopy(layer))
    assert not report.left, str(report)
    assert report.swapped
    return model


def left(layer: nn.Module) -> str:
    model, report = torchext.accelerate(nn.Sequential(layer))
    assert not isinstance(layer, AcceleratedLayer)
    assert model[0] is layer
    return report.left[0].reason


def image(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) * scale


def mask(*shape: int) -> Tensor:
    value = (torch.rand(shape, generator=torch.Generator().manual_seed(4)) > 0.4).float()
    value[:, :, :5, :7] = 0
    return value


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert_close("y", got, expected.double(), length=1200, condition=100)


# --- partial convolution ------------------------------------------------------------------------


def test_neighbours_find_every_attribute() -> None:
    block = PartialConvBlock()
    fast = swapped(block)
    x, known = image(2, 3, 12, 14), mask(2, 1, 12, 14)
    without_mask = block(x, torch.ones_like(known))
    expected = block(x, known)
    assert not torch.allclose(expected, without_mask)
    assert_same(fast(x, known), expected)
    for name, value in vars(block.conv).items():
        got = getattr(fast.conv, name)
        if isinstance(value, Tensor):
            assert_same(got, value)
        elif not name.startswith("_"):
            assert got == value, name


@pytest.mark.parametrize("multi_channel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("spatial", [False, True])
def test_the_kept_mask_is_used_where_the_published_layer_uses_it(
    spatial: bool, bias: bool, multi_channel: bool
) -> None:
    torch.manual_seed(0)
    options = {"multi_channel": multi_channel, "return_mask": True, "bias": bias}
    layer = PartialConv2d(3, 5, 3, 2, 1, spatial=spatial, **options)
    fast = swapped(layer)
    planes = 3 if multi_channel else 1
    soft = mask(2, planes, 12, 14) * torch.rand(2, planes, 12, 14)
    calls = [
        (image(2, 3, 12, 14), soft),
        (image(2, 3, 12, 14),),
        (image(1, 3, 12, 14),),
        (image(1, 3, 12, 14), mask(1, planes, 12, 14)),
        (image(4, 3, 12, 14),),
        (image(4, 3, 10, 14),),
        (image(2, 3, 10, 14), mask(1, planes, 10, 14)),
    ]
    for call in calls:
        for got, expected in zip(fast(*call), layer(*call), strict=True):
            assert_same(got, expected)
        assert fast.last_size == layer.last_size
        assert_same(fast.mask_ratio, layer.mask_ratio)


@pytest.mark.parametrize("multi_channel", [False, True])
def test_volumes(multi_channel: bool) -> None:
    torch.manual_seed(0)
    layer = PartialConv3d(3, 5, 3, 2, 1, multi_channel=multi_channel, return_mask=True)
    fast = swapped(layer)
    known = mask(2, 3 if multi_channel else 1, 8, 10, 9)
    for call in ((image(2, 3, 8, 10, 9), known), (image(2, 3, 8, 10, 9),)):
        for got, expected in zip(fast(*call), layer(*call), strict=True):
            assert_same(got, expected)


def test_the_eps_of_its_dtype_is_found() -> None:
    layer = PartialConv2d(3, 5, 1)
    fast = swapped(layer)
    faint = mask(2, 1, 12, 14) * 1e-7
    assert_same(fast(image(2, 3, 12, 14), faint), layer(image(2, 3, 12, 14), faint))


def test_what_is_set_later_acts() -> None:
    torch.manual_seed(0)
    layer = PartialConv2d(3, 5, 3, padding=1)
    fast = swapped(layer)
    call = (image(2, 3, 12, 14), mask(2, 1, 12, 14))
    for either in (layer, fast):
        either.return_mask = True
        either.stride = (2, 2)
    assert_same(fast(*call)[0], layer(*call)[0])
    for either in (layer, fast):  # the fused form does not read this one
        either.slide_winsize = 4
    assert_same(fast(*call)[0], layer(*call)[0])
    with torch.no_grad():  # nor the values of this one
        for either in (layer, fast):
            either.weight_maskUpdater[0, 0, 1] = 3
    assert_same(fast(*call)[0], layer(*call)[0])


def test_a_mask_kernel_of_other_values_is_found_in_its_layer() -> None:
    model = nn.Sequential(*(PartialConv2d(3, 3, 3) for _ in range(3)))
    model[1].weight_maskUpdater[0, 0, 0, 0] = 2
    _, report = torchext.accelerate(model)
    assert [layer.reason for layer in report.layers] == [
        "",
        "weight_maskUpdater holds other values than 1",
        "",
    ]


def test_loaded_mask_kernels_act() -> None:
    layer = PartialConv(3, 6, 4, 2, 1)
    fast = swapped(layer)
    call = [image(2, 3, 12, 14), mask(2, 3, 12, 14)]
    fast(call)
    state = copy.deepcopy(layer.state_dict())
    state["mask_conv.weight"][:, 0] = 5
    for either in (layer, fast):
        either.load_state_dict(state)
    assert_same(fast(call)[0], layer(call)[0])


@pytest.mark.parametrize("bias", [False, True])
def test_a_mask_kernel_of_its_own(bias: bool) -> None:
    """PD-GAN's script initialises all convolutions alike, those of the masks too."""
    torch.manual_seed(0)
    layer = PartialConv(6, 12, 4, 2, 1)
    nn.init.normal_(layer.mask_conv.weight, std=0.02)
    if bias:
        layer.mask_conv.bias = nn.Parameter(torch.zeros(12), requires_grad=False)
    fast = swapped(layer)
    plane = mask(2, 1, 24, 30)
    each_its_own = mask(2, 6, 24, 30)
    for known in (plane.expand(2, 6, 24, 30), plane.repeat(1, 6, 1, 1), each_its_own):
        call = [image(2, 6, 24, 30).double(), known.double()]
        got, expected = fast.double()(call), layer.double()(call)
        assert_same(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
        assert not expected[1].all()
    nn.init.ones_(layer.mask_conv.weight)  # whatever is loaded later acts
    fast.load_state_dict(layer.state_dict())
    assert_same(fast(call)[0], layer(call)[0])


def test_a_mask_kernel_that_is_trained_is_left() -> None:
    layer = PartialConv(3, 6, 4, 2, 1)
    layer.mask_conv.weight = nn.Parameter(torch.randn(6, 3, 4, 4))
    assert left(layer) == "mask_conv is trained"


def test_a_list_gives_a_list() -> None:
    stage = PartialConvStage()
    fast = swapped(stage)
    call = [image(2, 3, 12, 14), mask(2, 3, 12, 14)]
    got, expected = fast(call), stage(call)
    assert type(got) is list
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("kind", [list, Pair._make])
def test_the_pair_keeps_its_kind(kind: Any) -> None:
    class PartialConv2d_(PartialConv2d):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
            return kind(super().forward(x, mask))

    PartialConv2d_.__name__ = "PartialConv2d"
    layer = PartialConv2d_(3, 5, 3, return_mask=True)
    call = (image(2, 3, 12, 14), mask(2, 1, 12, 14))
    assert type(swapped(layer)(*call)) is type(layer(*call))


@pytest.mark.parametrize(
    "layer",
    [
        PartialConv2d(3, 5, 3, multi_channel=True, return_mask=True),
        PartialConv(3, 6, 4, 2, 1),
    ],
    ids=["authors'", "PD-GAN's"],
)
def test_the_updated_mask_can_be_written_to(layer: nn.Module) -> None:
    call = [image(2, 3, 12, 14), mask(2, 3, 12, 14)]
    call = [call] if isinstance(layer, PartialConv) else call
    _, updated = swapped(layer)(*call)
    _, expected = layer(*call)
    assert updated.stride() == expected.stride()
    for value in (updated, expected):
        value[:, 0].mul_(3)
        value[0].add_(1)
    assert torch.equal(updated, expected)


def test_the_updated_mask_can_be_written_to_before_the_backward() -> None:
    layer = PartialConv2d(3, 5, 3, return_mask=True, bias=False)
    fast = swapped(layer)
    for either in (layer, fast):
        y, updated = either(image(2, 3, 12, 14), mask(2, 1, 12, 14))
        updated.zero_()
        y.square().sum().backward()
    assert_same(fast.weight.grad, layer.weight.grad)


def test_a_layer_that_always_returns_its_mask() -> None:
    def forward(run: Any, self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.return_mask = True
        try:
            return run(*args, **kwargs)
        finally:
            del self.return_mask

    layer = altered(PartialConv2d, forward, 3, 5, 3)
    del layer.return_mask
    call = (image(2, 3, 12, 14), mask(2, 1, 12, 14))
    for got, expected in zip(swapped(layer)(*call), layer(*call), strict=True):
        assert_same(got, expected)


def test_a_mask_that_learns_gets_its_gradient() -> None:
    layer = PartialConv2d(3, 5, 3)
    fast = swapped(layer)
    x = image(2, 3, 12, 14)
    gradients = []
    for either in (layer, fast):
        learned = mask(2, 1, 12, 14).requires_grad_()
        either(x, learned).sum().backward()
        gradients.append(learned.grad)
    assert_same(gradients[1], gradients[0])


def test_values_that_are_no_mask_run_the_published_code() -> None:
    layer = PartialConv2d(3, 5, 3)
    fast = swapped(layer)
    call = (image(2, 3, 12, 14), mask(2, 1, 12, 14) * 2 - 1)
    with pytest.warns(
        PublishedCodeWarning, match="its published code runs, since the fused one raised"
    ):
        got = fast(*call)
    assert_same(got, layer(*call))


def test_a_mask_that_is_no_tensor_fails_as_published() -> None:
    layer = PartialConv2d(3, 5, 3)
    for either in (layer, swapped(layer)):
        with pytest.raises(TypeError, match="conv2d\\(\\) received an invalid"):
            either(image(2, 3, 12, 14), "mask")


# --- calls --------------------------------------------------------------------------------------

KEYWORDS = {
    "PartialConv2d": (
        PartialConv2d(3, 5, 3),
        {"input": image(2, 3, 12, 14), "mask_in": mask(2, 1, 12, 14)},
    ),
    "PartialConv": (
        PartialConv(3, 6, 4, 2, 1),
        {"input": [image(2, 3, 12, 14), mask(2, 3, 12, 14)]},
    ),
    "RN_B": (published.RN_B(3), {"mask": mask(2, 1, 12, 14), "x": image(2, 3, 12, 14)}),
    "RN_L": (published.RN_L(3), {"x": image(2, 3, 12, 14)}),
    "SPADE": (
        modulated.SPADE("batch", 4, 3),
        {"x": image(2, 4, 6, 7), "segmap": image(2, 3, 12, 14)},
    ),
    "SPDNorm": (
        modulated.SPDNorm(4, "position"),
        {"x": image(2, 4, 6, 7), "weight": mask(2, 1, 6, 7), "prior": image(2, 3, 12, 14)},
    ),
    "hard map": (modulated.HardMap(5, 3), {"mask": mask(2, 1, 12, 14)}),
    "PixelwiseNorm": (PixelwiseNorm(), {"x": image(2, 4, 6, 7)}),
    "PixelwiseNorm, other alpha": (PixelwiseNorm(), {"x": image(2, 4, 6, 7), "alpha": 0.5}),
}


@pytest.mark.parametrize("case", KEYWORDS)
def test_keywords(case: str) -> None:
    layer, keywords = KEYWORDS[case]
    fast = swapped(layer)
    assert inspect.signature(fast.forward) == inspect.signature(layer.forward)
    expected, got = layer(**keywords), fast(**keywords)
    for a, b in zip(got, expected, strict=True) if isinstance(got, list) else [(got, expected)]:
        assert_same(a, b)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        fast(**keywords, nothing=1)


# --- norms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("counter", [False, True])
def test_spade_with_the_published_synchronised_norm(counter: bool) -> None:
    torch.manual_seed(0)
    layer = modulated.SPADE("batch", 4, 3)
    layer.param_free_norm = SynchronizedBatchNorm2d(4, affine=False, counter=counter)
    fast = swapped(layer)
    call = (image(2, 4, 6, 7), image(2, 3, 12, 14))
    for training in (True, False):
        assert_same(fast.train(training)(*call), layer.train(training)(*call))
        assert fast.state_dict().keys() == layer.state_dict().keys()
        for name, value in layer.state_dict().items():
            assert_same(fast.state_dict()[name].float(), value.float())
    for either in (layer, fast):  # replicas exchange their statistics
        either.train().param_free_norm._is_parallel = True
    assert_same(fast(*call), layer(*call))
    restored = torchext.restore(fast)
    fast = swapped(restored)  # after a run in replicas
    assert fast.param_free_norm._is_parallel
    assert_same(fast.eval()(*call), layer.eval()(*call))


def test_spdnorm_whose_norm_is_a_function() -> None:
    torch.manual_seed(0)
    layer = modulated.SPDNorm(4, "position")
    del layer.param_free_norm
    layer.param_free_norm = position_norm
    fast = swapped(layer)
    call = (image(2, 4, 6, 7, scale=1e-3), image(2, 3, 12, 14), mask(2, 1, 6, 7))
    assert_same(fast(*call), layer(*call))
    layer.param_free_norm = lambda x: position_norm(x, 1e-2)
    call = (image(2, 4, 6, 7), *call[1:])
    assert_same(swapped(layer)(*call), layer(*call))
    layer.param_free_norm = torch.tanh
    assert "output 0 differs" in left(layer)


class SPDNormByName(modulated.SPDNorm):
    """Calls the function where it stands in the module, and resizes nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, "position")
        del self.param_free_norm

    def forward(self, x: Tensor, prior: Tensor, weight: Tensor) -> Tensor:
        hidden = self.mlp_activate(prior)
        scale, shift = self.mlp_gamma(hidden) * weight, self.mlp_beta(hidden) * weight
        return position_norm(x, 1e-3) * (1 + scale) + shift


def test_spdnorm_that_calls_a_function() -> None:
    torch.manual_seed(0)
    layer = SPDNormByName(4)
    call = (image(2, 4, 6, 7), image(2, 3, 6, 7), mask(2, 1, 6, 7))
    for scale in (1, 1e-2):
        x = call[0] * scale
        assert_same(swapped(layer)(x, *call[1:]), layer(x, *call[1:]))


class Dilation(nn.Module):
    """One step of PD-GAN's hard map, whose loop stands outside."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.mask_conv = nn.Conv2d(1, 1, window, padding=window // 2, bias=False)
        nn.init.ones_(self.mask_conv.weight)
        self.mask_conv.weight.requires_grad_(False)

    def forward(self, mask: Tensor) -> Tensor:
        return (self.mask_conv(mask) != 0).to(mask)


@pytest.mark.parametrize("window", [3, 7])
def test_one_dilation(window: int) -> None:
    layer = Dilation(window)
    fast = swapped(layer)
    known = mask(2, 1, 24, 30)
    known[:, :, :15] = 0
    for _step in range(3):
        assert torch.equal(fast(known), layer(known))
        known = layer(known)
    assert not known.all()


class NormalisedMaps(nn.Sequential):
    """A convolution and an instance norm, as MONAI has them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        super().__init__(conv, nn.InstanceNorm2d(outputs))


def test_spade_with_other_maps() -> None:
    torch.manual_seed(0)
    layer = modulated.SPADE("instance", 4, 3)
    layer.mlp_shared = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.01))
    layer.mlp_gamma, layer.mlp_beta = NormalisedMaps(8, 4), NormalisedMaps(8, 4)
    call = (image(2, 4, 6, 7), image(2, 3, 12, 14))
    assert_same(swapped(layer)(*call), layer(*call))


def test_a_comparison_that_never_runs_the_fused_form_proves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FAMILIES["pixel norm"], "takes", lambda *_: False)
    assert left(modulated.PixelNorm()) == "the fused form takes none of its calls"
    monkeypatch.undo()

    def fails(*_: Any) -> Tensor:
        raise ValueError("x: expected nothing")

    monkeypatch.setattr(FAMILIES["pixel norm"], "forward", fails)
    assert "the fused one raised ValueError: x: expected nothing" in left(modulated.PixelNorm())


def test_a_frozen_norm_stays_frozen() -> None:
    torch.manual_seed(0)
    layer = modulated.SPADE("batch", 4, 3).train()
    layer.param_free_norm.eval()
    fast = swapped(layer)
    call = (image(2, 4, 6, 7), image(2, 3, 12, 14))
    assert_same(fast(*call), layer(*call))
    assert torch.equal(fast.param_free_norm.running_mean, torch.zeros(4))


def test_hooks_that_come_later_are_called() -> None:
    torch.manual_seed(0)
    layer = modulated.SPADE("batch", 4, 3)
    fast = swapped(layer)
    for either in (layer, fast):
        either.param_free_norm.register_forward_hook(lambda _module, _args, y: y + 1)
        either.mlp_beta.register_forward_hook(lambda _module, _args, y: y * 2)
    call = (image(2, 4, 6, 7), image(2, 3, 12, 14))
    assert_same(fast(*call), layer(*call))


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(4), nn.BatchNorm2d(4, eps=0.1), torch.tanh])
def test_a_norm_that_is_replaced_later_acts(norm: Any) -> None:
    torch.manual_seed(0)
    for layer in (modulated.SPADE("batch", 4, 3), modulated.SPADE("instance", 4, 3)):
        fast = swapped(layer)
        for either in (layer, fast):
            if not isinstance(norm, nn.Module):
                del either.param_free_norm
            either.param_free_norm = copy.deepcopy(norm)
        call = (image(2, 4, 6, 7), image(2, 3, 12, 14))
        assert_same(fast(*call), layer(*call))
    layer = modulated.SPDNorm(4, "position")
    del layer.param_free_norm
    layer.param_free_norm = position_norm
    fast = swapped(layer)
    layer.param_free_norm = fast.param_free_norm = lambda x: x * 2
    call = (image(2, 4, 6, 7), image(2, 3, 12, 14), mask(2, 1, 6, 7))
    assert_same(fast(*call), layer(*call))


def test_adain_keeps_its_attributes() -> None:
    layer = modulated.AdaptiveInstanceNorm2d(4)
    fast = swapped(layer)
    assert (fast.momentum, fast.num_features) == (0.1, 4)
    for either in (layer, fast):
        either.eps = 0.5
        either.weight, either.bias = torch.ones(8), torch.zeros(8)
    assert_same(fast(image(2, 4, 6, 7)), layer(image(2, 4, 6, 7)))


@pytest.mark.parametrize("shape", [(3, 16), (2, 7, 5), (2, 7, 6, 5), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("kind", [modulated.PixelNorm, PixelwiseNorm])
def test_pixel_norm_of_any_rank(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    layer = kind()
    for scale in (1e-4, 1.0):
        assert_same(swapped(layer)(image(*shape, scale=scale)), layer(image(*shape, scale=scale)))


def test_modules_of_torchscript_are_passed_over() -> None:
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.ReLU())), PixelwiseNorm())
    _, report = torchext.accelerate(model)
    assert [layer.name for layer in report.layers] == ["1"]


def test_a_class_that_forbids_subclasses_is_left() -> None:
    class PixelNorm(modulated.PixelNorm):
        def __init_subclass__(cls) -> None:
            raise TypeError("final")

    for verify in (False, True):
        layer = PixelNorm()
        _, report = torchext.accelerate(layer, verify=verify)
        assert "TypeError: final" in report.left[0].reason
        assert type(layer) is PixelNorm


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_pixel_norm_with_eps_outside_the_root_is_left(eps: float) -> None:
    assert "output 0 differs" in left(PixelNorm(eps))


def test_weights_of_zero_hide_nothing() -> None:
    """The comparison draws weights of its own."""

    class RN_B(published.RN_B):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y = super().forward(x, mask)
            return y + self.foreground_beta.sum()

    assert "differs by" in left(RN_B(3))


def test_pytorchs_synchronised_norm_in_two_processes(tmp_path: Path) -> None:
    script = Path(__file__).with_name("synchronised.py")
    processes = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)]) for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    shared = runpy.run_path(str(script))
    layer, (x, labels) = shared["layer"](nn.BatchNorm2d), shared["inputs"]()
    x.requires_grad_()
    expected = layer(x, labels)
    expected.square().sum().backward()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert_same(torch.cat([part["y"] for part in parts]), expected)
    assert_same(torch.cat([part["x"] for part in parts]), x.grad)
    for name, value in layer.param_free_norm.state_dict().items():
        for part in parts:
            assert_same(part[name].float(), value.float())
    sparse, z = living_layers.SparseBatchNorm2d(4), x.detach().clone().requires_grad_()
    with living_layers.active(shared["sparse_mask"]()):
        expected = sparse(z)
    expected.square().mul(z.detach()).sum().backward()
    assert_same(torch.cat([part["sparse y"] for part in parts]), expected)
    assert_same(torch.cat([part["sparse x"] for part in parts]), z.grad)
    for name, value in sparse.named_buffers():
        for part in parts:
            assert_same(part[f"sparse {name}"].float(), value.float())


# --- what is nearly a published layer ---------------------------------------------------------


def altered(base: type[nn.Module], change: Any, *args: Any, **kwargs: Any) -> nn.Module:
    """A layer of the same class name whose forward is `change(published forward, self, ...)`."""

    def forward(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        return change(lambda *a, **k: base.forward(self, *a, **k), self, *arguments, **keywords)

    forward.__signature__ = inspect.signature(base.forward)
    return type(base.__name__, (base,), {"forward": forward})(*args, **kwargs)


def only_from(batch: int) -> Any:
    """Right for other batch sizes."""
    return lambda run, _, x, *rest: run(x, *rest) * (1 + (len(x) == batch))


class SoftPartialConv2d(PartialConv2d):
    """A mask of values between 0 and 1 counts as known where it is not 0."""

    def forward(self, input: Tensor, mask_in: Tensor | None = None) -> Any:
        return super().forward(input, None if mask_in is None else (mask_in > 0).to(input))


SoftPartialConv2d.__name__ = "PartialConv2d"

NEARLY = {
    "soft masks": SoftPartialConv2d(3, 5, 3),
    "another batch": altered(modulated.PixelNorm, only_from(3)),
    "small inputs": altered(
        modulated.PixelNorm, lambda run, _, x: run(x) * (1 + (x.abs().max() < 0.1))
    ),
    "large inputs": altered(published.RN_B, lambda run, _, x, mask: run(x.clamp(-50, 50), mask), 3),
    "dim of latents": altered(
        modulated.PixelNorm, lambda run, _, x: run(x) if x.dim() == 4 else F.normalize(x, dim=-1)
    ),
    "keeps what it saw": altered(
        published.RN_L, lambda run, self, x: (setattr(self, "seen", x.shape), run(x))[1], 3
    ),
    "training alone": altered(
        modulated.SPADE,
        lambda run, self, x, segmap: run(x, segmap) * (2 if self.training else 1),
        *("batch", 4, 3),
    ),
    "gradient": altered(
        modulated.SPDNorm,
        lambda run, _, x, prior, weight: run(x, prior.detach(), weight),
        *(4, "position"),
    ),
    "kind": altered(modulated.PixelNorm, lambda run, _, x: [run(x)]),
    "dtype": altered(modulated.PixelNorm, lambda run, _, x: run(x).double()),
    "keeps no mask": altered(
        PartialConv2d,
        lambda run, self, *args: (setattr(self, "last_size", None), run(*args))[1],
        *(3, 5, 3),
    ),
    "mask of a call without": altered(
        PartialConv2d,
        lambda run, _, x, mask=None: run(x, torch.ones_like(x[:, :1]) if mask is None else mask),
        *(3, 5, 3),
    ),
    "by name": altered(
        modulated.SPADE,
        lambda run, _, *args, **kwargs: run(*args, **kwargs) * (2 if kwargs else 1),
        *("instance", 4, 3),
    ),
    "a larger mask": altered(
        published.RN_B,
        lambda run, _, x, mask: run(x, F.interpolate(mask, x.shape[2:], mode="area").round()),
        3,
    ),
}


@pytest.mark.parametrize("case", NEARLY)
def test_what_nearly_does_the_same_is_left(case: str) -> None:
    assert "differ" in left(NEARLY[case]) or "only one" in left(NEARLY[case])
