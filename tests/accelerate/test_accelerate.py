"""accelerate and restore: what is swapped, what is left, and that nothing else changes."""

import copy
import io
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from support.tolerance import assert_close
from torch import nn

import torchext
from benchmarks.baselines import modulated_layers as modulated
from benchmarks.baselines import partial_conv as partial
from benchmarks.baselines import region_norm as published
from torchext.accelerate.layer import AcceleratedLayer


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


def accelerated_layer(layer: nn.Module) -> bool:
    """Whether a layer runs the fused form, and still is all that it was."""
    return isinstance(layer, AcceleratedLayer) and isinstance(layer, layer.published)


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
    assert accelerated_layer(model.known)
    assert model.again is model.known
    assert accelerated_layer(model.learned[0])
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
        assert accelerated_layer(other.known)
        assert_same(run(other), expected)
        torchext.restore(other)
        assert type(other.known) is published.RN_B
        assert_same(run(other), expected)
    assert accelerated_layer(model.known)


def test_inside_a_wrapper_and_then_compiled() -> None:
    model = network()
    expected = run(model)["y"]
    wrapped = nn.DataParallel(model)
    torchext.accelerate(wrapped)
    assert accelerated_layer(model.known)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert_close("y", compiled(*inputs()), expected.double(), length=400, condition=100)


def test_the_model_itself() -> None:
    layer = published.RN_L(3)
    new, report = torchext.accelerate(layer)
    assert accelerated_layer(new)
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


# --- every published layer ----------------------------------------------------------------------


