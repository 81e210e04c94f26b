"""The ops under torch.compile, export, torch.func, checkpointing and CUDA graphs."""

from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from support.backends import parameters, running
from support.op_cases import TRANSFORMED, OpCase
from support.regions import formula
from support.tolerance import assert_close
from torch.utils.checkpoint import checkpoint

import torchext
from torchext import nn

GENERATOR = torch.Generator().manual_seed(0)
MASK = (torch.rand(2, 1, 12, 10, generator=GENERATOR) > 0.4).float()


def features(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 12, 10, generator=generator).to(dtype)


transformed = pytest.mark.parametrize("case", TRANSFORMED, ids=str)


def loss_of(y: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient does not nearly vanish, as that of a norm's squared sum does."""
    cotangent = torch.arange(y.numel()).mul(0.7).sin().view(y.shape)
    return (y.float() * cotangent).sum()


def value_and_gradient(function: Callable, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    loss_of(y).backward()
    return y.detach(), x.grad


@transformed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_compile_fullgraph(case: OpCase, dtype: torch.dtype, last: bool) -> None:
    function, x = case.of_first(dtype)
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
@transformed
def test_compile_with_inductor(case: OpCase) -> None:
    function, x = case.of_first()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: function(torch.relu(x)) * 2, fullgraph=True)
    got = value_and_gradient(compiled, x)
    expected = value_and_gradient(lambda x: function(torch.relu(x)) * 2, x)
    for g, e in zip(got, expected, strict=True):
        assert_close("compiled", g, e.double(), length=1000)


def test_compile_follows_a_forced_backend() -> None:
    torch._dynamo.reset()

    def batch(x: torch.Tensor) -> torch.Tensor:
        return torchext.region_norm(x, MASK)

    compiled = torch.compile(batch, fullgraph=True, backend="aot_eager")
    x = features()
    expected = compiled(x)
    with running("reference"):
        assert_close("reference", compiled(x), expected.double(), length=500)


@transformed
def test_export(case: OpCase) -> None:
    function, x = case.of_first()

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    exported = torch.export.export(Module(), (x,))
    assert torch.equal(exported.module()(x), function(x))


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


@transformed
def test_func_grad_and_jacrev(case: OpCase) -> None:
    function, x = case.of_first()
    expected = value_and_gradient(function, x)[1]
    gradient = torch.func.grad(lambda x: loss_of(function(x)))(x)
    assert_close("grad", gradient, expected.double(), length=1000)

    def per_image(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([loss_of(image) for image in function(x)])

    rows = torch.func.jacrev(per_image)(x)
    for image in range(len(rows)):
        leaf = x.clone().requires_grad_()
        per_image(leaf)[image].backward()
        assert_close("row", rows[image], leaf.grad.double(), length=1000)


def assert_mapped(case: OpCase, got: torch.Tensor, expected: torch.Tensor) -> None:
    if case.products:  # PyTorch's own convolution sums in another order when mapped
        assert_close("y", got, expected.double(), length=1000)
    else:
        assert torch.equal(got, expected)


@transformed
def test_vmap(case: OpCase) -> None:
    function, x = case.of_first()
    xs = torch.stack([x, x.flip(0) + 1, 3 * x])
    got = torch.func.vmap(function)(xs)
    for index, x in enumerate(xs):
        assert_mapped(case, got[index], function(x))
    gradient = torch.func.vmap(torch.func.grad(lambda x: loss_of(function(x))))(xs)
    for index, x in enumerate(xs):
        expected = value_and_gradient(function, x)[1]
        assert_close("grad", gradient[index], expected.double(), length=1000)


@transformed
@pytest.mark.parametrize("layout", ["second", "last", "channels_last"])
def test_vmap_over_samples_that_are_not_contiguous(case: OpCase, layout: str) -> None:
    function, x = case.of_first()
    samples = [x, x.flip(0) + 1, 3 * x]
    dim = {"second": 1, "last": 4, "channels_last": 0}[layout]
    xs = torch.stack(samples, dim)
    if layout == "channels_last":
        xs = torch.stack([x.to(memory_format=torch.channels_last) for x in samples])
    got = torch.func.vmap(function, in_dims=dim)(xs)
    for index, x in enumerate(samples):
        assert_mapped(case, got[index], function(x))


def tangent_of(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.numel()).mul(1.3).cos().view(x.shape).to(x.dtype)


@transformed
def test_forward_mode(case: OpCase) -> None:
    """Every way to a directional derivative gives the one that backward gives."""
    function, x = case.of_first(torch.float64)
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


@transformed
def test_forward_over_reverse(case: OpCase) -> None:
    """A Hessian-vector product is the same with forward mode outside, inside and without it."""
    function, x = case.of_first(torch.float64)
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


@transformed
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(case: OpCase, use_reentrant: bool) -> None:
    function, x = case.of_first()
    leaf = x.clone().requires_grad_()
    loss_of(checkpoint(function, leaf, use_reentrant=use_reentrant)).backward()
    assert torch.equal(leaf.grad, value_and_gradient(function, x)[1])


@transformed
def test_inputs_are_not_written(case: OpCase) -> None:
    function, x = case.of_first()
    before = x.clone()
    value_and_gradient(function, x)
    assert torch.equal(x, before)


@transformed
def test_repeated_runs_are_bit_identical(case: OpCase) -> None:
    function, x = case.of_first()
    first = value_and_gradient(function, x)
    for _ in range(3):
        again = value_and_gradient(function, x)
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
