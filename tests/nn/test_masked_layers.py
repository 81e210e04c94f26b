"""Layers of what is visible or known against the published forms, in plain PyTorch, in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import living_layers as published
from support.backends import parameters, running
from support.tolerance import assert_close
from torch import Tensor, nn

import torchext
from torchext.nn import visible


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def patches(*shape: int, share: float = 0.4) -> Tensor:
    """Equally many visible in every image."""
    u = torch.rand(shape, generator=torch.Generator().manual_seed(5)).flatten(1)
    chosen = u.argsort(dim=1)[:, : max(1, round(share * u.shape[1]))]
    return torch.zeros_like(u).scatter(1, chosen, 1.0).view(shape)


FLAT, VOLUME = (3, 12, 16), (2, 8, 12, 4)
SPARSE: dict[str, tuple[Callable[[Any], nn.Module], tuple[int, ...]]] = {
    "convolution": (lambda m: m.SparseConv2d(6, 8, 3, padding=1), FLAT),
    "Winograd's convolution": (lambda m: m.SparseConv2d(6, 8, 3, padding=1, bias=False), FLAT),
    "strided convolution": (lambda m: m.SparseConv2d(6, 4, 5, 2, 2, groups=2), FLAT),
    "reflected convolution": (
        lambda m: m.SparseConv2d(6, 4, 3, padding=1, padding_mode="reflect"),
        FLAT,
    ),
    "convolution of volumes": (lambda m: m.SparseConv3d(6, 8, 3, padding=1), VOLUME),
    "max pooling": (lambda m: m.SparseMaxPooling(3, 2, 1), FLAT),
    "average pooling": (lambda m: m.SparseAvgPooling(2), FLAT),
    "batch norm": (lambda m: m.SparseBatchNorm2d(6), FLAT),
    "batch norm without affine": (lambda m: m.SparseBatchNorm2d(6, affine=False), FLAT),
    "cumulative batch norm": (lambda m: m.SparseBatchNorm2d(6, momentum=None), FLAT),
    "batch norm without buffers": (
        lambda m: m.SparseBatchNorm2d(6, track_running_stats=False),
        FLAT,
    ),
    "batch norm of volumes": (lambda m: m.SparseBatchNorm2d(6), VOLUME),
    "instance norm": (lambda m: m.SparseInstanceNorm3d(6, affine=True), VOLUME),
    "instance norm without affine": (lambda m: m.SparseInstanceNorm3d(6), VOLUME),
    "layer norm": (lambda m: m.SparseConvNeXtLayerNorm(6, data_format="channels_first"), FLAT),
    "layer norm, channels last": (lambda m: m.SparseConvNeXtLayerNorm(16), FLAT),
    "dense layer norm": (lambda m: m.SparseConvNeXtLayerNorm(16, sparse=False), FLAT),
    "block": (lambda m: m.SparseConvNeXtBlock(6, layer_scale_init_value=0.5), FLAT),
    "dense block": (lambda m: m.SparseConvNeXtBlock(6, 0.0, 0.5, sparse=False, ks=3), FLAT),
}


def pair(make: Callable[[Any], nn.Module], dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Ours and the published one, with the same weights."""
    torch.manual_seed(0)
    ours, theirs = make(torchext.nn).to(dtype), make(published).double()
    with torch.no_grad():
        for value in (*ours.parameters(), *ours.buffers()):
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.2)
    theirs.load_state_dict(ours.state_dict())  # the keys are the same
    return ours, theirs


def results(layer: nn.Module, x: Tensor, mask: Tensor, around: Any) -> dict[str, Tensor]:
    """Of two calls: what one leaves in the buffers, the other may read."""
    x = x.clone().requires_grad_()
    with around(mask):
        layer(x.detach() + 1)
        y = layer(x)
        y.backward(image(*y.shape, seed=7).to(y.dtype))
    gradients = {f"gradient of {name}": p.grad for name, p in layer.named_parameters()}
    buffers = {name: value.double() for name, value in layer.named_buffers()}
    return {"y": y, "x": x.grad, **gradients, **buffers}


