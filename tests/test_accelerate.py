"""accelerate and restore: what is swapped, what is left, and that nothing else changes."""

import copy
import io

import pytest
import torch
from support.tolerance import assert_close
from torch import nn

import torchext
from benchmarks.baselines import region_norm as published


class Network(nn.Module):
    """Layers at three depths, one of them standing twice."""

    def __init__(self) -> None:
        super().__init__()
        self.known = published.RN_B(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.learned = nn.ModuleList([published.RN_L(4)])
        self.again = self.known

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.learned[0](self.conv(self.again(self.known(x, mask), mask)))


def network() -> Network:
    torch.manual_seed(3)
    model = Network()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    mask = (torch.rand(2, 1, 12, 16, generator=generator) > 0.4).float()
    return torch.randn(2, 4, 12, 16, generator=generator), mask


def run(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    x, mask = inputs()
    x.requires_grad_()
    y = model(x, mask)
    y.square().sum().backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **gradients}


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(key, got[key], value.double(), length=400, condition=100)


@pytest.mark.parametrize("verify", [False, True])
def test_swaps_in_place(verify: bool) -> None:
    model = network()
    expected, keys = run(model), list(model.state_dict())
    parameters = [id(parameter) for parameter in model.parameters()]
    accelerated, report = torchext.accelerate(model, verify=verify)
    assert accelerated is model
    assert [layer.name for layer in report.swapped] == ["known", "learned.0"]
    assert not report.left
    assert isinstance(model.known, torchext.nn.RN_B)
    assert model.again is model.known
    assert isinstance(model.learned[0], torchext.nn.RN_L)
    assert list(model.state_dict()) == keys
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert_same(run(model), expected)


def test_restore_is_exact() -> None:
    model = network()
    layers = (model.known, model.learned[0])
    torchext.accelerate(model)
    model.eval()
    model.load_state_dict({key: value * 2 for key, value in model.state_dict().items()})
    accelerated = run(model)
    assert torchext.restore(model) is model
    assert (model.known, model.learned[0]) == layers
    assert not model.known.training
    assert not model.learned[0].rn.training
    assert_same(run(model), accelerated)


def test_an_optimiser_keeps_working() -> None:
    def train(accelerate: bool) -> dict[str, torch.Tensor]:
        model = network()
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
        if accelerate:
            torchext.accelerate(model)
        for _ in range(3):
            run(model)
            optimiser.step()
        return {name: value.detach() for name, value in model.named_parameters()}

    assert_same(train(True), train(False))


def test_copies_and_pickles() -> None:
    model = network()
    expected = run(model)
    torchext.accelerate(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert isinstance(other.known, torchext.nn.RN_B)
        assert_same(run(other), expected)
        torchext.restore(other)
        assert isinstance(other.known, published.RN_B)
        assert_same(run(other), expected)
    assert isinstance(model.known, torchext.nn.RN_B)


def test_inside_a_wrapper_and_then_compiled() -> None:
    model = network()
    expected = run(model)["y"]
    wrapped = nn.DataParallel(model)
    torchext.accelerate(wrapped)
    assert isinstance(model.known, torchext.nn.RN_B)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert_close("y", compiled(*inputs()), expected.double(), length=400, condition=100)


def test_the_model_itself() -> None:
    layer = published.RN_L(3)
    new, report = torchext.accelerate(layer)
    assert isinstance(new, torchext.nn.RN_L)
    assert report.swapped[0].name == ""
    assert torchext.restore(new) is layer


def test_hooks_stay() -> None:
    """A hook that comes after the swap survives its undoing."""
    layer = published.RN_L(3)
    model, _ = torchext.accelerate(nn.Sequential(layer))
    calls = []
    handle = model[0].register_forward_hook(lambda *_: calls.append(1))
    torchext.restore(model)(torch.randn(1, 3, 8, 8))
    assert calls == [1]
    handle.remove()
    model(torch.randn(1, 3, 8, 8))
    assert calls == [1]


# --- what is left alone -------------------------------------------------------------------------


def left(layer: nn.Module) -> str:
    """The reason why a layer is left alone."""
    model, report = torchext.accelerate(nn.Sequential(layer))
    assert model[0] is layer
    (row,) = report.left
    return row.reason


class Louder(published.RN_L):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_subclass() -> None:
    assert left(Louder(3)) == "a subclass of RN_L, which may behave otherwise"


def test_other_behaviour_under_the_same_name() -> None:
    class RN_L(Louder):
        pass

    reason = left(RN_L(3))
    assert reason.startswith(("output 0 differs by", "gradient of")), reason


def test_hook_that_looks_inside() -> None:
    layer = published.RN_L(3)
    layer.sa.register_forward_hook(lambda *_: None)
    assert left(layer) == "a hook looks inside (sa)"


def test_forward_replaced_on_the_instance() -> None:
    layer = published.RN_L(3)
    layer.forward = lambda x: x
    assert left(layer) == "forward is replaced on the instance (itself)"


def test_unknown_attribute_values() -> None:
    layer = published.RN_L(3)
    layer.sa.conv1.dilation = (2, 2)
    assert left(layer) == "conv1.dilation is (2, 2), known are (1, 1)"


def test_other_eps() -> None:
    layer = published.RN_B(3)
    layer.rn.bn_norm.eps = 0.1
    assert "differs by" in left(layer)


def test_no_known_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = list(model)
    same, report = torchext.accelerate(model)
    assert same is model
    assert list(model) == before
    assert str(report) == "accelerate: no known layer in this model; nothing was changed"


def test_report_is_a_table() -> None:
    _, report = torchext.accelerate(nn.Sequential(published.RN_L(3), Louder(3)))
    assert str(report).splitlines() == [
        "0  RN_L    swapped",
        "1  Louder  a subclass of RN_L, which may behave otherwise",
        "accelerate: 1 swapped, 1 left as they were",
    ]


@pytest.mark.parametrize("function", [torchext.accelerate, torchext.restore])
def test_bad_input(function: object) -> None:
    with pytest.raises(TypeError, match=r"^model: expected a torch.nn.Module, got int$"):
        function(3)
