"""Layers of projects in use: MONAI, LivePortrait, SDM; and maps that are kept."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import living_layers as layers
from support.tolerance import assert_close
from torch import Tensor, nn

import torchext
from torchext.accelerate.layer import AcceleratedLayer, fused_arguments


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


GROUPS = {"num_groups": 4, "eps": 1e-6}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MONAI instance": (lambda: layers.MonaiSPADE(5, 16), (8, 10)),
    "MONAI group": (lambda: layers.MonaiSPADE(5, 16, norm="GROUP", norm_params=GROUPS), (8, 10)),
    "MONAI batch": (lambda: layers.MonaiSPADE(5, 16, norm="BATCH"), (8, 10)),
    "MONAI volumes": (lambda: layers.MonaiSPADE(5, 16, spatial_dims=3), (4, 8, 10)),
    "MONAI volumes, batch": (
        lambda: layers.MonaiSPADE(5, 16, spatial_dims=3, norm="BATCH"),
        (4, 8, 10),
    ),
    "LivePortrait": (lambda: layers.SPADE(16, 5), (8, 10)),
    "SDM": (lambda: layers.SPADEGroupNorm(64, 5), (8, 10)),
    "StableSR": (lambda: layers.StableSRSPADE(64, 5), (8, 10)),
}


def published(case: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    make, size = LAYERS[case]
    layer = make()
    for value in layer.parameters():  # an affine of ones would hide itself
        nn.init.normal_(value, std=0.3)
    channels = 64 if case in ("SDM", "StableSR") else 16
    larger = size if case == "StableSR" else (2 * n for n in size)
    return layer, (image(2, channels, *size), image(2, 5, *larger, seed=1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", LAYERS)
def test_every_layer(case: str, training: bool) -> None:
    layer, call = published(case)
    fast, report = torchext.accelerate(copy.deepcopy(layer).train(training))
    assert report.swapped, str(report)
    assert list(fast.state_dict()) == list(layer.state_dict())
    results = []
    for either in (layer.train(training), fast):
        x, condition = (value.clone().requires_grad_() for value in call)
        y = either(x, {"10": condition} if case == "StableSR" else condition)
        y.backward(image(*y.shape, seed=2))
        gradients = {
            name: value.grad
            for name, value in either.named_parameters()
            if not (".conv.bias" in name and "mlp_shared" not in name)  # in front of a norm: 0
        }
        buffers = {name: value.float() for name, value in either.named_buffers()}
        results.append({"y": y, "x": x.grad, "condition": condition.grad, **gradients, **buffers})
    for name, value in results[0].items():
        assert_close(name, results[1][name], value.detach().double(), length=4000, condition=100)
    torchext.restore(fast)
    assert type(fast) is type(layer)


def test_stablesr_with_a_size_runs_its_own_code() -> None:
    layer, (x, condition) = published("StableSR")
    fast, _ = torchext.accelerate(copy.deepcopy(layer))
    call = ({"10": x}, {"10": condition}, 10)
    assert torch.equal(fast(*call), layer(*call))


@pytest.mark.parametrize("concatenated", [0, 32])
def test_zero_sft(concatenated: int) -> None:
    torch.manual_seed(0)
    layer = layers.ZeroSFT(6, 32, concatenated)
    for value in layer.parameters():
        nn.init.normal_(value, std=0.3)
    fast, report = torchext.accelerate(copy.deepcopy(layer))
    assert report.swapped, str(report)
    call = [image(2, 6, 8, 10), image(2, 32, 8, 10, seed=1)]
    call += [image(2, concatenated, 8, 10, seed=2)] if concatenated else []
    for options in ({}, {"control_scale": 0.7}):
        assert_close("y", fast(*call, **options), layer(*call, **options).double(), length=4000)


CLIMATE = {
    "zeros": {"around": False, "activation": nn.ReLU(), "bn": True, "bias": False},
    "around the globe": {"around": True, "activation": nn.ReLU(), "bn": True, "bias": False},
    "masked": {"around": True, "activation": nn.LeakyReLU(0.01), "bn": True, "masked_bn": True},
    "last": {"around": True, "activation": None, "bn": False},
    "another activation": {"around": False, "activation": nn.ELU(), "bn": True},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", CLIMATE)
def test_climate_blocks(case: str, training: bool) -> None:
    torch.manual_seed(0)
    options = {"bias": True, **CLIMATE[case]}
    layer = layers.PConvBlock(5, 8, (3, 3), (2, 2), (1, 1), (1, 1), 1, **options).train(training)
    for value in layer.parameters():
        if value.requires_grad:
            nn.init.normal_(value, std=0.3)
    fast, report = torchext.accelerate(copy.deepcopy(layer))
    assert report.swapped, str(report)
    for value in layer.buffers():  # of a norm that has been trained
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1)
    fast.load_state_dict(layer.state_dict())
    halves = (image(2, 2, 12, 16).sign() + 1) / 2
    mask = torch.cat((halves[:, :1].repeat(1, 3, 1, 1), halves[:, 1:].repeat(1, 2, 1, 1)), dim=1)
    mask[:, :, :6, :6] = 0
    x = image(2, 5, 12, 16, seed=1)
    (y, known), (expected, expected_known) = fast(x, mask), layer(x, mask)
    assert_close("y", y, expected.double(), length=2000, condition=10)
    assert torch.equal(known, expected_known)
    assert not known.all()
    for name, value in layer.named_buffers():
        assert_close(name, fast.get_buffer(name).float(), value.double(), length=2000)


# --- maps that are kept ---------------------------------------------------------------------------


class Sampler(nn.Module):
    """Steps of a network whose condition stands still."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = layers.SDMResBlock(32, 20, 0.0, 5, 64)
        self.second = layers.SDMResBlock(64, 20, 0.0, 5, 32)

    def forward(self, x: Tensor, condition: Tensor, steps: int = 3) -> Tensor:
        for step in range(steps):
            emb = image(1, 20, seed=step)
            x = x + self.second(self.first(x, condition, emb), condition.clone(), emb)
        return x


