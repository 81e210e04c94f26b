"""Layers built on the meta device and filled later; initialisers of published code; states."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from torchext import nn

X = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
MASK = (X[:, :1] > 0).float()
SEGMAP = X[:, :4].abs()
PRIOR = X[:, :3]

LAYERS = {
    "RegionNorm2d": (lambda: nn.RegionNorm2d(8), (X, MASK)),
    "RN_B": (lambda: nn.RN_B(8), (X, MASK)),
    "RN_L": (lambda: nn.RN_L(8, 0.5), (X,)),
    "PartialConv2d": (lambda: nn.PartialConv2d(8, 6, 3), (X, MASK)),
    "PartialConv": (lambda: nn.PartialConv(8, 6, 3, bias=True), (X, MASK)),
    "SPADE": (lambda: nn.SPADE("spadebatch3x3", 8, 4), (X, SEGMAP)),
    "SPADEResnetBlock": (
        lambda: nn.SPADEResnetBlock(8, 6, "spectralspadeinstance3x3", 4),
        (X, SEGMAP),
    ),
    "SPDNorm": (lambda: nn.SPDNorm(8, "position"), (X, PRIOR, MASK)),
    "SPDNormResnetBlock": (lambda: nn.SPDNormResnetBlock(8, 6, 3, 3), (X, PRIOR, MASK)),
    "ANLs": (lambda: nn.ANLs(8, 4), (X, SEGMAP)),
    "UpsampleConv2d": (lambda: nn.UpsampleConv2d(8, 6), (X,)),
    "SparseBatchNorm2d": (lambda: nn.SparseBatchNorm2d(8), (X, MASK)),
    "SparseConvNeXtBlock": (lambda: nn.SparseConvNeXtBlock(8), (X, MASK)),
    "MaskedBatchNorm2d": (lambda: nn.MaskedBatchNorm2d(8), (X, MASK)),
    "Conv2dLayerPartial": (lambda: nn.Conv2dLayerPartial(8, 6, 3, activation="lrelu"), (X, MASK)),
}
layers = pytest.mark.parametrize("name", LAYERS)


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@layers
@pytest.mark.parametrize("order", ["parents first", "children first"])
def test_meta_then_reset(name: str, order: str) -> None:
    build, arguments = LAYERS[name]
    with torch.device("meta"):
        layer = build()
    layer.to_empty(device="cpu")
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            tensor.data.fill_(float("nan"))
    parts = list(layer.modules())
    for part in parts if order == "parents first" else reversed(parts):
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    for key, tensor in layer.state_dict().items():
        assert tensor.isfinite().all(), key
    assert first(layer(*arguments)).isfinite().all()
    built = build()
    for (key, mine), theirs in zip(layer.named_parameters(), built.parameters(), strict=True):
        spread = theirs.std().item() if theirs.numel() > 100 else None
        if spread:  # of the same distribution as the constructor's
            assert mine.std().item() == pytest.approx(spread, rel=0.35), key


@layers
def test_state_built_on_meta_loads(name: str) -> None:
    build, arguments = LAYERS[name]
    source = build()
    with torch.device("meta"):
        layer = build()
    layer.load_state_dict(source.state_dict(), assign=True)
    source, layer = source.eval(), layer.eval()
    assert torch.equal(first(layer(*arguments)), first(source(*arguments)))


def test_an_initialiser_cannot_change_the_mask_kernel() -> None:
    layer = nn.PartialConv(4, 6, 3, bias=True)
    for module in layer.modules():
        if "Conv" in type(module).__name__ and hasattr(module, "weight"):
            torch.nn.init.normal_(module.weight, 0, 0.02)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 0, 0.02)
    state = layer.state_dict()
    assert list(state) == ["input_conv.weight", "input_conv.bias", "mask_conv.weight"]
    assert torch.equal(state["mask_conv.weight"], torch.ones(6, 4, 3, 3))
    other = nn.PartialConv(4, 6, 3, bias=True)
    other.load_state_dict(state)
    x, mask = X[:, :4], MASK
    assert torch.equal(other(x, mask)[0], layer(x, mask)[0])


def test_mask_kernel_in_the_state() -> None:
    layer = nn.PartialConv(4, 6, 3, bias=True).double()
    state = layer.state_dict()
    assert state["mask_conv.weight"].dtype == torch.float64
    del state["mask_conv.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"mask_conv.weight"'):
        layer.load_state_dict(state)
    assert layer.load_state_dict(state, strict=False).missing_keys == ["mask_conv.weight"]
    state["mask_conv.weight"] = torch.ones(6, 4, 5, 5)
    with pytest.raises(RuntimeError, match=r"mask_conv.weight: expected the shape \(6, 4, 3, 3\)"):
        layer.load_state_dict(state)


def test_unused_parameter_is_frozen() -> None:
    """DistributedDataParallel stops at a parameter that never gets a gradient."""
    block = nn.SPDNormResnetBlock(8, 6, 3, 3)
    block(X, PRIOR, MASK).sum().backward()
    assert [
        name for name, p in block.named_parameters() if p.requires_grad and p.grad is None
    ] == []
    assert "v" in block.state_dict()


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_distributed_data_parallel_takes_a_second_step(tmp_path) -> None:
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        for name in ("SPDNormResnetBlock", "PartialConv", "RN_L", "SPADEResnetBlock"):
            build, arguments = LAYERS[name]
            model = torch.nn.parallel.DistributedDataParallel(build())
            for _ in range(2):
                first(model(*arguments)).sum().backward()
    finally:
        dist.destroy_process_group()


def test_evaluation_in_inference_mode_then_training() -> None:
    layer = nn.PartialConv2d(8, 6, 3, return_mask=True, published_cache=True)
    with torch.inference_mode():
        layer(X)
        layer(X, MASK)
    y, _ = layer(X)  # the window of the masked call, as published
    y.sum().backward()
    assert layer.weight.grad.isfinite().all()


@layers
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch(name: str, training: bool) -> None:
    build, arguments = LAYERS[name]
    x, *rest = (argument[:0] for argument in arguments)
    layer = build().train(training)
    x = x.clone().requires_grad_()
    y = first(layer(x, *rest))
    assert y.shape == (0, *first(layer(*arguments)).shape[1:])
    y.sum().backward()
    assert x.grad.shape == x.shape
