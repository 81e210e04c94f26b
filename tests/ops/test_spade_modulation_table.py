"""torchext.spade_modulation_table against SPADE's two convolutions, on every backend."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.test_label_windows import label_map
from support.backends import parameters, running
from support.tolerance import assert_close

import torchext

CLASSES, HIDDEN, COLUMNS = 5, 8, 6
KEYS = ("weight", "bias", "modulation_weight", "modulation_bias")
SHAPES = [(1, 1, 1), (2, 9, 13), (1, 3, 1), (1, 20, 17)]


def weights_of(kernel_size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(kernel_size)
    shapes = [
        (HIDDEN, CLASSES, kernel_size, kernel_size),
        (HIDDEN,),
        (COLUMNS, HIDDEN, kernel_size, kernel_size),
        (COLUMNS,),
    ]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return F.one_hot(labels.long(), CLASSES).movedim(-1, 1).double()


def convolved(condition: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """Both convolutions of the map in float64."""
    weight, bias, modulation_weight, modulation_bias = weights
    padding = weight.shape[-1] // 2
    hidden = F.conv2d(condition, weight, bias, padding=padding).relu()
    return F.conv2d(hidden, modulation_weight, modulation_bias, padding=padding)


def check(
    condition: torch.Tensor,
    kernel_size: int,
    dtype: torch.dtype,
    name: str,
    capacity: int | None = None,
) -> None:
    exact = [w.double().requires_grad_() for w in weights_of(kernel_size, dtype)]
    dense = condition if condition.dim() == 4 else one_hot(condition)
    expected = convolved(dense.double(), exact)
    grad = torch.arange(expected.numel(), dtype=torch.float64).mul(0.7).sin().view(expected.shape)
    wanted = torch.autograd.grad(expected, exact, grad)
    with running(name) as device:
        leaves = [w.to(device).requires_grad_() for w in weights_of(kernel_size, dtype)]
        windows = torchext.label_windows(condition.to(device), kernel_size, capacity=capacity)
        assert bool(windows.fits)
        table = torchext.spade_modulation_table(windows, *leaves)
        y = table[windows.index.long()].movedim(-1, 1)
        gradients = torch.autograd.grad(y, leaves, grad.to(device, table.dtype))
    assert table.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    length = kernel_size**2 * HIDDEN * kernel_size**2
    assert_close("table", y, expected, length=length)
    pixels = grad.shape[0] * grad.shape[2] * grad.shape[3]
    for key, got, want in zip(KEYS, gradients, wanted, strict=True):
        scale = max(want.abs().max().item(), pixels**0.5)
        assert_close(key, got, want, length=pixels * length, scale=scale)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_labels(shape: tuple, kernel_size: int, name: str) -> None:
    if name == "triton-interpreted" and kernel_size != 3:
        pytest.skip("the interpreter runs one kernel size")
    check(label_map(shape, CLASSES), kernel_size, torch.float32, name)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype, name: str) -> None:
    check(label_map((2, 9, 13), CLASSES), 3, dtype, name)


@pytest.mark.parametrize("name", parameters())
def test_maps_of_several_channels(name: str) -> None:
    """Several labels at a pixel, and fractions."""
    labels = label_map((2, 9, 13), CLASSES)
    condition = one_hot(labels).float() + 0.25 * one_hot((labels + 1) % CLASSES).float()
    check(condition, 3, torch.float32, name)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("form", ["labels", "vectors"])
def test_spare_rows(form: str, name: str) -> None:
    """Of a capacity: they are finite and add nothing to a gradient."""
    labels = label_map((2, 9, 13), CLASSES)
    check(labels if form == "labels" else one_hot(labels).float(), 3, torch.float32, name, 300)


def test_labels_out_of_range_add_nothing_where_they_are_not_looked_at() -> None:
    labels = label_map((1, 9, 13), CLASSES + 2)
    weights = weights_of(3, torch.float64)
    condition = F.one_hot(labels, CLASSES + 2)[..., :CLASSES].movedim(-1, 1).double()
    expected = convolved(condition, weights)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def mapped(labels: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        windows = torchext.label_windows(labels, capacity=117)
        return torchext.spade_modulation_table(windows, *weights)[windows.index.long()]

    assert_close("y", mapped(labels, *weights).movedim(-1, 1), expected, length=600)


def test_autocast_has_no_part_in_it() -> None:
    windows = torchext.label_windows(label_map((2, 9, 13), CLASSES))
    weights = [w.requires_grad_() for w in weights_of(3, torch.float32)]
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            table = torchext.spade_modulation_table(windows, *weights)
            results.append([table, *torch.autograd.grad(table.square().sum(), weights)])
    assert results[1][0].dtype == torch.float32
    assert all(map(torch.equal, *results))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_map_to_rounding(data: st.DataObject) -> None:
    """Table and convolutions agree to 1e-12 in float64: all alike, random, one pixel, borders."""
    shape = tuple(data.draw(st.integers(1, most)) for most in (3, 19, 23))
    kernel_size = data.draw(st.sampled_from([1, 3, 5]))
    most = data.draw(st.integers(1, CLASSES))
    labels = torch.randint(most, shape, generator=torch.Generator().manual_seed(sum(shape)))
    weights = weights_of(kernel_size, torch.float64)
    windows = torchext.label_windows(labels, kernel_size)
    table = torchext.spade_modulation_table(windows, *weights)
    expected = convolved(one_hot(labels), weights)
    error = (table[windows.index.long()].movedim(-1, 1) - expected).abs().max()
    assert error <= 1e-12 * expected.abs().max()


WINDOWS = torchext.label_windows(torch.full((1, 4, 5), 2))
WEIGHT = torch.zeros(HIDDEN, 3, 3, 3)
SECOND = torch.zeros(4, HIDDEN, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"windows": 3}, TypeError, "windows: expected LabelWindows, got int"),
        (
            {"windows": torchext.label_windows(torch.zeros(1, 2, 2, dtype=torch.int32), levels=1)},
            ValueError,
            "windows: expected 2 levels, got 1",
        ),
        (
            {"weight": WEIGHT[:, :2]},
            ValueError,
            "labels: expected classes from 0 to 1, got 2",
        ),
        (
            {"weight": WEIGHT[..., :1]},
            ValueError,
            "weight: expected the shape (O, K, 3, 3), got (8, 3, 3, 1)",
        ),
        (
            {"modulation_weight": SECOND[:, :2]},
            ValueError,
            "modulation_weight: expected the shape (4, 8, 3, 3), got (4, 2, 3, 3)",
        ),
        ({"bias": torch.zeros(3)}, ValueError, "bias: expected the shape (8,), got (3,)"),
    ],
)
def test_bad_input(arguments: dict, error: type[Exception], message: str) -> None:
    given = {
        "windows": WINDOWS,
        "weight": WEIGHT,
        "bias": None,
        "modulation_weight": SECOND,
        "modulation_bias": None,
    }
    with pytest.raises(error) as raised:
        torchext.spade_modulation_table(**{**given, **arguments})
    assert str(raised.value) == message