def sampler() -> Sampler:
    model, report = torchext.accelerate(Sampler().eval())
    assert len(report.swapped) == 4
    return model


X, CONDITION = image(1, 32, 8, 10), image(1, 5, 16, 20, seed=1)


def test_maps_are_made_once() -> None:
    model = sampler()
    with torch.no_grad():
        expected = model(X, CONDITION)
        with torchext.fixed_condition() as kept:
            assert torch.equal(model(X, CONDITION), expected)
            assert (kept.made, kept.reused) == (4, 8)
            assert torch.equal(model(X, CONDITION.clone()), expected)  # equal, and another tensor
            assert (kept.made, kept.reused) == (4, 20)
            assert kept.size == (32 + 64 + 64 + 32) * 2 * 80 * 4
        assert kept.size == 0
        assert torch.equal(model(X, CONDITION), expected)  # nothing is kept outside
        assert (kept.made, kept.reused) == (4, 20)


def test_two_conditions_are_kept_for_guidance() -> None:
    model = sampler()
    conditions = [CONDITION, torch.zeros_like(CONDITION), CONDITION + 1]
    with torch.no_grad(), torchext.fixed_condition() as kept:
        for condition in (conditions[0], conditions[1], conditions[0], conditions[1]):
            model(X, condition, steps=1)
        assert (kept.made, kept.reused) == (8, 8)
        model(X, conditions[2], steps=1)  # in the place of that which was used longest ago
        model(X, conditions[1], steps=1)
        assert (kept.made, kept.reused) == (12, 12)
        model(X, conditions[0], steps=1)
        assert kept.made == 16


def _written(model: Sampler, condition: Tensor) -> None:
    condition.add_(1)


def _written_unseen(model: Sampler, condition: Tensor) -> None:
    condition.data.add_(1)  # without a new version


def _weights(model: Sampler, condition: Tensor) -> None:
    for parameter in model.parameters():
        parameter.mul_(1.5)


def _loaded(model: Sampler, condition: Tensor) -> None:
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


@pytest.mark.parametrize("change", [_written, _written_unseen, _weights, _loaded])
def test_what_changes_is_made_again(change: Callable[..., None]) -> None:
    model, condition = sampler(), CONDITION.clone()
    with torch.no_grad(), torchext.fixed_condition() as kept:
        before = model(X, condition)
        change(model, condition)
        after = model(X, condition)
        assert kept.made == 8
    with torch.no_grad():
        assert torch.equal(after, model(X, condition))
    assert not torch.equal(before, after)


