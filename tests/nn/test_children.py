"""Whatever acts in a child's own call acts: norms of weights, pruning, adapters, hooks."""

import copy
import importlib
import warnings
from collections.abc import Callable

import pytest
import torch
from support.tolerance import assert_close
from torch import Tensor
from torch.nn.utils import parametrizations, prune

from torchext import nn
from torchext.models.partial_convolutions.networks import PCBActiv

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


X = normal(2, 8, 16, 16)
MASK = (torch.rand(2, 1, 16, 16, generator=GENERATOR) > 0.4).float()
SEGMAP = torch.rand(2, 4, 16, 16, generator=GENERATOR)
CLASSES = SEGMAP.argmax(1)
PRIOR = torch.rand(2, 3, 16, 16, generator=GENERATOR)

# A layer, its arguments, the path of a child whose weight it could read.
LAYERS = [
    (lambda: nn.PartialConv(8, 6, 3, 1, 1, bias=True), (X, MASK), "input_conv"),
    (lambda: nn.PartialConv(8, 6, 3, 1, 1, 1, 2, True), (X, MASK), "input_conv"),
    (lambda: nn.SPADE("spadebatch3x3", 8, 4), (X, SEGMAP), "mlp_gamma"),
    (lambda: nn.SPADE("spadeinstance3x3", 8, 4), (X, SEGMAP), "mlp_beta"),
    (lambda: nn.SPADE("spadeinstance3x3", 8, 4), (X, CLASSES), "mlp_shared.0"),
    (lambda: nn.SPADEResnetBlock(8, 6, "spadeinstance3x3", 4), (X, SEGMAP), "norm_0.mlp_gamma"),
    (lambda: nn.SPDNorm(8, "position"), (X, PRIOR, MASK), "mlp_gamma"),
    (lambda: nn.SPDNormResnetBlock(8, 6, 3, 3, ""), (X, PRIOR, MASK), "norm_1.mlp_beta"),
    (lambda: nn.SPDNormResnetBlock(8, 6, 3, 3, ""), (X, PRIOR, MASK), "attention.0"),
    (lambda: nn.ANLs(8, 4), (X, SEGMAP), "gamma"),
    (lambda: nn.RN_L(8, 0.5), (X,), "sa.conv1"),
    (lambda: nn.RN_L(8, 0.5), (X,), "sa.gamma_conv"),
    (lambda: PCBActiv(8, 6, activ="leaky"), (X, MASK), "conv.input_conv"),
]
layers = pytest.mark.parametrize(
    "build, arguments, path", LAYERS, ids=[f"{i}-{path}" for i, (_, _, path) in enumerate(LAYERS)]
)