@pytest.mark.parametrize("name", parameters("cpu", "reference"))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", SPARSE)
def test_sparse_layers(case: str, training: bool, dtype: torch.dtype, name: str) -> None:
    make, (N, *size) = SPARSE[case]
    ours, theirs = pair(make, dtype)
    x, mask = image(N, 6, *size).to(dtype), patches(N, 1, *(n // 4 for n in size))
    with running(name):
        got = results(ours.train(training), x, mask, visible)
    expected = results(theirs.train(training), x.double(), mask.double(), published.active)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(key, got[key], value, length=4000, condition=10, dtype=dtype)
    assert not (expected["y"] == 0).all()


@pytest.mark.parametrize("case", SPARSE)
def test_gradcheck(case: str) -> None:
    make, _ = SPARSE[case]
    ours, _ = pair(make, torch.float64)
    three = isinstance(ours, (nn.Conv3d, nn.InstanceNorm3d))
    last = case in ("layer norm, channels last", "dense layer norm")
    x = image(2, *((4, 4, 16) if last else (6, 2, 4, 4) if three else (6, 4, 4))).double()
    mask = patches(2, 1, *((1, 2, 2) if three else (2, 2)), share=0.5)
    assert torch.autograd.gradcheck(lambda x: ours(x, mask), x.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_masks_of_any_dtype_given_or_around(dtype: torch.dtype) -> None:
    layer, x, mask = torchext.nn.SparseBatchNorm2d(6), image(2, 6, 8, 8), patches(2, 1, 2, 2)
    with visible(torch.ones(1, 1, 1, 1)):  # what is given goes before
        y = layer(x, mask.to(dtype))
    with visible(torch.ones(1, 1, 1, 1)), visible(mask.to(dtype)):
        assert torch.equal(layer(x), y)
    hidden = mask.repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(x) == 0
    assert (y[hidden] == 0).all()
    assert (y[~hidden] != 0).all()
    one = layer(x, mask[:1].to(dtype))  # for all images
    assert torch.equal(one[1] == 0, one[0] == 0)


def test_what_is_hidden_is_not_read() -> None:
    x, mask = image(2, 6, 8, 8), patches(2, 1, 8, 8)
    spoilt = torch.where(mask == 0, torch.nan, x)
    for layer in (torchext.nn.SparseBatchNorm2d(6), torchext.nn.SparseInstanceNorm2d(6)):
        assert torch.equal(layer(spoilt, mask), layer(x, mask))
    assert torchext.nn.SparseBatchNorm2d(6)(spoilt, mask).isfinite().all()


def test_nothing_visible() -> None:
    layer = torchext.nn.SparseBatchNorm2d(3)
    x = image(2, 3, 4, 4).requires_grad_()
    y = layer(x, torch.zeros(2, 1, 2, 2))
    y.sum().backward()
    assert not y.any()
    assert not x.grad.any()
    assert torch.equal(layer.running_mean, torch.zeros(3))
    assert torch.equal(layer.running_var, torch.ones(3))


def test_all_is_visible_where_the_output_is_smaller_than_the_mask() -> None:
    """As in nnssl's last stage."""
    mask, x = patches(2, 1, 4, 4, 4), image(2, 3, 2, 2, 2)
    conv = torchext.nn.SparseConv3d(3, 5, 1)
    assert torch.equal(conv(x, mask), nn.Conv3d.forward(conv, x))
    norm = torchext.nn.SparseInstanceNorm3d(3)
    assert_close("y", norm(x, mask), nn.InstanceNorm3d(3)(x).double(), length=8, condition=10)


@pytest.mark.parametrize("training", [True, False])
def test_drop_path(training: bool) -> None:
    torch.manual_seed(0)
    block = torchext.nn.SparseConvNeXtBlock(4, 0.5, 1.0).train(training)
    x, mask = image(64, 4, 4, 4), torch.ones(64, 1, 1, 1)
    branch = block(x, mask) - x
    whole = copy.deepcopy(block).eval()(x, mask) - x
    left_out = (branch.abs().amax((1, 2, 3)) == 0).sum()
    assert 16 < left_out < 48 if training else left_out == 0
    kept = branch.abs().amax((1, 2, 3)) > 0
    torch.testing.assert_close(branch[kept], whole[kept] * (2 if training else 1))


@pytest.mark.parametrize("kind", ["block", "convolution", "batch norm", "layer norm"])
def test_compiled(kind: str) -> None:
    make, (N, *size) = SPARSE[kind]
    ours, _ = pair(make, torch.float32)
    compiled = torch.compile(copy.deepcopy(ours), backend="eager", fullgraph=True)
    x, mask = image(N, 6, *size), patches(N, 1, 3, 4)
    assert_close("y", compiled(x, mask), ours(x, mask).double(), length=2000, condition=10)
    with visible(mask):
        assert_close("y", compiled(x), ours(x).double(), length=2000, condition=10)
    with visible(1 - mask):  # a new mask counts
        assert_close("y", compiled(x), ours(x).double(), length=2000, condition=10)


def test_checkpoints_recompute_under_the_same_mask() -> None:
    layer = torchext.nn.SparseConv2d(3, 4, 3, padding=1)
    x, mask = image(2, 3, 8, 8).requires_grad_(), patches(2, 1, 4, 4)
    gradients = []
    for call in (layer, lambda v: torch.utils.checkpoint.checkpoint(layer, v, use_reentrant=False)):
        with visible(mask):
            gradients.append(torch.autograd.grad(call(x).square().sum(), x)[0])
    assert torch.equal(*gradients)


def test_to_sparse() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2)
    )
    keys, parameters_before = list(dense.state_dict()), list(dense.parameters())
    encoder = torchext.nn.to_sparse(dense)
    assert encoder is dense
    assert list(encoder.state_dict()) == keys
    assert all(a is b for a, b in zip(encoder.parameters(), parameters_before, strict=True))
    assert torchext.nn.to_sparse(encoder) is encoder  # again
    with pytest.raises(ValueError, match=r"^mask: expected one, or a block `with"):
        encoder(image(2, 3, 8, 8))
    with visible(patches(2, 1, 2, 2)):
        y = encoder(image(2, 3, 8, 8))
    assert (y == 0).any()
    assert y.any()


@pytest.mark.parametrize(
    "layer", [nn.GroupNorm(1, 3), nn.BatchNorm3d(3), torchext.nn.Conv2d(3, 3, 1)]
)
def test_no_sparse_form(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), layer)
    name = type(layer).__name__
    with pytest.raises(ValueError, match=rf"^encoder: expected .* got a {name} at '1'$"):
        torchext.nn.to_sparse(model)
    assert type(model[0]) is nn.Conv2d


