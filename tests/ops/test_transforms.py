"""The ops under torch.compile, export, torch.func, checkpointing and CUDA graphs."""

from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from ops.test_self_aware_affine import weights_of
from support.backends import parameters, running
from support.regions import formula
from support.tolerance import assert_close
from torch.utils.checkpoint import checkpoint

import torchext
from torchext import nn

GENERATOR = torch.Generator().manual_seed(0)
MASK = (torch.rand(2, 1, 12, 10, generator=GENERATOR) > 0.4).float()
WEIGHT = torch.randn(2, 4, generator=GENERATOR)
BIAS = torch.randn(2, 4, generator=GENERATOR)
LABELS = torch.randint(4, (2, 9, 7), generator=GENERATOR)
SELF_AWARE = weights_of(7, torch.float32, "cpu")


def features(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 12, 10, generator=generator).to(dtype)


def batch(x: torch.Tensor) -> torch.Tensor:
    return torchext.region_norm(x, MASK, WEIGHT, BIAS)


def instance(x: torch.Tensor) -> torch.Tensor:
    spatial = MASK + 0.5
    return torchext.region_norm(
        x, MASK, scope="instance", spatial_weight=spatial, spatial_bias=MASK, ignore_holes=True
    )


def self_aware(x: torch.Tensor) -> torch.Tensor:
    return torchext.self_aware_region_norm(x, *SELF_AWARE, threshold=0.5)


def affine_maps(x: torch.Tensor) -> torch.Tensor:
    return torch.cat(torchext.self_aware_affine(x, *SELF_AWARE)[:3], dim=1)


def oriented(x: torch.Tensor) -> torch.Tensor:
    bank = torchext.gabor_bank(8, 5)
    angle, strength = torchext.gabor_orientation(x[:, :3], bank, rectify="abs")
    return torchext.orientation_map(angle, strength)


def oriented_statistics(x: torch.Tensor) -> torch.Tensor:
    bank = torchext.gabor_bank(8, 5)
    _, *maps = torchext.oriented_filter_statistics(x[:, :1], bank, border="reflect")
    return torch.cat(maps, dim=1)


def modulated(x: torch.Tensor) -> torch.Tensor:
    return torchext.modulated_norm(
        x, x.sin(), x.cos(), weight=MASK, statistics="position", unbiased=True, activation=0.2
    )


def modulated_by_image(x: torch.Tensor) -> torch.Tensor:
    return torchext.modulated_norm(x, WEIGHT.to(x.dtype), BIAS.to(x.dtype), gain="sigmoid")


def soft_map(x: torch.Tensor) -> torch.Tensor:
    return torchext.soft_diversity_map(x, MASK)


def labels_looked_up(x: torch.Tensor) -> torch.Tensor:
    return torchext.label_conv2d(LABELS, x[:, :, :3, :3])


def partial(x: torch.Tensor) -> torch.Tensor:
    return torchext.partial_conv2d(x, MASK, x[:, :, :3, :3], padding=1)[0]


def upsampled(x: torch.Tensor) -> torch.Tensor:
    return torchext.upsample_conv2d(x, x[:, :, :3, :3])


FUNCTIONS = [
    batch, instance, self_aware, affine_maps, oriented, oriented_statistics, modulated,
    modulated_by_image, soft_map, labels_looked_up, partial, upsampled,
]  # fmt: skip
functions = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


def loss_of(y: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient does not nearly vanish, as that of a norm's squared sum does."""
    cotangent = torch.arange(y.numel()).mul(0.7).sin().view(y.shape)
    return (y.float() * cotangent).sum()


def value_and_gradient(function: Callable, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    loss_of(y).backward()
    return y.detach(), x.grad


@functions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_compile_fullgraph(function: Callable, dtype: torch.dtype, last: bool) -> None:
    x = features(dtype)
    if last:
        x = x.to(memory_format=torch.channels_last)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        value_and_gradient(compiled, x), value_and_gradient(function, x), strict=True
    ):
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


@pytest.mark.slow
@functions
def test_compile_with_inductor(function: Callable) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: function(torch.relu(x)) * 2, fullgraph=True)
    got = value_and_gradient(compiled, features())
    expected = value_and_gradient(lambda x: function(torch.relu(x)) * 2, features())
    for g, e in zip(got, expected, strict=True):
        assert_close("compiled", g, e.double(), length=1000)