def test_only_in_evaluation_without_gradients() -> None:
    model = sampler()
    with torchext.fixed_condition() as kept:
        model(X, CONDITION).sum().backward()
        with torch.no_grad():
            model.train()(X, CONDITION)
        assert (kept.made, kept.reused) == (0, 0)
        with torch.inference_mode():
            model.eval()(X, CONDITION)
        assert (kept.made, kept.reused) == (4, 8)


@pytest.mark.parametrize("memory, most", [(0, 0), (64 * 2 * 80 * 4, 64 * 2 * 80 * 4)])
def test_memory_is_bounded(memory: int, most: int) -> None:
    model = sampler()
    with torch.no_grad():
        expected = model(X, CONDITION)
        with torchext.fixed_condition(memory=memory) as kept:
            assert torch.equal(model(X, CONDITION), expected)
            assert kept.size <= most
            assert kept.made > 4


def test_other_sizes_and_layers_have_maps_of_their_own() -> None:
    model = sampler()
    larger = image(1, 32, 16, 20)
    with torch.no_grad():
        expected: list[Any] = [model(x, CONDITION) for x in (X, larger)]
        with torchext.fixed_condition():
            for x, y in zip((X, larger, X), (*expected, expected[0]), strict=True):
                assert torch.equal(model(x, CONDITION), y)


def test_compiled_graphs_make_their_maps() -> None:
    layer = torchext.accelerate(layers.SPADE(16, 5).eval())[0]
    assert isinstance(layer, AcceleratedLayer)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    call = image(1, 16, 8, 10), image(1, 5, 8, 10)
    with torch.no_grad(), torchext.fixed_condition() as kept:
        assert_close("y", compiled(*call), layer(*call).double(), length=2000)
        assert kept.made == 1


def test_bad_input() -> None:
    refused = pytest.raises(ValueError, match=r"^memory: expected at least 0, got -1$")
    with refused, torchext.fixed_condition(memory=-1):
        pass


# --- SparK and nnssl, MAT -------------------------------------------------------------------------


def patches(*shape: int) -> Tensor:
    """Half visible, equally many in every image."""
    order = torch.rand(shape, generator=torch.Generator().manual_seed(5)).flatten(1).argsort(dim=1)
    return (order < order.shape[1] // 2).float().view(shape)


def norm_of_volumes() -> nn.Module:
    return layers.SparseInstanceNorm3d(5, affine=True)


SPARSE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (lambda: layers.SparseConv2d(5, 16, 3, padding=1), (8, 12)),
    "strided": (lambda: layers.SparseConv2d(5, 16, 7, 2, 3, bias=False), (8, 12)),
    "pointwise, strided": (lambda: layers.SparseConv2d(5, 16, 1, 2), (8, 12)),
    "volumes": (lambda: layers.SparseConv3d(5, 8, 3, padding=1), (4, 8, 4)),
    "batch norm": (lambda: layers.SparseBatchNorm2d(5), (8, 12)),
    "cumulative batch norm": (lambda: layers.SparseBatchNorm2d(5, momentum=None), (8, 12)),
    "batch norm without affine": (lambda: layers.SparseBatchNorm2d(5, affine=False), (8, 12)),
    "instance norm": (norm_of_volumes, (4, 8, 4)),
    "layer norm": (
        lambda: layers.SparseConvNeXtLayerNorm(5, data_format="channels_first"),
        (8, 12),
    ),
    "block": (lambda: layers.SparseConvNeXtBlock(5, layer_scale_init_value=0.5), (8, 12)),
    "block that drops": (lambda: layers.SparseConvNeXtBlock(5, 0.5, 0.5), (8, 12)),
}


