"""accelerate(model, convolutions=True): PyTorch's own convolutions in Winograd's form."""

import copy

import pytest
import torch
from support.tolerance import assert_close
from torch import Tensor, nn

import torchext
from benchmarks.baselines import modulated_layers as modulated
from torchext.accelerate.layer import AcceleratedLayer


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=2, dilation=2),
        )
        self.shortcut = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


def network() -> nn.Module:
    torch.manual_seed(0)
    stem, down = nn.Conv2d(3, 32, 7, 2, 3), nn.Conv2d(32, 32, 3, 2, 1)
    return nn.Sequential(stem, Residual(32), down, Residual(32))


def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape))
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **gradients}


def test_convolutions_are_swapped_only_where_asked() -> None:
    model = network()
    assert not torchext.accelerate(model)[1].layers
    _, report = torchext.accelerate(model, convolutions=True)
    expected = ["1.body.0", "1.body.3", "3.body.0", "3.body.3"]
    assert [layer.name for layer in report.layers] == expected
    assert not report.left
    assert isinstance(model[1].body[0], AcceleratedLayer)
    assert isinstance(model[1].body[0], nn.Conv2d)


@pytest.mark.parametrize("training", [True, False])
def test_results_keys_and_restore(training: bool) -> None:
    model, x = network().train(training), torch.randn(2, 3, 96, 104)
    published = copy.deepcopy(model)
    torchext.accelerate(model, convolutions=True, example=(x,))
    assert list(model.state_dict()) == list(published.state_dict())
    expected = results(published, x)
    for name, value in results(model, x).items():
        assert_close(name, value, expected[name].double(), length=50_000, condition=100)
    torchext.restore(model)
    assert {type(part) for part in model.modules()} == {type(part) for part in published.modules()}
    model.load_state_dict(published.state_dict())  # in training, running statistics are rounded
    assert torch.equal(model.eval()(x), published.eval()(x))


def test_the_form_is_winograds_where_that_is_chosen() -> None:
    """Which rounds otherwise than PyTorch's convolution."""
    conv = nn.Conv2d(32, 32, 3, padding=1)
    x = torch.randn(1, 32, 64, 64)
    expected = conv(x)
    torchext.accelerate(conv, convolutions=True)
    with torchext.backend.convolution("winograd"):
        assert not torch.equal(conv(x), expected)
    with torchext.backend.convolution("direct"):
        assert torch.equal(conv(x), expected)


def test_those_inside_of_known_layers_are_left_to_them() -> None:
    model = nn.ModuleList(
        [modulated.SPADE("instance", 16, 6), torchext.nn.SPADE("spadeinstance", 16, 6)]
    )
    _, report = torchext.accelerate(model, convolutions=True)
    assert [layer.name for layer in report.layers] == ["0"]
    _, report = torchext.accelerate(model, convolutions=True)  # once more
    assert not report.layers


def test_a_convolution_that_is_changed_later() -> None:
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(2, 4, 12, 12)
    fast, _ = torchext.accelerate(copy.deepcopy(conv), convolutions=True)
    for change in ({"stride": (2, 2)}, {"padding": "valid", "stride": (1, 1)}):
        for either in (conv, fast):
            for name, value in change.items():
                setattr(either, name, value)
        assert_close("y", fast(x), conv(x).double(), length=400)
    assert_close("no batch", fast(x[0]), conv(x[0]).double(), length=400)


class Louder(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_other_convolutions_are_passed_over() -> None:
    others = [
        Louder(4, 4, 3),
        nn.Conv2d(4, 4, 5),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv3d(4, 4, 3),
    ]
    assert not torchext.accelerate(nn.ModuleList(others), convolutions=True)[1].layers
    hooked = nn.Conv2d(4, 4, 3)
    hooked.forward = lambda x: x
    _, report = torchext.accelerate(hooked, convolutions=True)
    assert report.left[0].reason == "forward is replaced on the instance (itself)"