def test_compile_follows_a_forced_backend() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(batch, fullgraph=True, backend="aot_eager")
    x = features()
    expected = compiled(x)
    with running("reference"):
        assert_close("reference", compiled(x), expected.double(), length=500)


@functions
def test_export(function: Callable) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    exported = torch.export.export(Module(), (features(),))
    assert torch.equal(exported.module()(features()), function(features()))


def test_export_with_dynamic_size() -> None:
    height = torch.export.Dim("height", min=2, max=512)
    arguments = (features(), MASK)
    shapes = {"x": {2: height}, "mask": {2: height}}
    exported = torch.export.export(nn.RN_B(4), arguments, dynamic_shapes=shapes)
    x, mask = torch.randn(2, 4, 33, 10), torch.ones(2, 1, 33, 10)
    assert torch.equal(exported.module()(x, mask), nn.RN_B(4)(x, mask))


@pytest.mark.parametrize("layer", [nn.RN_B(4), nn.RN_L(4, 0.5), nn.PartialConv2d(4, 3, 3)], ids=str)
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_export_of_any_size(layer: torch.nn.Module, name: str) -> None:
    arguments = (features(),) if isinstance(layer, nn.RN_L) else (features(), MASK)
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple({0: dynamic, 2: dynamic, 3: dynamic} for _ in arguments)
    with running(name):
        exported = torch.export.export(layer, arguments, dynamic_shapes=shapes)
    others = tuple(
        torch.cat((value, value[:1]))[:, :, :7].repeat(1, 1, 1, 2) for value in arguments
    )
    assert_close("y", exported.module()(*others), layer(*others).double(), length=500)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [nn.RN_B(4), nn.PartialConv2d(4, 3, 3)], ids=str)
def test_ahead_of_time_inductor(layer: torch.nn.Module, tmp_path) -> None:
    exported = torch.export.export(layer, (features(), MASK))
    package = torch._inductor.aoti_compile_and_package(
        exported, package_path=str(tmp_path / "layer.pt2")
    )
    loaded = torch._inductor.aoti_load_package(package)
    assert_close("y", loaded(features(), MASK), layer(features(), MASK).double(), length=500)


@functions
def test_func_grad_and_jacrev(function: Callable) -> None:
    x = features()
    expected = value_and_gradient(function, x)[1]
    gradient = torch.func.grad(lambda x: loss_of(function(x)))(x)
    assert_close("grad", gradient, expected.double(), length=1000)

    def per_image(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([loss_of(image) for image in function(x)])

    rows = torch.func.jacrev(per_image)(x)
    for image in range(len(x)):
        leaf = x.clone().requires_grad_()
        per_image(leaf)[image].backward()
        assert_close("row", rows[image], leaf.grad.double(), length=1000)


def assert_mapped(function: Callable, got: torch.Tensor, x: torch.Tensor) -> None:
    expected = function(x)
    if function is upsampled:  # PyTorch's own convolution sums in another order when mapped
        assert_close("y", got, expected.double(), length=1000)
    else:
        assert torch.equal(got, expected)


@functions
def test_vmap(function: Callable) -> None:
    xs = torch.stack([features(), features().flip(0) + 1, 3 * features()])
    got = torch.func.vmap(function)(xs)
    for index, x in enumerate(xs):
        assert_mapped(function, got[index], x)
    gradient = torch.func.vmap(torch.func.grad(lambda x: loss_of(function(x))))(xs)
    for index, x in enumerate(xs):
        expected = value_and_gradient(function, x)[1]
        assert_close("grad", gradient[index], expected.double(), length=1000)


@functions
@pytest.mark.parametrize("layout", ["second", "last", "channels_last"])
def test_vmap_over_samples_that_are_not_contiguous(function: Callable, layout: str) -> None:
    samples = [features(), features().flip(0) + 1, 3 * features()]
    dim = {"second": 1, "last": 4, "channels_last": 0}[layout]
    xs = torch.stack(samples, dim)
    if layout == "channels_last":
        xs = torch.stack([x.to(memory_format=torch.channels_last) for x in samples])
    got = torch.func.vmap(function, in_dims=dim)(xs)
    for index, x in enumerate(samples):
        assert_mapped(function, got[index], x)


def tangent_of(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.numel()).mul(1.3).cos().view(x.shape).to(x.dtype)


@functions
def test_forward_mode(function: Callable) -> None:
    """Every way to a directional derivative gives the one that backward gives."""
    x = features(torch.float64)
    tangent = tangent_of(x)
    leaf = x.clone().requires_grad_()
    loss = loss_in_double(function(leaf))
    loss.backward()
    expected = (leaf.grad * tangent).sum()

    def scalar(x: torch.Tensor) -> torch.Tensor:
        return loss_in_double(function(x))

    with forward_ad.dual_level():
        dual = scalar(forward_ad.make_dual(x, tangent))
        got = {"forward_ad": forward_ad.unpack_dual(dual).tangent}
    got["jvp"] = torch.func.jvp(scalar, (x,), (tangent,))[1]
    got["linearize"] = torch.func.linearize(scalar, x)[1](tangent)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: torch.func.jvp(scalar, (x,), (tangent,))[1], backend="eager")
    got["compiled"] = compiled(x)
    for name, value in got.items():
        assert value is not None, name
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-9, msg=name)


