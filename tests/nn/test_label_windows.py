"""SPADE by the distinct windows of its label map."""

import gc
import importlib

import pytest
import torch
import torch.nn.functional as F
from support.tolerance import assert_close

from benchmarks.harness import peak_bytes
from torchext import backend, nn
from torchext.nn import label_windows

# The function of this name hides the module.
numbering = importlib.import_module("torchext.ops.label_windows")

CLASSES, CHANNELS = 6, 16


def blobs(size: int = 48, classes: int = CLASSES) -> torch.Tensor:
    """A map of a few regions, whose windows are few."""
    row = torch.arange(size)
    return ((row[:, None] // 17 + row // 13) % classes)[None]


def layer_of(kind: str = "spadeinstance3x3", dtype: torch.dtype = torch.float64) -> nn.SPADE:
    torch.manual_seed(1)
    return nn.SPADE(kind, CHANNELS, CLASSES).to(dtype)


def choice_of(layer: nn.SPADE, x: torch.Tensor, segmap: torch.Tensor) -> backend.WindowChoice:
    with backend.explain_windows() as choices, torch.no_grad():
        layer(x, segmap)
    [choice] = choices
    assert choice.layer is layer
    assert choice.shape == x.shape
    return choice


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
    choice = choice_of(layer, x, segmap)
    assert choice.reason == ""
    assert choice.gain > 1.1
    assert 0 < choice.counts[0] < choice.counts[1] < 0.4 * 48 * 48
    assert str(choice).endswith(" is expected, table")
    got = evaluate(layer, x, segmap)
    monkeypatch.setattr(label_windows, "_gain", lambda *_: 0.0)
    assert choice_of(layer, x, segmap).reason == "too many windows differ"
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
    gc.collect()
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


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("random labels", "fewer than half of the pixels are as their left neighbours"),
        ("continuous", "fewer than half of the pixels are as their left neighbours"),
        ("small regions", "too many windows differ"),
        ("differentiable", "the map needs a gradient"),
        ("hooked", "its layers were replaced, have hooks or no bias"),
        ("fake", "values may not be looked at (in a graph, on a device), and no capacity is set"),
    ],
)
def test_why_the_layer_convolves(form: str, reason: str) -> None:
    layer = nn.SPADE("spadeinstance3x3", 32, 35)
    x, segmap = torch.randn(1, 32, 64, 64), torch.randint(35, (1, 64, 64))
    if form in ("continuous", "differentiable"):
        segmap = torch.randn(1, 35, 64, 64, requires_grad=form == "differentiable")
    if form == "small regions":
        segmap = segmap[:, ::3, ::3].repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :64, :64]
    if form == "hooked":
        layer.mlp_gamma.register_forward_hook(lambda *_: None)
    if form == "fake":
        assert label_windows._problem(segmap.to("meta"), x, None) == reason
        return
    choice = choice_of(layer, x, segmap)
    assert choice.reason == reason
    assert str(choice).startswith("32 channels, 64x64, ")
    assert str(choice).endswith(f"convolved: {reason}")
    if form == "small regions":
        assert choice.gain < 1.1
        assert choice.share == choice.counts[-1] / 64**2


def test_choices_of_a_block() -> None:
    block = nn.SPADEResnetBlock(16, 32, "spadebatch3x3", CLASSES)
    with backend.explain_windows() as choices:
        block(torch.randn(1, 16, 48, 48), blobs())
    names = {module: name for name, module in block.named_modules()}
    assert [names[choice.layer] for choice in choices] == ["norm_0", "norm_1", "norm_s"]
    block(torch.randn(1, 16, 48, 48), blobs())
    assert len(choices) == 3  # of what is inside