# --- synchronised ---------------------------------------------------------------------------------


def test_synchronised_in_one_process(tmp_path: Any) -> None:
    """The sums of one process are its own."""
    x, mask = image(2, 6, 8, 8), patches(2, 1, 4, 4)
    plain, joined = torchext.nn.SparseBatchNorm2d(6), torchext.nn.SparseSyncBatchNorm2d(6)
    assert torch.equal(joined(x, mask), plain(x, mask))  # before any process group
    plain, joined = torchext.nn.SparseBatchNorm2d(6), torchext.nn.SparseSyncBatchNorm2d(6)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        got = results(joined, x, mask, visible)
    finally:
        dist.destroy_process_group()
    for key, value in results(plain, x, mask, visible).items():
        assert_close(key, got[key], value.double(), length=4000, dtype=torch.float32)


# --- of what is known -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("planes", [1, 6])
def test_masked_batch_norm(planes: int, training: bool, dtype: torch.dtype) -> None:
    ours, theirs = pair(lambda m: m.MaskedBatchNorm2d(6), dtype)
    mask = patches(3, planes, 6, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = image(3, 6, 12, 16) * mask  # as behind a partial convolution
    found = []
    for layer in (ours.train(training), theirs.train(training)):
        kind = next(layer.parameters()).dtype
        value = x.detach().to(kind).clone().requires_grad_()
        y = layer(value, mask.to(kind) if layer is ours else mask.to(kind).expand_as(x))
        y.backward(image(*y.shape, seed=3).to(kind))
        buffers = {name: value.double() for name, value in layer.named_buffers()}
        gradients = {name: p.grad for name, p in layer.named_parameters()}
        found.append({"y": y, "x": value.grad, **gradients, **buffers})
    for key, value in found[1].items():
        assert_close(key, found[0][key], value, length=2000, condition=10, dtype=dtype)


def test_masked_batch_norm_without_known() -> None:
    layer = torchext.nn.MaskedBatchNorm2d(2)
    mask = torch.ones(1, 2, 4, 4)
    mask[:, 1] = 0
    y = layer(image(1, 2, 4, 4) * mask, mask)
    assert y.isfinite().all()
    assert layer.running_mean[0] != 0
    assert layer.running_mean[1] == 0
    assert layer.running_var[1] == 1


def test_gradcheck_of_the_known() -> None:
    layer = torchext.nn.MaskedBatchNorm2d(2).double()
    x, mask = image(2, 2, 4, 4).double().requires_grad_(), patches(2, 1, 4, 4)
    assert torch.autograd.gradcheck(lambda x: layer(x, mask), x)


MAT = {
    "linear": {},
    "linear without bias": {"bias": False},
    "lrelu": {"activation": "lrelu"},
    "relu": {"activation": "relu", "kernel_size": 5},
    "clamped": {"activation": "lrelu", "conv_clamp": 0.5},
    "pointwise": {"activation": "lrelu", "kernel_size": 1},
    "down": {"activation": "lrelu", "down": 2},
    "down, five": {"activation": "lrelu", "down": 2, "kernel_size": 5},
    "down, clamped": {"activation": "lrelu", "down": 2, "conv_clamp": 0.5},
    "up": {"activation": "lrelu", "up": 2},
    "up, clamped": {"activation": "relu", "up": 2, "conv_clamp": 0.5},
}


@pytest.mark.parametrize("name", parameters("cpu", "reference"))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "case, masked",
    [(case, masked) for case in MAT for masked in (True, False) if not (masked and "up" in case)],
)
def test_mat(case: str, masked: bool, dtype: torch.dtype, name: str) -> None:
    options = {"kernel_size": 3, **MAT[case]}
    ours, theirs = pair(lambda m: m.Conv2dLayerPartial(5, 7, **options), dtype)
    theirs.conv.resample_filter.copy_(torchext.nn.Conv2dLayerPartial(5, 7, 3).conv.resample_filter)
    ours.conv.resample_filter.copy_(theirs.conv.resample_filter)
    mask = (image(2, 1, 12, 16, seed=1) > 0.5).double()
    mask[0, :, :8, :8] = 0
    mask[1] *= 0.5  # between
    found = []
    for layer in (ours, theirs):
        kind = next(layer.parameters()).dtype
        x = image(2, 5, 12, 16).to(kind).requires_grad_()
        with running(name):
            y, updated = layer(x, mask.to(kind) if masked else None)
        y.backward(image(*y.shape, seed=3).to(kind))
        gradients = {key: value.grad for key, value in layer.named_parameters()}
        found.append({"y": y, "x": x.grad, **gradients} | ({"mask": updated} if masked else {}))
        assert masked == (updated is not None)
    for key, value in found[1].items():
        assert_close(key, found[0][key], value, length=2000, condition=10, dtype=dtype)