@functions
def test_forward_over_reverse(function: Callable) -> None:
    """A Hessian-vector product is the same with forward mode outside, inside and without it."""
    x = features(torch.float64)
    tangent = tangent_of(x)

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda x: loss_in_double(function(x)).sin())(x)

    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss_in_double(function(leaf)).sin(), leaf, create_graph=True)
    (expected,) = torch.autograd.grad((first * tangent).sum(), leaf)
    got = torch.func.jvp(gradient, (x,), (tangent,))[1]
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-8)


def loss_in_double(y: torch.Tensor) -> torch.Tensor:
    return (y * torch.arange(y.numel()).mul(0.7).sin().view(y.shape)).sum()


def test_forward_mode_query_exists() -> None:
    """The private level by which forward-mode differentiation is known."""
    assert not torchext.backend.forward_mode()
    with forward_ad.dual_level():
        assert torchext.backend.forward_mode()
        assert torchext.backend.which("region_norm", features()) == "reference"
    seen = []

    def probe(x: torch.Tensor) -> torch.Tensor:
        seen.append(torchext.backend.forward_mode())
        return x.sum()

    torch.func.jvp(probe, (torch.ones(2),), (torch.ones(2),))
    torch.func.grad(probe)(torch.ones(2))
    assert seen == [True, False]


def test_functorch_query_exists() -> None:
    """The private query by which an op knows that a torch.func transform is active."""
    assert torch._C._are_functorch_transforms_active() is False
    seen = []

    def probe(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch._C._are_functorch_transforms_active())
        return x.sum()

    torch.func.grad(probe)(torch.ones(2))
    assert seen == [True]


@functions
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(function: Callable, use_reentrant: bool) -> None:
    x = features().requires_grad_()
    y = checkpoint(function, x, use_reentrant=use_reentrant)
    loss_of(y).backward()
    assert torch.equal(x.grad, value_and_gradient(function, features())[1])


@functions
def test_inputs_are_not_written(function: Callable) -> None:
    x = features()
    before = x.clone()
    value_and_gradient(function, x)
    assert torch.equal(x, before)


@functions
def test_repeated_runs_are_bit_identical(function: Callable) -> None:
    first = value_and_gradient(function, features())
    for _ in range(3):
        again = value_and_gradient(function, features())
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_saved_for_backward_is_little() -> None:
    """x, one byte of labels per pixel and the statistics; no map of x's size is added."""
    saved = []
    x = torch.randn(1, 32, 40, 40, requires_grad=True)
    mask = torch.ones(1, 1, 40, 40)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        torchext.region_norm(x, mask)
    extra = sum(t.nbytes for t in saved if t.data_ptr() != x.data_ptr())
    assert extra <= 40 * 40 + 4 * (2 * 2 * 32) + 8 * 2 + 64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", parameters("cuda", "triton"))
def test_cuda_graph(name: str) -> None:
    x, mask = features().cuda(), MASK.cuda()
    with running(name):
        for _ in range(3):
            torchext.region_norm(x, mask)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = torchext.region_norm(x, mask)
        x.copy_(2 * x + 1)
        graph.replay()
    expected = formula(x.double(), mask)
    assert_close("y", y, expected, length=300)