def test_winograds_convolutions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gain is over what would run: a table pays less where convolutions take fewer products."""
    if backend.simd_level() not in ("avx512", "avx2"):
        pytest.skip("convolutions are PyTorch's own")
    layer, segmap = nn.SPADE("spadeinstance3x3", 128, CLASSES), blobs(128)
    x = torch.randn(1, 128, 128, 128)
    with_winograd = choice_of(layer, x, segmap).gain
    with backend.convolution("direct"):
        assert choice_of(layer, x, segmap).gain > 1.5 * with_winograd


def test_labels_out_of_range_are_named() -> None:
    layer, x = layer_of(dtype=torch.float32), torch.randn(1, CHANNELS, 48, 48)
    with pytest.raises(ValueError, match="labels: expected classes from 0 to 5, got 9"):
        layer(x, blobs().masked_fill(blobs() == 2, 9))
    with pytest.raises(ValueError, match="labels: expected 0 to 2147483647, got -1"):
        layer(x, blobs() - 1)


def test_compiled_and_differentiable_maps_are_convolved() -> None:
    layer, segmap = layer_of(dtype=torch.float32), blobs()
    x = torch.randn(1, CHANNELS, 48, 48)
    expected = layer(x, segmap)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close("y", compiled(x, segmap), expected.double(), length=5000)
    soft = F.one_hot(segmap, CLASSES).movedim(-1, 1).float().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x, soft).sum(), soft)
    assert gradient.shape == soft.shape


def test_autocast_takes_the_table_in_float32() -> None:
    layer, segmap = nn.SPADE("spadeinstance3x3", 128, CLASSES), blobs(128)
    x = torch.randn(1, 128, 128, 128, requires_grad=True)
    values = (x, *layer.parameters())
    expected = layer(x, segmap)
    wanted = torch.autograd.grad(expected.sum(), values)
    with torch.autocast("cpu", torch.bfloat16):
        assert choice_of(layer, x, segmap).reason == ""
        got = layer(x, segmap)
        gradients = torch.autograd.grad(got.sum(), values)
    assert torch.equal(got, expected)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert torch.equal(gradient, want)


# --- capacities -----------------------------------------------------------------------------------

CAPACITY = (100, 300)  # that blobs of 48 x 48 pixels fit, and random labels do not


def maps_of(form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A map that fits the capacity, and one that does not."""
    maps = blobs(), torch.randint(CLASSES, (1, 48, 48), generator=torch.Generator().manual_seed(0))
    if form == "one-hot":
        maps = tuple(F.one_hot(labels, CLASSES).movedim(-1, 1).double() for labels in maps)
    return maps


@pytest.mark.parametrize("kind", ["spadeinstance3x3", "spadebatch3x3"])
@pytest.mark.parametrize("form", ["labels", "one-hot"])
@pytest.mark.parametrize("last", [False, True])
def test_compiled_with_a_capacity(kind: str, form: str, last: bool) -> None:
    """One graph for maps that fit and maps that do not: outputs, gradients, running statistics."""
    layer, eager = layer_of(kind), layer_of(kind)
    layer.capacity = CAPACITY
    x = torch.randn(1, CHANNELS, 48, 48, dtype=torch.float64)
    if last:
        x = x.to(memory_format=torch.channels_last)
        layer.to(memory_format=torch.channels_last)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled.parameters = layer.parameters
    for segmap in maps_of(form):
        with torch._dynamo.config.patch(error_on_recompile=True):
            got = evaluate(compiled, x, segmap)
        expected = evaluate(eager, x, segmap)
        for value, wanted in zip(got, expected, strict=True):
            assert_close("value", value, wanted, length=48 * 48 * 100, condition=10)
        assert got[0].stride() == x.stride()
    for name, buffer in layer.named_buffers():
        assert_close(name, buffer.double(), eager.get_buffer(name).double(), length=48 * 48)


def test_graphs_with_a_capacity_take_the_table() -> None:
    """And the convolutions for maps of more windows."""
    layer = layer_of(dtype=torch.float32)
    layer.capacity = CAPACITY
    x, (few, many) = torch.randn(1, CHANNELS, 48, 48), maps_of("labels")
    exported = torch.export.export(layer, (x, few)).module()
    for segmap, table in ((few, True), (many, False)):
        with torch.autograd.profiler.profile() as profile, torch.no_grad():
            y = exported(x, segmap)
        ran = {event.name for event in profile.function_events}
        assert ("torchext::spade_modulation_table" in ran) == table
        assert ("torchext::label_conv2d" in ran) != table
        assert_close("y", y, layer(x, segmap).double(), length=5000)


