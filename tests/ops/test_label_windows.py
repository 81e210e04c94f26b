"""torchext.label_windows: the distinct windows of a map, on every backend."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.backends import parameters, running

import torchext

SHAPES = [(1, 1, 1), (2, 9, 13), (1, 3, 1), (3, 20, 17)]


def label_map(shape: tuple, classes: int = 5, seed: int = 0) -> torch.Tensor:
    """In blobs, with random labels among them."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    N, H, W = shape
    coarse = torch.randint(classes, (N, H // 4 + 1, W // 5 + 1), generator=generator)
    labels = coarse.repeat_interleave(4, 1).repeat_interleave(5, 2)[:, :H, :W]
    noise = torch.randint(classes, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.1, noise, labels)


def unfolded(values: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """Every pixel's window (N,H,W,C*k*k) of a map (N,C,H,W), -1 outside."""
    half = kernel_size // 2
    windows = F.unfold(F.pad(values.double(), (half,) * 4, value=-1), kernel_size)
    N, C, H, W = values.shape
    return windows.transpose(1, 2).reshape(N, H, W, C * kernel_size**2).to(torch.int32)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_labels(shape: tuple, kernel_size: int, name: str) -> None:
    labels = label_map(shape)
    with running(name) as device:
        found = torchext.label_windows(labels.to(device), kernel_size, levels=3)
    assert found.vectors is None
    assert found.kernel_size == kernel_size
    values = labels[:, None]
    for windows, index in zip(found.windows, found.indices, strict=True):
        windows, index = windows.cpu(), index.cpu()
        assert index.dtype == windows.dtype == torch.int32
        assert index.shape == shape
        # Exact: each pixel's window is its row, and no two rows are the same.
        assert torch.equal(windows[index.long()], unfolded(values, kernel_size))
        assert len(torch.unique(windows, dim=0)) == len(windows)
        assert set(index.unique().tolist()) == set(range(len(windows)))
        values = index[:, None]
    assert found.index is found.indices[-1]
    assert found.share == len(found.windows[-1]) / max(1, labels.numel())


@pytest.mark.parametrize("name", parameters())
def test_maps_of_several_channels(name: str) -> None:
    """A one-hot map with an edge channel: pixels by the equality of their vectors."""
    labels = label_map((2, 9, 13))
    edges = (labels != labels.roll(1, dims=2)).float()[:, None]
    condition = torch.cat([F.one_hot(labels, 5).movedim(-1, 1).float(), edges], dim=1)
    with running(name) as device:
        found = torchext.label_windows(condition.to(device), levels=1)
    vectors, windows, index = (t.cpu() for t in (found.vectors, found.windows[0], found.index))
    middle = windows[index.long()][..., 4]
    assert torch.equal(vectors[middle.long()].movedim(-1, 1), condition)
    assert len(torch.unique(vectors, dim=0)) == len(vectors)


@pytest.mark.parametrize("name", parameters())
def test_empty_batch(name: str) -> None:
    with running(name) as device:
        found = torchext.label_windows(torch.zeros(0, 4, 5, dtype=torch.int64, device=device))
    assert [tuple(windows.shape) for windows in found.windows] == [(0, 9), (0, 9)]
    assert found.index.shape == (0, 4, 5)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("several", [False, True], ids=["labels", "vectors"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_capacity(shape: tuple, several: bool, name: str) -> None:
    """The same windows in rows of a size that is given; those too many are outside everywhere."""
    labels = label_map(shape)
    given = F.one_hot(labels, 5).movedim(-1, 1).float() if several else labels
    exact = torchext.label_windows(given)
    first, second = (len(windows) for windows in exact.windows)
    with running(name) as device:
        found = torchext.label_windows(given.to(device), capacity=(first + 3, second))
        assert bool(found.fits)
        assert found.share == exact.share
    assert [count.tolist() for count in found.counts] == [[first], [second]]
    assert [count.dtype for count in found.counts] == [torch.int32] * 2
    assert [len(windows) for windows in found.windows] == [first + 3, second]
    assert bool((found.windows[0][first:] == -1).all())
    assert not several or bool(found.vectors.isfinite().all())
    for windows, index, wanted, places in zip(
        found.windows, found.indices, exact.windows, exact.indices, strict=True
    ):
        assert index.dtype == windows.dtype == torch.int32
        # One number for each of theirs.
        pairs = torch.stack([index.cpu().flatten(), places.flatten()])
        assert len(torch.unique(pairs, dim=1)[0]) == len(wanted)
        assert set(index.flatten().tolist()) == set(range(len(wanted)))
    rows = found.windows[0][found.indices[0].long()].cpu()
    middle = rows[..., 4].long()
    got = found.vectors.cpu()[middle].movedim(-1, 1) if several else middle
    assert torch.equal(got, given)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("short", [0, 1], ids=["first level", "second level"])
def test_capacity_that_does_not_suffice(short: int, name: str) -> None:
    labels = label_map((2, 9, 13))
    counts = [len(windows) for windows in torchext.label_windows(labels).windows]
    counts[short] -= 1
    with running(name) as device:
        found = torchext.label_windows(labels.to(device), capacity=counts)
    assert not bool(found.fits)
    assert int(found.counts[short]) == counts[short] + 1
    for windows, index, rows in zip(found.windows, found.indices, counts, strict=True):
        assert len(windows) == rows
        assert 0 <= int(index.min()) <= int(index.max()) < rows  # memory is safe


def test_vectors_beyond_the_capacity() -> None:
    condition = torch.arange(12.0).view(1, 1, 3, 4).expand(1, 2, 3, 4)
    assert not bool(torchext.label_windows(condition, 1, levels=1, capacity=11).fits)
    assert bool(torchext.label_windows(condition, 1, levels=1, capacity=12).fits)


@pytest.mark.parametrize("name", parameters())
def test_capacity_of_an_empty_batch(name: str) -> None:
    with running(name) as device:
        labels = torch.zeros(0, 4, 5, dtype=torch.int64, device=device)
        found = torchext.label_windows(labels, capacity=3)
    assert [windows.tolist() for windows in found.windows] == [[[-1] * 9] * 3] * 2
    assert bool(found.fits)


def test_windows_with_one_hash_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are compared, so that a wrong number cannot pass for a right one."""
    module = importlib.import_module("torchext.ops.label_windows")
    labels = label_map((2, 9, 13))
    with running("cuda-emulated"):
        assert bool(torchext.label_windows(labels, capacity=234).fits)
        monkeypatch.setattr(module, "_hash", lambda taps: (taps[4] % 2).long())
        found = torchext.label_windows(labels, capacity=234)
    assert not bool(found.fits)
    assert int(found.counts[0]) == 2**31 - 1


def test_capacity_in_a_graph() -> None:
    """No size depends on values: one graph, and fake tensors know all shapes."""
    torch._dynamo.reset()

    def numbered(labels: torch.Tensor) -> torchext.LabelWindows:
        return torchext.label_windows(labels, capacity=(150, 200))

    compiled = torch.compile(numbered, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        labels = label_map((2, 9, 13), seed=seed)
        with torch._dynamo.config.patch(error_on_recompile=True):
            got = compiled(labels)
        expected = numbered(labels)
        assert torch.equal(got.index, expected.index)
        assert torch.equal(got.windows[1], expected.windows[1])
        assert bool(got.fits) == bool(expected.fits)
    with torch._subclasses.FakeTensorMode():
        fake = numbered(torch.zeros(2, 9, 13, dtype=torch.int64))
        assert [tuple(windows.shape) for windows in fake.windows] == [(150, 9), (200, 9)]
        assert fake.fits.shape == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_capacity_waits_for_nothing() -> None:
    labels = label_map((2, 40, 50)).cuda()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = torchext.label_windows(labels, capacity=2000)
        fits = found.fits
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert bool(fits)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = torchext.label_windows(labels, capacity=2000)
    labels.copy_(label_map((2, 40, 50), seed=1))
    graph.replay()
    rows = found.windows[0][found.indices[0].long()]
    assert torch.equal(rows[..., 4].long(), labels)


def test_vectors_of_float64_keep_their_bits() -> None:
    condition = torch.tensor([1.0, 1.0 + 1e-15, 1.0], dtype=torch.float64).view(1, 1, 1, 3)
    found = torchext.label_windows(condition.expand(1, 2, 1, 3), 1, levels=1)
    rows = found.windows[0][found.index.long()][..., 0].long()
    assert torch.equal(found.vectors[rows].movedim(-1, 1), condition.expand(1, 2, 1, 3))
    assert len(found.vectors) == 2


def test_large_labels() -> None:
    labels = torch.tensor([[[0, 2**31 - 1], [2**31 - 2, 0]]])
    found = torchext.label_windows(labels, 1, levels=1)
    assert sorted(found.windows[0].flatten().tolist()) == [0, 2**31 - 2, 2**31 - 1]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_map(data: st.DataObject) -> None:
    """All labels alike, every pixel another, and between."""
    shape = tuple(data.draw(st.integers(1, most)) for most in (3, 24, 24))
    most = data.draw(st.sampled_from([1, 2, 3, 50, 10**6]))
    labels = torch.randint(most, shape, generator=torch.Generator().manual_seed(sum(shape)))
    kernel_size = data.draw(st.sampled_from([1, 3, 5, 7]))
    found = torchext.label_windows(labels, kernel_size, levels=1)
    expected = unfolded(labels[:, None], kernel_size)
    assert torch.equal(found.windows[0][found.index.long()], expected)
    assert len(found.windows[0]) == len(torch.unique(expected.flatten(0, 2), dim=0))


def test_opcheck() -> None:
    values = label_map((2, 9, 13))[:, None].int()
    # Sizes that depend on data: no compiled form is compared.
    utilities = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.torchext.number_windows, (values, 3), test_utils=utilities)
    numbering = torch.ops.torchext.label_windows
    torch.library.opcheck(numbering, (values, 3, None), test_utils=utilities)
    torch.library.opcheck(numbering, (values, 3, 50))


LABELS = torch.zeros(1, 4, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": [1]}, TypeError, "labels: expected a torch.Tensor, got list"),
        (
            {"labels": LABELS - 1},
            ValueError,
            "labels: expected 0 to 2147483647, got -1",
        ),
        (
            {"labels": LABELS + 2**31},
            ValueError,
            "labels: expected 0 to 2147483647, got 2147483648",
        ),
        (
            {"labels": LABELS.float()},
            TypeError,
            "labels: expected integers for a map (N, H, W), got torch.float32",
        ),
        (
            {"labels": LABELS[0]},
            ValueError,
            "labels: expected the shape (N, H, W) or (N, C, H, W), got (4, 5)",
        ),
        ({"kernel_size": 2}, ValueError, "kernel_size: expected an odd number, got 2"),
        ({"kernel_size": 17}, ValueError, "kernel_size: expected 1 to 15, got 17"),
        ({"capacity": 0}, ValueError, "capacity: expected 1 to 2147483647, got 0"),
        ({"capacity": 2.5}, TypeError, "capacity: expected an int, got float"),
        (
            {"capacity": (3, 4, 5)},
            ValueError,
            "capacity: expected a number for each of 2 levels, got (3, 4, 5)",
        ),
        ({"levels": 0}, ValueError, "levels: expected 1 to 15, got 0"),
    ],
)
def test_bad_input(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        torchext.label_windows(**{"labels": LABELS, **arguments})
    assert str(raised.value) == message