def test_gradcheck_of_mat() -> None:
    mask = (image(2, 1, 4, 6, seed=1) > 0.5).double()
    for options in ({"activation": "lrelu"}, {"activation": "relu", "down": 2}):
        layer = torchext.nn.Conv2dLayerPartial(2, 3, 3, **options).double()
        x = image(2, 2, 4, 6).double().requires_grad_()
        inputs = (x, *layer.parameters())
        assert torch.autograd.gradcheck(lambda x, *_, layer=layer: layer(x, mask)[0], inputs)


def test_mat_without_training() -> None:
    layer = torchext.nn.Conv2dLayerPartial(2, 3, 3, trainable=False)
    assert not list(layer.parameters())
    assert list(layer.state_dict()) == ["conv.resample_filter", "conv.weight", "conv.bias"]


# --- points ---------------------------------------------------------------------------------------


class Points:
    """As MinkowskiEngine's sparse tensors."""

    def __init__(self, F: Tensor, coordinate_map_key: str, coordinate_manager: str) -> None:
        self.F = F
        self.coordinate_map_key = coordinate_map_key
        self.coordinate_manager = coordinate_manager


def test_response_norm_of_points() -> None:
    layer = torchext.nn.MinkowskiGRN(4).double()
    for value in layer.parameters():
        nn.init.normal_(value)
    f = image(9, 4).double().requires_grad_()
    length = f.square().sum(0, keepdim=True).sqrt()
    response = length / (length.mean() + 1e-6)
    expected = f * (1 + layer.gamma * response) + layer.beta
    torch.testing.assert_close(layer(f), expected)
    points = layer(Points(f, "key", "manager"))
    assert (points.coordinate_map_key, points.coordinate_manager) == ("key", "manager")
    torch.testing.assert_close(points.F, expected)
    inputs = (f, *layer.parameters())
    assert torch.autograd.gradcheck(lambda f, *_: layer(f), inputs)


# --- bad input ------------------------------------------------------------------------------------