def test_layers_of_a_block_share_the_windows_of_a_graph() -> None:
    block = nn.SPADEResnetBlock(8, 16, "spadeinstance3x3", CLASSES).double()
    for norm in (block.norm_0, block.norm_1, block.norm_s):
        norm.capacity = CAPACITY
    x, segmap = torch.randn(1, 8, 48, 48, dtype=torch.float64), blobs()
    program = torch.export.export(block, (x, segmap))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("torchext.label_windows.default") == 2  # levels
    assert targets.count("cond") == 3
    assert_close("y", program.module()(x, segmap), block(x, segmap), length=10**4, condition=10)


def test_dynamic_sizes_with_a_capacity() -> None:
    block = nn.SPADEResnetBlock(8, 8, "spadeinstance3x3", CLASSES).double()
    block.norm_0.capacity = block.norm_1.capacity = CAPACITY
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, size in ((1, 48), (2, 40)):
        x = torch.randn(batch, 8, size, size, dtype=torch.float64)
        segmap = blobs(size).repeat(batch, 1, 1)
        assert_close("y", compiled(x, segmap), block(x, segmap), length=10**4, condition=10)


@pytest.mark.parametrize("collide", [False, True])
def test_devices_with_a_capacity(monkeypatch: pytest.MonkeyPatch, collide: bool) -> None:
    """A map that may not be looked at: its windows are found once, and whether they fit."""
    layer, x = layer_of(), torch.randn(1, CHANNELS, 48, 48, dtype=torch.float64)
    (few, many), (few_too, many_too) = maps_of("labels"), maps_of("labels")
    expected = layer(x, few_too), layer(x, many_too)
    monkeypatch.setattr(backend, "readable", lambda _: False)
    monkeypatch.setattr(backend, "has_tiles", lambda _: False)
    if collide:
        monkeypatch.setattr(numbering, "_hash", lambda taps: torch.zeros_like(taps[0]).long())
    layer.capacity = CAPACITY
    for segmap, wanted, fits in ((few, expected[0], not collide), (many, expected[1], False)):
        choice = choice_of(layer, x, segmap)
        assert choice.reason == ("" if fits else "more windows differ than the capacity")
        assert_close("y", layer(x, segmap), wanted, length=5000)
    monkeypatch.setattr(label_windows, "label_windows", None)  # is not called again
    layer(x, few)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("form", ["labels", "one-hot"])
def test_on_a_gpu_with_a_capacity(form: str) -> None:
    layer = layer_of().cuda()
    x = torch.randn(1, CHANNELS, 48, 48, dtype=torch.float64, device="cuda")
    for segmap, fits in zip(maps_of(form), (True, False), strict=True):
        layer.capacity = None
        expected = evaluate(layer, x, segmap.cuda())
        layer.capacity = CAPACITY
        assert (choice_of(layer, x, segmap.cuda()).reason == "") == fits
        for value, wanted in zip(evaluate(layer, x, segmap.cuda()), expected, strict=True):
            assert_close("value", value.cpu(), wanted.cpu(), length=48 * 48 * 100, condition=10)


# --- memory ---------------------------------------------------------------------------------------


def test_memory_is_less_than_the_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the hidden layer nor gamma and beta are ever made in x's size."""
    layer, segmap = nn.SPADE("spadeinstance3x3", 64, CLASSES), blobs(128)
    x = torch.randn(1, 64, 128, 128)

    def forward() -> None:
        with torch.no_grad():
            layer(x, segmap)

    assert choice_of(layer, x, segmap).reason == ""
    table = peak_bytes(forward, "cpu")
    monkeypatch.setattr(label_windows, "_gain", lambda *_: 0.0)
    convolutions = peak_bytes(forward, "cpu")
    result = x.numel() * x.element_size()
    assert result < table < 2 * result
    assert convolutions > 4 * result