def mask(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    coarse = torch.rand(*shape[:2], 4, 5, generator=generator)
    return (F.interpolate(coarse, size=shape[2:]) > 0.4).float()


def grouped_mask() -> torch.Tensor:
    """A concatenation: two planes, three and five times."""
    planes = mask(2, 2, 24, 30)
    return torch.cat((planes[:, :1].repeat(1, 3, 1, 1), planes[:, 1:].repeat(1, 5, 1, 1)), 1)


def image(channels: int, *size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(2, channels, *(size or (24, 30)), generator=generator)


def adain() -> nn.Module:
    layer = modulated.AdaptiveInstanceNorm2d(4)
    generator = torch.Generator().manual_seed(4)
    layer.weight, layer.bias = torch.randn(2, 8, generator=generator)
    return layer


LAYERS = {
    "PartialConv2d": (lambda: partial.PartialConv2d(3, 5, 3, 2, 1), (image(3), mask(2, 1, 24, 30))),
    "PartialConv2d all channels": (
        lambda: partial.PartialConv2d(8, 6, 5, 1, 2, multi_channel=True, return_mask=True),
        (image(8), grouped_mask()),
    ),
    "PartialConv2d without mask": (
        lambda: partial.PartialConv2d(3, 5, 3, 1, 1, bias=False),
        (image(3),),
    ),
    "PartialConv": (lambda: partial.PartialConv(8, 6, 3, 2, 1), (image(8), grouped_mask())),
    "PartialConv with bias": (
        lambda: partial.PartialConv(3, 6, 7, 2, 3, bias=True),
        (image(3), mask(2, 1, 24, 30).expand(2, 3, 24, 30)),
    ),
    "RN_B": (lambda: published.RN_B(4), (image(4), mask(2, 1, 48, 60))),
    "SPADE instance": (lambda: modulated.SPADE("instance", 4, 6), (image(4), image(6, 12, 15))),
    "SPADE batch": (lambda: modulated.SPADE("batch", 4, 6), (image(4), image(6))),
    "SPADE 5x5": (lambda: modulated.SPADE("batch", 4, 6, 5), (image(4), image(6))),
    "SPDNorm position": (
        lambda: modulated.SPDNorm(4, "position"),
        (image(4), image(3, 48, 60), mask(2, 1, 24, 30)),
    ),
    "SPDNorm batch": (
        lambda: modulated.SPDNorm(4, "batch"),
        (image(4), image(3), mask(2, 4, 24, 30)),
    ),
    "SPDNorm instance": (
        lambda: modulated.SPDNorm(4, "instance"),
        (image(4), image(3), mask(2, 4, 24, 30)),
    ),
    "hard map": (lambda: modulated.HardMap(5, 3), (mask(2, 1, 24, 30),)),
    "hard map base 4": (lambda: modulated.HardMap(7, 5, 4.0), (mask(2, 1, 24, 30),)),
    "ANLs": (lambda: modulated.ANLs(4, 5), (image(4), image(5, 48, 60))),
    "AdaIN": (adain, (image(4),)),
    "PixelNorm": (modulated.PixelNorm, (image(6),)),
}


def results(layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    """Output, gradients and buffers."""
    x, *conditions = arguments
    if not hasattr(layer, "mask_conv") or conditions:  # the hard map alone has no gradient
        x = x.clone().requires_grad_()
    outputs = layer(x, *conditions)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = {f"output {i}": value.detach() for i, value in enumerate(outputs)}
    if outputs[0].requires_grad:
        generator = torch.Generator().manual_seed(1)
        outputs[0].backward(torch.randn(outputs[0].shape, generator=generator))
        found["x"] = torch.zeros_like(x) if x.grad is None else x.grad
        found |= {
            name: value.grad for name, value in layer.named_parameters() if value.grad is not None
        }
    return found | {name: value.clone() for name, value in layer.named_buffers()}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", LAYERS)
def test_every_layer(case: str, training: bool) -> None:
    make, arguments = LAYERS[case]
    torch.manual_seed(2)
    layer = nn.Sequential(OrderedDict(layer=make())).train(training)
    keys, state = list(layer.state_dict()), copy.deepcopy(layer.state_dict())
    expected = results(copy.deepcopy(layer.layer), arguments)
    _, report = torchext.accelerate(layer)
    assert not report.left, str(report)
    assert len(report.swapped) == 1
    assert accelerated_layer(layer.layer)
    assert layer.layer.training == training
    assert list(layer.state_dict()) == keys
    for key, value in layer.state_dict().items():  # the comparison has left no trace
        assert torch.equal(value, state[key]), key
    got = results(layer.layer, arguments)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        if value.is_floating_point():
            assert_close(key, got[key], value.double(), length=1200, condition=100)
        else:
            assert torch.equal(got[key], value), key


@pytest.mark.parametrize("case", LAYERS)
def test_copies_and_pickles_of_every_layer(case: str) -> None:
    make, arguments = LAYERS[case]
    torch.manual_seed(2)
    layer = make().eval()
    with torch.no_grad():
        layer(*arguments)  # some keep what they see
    attributes = set(vars(layer))
    fast, report = torchext.accelerate(layer)
    assert fast is layer
    assert report.swapped
    expected = results(copy.deepcopy(layer), arguments)
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(fast), torch.load(buffer, weights_only=False)):
        assert accelerated_layer(other)
        got = results(other, arguments)
        for key, value in expected.items():
            assert torch.equal(got[key], value), key
        assert type(torchext.restore(other)) is type(make())
        assert set(vars(other)) == attributes


@pytest.mark.parametrize("case", LAYERS)
def test_every_layer_compiles_as_one_graph(case: str) -> None:
    make, arguments = LAYERS[case]
    torch.manual_seed(2)
    layer = make().eval()
    with torch.no_grad():
        expected = layer(*arguments)
    torchext.accelerate(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        got = compiled(*arguments)
    both = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
    for a, b in both:
        assert_close("y", a, b.double(), length=1200, condition=100)


def test_each_class_compiles_on_its_own() -> None:
    """torch.compile gives up after eight compilations of one code object."""
    layers = [modulated.PixelNorm(), published.RN_L(3), modulated.HardMap(5, 3)]
    codes = {type(torchext.accelerate(layer)[0]).forward.__code__.co_name for layer in layers}
    objects = {id(type(layer).forward.__code__) for layer in layers}
    assert codes == {"forward"}
    assert len(objects) == 3


def test_a_parametrisation_that_comes_later() -> None:
    torch.manual_seed(2)
    layer = partial.PartialConv2d(3, 5, 3)
    fast, _ = torchext.accelerate(copy.deepcopy(layer))
    for either in (layer, fast):
        torch.nn.utils.parametrize.register_parametrization(either, "weight", Half())
    for model in (fast, torchext.restore(fast)):
        assert_close("y", model(image(3)), layer(image(3)).double(), length=1200)


class Half(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def test_weights_of_spectral_norm() -> None:
    """Old hooks and parametrisations on the layers inside."""
    for reparametrise in (nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm):
        torch.manual_seed(2)
        layer = modulated.SPADE("instance", 4, 6)
        layer.mlp_gamma = reparametrise(layer.mlp_gamma)
        layer(image(4), image(6))  # the hook leaves a weight that is no leaf
        layer.eval()
        expected = layer(image(4), image(6))
        model, report = torchext.accelerate(nn.Sequential(layer))
        assert len(report.swapped) == 1, str(report)
        assert_close("y", model[0](image(4), image(6)), expected.double(), length=1200)


def test_adain_is_set_by_its_users() -> None:
    """Networks find their AdaIN layers by the class name and set two attributes."""
    layer = adain()
    layer.weight = layer.bias = None
    model, _ = torchext.accelerate(nn.Sequential(copy.deepcopy(layer)))
    with pytest.raises(AttributeError):  # as published
        model(image(4))
    (found,) = (part for part in model if type(part).__name__ == "AdaptiveInstanceNorm2d")
    found.weight, found.bias = layer.weight, layer.bias = torch.randn(2, 8)
    assert_close("y", model(image(4)), layer(image(4)).double(), length=1200)


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
    assert left(Louder(3)).startswith("a subclass of RN_L: output 0 differs by 5.0e-01")


class Renamed(published.RN_L):
    """Does the same."""


class Copied(nn.Module):
    """The structure of SPADE under another name."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.param_free_norm = nn.InstanceNorm2d(4)
        self.mlp_shared = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.mlp_gamma, self.mlp_beta = (nn.Conv2d(8, 4, 3, padding=1) for _ in range(2))

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden = self.mlp_shared(F.interpolate(labels, size=features.shape[2:], mode="nearest"))
        normalised = self.param_free_norm(features)
        gain = 1 + self.factor * self.mlp_gamma(hidden)
        return torch.addcmul(self.mlp_beta(hidden), normalised, gain)


@pytest.mark.parametrize("verify", [False, True])
def test_other_names(verify: bool) -> None:
    """Subclasses and copies are compared, and taken where they do the same."""
    torch.manual_seed(2)
    model = nn.ModuleList([Renamed(4), Louder(4), Copied(1.0), Copied(2.0)])
    expected = [model[0](image(4)), model[2](image(4), image(6, 12, 15))]
    _, report = torchext.accelerate(model, verify=verify)
    assert [accelerated_layer(layer) for layer in model] == [True, False, True, False]
    assert report.left[1].reason.startswith("holds what a SPADE holds: output 0 differs by")
    got = [model[0](image(4)), model[2](image(4), image(6, 12, 15))]
    for a, b in zip(got, expected, strict=True):
        assert_close("y", a, b.double(), length=1200, condition=100)


def test_near_misses_are_named() -> None:
    """What is called like our layers, if it is no block around such."""

    class SPADEBlock(nn.Module):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)

    class RN_L(nn.Module):
        pass

    class SparseConv2d(nn.Conv2d):
        pass

    class UpConv(nn.Conv2d):
        pass

    blocks = SPADEBlock(nn.ReLU()), SPADEBlock(Copied(1.0)), SPADEBlock(torchext.nn.RN_L(3))
    model = nn.Sequential(*blocks, RN_L(), SparseConv2d(3, 3, 3), UpConv(3, 3, 3))
    _, report = torchext.accelerate(model)
    unlike = "and of another structure than those known"
    assert {layer.name: layer.reason for layer in report.layers} == {
        "0": f"called like a SPADE, {unlike}",
        "1.layers.0": "",
        "3": "called like a self-aware region norm, and has no sa, threshold",
        "4": "no variable _cur_active stands beside its class",
    }


def test_a_model_of_known_and_changed_layers_stays_right() -> None:
    torch.manual_seed(1)
    layers = [published.RN_L(4), Louder(4), modulated.PixelNorm(), Louder(4), published.RN_L(4)]
    model = nn.Sequential(*layers)
    expected = model(image(4))
    torchext.accelerate(model)
    assert [accelerated_layer(layer) for layer in model] == [True, False, True, False, True]
    assert_close("y", model(image(4)), expected.double(), length=1200, condition=100)


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


def test_another_eps_is_taken_over() -> None:
    layer = published.RN_B(3)
    layer.rn.bn_norm.eps = 0.1
    expected = layer(image(3), mask(2, 1, 24, 30))
    torchext.accelerate(layer)
    assert_close("y", layer(image(3), mask(2, 1, 24, 30)), expected.double(), length=1200)


def test_no_known_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = list(model)
    same, report = torchext.accelerate(model)
    assert same is model
    assert list(model) == before
    assert str(report) == "accelerate: no known layer in this model; nothing was changed"


def test_report_is_a_table() -> None:
    _, report = torchext.accelerate(nn.Sequential(published.RN_L(3), Louder(3)))
    first, second, last = str(report).splitlines()
    assert first == "0  RN_L    swapped"
    assert second.startswith("1  Louder  a subclass of RN_L: output 0 differs by")
    assert last == "accelerate: 1 swapped, 1 left as they were"


def test_explanation_without_an_example() -> None:
    _, report = torchext.accelerate(nn.Sequential(published.RN_L(3), Louder(3)))
    first, second, last = report.explain().splitlines()
    assert first.startswith("0 (RN_L): saliency, mask, statistics and affine are few passes")
    assert second.startswith("1 (Louder): left: a subclass of RN_L: output 0 differs by")
    assert last.endswith("accelerate(model, example=...)")
    _, report = torchext.accelerate(nn.Sequential(nn.ReLU()))
    assert report.explain() == str(report)


@pytest.mark.parametrize("function", [torchext.accelerate, torchext.restore])
def test_bad_input(function: object) -> None:
    with pytest.raises(TypeError, match=r"^model: expected a torch.nn.Module, got int$"):
        function(3)


def test_functional_calls_and_vmap() -> None:
    """Weights that are passed in, one set and several, with frozen kernels among them."""
    torch.manual_seed(2)
    layer = partial.PartialConv(3, 6, 3, 2, 1)
    fast, _ = torchext.accelerate(copy.deepcopy(layer))
    arguments = (image(3), mask(2, 3, 24, 30))
    weights = {name: value.detach() * 1 for name, value in layer.named_parameters()}
    weights["input_conv.weight"] *= 2

    def call(model: nn.Module, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, weights, arguments)[0]

    expected = call(layer, weights)
    assert_close("y", call(fast, weights), expected.double(), length=1200)
    several = {name: torch.stack([value, value]) for name, value in weights.items()}
    got = torch.func.vmap(lambda weights: call(fast, weights))(several)
    assert_close("vmap", got[1], expected.double(), length=1200)
    weights["mask_conv.weight"] *= 2
    assert_close("mask kernel", call(fast, weights), call(layer, weights).double(), length=1200)