NORM, CONV = torchext.nn.SparseBatchNorm2d(3), torchext.nn.SparseConv2d(3, 4, 3, padding=1)
X, A = image(2, 3, 8, 8), torch.ones(2, 1, 4, 4)
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: NORM(X), ValueError, r"mask: expected one, or a block `with torchext\.nn\.visible"),
    (lambda: NORM(X[0], A), ValueError, r"x: expected the shape \(N, C, H, W\), got \(3, 8, 8\)"),
    (lambda: NORM(X[:, :2], A), ValueError, r"x: expected 3 channels, got \(2, 2, 8, 8\)"),
    (lambda: NORM(X.int(), A), TypeError, "x: expected float32, float64, float16 or bfloat16"),
    (lambda: NORM(X, A * 2), ValueError, "mask: expected values from 0 to 1, got 2"),
    (lambda: NORM(X, A[:, 0]), ValueError, r"mask: expected the shape \(N or 1, 1, h, w\)"),
    (lambda: NORM(X, torch.ones(2, 1, 3, 4)), ValueError, r"mask: expected .* divide \(8, 8\)"),
    (lambda: NORM(X, torch.ones(3, 1, 4, 4)), ValueError, r"mask: expected \(2 or 1, 1, ...\)"),
    (lambda: NORM(X, torch.ones(2, 1, 4, 4, 4)), ValueError, r"mask: expected .* got \(2, 1, 4"),
    (lambda: NORM(X, "mask"), TypeError, "mask: expected a"),
    (lambda: CONV(X, torch.ones(2, 1, 5, 4)), ValueError, r"mask: expected .* divide \(8, 8\)"),
    (lambda: visible(A[0]).__enter__(), ValueError, r"mask: expected the shape"),
    (
        lambda: torchext.nn.SparseInstanceNorm2d(3, track_running_stats=True)(X, A),
        ValueError,
        "track_running_stats: expected False, got True",
    ),
    (
        lambda: torchext.nn.SparseConvNeXtLayerNorm(3, data_format="last"),
        ValueError,
        "data_format: expected one of",
    ),
    (
        lambda: torchext.nn.SparseConvNeXtBlock(3, 1.0),
        ValueError,
        "drop_path: expected 0 to below 1, got 1.0",
    ),
    (lambda: torchext.nn.SparseConvNeXtBlock(3, ks=4), ValueError, "ks: expected an odd number"),
    (
        lambda: torchext.nn.MaskedBatchNorm2d(3)(X, A),
        ValueError,
        r"mask: expected \(2 or 1, 1, 8, 8\) or \(2, 3, 8, 8\), got \(2, 1, 4, 4\)",
    ),
    (lambda: torchext.nn.MinkowskiGRN(3)([1]), TypeError, "points: expected .* got list"),
    (
        lambda: torchext.nn.MinkowskiGRN(3)(torch.ones(2, 4)),
        ValueError,
        r"points: expected features \(P, 3\), got \(2, 4\)",
    ),
    (
        lambda: torchext.nn.Conv2dLayerPartial(3, 4, 3, activation="elu"),
        ValueError,
        "activation: expected one of",
    ),
    (
        lambda: torchext.nn.Conv2dLayerPartial(3, 4, 3, up=2, down=2),
        ValueError,
        r"up, down: expected 1 or one of them 2, got \(2, 2\)",
    ),
    (
        lambda: torchext.nn.Conv2dLayerPartial(3, 4, 4),
        ValueError,
        "kernel_size: expected an odd number, got 4",
    ),
    (
        lambda: torchext.nn.Conv2dLayerPartial(3, 4, 3, resample_filter=(1, 2, 1)),
        ValueError,
        "resample_filter: expected an even number of values, symmetric",
    ),
    (
        lambda: torchext.nn.Conv2dLayerPartial(3, 4, 3, up=2)(X, torch.ones(2, 1, 8, 8)),
        ValueError,
        "mask: expected none with up=2",
    ),
    (
        lambda: torchext.nn.Conv2dLayerPartial(3, 4, 3)(X, X.abs().clamp(max=1)),
        ValueError,
        r"mask: expected one channel, got \(2, 3, 8, 8\)",
    ),
    (
        lambda: torchext.nn.Conv2dLayerPartial(3, 4, 3)(X, A),
        ValueError,
        r"mask: expected the shape",
    ),
]


@pytest.mark.parametrize("call, kind, text", BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=f"^{text}"):
        call()