def _sparse_results(layer: nn.Module, size: tuple[int, ...]) -> dict[str, Tensor]:
    torch.manual_seed(4)  # of what is dropped
    x = image(3, 5, *size).requires_grad_()
    with layers.active(patches(3, 1, *(n // 4 for n in size))):
        layer(x.detach() + 1)
        y = layer(x)
        y.backward(image(*y.shape, seed=2))
    gradients = {name: value.grad for name, value in layer.named_parameters()}
    buffers = {name: value.float() for name, value in layer.named_buffers()}
    return {"y": y, "x": x.grad, **gradients, **buffers}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", SPARSE)
def test_sparse_layers(case: str, training: bool) -> None:
    torch.manual_seed(0)
    make, size = SPARSE[case]
    layer = make().train(training)
    for value in (*layer.parameters(), *layer.buffers()):
        if value.is_floating_point():
            nn.init.uniform_(value, 0.2, 1)
    set_before = torch.ones(1)
    with layers.active(set_before):
        fast, report = torchext.accelerate(copy.deepcopy(layer))
        assert layers._cur_active is set_before
    assert [row.name for row in report.swapped] == [""], str(report)  # not what is inside of it
    assert not report.left
    expected = _sparse_results(layer, size)
    got = _sparse_results(fast, size)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(name, got[name], value.detach().double(), length=4000, condition=10)
    torchext.restore(fast)
    assert type(fast) is type(layer)


def test_which_calls_of_sparse_layers_are_fused() -> None:
    fast, _ = torchext.accelerate(layers.SparseBatchNorm2d(5))
    x = image(2, 5, 8, 8)
    with layers.active(patches(2, 1, 2, 2)):
        assert fused_arguments(fast, (x,), {}) == [x]
    assert fused_arguments(fast, (x,), {}) is None  # there is no mask


def test_published_code_of_sparse_layers_runs() -> None:
    """It asks for `super(type(self), self)`, which is ours in the accelerated layer."""
    layer = layers.SparseConv2d(5, 6, 1)
    fast, _ = torchext.accelerate(copy.deepcopy(layer))
    fast.note = "an attribute set later is no reason"
    fast.in_channels = 6  # one that the fused form does not read is
    x = image(2, 5, 8, 8)
    with layers.active(patches(2, 1, 2, 2)):
        assert torch.equal(fast(x), layer(x))
    assert isinstance(fast, AcceleratedLayer)


def test_sparse_layers_see_the_mask_of_each_call() -> None:
    layer = layers.SparseConv2d(5, 6, 3, padding=1)
    fast, _ = torchext.accelerate(copy.deepcopy(layer))
    x = image(2, 5, 8, 8)
    for mask in (patches(2, 1, 2, 2), patches(2, 1, 4, 4).bool(), torch.ones(2, 1, 16, 16)):
        with layers.active(mask):
            assert_close("y", fast(x), layer(x).double(), length=45)


def test_a_sparse_encoder() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        layers.SparseConv2d(5, 8, 3, padding=1), layers.SparseBatchNorm2d(8), nn.ReLU(),
        layers.SparseMaxPooling(2), layers.SparseConvNeXtBlock(8, 0.0, 0.5),
    )  # fmt: skip
    fast, report = torchext.accelerate(copy.deepcopy(model))
    assert [layer.name for layer in report.layers if layer.swapped] == ["0", "1", "4"]
    with layers.active(patches(2, 1, 2, 2)):
        x = image(2, 5, 16, 16)
        assert_close("y", fast(x), model(x).double(), length=2000, condition=10)


class SparseSyncBatchNorm2d(nn.SyncBatchNorm):
    forward = layers._of_a_list


@pytest.mark.parametrize("training", [True, False])
def test_synchronised_sparse_norms(training: bool) -> None:
    """In one process; test_variants has two."""
    layer = SparseSyncBatchNorm2d(5).train(training)
    fast, report = torchext.accelerate(copy.deepcopy(layer))
    assert report.swapped, str(report)
    got = _sparse_results(fast, (8, 12))
    for name, value in _sparse_results(layer, (8, 12)).items():
        assert_close(name, got[name], value.detach().double(), length=4000, condition=10)


def test_sparse_layers_that_are_left() -> None:
    class Doubled(layers.SparseConvNeXtLayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    _, report = torchext.accelerate(Doubled(4))
    assert not report.swapped
    subclass = "a subclass of SparseConvNeXtLayerNorm: output 0 differs by"
    assert report.left[0].reason.startswith(subclass)


MAT: dict[str, dict[str, Any]] = {
    "linear": {},
    "without bias": {"bias": False, "activation": "lrelu"},
    "lrelu": {"activation": "lrelu"},
    "relu": {"activation": "relu", "kernel_size": 5},
    "clamped": {"activation": "lrelu", "conv_clamp": 0.5},
    "down": {"activation": "lrelu", "down": 2},
    "up": {"activation": "lrelu", "up": 2},
}


@pytest.mark.parametrize("case", MAT)
def test_mat(case: str) -> None:
    torch.manual_seed(0)
    layer = layers.Conv2dLayerPartial(5, 16, **{"kernel_size": 3, **MAT[case]})
    fast, report = torchext.accelerate(copy.deepcopy(layer))
    assert report.swapped, str(report)
    mask = (image(2, 1, 12, 16, seed=1) > 0.5).float()
    mask[0, :, :8, :8] = 0
    for given in [None] if case == "up" else [None, mask, mask * 0.5]:
        found = []
        for either in (layer, fast):
            either.zero_grad()
            x = image(2, 5, 12, 16).requires_grad_()
            y, updated = either(x, given)
            y.backward(image(*y.shape, seed=3))
            gradients = {key: value.grad for key, value in either.named_parameters()}
            found.append({"y": y, "x": x.grad, **gradients, "updated": updated})
        for key, value in found[0].items():
            if value is None:
                assert found[1][key] is None
            else:
                assert_close(key, found[1][key], value.detach().double(), length=2000)


def test_mat_of_another_ratio_is_left() -> None:
    class Conv2dLayerPartial(layers.Conv2dLayerPartial):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            return super().forward(x if mask is None else x * mask, mask)

    _, report = torchext.accelerate(Conv2dLayerPartial(5, 16, 3))
    assert not report.swapped
    assert report.left[0].reason.startswith("output 0 differs by")


@pytest.mark.parametrize("case", ["convolution", "batch norm", "block"])
def test_compiled_sparse_layers(case: str) -> None:
    layer = SPARSE[case][0]()
    fast, _ = torchext.accelerate(copy.deepcopy(layer))
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    x = image(2, 5, 8, 8)
    for mask in (patches(2, 1, 2, 2), 1 - patches(2, 1, 2, 2)):
        with layers.active(mask):
            assert_close("y", compiled(x), layer(x).double(), length=2000, condition=10)


# --- copies of SPADE ------------------------------------------------------------------------------


PUBLISHED_NAMES = ("param_free_norm", "mlp_shared", "mlp_gamma", "mlp_beta")
OTHER_NAMES = ("norm", "conv", "conv_gamma", "conv_beta")


class Copied(nn.Module):
    """SPADE as projects vary it: names, padding, activations."""

    def __init__(
        self,
        names: tuple[str, str, str, str] = (
            "param_free_norm",
            "mlp_shared",
            "mlp_gamma",
            "mlp_beta",
        ),
        inner: nn.Module | None = None,
        hidden: Callable[[Tensor], Tensor] | None = None,
        padded: bool = False,
        tail: Callable[[Tensor], Tensor] | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.names, self.hidden = names, hidden
        parts = [nn.Conv2d(5, 16, 3, padding=0 if padded else 1)]
        parts += [] if inner is None else [inner]
        parts = [nn.ReflectionPad2d(1), *parts] if padded else parts
        self.add_module(names[0], norm or nn.BatchNorm2d(6, affine=False))
        self.add_module(names[1], nn.Sequential(*parts) if len(parts) > 1 else parts[0])
        for name in names[2:]:
            self.add_module(name, nn.Conv2d(16, 6, 3, padding=0 if padded else 1))
        if padded:
            self.pad = nn.ReflectionPad2d(1)
        self.tail = tail

    def forward(self, x: Tensor, segmap: Tensor, similarity_map: None = None) -> Tensor:
        norm, shared, gamma, beta = (getattr(self, name) for name in self.names)
        hidden = shared(nn.functional.interpolate(segmap, size=x.shape[2:], mode="nearest"))
        hidden = hidden if self.hidden is None else self.hidden(hidden)
        hidden = self.pad(hidden) if hasattr(self, "pad") else hidden
        y = norm(x) * (1 + gamma(hidden)) + beta(hidden)
        return y if self.tail is None else self.tail(y)


COPIES: dict[str, Callable[[], nn.Module]] = {
    "OASIS": lambda: Copied(("first_norm", "mlp_shared", "mlp_gamma", "mlp_beta"), nn.ReLU()),
    "CoCosNet": lambda: Copied(inner=nn.ReLU(), padded=True),
    "hidden leaky ReLU": lambda: Copied(inner=nn.LeakyReLU(0.2)),
    "hidden ReLU6": lambda: Copied(OTHER_NAMES, nn.ReLU6()),
    "hidden function": lambda: Copied(OTHER_NAMES, hidden=torch.relu),
    "hidden leaky function": lambda: Copied(hidden=nn.functional.leaky_relu),
    "SiLU behind": lambda: Copied(inner=nn.ReLU(), tail=nn.SiLU()),
    "SiLU by its function behind": lambda: Copied(inner=nn.ReLU(), tail=nn.functional.silu),
    "leaky ReLU behind": lambda: Copied(inner=nn.ReLU(), tail=nn.LeakyReLU(0.3)),
    "ReLU by its function behind": lambda: Copied(inner=nn.SiLU(), tail=nn.functional.relu),
    "padded, SiLU behind": lambda: Copied(OTHER_NAMES, nn.ReLU(), padded=True, tail=nn.SiLU()),
    "groups": lambda: Copied(OTHER_NAMES, nn.ReLU(), norm=nn.GroupNorm(2, 6)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", COPIES)
def test_copies_of_spade(case: str, training: bool) -> None:
    torch.manual_seed(0)
    layer = COPIES[case]().train(training)
    fast, report = torchext.accelerate(copy.deepcopy(layer))
    assert [row.name for row in report.swapped] == [""], str(report)
    found = []
    for either in (layer, fast):
        x, segmap = (v.clone().requires_grad_() for v in (image(2, 6, 8, 10), image(2, 5, 16, 20)))
        assert either is layer or fused_arguments(fast, (x, segmap), {}) is not None
        y = either(x, segmap)
        y.backward(image(*y.shape, seed=2))
        gradients = {name: value.grad for name, value in either.named_parameters()}
        found.append({"y": y, "x": x.grad, "segmap": segmap.grad, **gradients})
    for name, value in found[0].items():
        assert_close(name, found[1][name], value.detach().double(), length=2000, condition=10)


def test_a_copy_of_spade_that_does_something_else_is_left() -> None:
    layer = Copied(OTHER_NAMES, nn.ReLU(), tail=torch.sin)
    _, report = torchext.accelerate(layer)
    assert not report.swapped
    assert "output 0 differs by" in report.left[0].reason


# --- copies of partial convolutions ---------------------------------------------------------------


class Known(nn.Module):
    """A partial convolution as projects write it.

    Args:
        name: of the convolution.
        kernel: "mask_conv" of all channels, "mask_conv of one", or the name of a buffer.
        average: whether the kernel is 1 / k^2.
        masked: whether x is multiplied by the mask.
        numerator, eps: of the ratio.
        bias: whether it stays in holes, or is scaled.
        updated: of the sums.
        alone: whether y is returned alone.
    """

    def __init__(
        self, name: str, kernel: str, *, average: bool = False, masked: bool = True,
        numerator: Callable[[int, int], float] = lambda window, C: window, eps: float = 1e-8,
        bias: str = "known", updated: str = "known", alone: bool = False, has_bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.options = (masked, numerator, eps, bias, updated, alone)
        self.names = (name, kernel.split()[0])
        one = kernel != "mask_conv"
        self.add_module(name, nn.Conv2d(4, 6, 3, 2, 1, bias=has_bias))
        if kernel.startswith("mask_conv"):
            self.mask_conv = nn.Conv2d(*((1, 1) if one else (4, 6)), 3, 2, 1, bias=False)
            self.mask_conv.weight.requires_grad_(False).fill_(1 / 9 if average else 1)
        else:
            self.register_buffer(kernel, torch.full((1, 1, 3, 3), 1 / 9 if average else 1.0))

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        masked, numerator, eps, bias, updated, alone = self.options
        conv, kernel = (getattr(self, name) for name in self.names)
        with torch.no_grad():
            if isinstance(kernel, nn.Conv2d):
                s = kernel(mask)
            else:
                s = nn.functional.conv2d(mask, kernel, stride=2, padding=1)
            known = (s > 0).to(x.dtype)
            ratio = numerator(9, 4) / (s + eps)
            new = {"known": known, "clamped": s.clamp(0, 1), "share": s / 9}[updated]
        y = conv(x * mask if masked else x)
        if conv.bias is None:
            y = y * ratio
        elif bias == "scaled":
            y = y * ratio * new
        else:
            b = conv.bias.view(1, -1, 1, 1)
            y = (y - b) * (ratio * known) + b
            y = y * new if bias == "known" else y
        return y if alone else (y, new)


PARTIAL: dict[str, Callable[[], nn.Module]] = {
    "conv, mask_conv of all": lambda: Known("conv", "mask_conv", numerator=lambda w, C: C * w),
    "input_conv, another ratio": lambda: Known("input_conv", "mask_conv", updated="clamped"),
    "convolution, mask_conv of one": lambda: Known("convolution", "mask_conv of one", eps=1e-6),
    "average": lambda: Known("conv", "mask_conv of one", average=True, numerator=lambda w, C: 1),
    "mask_kernel": lambda: Known("conv", "mask_kernel", updated="clamped"),
    "weight_mask, bias in holes": lambda: Known("conv", "weight_mask", bias="kept"),
    "wmask, scaled, not masked": lambda: Known("conv", "wmask", bias="scaled", masked=False),
    "share": lambda: Known("conv", "mask_kernel", bias="kept", updated="share"),
    "alone": lambda: Known("conv", "mask_conv", alone=True),
    "without bias": lambda: Known("conv", "mask_conv", has_bias=False),
}


@pytest.mark.parametrize("case", PARTIAL)
def test_copies_of_partial_convolutions(case: str) -> None:
    torch.manual_seed(0)
    layer = PARTIAL[case]()
    fast, report = torchext.accelerate(copy.deepcopy(layer))
    assert [row.name for row in report.swapped] == [""], str(report)
    planes = 4 if hasattr(layer, "mask_conv") and layer.mask_conv.in_channels == 4 else 1
    mask = (image(2, planes, 16, 12, seed=1) > 0.5).float()
    mask[0, :, :8, :8] = 0
    found = []
    for either in (layer, fast):
        x = image(2, 4, 16, 12).requires_grad_()
        assert either is layer or fused_arguments(fast, (x, mask), {}) is not None
        result = either(x, mask)
        y, updated = (result, None) if isinstance(result, Tensor) else result
        y.backward(image(*y.shape, seed=2))
        gradients = {n: p.grad for n, p in either.named_parameters() if p.grad is not None}
        found.append({"y": y, "x": x.grad, **gradients})
        found[-1] |= {} if updated is None else {"updated": updated}
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert_close(name, found[1][name], value.detach().double(), length=2000, condition=10)


def test_copies_of_partial_convolutions_frozen_for_inference() -> None:
    layer = PARTIAL["conv, mask_conv of all"]().requires_grad_(False)
    fast, report = torchext.accelerate(copy.deepcopy(layer))
    assert report.swapped, str(report)
    x, mask = image(2, 4, 16, 12), (image(2, 4, 16, 12, seed=1) > 0.5).float()
    assert_close("y", fast(x, mask)[0], layer(x, mask)[0].double(), length=200, condition=10)


def test_a_frozen_convolution_is_no_mask_kernel() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
            self.first.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    _, report = torchext.accelerate(Pair())
    assert not report.layers


def test_another_formula_is_left() -> None:
    layer = Known("conv", "mask_conv", numerator=lambda w, C: 2 * w)
    _, report = torchext.accelerate(layer)
    assert not report.swapped
    assert report.left[0].reason.endswith("its formula is none of those known")


def test_one_mlp_shared_of_several_norms() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([layers.SPADE(16, 5), layers.SPADE(16, 5), layers.SPADEGroupNorm(32, 5)])
    for layer in model[1:]:
        layer.mlp_shared = model[0].mlp_shared
    fast, report = torchext.accelerate(copy.deepcopy(model))
    assert len(report.swapped) == 3
    assert fast[1].mlp_shared is fast[0].mlp_shared
    condition, gradients = image(2, 5, 16, 20), []
    for either in (model, fast):
        features = [image(2, 16, 8, 10), image(2, 16, 4, 5), image(2, 32, 8, 10)]
        outputs = [layer(x, condition) for layer, x in zip(either, features, strict=True)]
        sum(y.square().mean() for y in outputs).backward()
        gradients.append([*outputs, *(p.grad for p in either[0].mlp_shared.parameters())])
    for expected, got in zip(*gradients, strict=True):
        assert_close("value", got, expected.detach().double(), length=4000, condition=10)