class Adapter(torch.nn.Module):
    """A convolution and a low-rank addition, as adapters wrap it."""

    def __init__(self, base: torch.nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.bias = base.bias
        self.down = torch.nn.Conv2d(base.in_channels, 1, 1, bias=False)
        self.up = torch.nn.Conv2d(1, base.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        low = self.up(self.down(x.sum(dim=(2, 3), keepdim=True) / x[0, 0].numel()))
        return y + low


def spectral(layer: torch.nn.Module) -> None:
    torch.nn.utils.spectral_norm(layer)


def old_weight_norm(layer: torch.nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(layer)
    layer.weight_g.data *= 1.5


def pruned(layer: torch.nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.5)


def parametrised(layer: torch.nn.Module) -> None:
    parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data *= 1.5


def hooked(layer: torch.nn.Module) -> None:
    layer.register_forward_hook(lambda module, inputs, output: output + output.tanh())


def replaced_forward(layer: torch.nn.Module) -> None:
    plain = layer.forward
    layer.forward = lambda x: 2 * plain(x)


CHANGES = [spectral, old_weight_norm, pruned, parametrised, hooked, replaced_forward]
changes = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def run(layer: torch.nn.Module, arguments: tuple[Tensor, ...]) -> Tensor:
    """The output; in evaluation, so that nothing but the call itself changes a weight."""
    return first(layer.eval()(*arguments))


STAGE = "models.partial_convolutions.networks"


def dense(layer: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every layer call its children."""
    for module in ("nn.modulated_norm", "nn.partial_conv", "nn.region_norm", STAGE):
        found = importlib.import_module(f"torchext.{module}")
        monkeypatch.setattr(found, "plain", lambda *_: False)


@layers
def test_calling_the_children_gives_the_same(
    build: Callable, arguments: tuple, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = build()
    fused = run(layer, arguments)
    dense(layer, monkeypatch)
    assert_close("y", run(layer, arguments), fused.double(), length=2000)


@layers
@changes
def test_what_acts_in_a_childs_call_acts(
    build: Callable, arguments: tuple, path: str, change: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = build()
    before = run(layer, arguments)
    change(layer.get_submodule(path))  # after it was built, and used
    after = run(layer, arguments)
    assert not torch.allclose(after, before, rtol=1e-3, atol=1e-3)
    dense(layer, monkeypatch)
    assert_close("y", after, run(layer, arguments).double(), length=2000)


@layers
def test_adapters_act_and_learn(build: Callable, arguments: tuple, path: str) -> None:
    layer = build()
    before = run(layer, arguments)
    parent, _, name = path.rpartition(".")
    adapter = Adapter(layer.get_submodule(path))
    layer.get_submodule(parent)._modules[name] = adapter
    after = run(layer, arguments)
    assert not torch.allclose(after, before, rtol=1e-4, atol=1e-4)
    (after * normal(*after.shape)).sum().backward()
    assert adapter.up.weight.grad.abs().max() > 0


@layers
def test_original_weights_get_their_gradient(build: Callable, arguments: tuple, path: str) -> None:
    layer = build()
    child = layer.get_submodule(path)
    pruned(child)
    y = first(layer.train()(*arguments))
    (y * normal(*y.shape)).sum().backward()
    assert child.weight_orig.grad.abs().max() > 0


def test_activation_beside_a_replaced_norm() -> None:
    """A block activates what a norm of another class gives back."""
    block = nn.SPADEResnetBlock(8, 8, "spadeinstance3x3", 4)
    expected = block(X, SEGMAP)

    class Published(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
            return self.inner(x, segmap)

    block.norm_0 = Published(block.norm_0)
    assert_close("y", block(X, SEGMAP), expected.double(), length=2000)
    seen = []
    block.norm_1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert_close("y", block(X, SEGMAP), expected.double(), length=2000)
    assert seen[0].min() < -1  # before the leaky ReLU, as in the published block


def test_replaced_norm_of_a_pd_gan_block() -> None:
    block = nn.SPDNormResnetBlock(8, 6, 3, 3, "")
    expected = block(X, PRIOR, MASK)
    block.norm_0.register_forward_hook(lambda module, inputs, output: None)
    assert_close("y", block(X, PRIOR, MASK), expected.double(), length=2000)


# --- batch norms ----------------------------------------------------------------------------------


def published_spade(layer: nn.SPADE, norm: torch.nn.Module, x: Tensor, segmap: Tensor) -> Tensor:
    hidden = layer.mlp_shared(segmap)
    return norm(x) * (1 + layer.mlp_gamma(hidden)) + layer.mlp_beta(hidden)


def batch_norms(**options: object) -> tuple[nn.SPADE, torch.nn.BatchNorm2d]:
    layer = nn.SPADE("spadebatch3x3", 8, 4)
    norm = torch.nn.BatchNorm2d(8, affine=False, **options)
    norm.running_mean = None if norm.running_mean is None else norm.running_mean
    return layer, norm


def same_as_batch_norm(layer: nn.SPADE, norm: torch.nn.BatchNorm2d, steps: int = 3) -> None:
    for step in range(steps):
        x = X * (step + 1) + step
        got = layer.train()(x, SEGMAP)
        norm.train()
        assert_close("y", got, published_spade(layer, norm, x, SEGMAP).double(), length=2000)
    norm.eval()
    got = layer.eval()(X, SEGMAP)
    assert_close("y", got, published_spade(layer, norm, X, SEGMAP).double(), length=2000)
    for (name, mine), theirs in zip(
        layer.param_free_norm.named_buffers(), norm.buffers(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_momentum(momentum: float | None) -> None:
    layer, norm = batch_norms(momentum=momentum)
    layer.param_free_norm.momentum = momentum
    same_as_batch_norm(layer, norm)


def test_without_running_statistics() -> None:
    layer, norm = batch_norms(track_running_stats=False)
    torch.func.replace_all_batch_norm_modules_(layer)
    same_as_batch_norm(layer, norm)


def test_tracking_switched_off_later() -> None:
    layer, norm = batch_norms()
    layer(X, SEGMAP)
    norm(X)
    layer.param_free_norm.track_running_stats = norm.track_running_stats = False
    same_as_batch_norm(layer, norm)


def test_averaged_weights_get_their_statistics() -> None:
    layer, norm = batch_norms(momentum=None)
    for value in (X, 2 * X + 1):
        norm(value)
    averaged = torch.optim.swa_utils.AveragedModel(Wrapped(layer))
    torch.optim.swa_utils.update_bn([X, 2 * X + 1], averaged)
    inner = averaged.module.layer.param_free_norm
    torch.testing.assert_close(inner.running_mean, norm.running_mean)
    torch.testing.assert_close(inner.running_var, norm.running_var)
    assert inner.momentum == 0.1


class Wrapped(torch.nn.Module):
    def __init__(self, layer: nn.SPADE) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, SEGMAP)


def test_conversion_to_synchronised_norms() -> None:
    """The converted norm is PyTorch's, which in evaluation runs on the CPU."""
    layer = nn.SPADE("spadebatch3x3", 8, 4)
    layer(X, SEGMAP)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    assert isinstance(converted.param_free_norm, torch.nn.SyncBatchNorm)
    expected = layer.eval()(X, SEGMAP)
    assert_close("y", converted.eval()(X, SEGMAP), expected.double(), length=2000)


def test_initialisers_pass_over_instance_norms() -> None:
    for layer in (nn.SPADE("spadeinstance3x3", 8, 4), nn.SPDNorm(8, "position")):
        assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in layer.modules())
    layer = nn.SPADE("spadesyncbatch3x3", 8, 4)
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in layer.modules())
