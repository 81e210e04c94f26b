"""torchext.label_windows: the distinct windows of a map, on every backend."""

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
    for op in (torch.ops.torchext.label_windows, torch.ops.torchext.number_windows):
        torch.library.opcheck(op, (values, 3), test_utils=utilities)


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
        ({"levels": 0}, ValueError, "levels: expected 1 to 15, got 0"),
    ],
)
def test_bad_input(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        torchext.label_windows(**{"labels": LABELS, **arguments})
    assert str(raised.value) == message
