"""SPADE by the distinct windows of its label map."""

import gc

import pytest
import torch
import torch.nn.functional as F
from support.tolerance import assert_close

from torchext import nn
from torchext.nn import label_windows
from torchext.nn.label_windows import windows_of

CLASSES, CHANNELS = 6, 16


def blobs(size: int = 48, classes: int = CLASSES) -> torch.Tensor:
    """A map of a few regions, whose windows are few."""
    row = torch.arange(size)
    return ((row[:, None] // 17 + row // 13) % classes)[None]


def layer_of(kind: str = "spadeinstance3x3", dtype: torch.dtype = torch.float64) -> nn.SPADE:
    torch.manual_seed(1)
    return nn.SPADE(kind, CHANNELS, CLASSES).to(dtype)


def evaluate(layer: nn.SPADE, x: torch.Tensor, segmap: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x, segmap, 0.2)
    cotangent = torch.arange(y.numel(), dtype=y.dtype).mul(0.7).sin().view(y.shape)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], cotangent)]


@pytest.mark.parametrize("kind", ["spadeinstance3x3", "spadebatch3x3", "spadesyncbatch5x5"])
@pytest.mark.parametrize("form", ["labels", "one-hot", "smaller"])
@pytest.mark.parametrize("last", [False, True])
def test_equals_the_convolutions(
    kind: str, form: str, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, labels = layer_of(kind), blobs()
    segmap = F.one_hot(labels, CLASSES).movedim(-1, 1).double() if form == "one-hot" else labels
    if form == "smaller":
        segmap = blobs(24)
    x = torch.randn(1, CHANNELS, 48, 48, dtype=torch.float64)
    if last:
        x = x.to(memory_format=torch.channels_last)
    first = layer.mlp_shared[0]
    assert windows_of(segmap, x, first.weight, layer.mlp_gamma.weight) is not None
    got = evaluate(layer, x, segmap)
    monkeypatch.setattr(label_windows, "_pays", lambda *_: False)
    expected = evaluate(layer, x, segmap)
    for value, wanted in zip(got, expected, strict=True):
        assert_close("value", value, wanted, length=48 * 48 * 100, condition=10)
    assert got[0].stride() == x.stride()


def test_layers_share_the_windows_of_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    number = label_windows.label_windows
    monkeypatch.setattr(
        label_windows, "label_windows", lambda *a, **k: calls.append(a) or number(*a, **k)
    )
    segmap, x = blobs(), torch.randn(1, CHANNELS, 48, 48)
    first, second = layer_of(dtype=torch.float32), layer_of("spadebatch3x3", torch.float32)
    y = first(x, segmap)
    second(x, segmap)
    assert len(calls) == 2  # a level each
    first(x[:, :, ::2, ::2], segmap)
    assert len(calls) == 4
    # A map that was changed in place is another map.
    segmap[:, 10:20] = 5
    changed = first(x, segmap)
    assert len(calls) == 6
    assert not torch.equal(y, changed)
    assert torch.equal(changed, first(x, segmap.clone()))


def test_what_is_known_goes_with_the_map() -> None:
    layer, x = layer_of(dtype=torch.float32), torch.randn(1, CHANNELS, 48, 48)
    before = len(label_windows._known)
    segmap = blobs()
    layer(x, segmap)
    assert len(label_windows._known) == before + 1
    del segmap
    gc.collect()
    assert len(label_windows._known) == before


def test_inference_mode_keeps_nothing() -> None:
    layer, x = layer_of(dtype=torch.float32), torch.randn(1, CHANNELS, 48, 48)
    with torch.inference_mode():
        segmap = blobs()
        before = layer(x, segmap)
        segmap.add_(1).remainder_(CLASSES)
        after = layer(x, segmap)
        assert not torch.equal(before, after)
        assert torch.equal(after, layer(x, segmap.clone()))


@pytest.mark.parametrize("form", ["random labels", "continuous", "small regions"])
def test_maps_of_many_windows_are_convolved(form: str) -> None:
    layer = nn.SPADE("spadeinstance3x3", 32, 35)
    x, segmap = torch.randn(1, 32, 64, 64), torch.randint(35, (1, 64, 64))
    if form == "continuous":
        segmap = torch.randn(1, 35, 64, 64)
    if form == "small regions":
        segmap = segmap[:, ::3, ::3].repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :64, :64]
    assert windows_of(segmap, x, layer.mlp_shared[0].weight, layer.mlp_gamma.weight) is None


def test_labels_out_of_range_are_named() -> None:
    layer, x = layer_of(dtype=torch.float32), torch.randn(1, CHANNELS, 48, 48)
    with pytest.raises(ValueError, match="labels: expected classes from 0 to 5, got 9"):
        layer(x, blobs().masked_fill(blobs() == 2, 9))
    with pytest.raises(ValueError, match="labels: expected 0 to 2147483647, got -1"):
        layer(x, blobs() - 1)


def test_compiled_autocast_and_differentiable_maps_are_convolved() -> None:
    layer, segmap = layer_of(dtype=torch.float32), blobs()
    x = torch.randn(1, CHANNELS, 48, 48)
    weights = (layer.mlp_shared[0].weight, layer.mlp_gamma.weight)
    expected = layer(x, segmap)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close("y", compiled(x, segmap), expected.double(), length=5000)
    with torch.autocast("cpu", torch.bfloat16):
        assert windows_of(segmap, x, *weights) is None
    soft = F.one_hot(segmap, CLASSES).movedim(-1, 1).float().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x, soft).sum(), soft)
    assert gradient.shape == soft.shape
