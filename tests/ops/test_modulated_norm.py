"""torchext.modulated_norm against the float64 reference, on every backend."""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.backends import parameters, running
from support.tolerance import assert_close

import torchext
from torchext import backend, reference
from torchext.ops.checks import memory_format
from torchext.ops.modulated_norm import sorted_by

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NAMES = ("x", "gamma", "beta", "weight")


@dataclass(frozen=True)
class Case:
    """One problem; tensors come from `inputs`, seeded by the fields."""

    statistics: str
    maps: str = "element"  # none, element, pixel, channel
    weight: str = "none"
    gain: str = "one_plus"
    activation: str | float | None = None
    unbiased: bool = False
    shape: tuple[int, int, int, int] = (2, 5, 9, 12)
    last: bool = False
    mean: float = 0.0
    running: bool = False  # statistics that are given

    def __str__(self) -> str:
        parts = [self.statistics, self.maps, self.weight, self.gain, self.activation, *self.shape]
        flags = ("unbiased", "last", "mean", "running")
        return "-".join(map(str, parts)) + "".join(f"-{f}" for f in flags if getattr(self, f))


STATISTICS = ("instance", "batch", "position", "rms", "none")
CASES = [
    # every kind of statistics with every kind of map, in both formats
    *(
        Case(statistics, maps, weight, activation=0.2, last=last)
        for statistics in STATISTICS
        for maps, weight in (
            ("none", "none"),
            ("element", "none"),
            ("element", "pixel"),
            ("element", "element"),
            ("pixel", "none"),
            ("pixel", "pixel"),
            ("channel", "none"),
            ("channel", "element"),
        )
        for last in (False, True)
    ),
    # the members of the family
    Case("position", "element", "pixel", activation=0.2, unbiased=True, shape=(1, 8, 16, 16)),
    Case("position", "element", "element", gain="plain", unbiased=True, shape=(1, 8, 16, 16)),
    Case("instance", "element", activation="relu", shape=(1, 3, 40, 33)),
    Case("batch", "element", gain="sigmoid", activation=0.2, running=True),
    Case("batch", "channel", gain="sigmoid", weight="pixel", running=True, last=True),
    Case("instance", "channel", gain="plain", activation="relu"),
    Case("rms", "none", shape=(3, 16, 1, 1)),
    Case("none", "channel", gain="plain", activation=0.2),
    # what is easily got wrong
    *(
        Case(statistics, mean=1e4, shape=(2, 6, 16, 16), last=last)
        for statistics in ("instance", "batch", "position")
        for last in (False, True)
    ),
    *(Case("instance", unbiased=True, last=last) for last in (False, True)),
    Case("batch", unbiased=True, weight="pixel"),
    *(Case(statistics, shape=(0, 4, 6, 6)) for statistics in STATISTICS),
    *(Case(statistics, "pixel", shape=(2, 1, 5, 7)) for statistics in STATISTICS),
    *(Case(statistics, "channel", shape=(6, 3, 1, 1)) for statistics in STATISTICS),
]
# Sizes around the tiles and vectors of the kernels.
LARGE = [
    Case(statistics, weight="pixel", activation=0.2, shape=shape, last=last)
    for statistics in ("instance", "position")
    for shape in ((1, 4, 25, 41), (1, 3, 48, 44), (1, 130, 9, 8), (1, 1300, 4, 4))
    for last in (False, True)
]


def shape_of(case: Case, kind: str) -> tuple[int, ...]:
    N, C, H, W = case.shape
    return {"element": (N, C, H, W), "pixel": (N, 1, H, W), "channel": (N, C)}[kind]


def inputs(case: Case, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    """The tensors of a case that are there; those of x's form in its dtype and format."""
    generator = torch.Generator().manual_seed(len(str(case)) + sum(case.shape))

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if shape == case.shape:
            value = value.to(dtype)
            if case.last:
                value = value.to(memory_format=torch.channels_last)
        else:
            value = value.to(torch.float64 if dtype == torch.float64 else torch.float32)
        return value.to(device)

    data = {"x": normal(case.shape) + case.mean, "grad": normal(case.shape)}
    if case.maps != "none":
        data["gamma"], data["beta"] = (normal(shape_of(case, case.maps)) for _ in range(2))
    if case.weight != "none":
        data["weight"] = normal(shape_of(case, case.weight))
    if case.running:
        C = case.shape[1]
        data["running_mean"] = normal((C,))
        data["running_var"] = normal((C,)).abs() + 0.5
    return data


def evaluate(case: Case, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    leaves = {key: data[key].clone().requires_grad_() for key in NAMES if key in data}
    options = {key: data[key] for key in data if key.startswith("running")}
    y = torchext.modulated_norm(
        **leaves,
        **options,
        statistics=case.statistics,
        gain=case.gain,
        activation=case.activation,
        unbiased=case.unbiased,
        training=not case.running,
    )
    y.backward(data["grad"])
    return {"y": y, **{key: leaf.grad for key, leaf in leaves.items()}}


def expect(case: Case, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same from the reference in float64, for exactly the same input values."""
    leaves = {key: data[key].double().requires_grad_() for key in NAMES if key in data}
    constants = {}
    if case.running:
        constants["mean"] = data["running_mean"].double()[None]
        constants["rstd"] = (data["running_var"].double()[None] + 1e-5).rsqrt()
    slope = {None: 1.0, "relu": 0.0}.get(case.activation, case.activation)
    maps = [leaves.get(key) for key in NAMES]
    options = (case.statistics, case.unbiased, 1e-5, case.gain, slope)
    y, _, _ = reference.modulated_norm(
        *maps, constants.get("mean"), constants.get("rstd"), None, *options
    )
    y.backward(data["grad"].double())
    return {"y": y, **{key: leaf.grad for key, leaf in leaves.items()}}


def check(case: Case, name: str, dtype: torch.dtype) -> None:
    with running(name) as device:
        data = inputs(case, dtype, device)
        got = evaluate(case, data)
    for key in ("y", "x"):
        assert got[key].dtype == dtype
        assert memory_format(got[key]) == memory_format(data["x"])
    N, C, H, W = case.shape
    for key, expected in expect(case, data).items():
        # A gradient that is a sum has the size of the root of its terms' number, at least.
        terms = N * C * H * W // max(expected.numel(), 1)
        scale = max(expected.abs().max().item() if expected.numel() else 0, terms**0.5)
        assert_close(
            f"{case} {key}",
            got[key],
            expected,
            length=max(N, 1) * H * W + C,
            dtype=dtype if dtype == torch.float64 or got[key].shape == case.shape else None,
            condition=1 + abs(case.mean),
            scale=scale,
        )


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32(case: Case, name: str) -> None:
    check(case, name, torch.float32)


@pytest.mark.parametrize("name", parameters("reference", "cpu", "cuda-emulated", "cuda", "triton"))
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_other_dtypes(case: Case, dtype: torch.dtype, name: str) -> None:
    if case.mean and dtype in DTYPES[2:]:
        pytest.skip("a half holds no 1e4 with deviation 1")
    check(case, name, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", parameters("triton-interpreted"))
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_other_dtypes_interpreted(case: Case, dtype: torch.dtype, name: str) -> None:
    test_other_dtypes(case, dtype, name)


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "cuda", "triton"))
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_sizes_around_tiles(case: Case, name: str) -> None:
    check(case, name, torch.float32)


@pytest.mark.parametrize("statistics", ["instance", "batch"])
def test_is_torchs_norm_without_maps(statistics: str) -> None:
    x = torch.randn(3, 4, 10, 8)
    norm = (
        F.instance_norm(x)
        if statistics == "instance"
        else F.batch_norm(x, None, None, training=True)
    )
    assert_close("y", torchext.modulated_norm(x, statistics=statistics), norm.double(), length=240)


@pytest.mark.parametrize("name", parameters())
def test_running_statistics_follow_batch_norm(name: str) -> None:
    x = 3 * torch.randn(3, 4, 6, 5) + torch.arange(4.0).view(1, 4, 1, 1)
    norm = torch.nn.BatchNorm2d(4, affine=False)
    with running(name) as device:
        mean, var = torch.zeros(4, device=device), torch.ones(4, device=device)
        for step in range(3):
            torchext.modulated_norm(
                (x + step).to(device), statistics="batch", running_mean=mean, running_var=var
            )
            norm(x + step)
        y = torchext.modulated_norm(
            x.to(device), statistics="batch", running_mean=mean, running_var=var, training=False
        )
    assert_close("mean", mean, norm.running_mean.double(), length=90)
    assert_close("var", var, norm.running_var.double(), length=90)
    assert_close("y", y, norm.eval()(x).double(), length=90)


@pytest.mark.parametrize("name", parameters())
def test_known_pixels_trust_alone(name: str) -> None:
    """Where the weight is 0, nothing of gamma and beta is left, in y and in the gradients."""
    x, gamma, beta = (torch.randn(1, 4, 8, 8) for _ in range(3))
    weight = torch.ones(1, 1, 8, 8)
    weight[..., 4:] = 0
    with running(name) as device:
        x, gamma, beta, weight = (t.to(device) for t in (x, gamma, beta, weight))
        gamma, beta = gamma.requires_grad_(), beta.requires_grad_()
        y = torchext.modulated_norm(x, gamma, beta, weight=weight, statistics="position")
        plain = torchext.modulated_norm(x, statistics="position")
        y.sum().backward()
    assert torch.equal(y[..., 4:], plain[..., 4:])
    assert not torch.equal(y[..., :4], plain[..., :4])
    assert gamma.grad[..., 4:].abs().max() == 0 == beta.grad[..., 4:].abs().max()


@pytest.mark.parametrize("name", parameters("cpu"))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_shape(name: str, data: st.DataObject) -> None:
    case = Case(
        data.draw(st.sampled_from(STATISTICS)),
        data.draw(st.sampled_from(["none", "element", "pixel", "channel"])),
        # With few values, rounding can decide how large a normalised one is, or its sign.
        shape=(data.draw(st.integers(1, 3)), *(data.draw(st.integers(6, n)) for n in (40, 20, 70))),
        last=data.draw(st.booleans()),
        activation=data.draw(st.sampled_from([None, "relu", 0.2])),
    )
    check(case, name, torch.float32)


ROWS = 7


def table_problem(
    dtype: torch.dtype, device: str, last: bool, shape: tuple = (2, 5, 9, 12)
) -> dict[str, torch.Tensor]:
    """x, rows of gamma and beta, an index in runs, the weight map and the incoming gradient."""
    generator = torch.Generator().manual_seed(5)
    N, C, H, W = shape

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    layout = torch.channels_last if last else torch.contiguous_format
    index = torch.randint(ROWS - 1, (N, H, W // 3 + 1), generator=generator)  # the last of none
    index = index.repeat_interleave(3, dim=2)[:, :, :W].to(torch.int32)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "x": normal(*shape).to(dtype).to(memory_format=layout).to(device),
        "gamma": normal(ROWS, C).to(accumulate).to(device),
        "beta": normal(ROWS, C).to(accumulate).to(device),
        "weight": normal(N, 1, H, W).to(accumulate).to(device),
        "index": index.contiguous().to(device),
        "grad": normal(*shape).to(dtype).to(device),
    }


def evaluate_table(data: dict[str, torch.Tensor], **options: Any) -> list[torch.Tensor]:
    """y and the gradients of x, gamma, beta and weight."""
    leaves = {key: data[key].clone().requires_grad_() for key in NAMES}
    y = torchext.modulated_norm(**leaves, index=data["index"], **options)
    return [y, *torch.autograd.grad(y, list(leaves.values()), data["grad"])]


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("statistics", STATISTICS)
def test_rows_of_a_table(statistics: str, dtype: torch.dtype, last: bool, name: str) -> None:
    if name == "triton-interpreted" and dtype != torch.float32 and statistics != "batch":
        pytest.skip("the interpreter runs one kind of statistics of the other dtypes")
    options = {"statistics": statistics, "activation": 0.2, "gain": "sigmoid"}
    with running(name) as device:
        data = table_problem(dtype, device, last)
        got = evaluate_table(data, **options)
    exact = {k: v.double().cpu() if v.is_floating_point() else v.cpu() for k, v in data.items()}
    with running("reference"):
        expected = evaluate_table(exact, **options)
    assert got[0].dtype == dtype
    assert got[0].stride() == data["x"].stride()
    for key, value, wanted in zip(("y", *NAMES), got, expected, strict=True):
        scale = max(wanted.abs().max().item(), 216**0.5) if key in NAMES[1:] else None
        rounding = dtype if dtype in (torch.float16, torch.bfloat16) else None
        assert_close(key, value, wanted, length=216 * 5, scale=scale, dtype=rounding, condition=10)


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "triton-interpreted", "cuda"))
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_rows_of_a_table_equal_their_maps(last: bool, name: str) -> None:
    """Bit for bit, with sizes that allow wide accesses."""
    with running(name) as device:
        data = table_problem(torch.float32, device, last, (2, 8, 12, 16))
        options = {"statistics": "batch", "activation": "relu"}
        y = torchext.modulated_norm(
            data["x"], data["gamma"], data["beta"], index=data["index"], **options
        )
        layout = torch.channels_last if last else torch.contiguous_format
        maps = [
            data[key][data["index"].long()].permute(0, 3, 1, 2).contiguous(memory_format=layout)
            for key in ("gamma", "beta")
        ]
        assert torch.equal(y, torchext.modulated_norm(data["x"], *maps, **options))


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "triton-interpreted", "cuda"))
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_segmented_sum(last: bool, name: str) -> None:
    """Rows of none, pixels of none, more channels than a block takes."""
    with running(name) as device:
        data = table_problem(torch.float32, device, last, (2, 37, 9, 12))
        index = data["index"].clone()
        index[:, 3] = -1
        ops = backend.choose("segmented_sum", data["x"]).ops
        order = sorted_by(ops, index, ROWS)
        sums = ops.segmented_sum(data["x"], index, *order, ROWS)
    expected = reference.segmented_sum(data["x"].double().cpu(), index.cpu(), None, None, ROWS)
    assert_close("sums", sums, expected, length=216, scale=216**0.5)
    assert not sums[ROWS - 1].any()


X = torch.zeros(2, 3, 4, 5)
INDEX = torch.zeros(2, 4, 5, dtype=torch.int32)
ROW = torch.zeros(6, 3)
MAP = torch.zeros(2, 3, 4, 5)
C3 = torch.zeros(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"x": X.int()},
            TypeError,
            "x: expected float32, float64, float16 or bfloat16, got torch.int32",
        ),
        ({"gamma": MAP}, ValueError, "gamma, beta: expected both or none"),
        ({"index": INDEX}, ValueError, "index: expected gamma and beta with it"),
        (
            {"index": INDEX, "gamma": MAP, "beta": MAP},
            ValueError,
            "gamma: expected the shape (rows, 3), got (2, 3, 4, 5)",
        ),
        (
            {"index": INDEX.long(), "gamma": ROW, "beta": ROW},
            TypeError,
            "index: expected int32, got torch.int64",
        ),
        (
            {"index": INDEX[:1], "gamma": ROW, "beta": ROW},
            ValueError,
            "index: expected the shape (2, 4, 5), got (1, 4, 5)",
        ),
        (
            {"index": INDEX + 6, "gamma": ROW, "beta": ROW},
            ValueError,
            "index: expected 0 to 5, got 6",
        ),
        (
            {"index": INDEX - 1, "gamma": ROW, "beta": ROW},
            ValueError,
            "index: expected 0 to 5, got -1",
        ),
        ({"weight": MAP}, ValueError, "weight: expected gamma and beta with it"),
        (
            {"gamma": MAP[:1], "beta": MAP[:1]},
            ValueError,
            "gamma: expected the shape (2, 3, 4, 5) or (2, 1, 4, 5) or (2, 3), got (1, 3, 4, 5)",
        ),
        (
            {"gamma": MAP, "beta": MAP[:, :1]},
            ValueError,
            "beta: expected the shape (2, 3, 4, 5), got (2, 1, 4, 5)",
        ),
        (
            {"gamma": MAP.int(), "beta": MAP},
            TypeError,
            "gamma: expected a floating-point tensor, got torch.int32",
        ),
        (
            {"gamma": MAP, "beta": MAP, "weight": MAP[..., 0, 0]},
            ValueError,
            "weight: expected the shape (2, 3, 4, 5) or (2, 1, 4, 5), got (2, 3)",
        ),
        (
            {"gamma": MAP.to("meta"), "beta": MAP},
            ValueError,
            "gamma: expected the device of x, cpu, got meta",
        ),
        (
            {"statistics": "layer"},
            ValueError,
            "statistics: expected one of ['batch', 'instance', 'none', 'position', 'rms'],"
            " got 'layer'",
        ),
        (
            {"gain": "two"},
            ValueError,
            "gain: expected one of ['one_plus', 'plain', 'sigmoid'], got 'two'",
        ),
        ({"eps": 0.0}, ValueError, "eps: expected a positive finite number, got 0.0"),
        (
            {"activation": "gelu"},
            TypeError,
            "activation: expected None, 'relu' or a slope, got 'gelu'",
        ),
        ({"activation": -0.1}, ValueError, "activation: expected a slope from 0 to 1, got -0.1"),
        ({"unbiased": 1}, TypeError, "unbiased: expected a bool, got int"),
        (
            {"unbiased": True, "statistics": "rms"},
            ValueError,
            "unbiased: expected False for the statistics 'rms'",
        ),
        (
            {"x": X[:, :1], "unbiased": True, "statistics": "position"},
            ValueError,
            "x: expected more than one value for unbiased statistics 'position', got (2, 1, 4, 5)",
        ),
        (
            {"running_mean": C3},
            ValueError,
            "running_mean, running_var: expected both or none",
        ),
        (
            {"running_mean": C3, "running_var": C3},
            ValueError,
            "running_mean: expected statistics 'batch' with it, got 'instance'",
        ),
        (
            {"running_mean": C3[:2], "running_var": C3, "statistics": "batch"},
            ValueError,
            "running_mean: expected the shape (3,), got (2,)",
        ),
        (
            {"training": False, "statistics": "batch"},
            ValueError,
            "training: expected running_mean and running_var with False",
        ),
        (
            {"running_mean": C3, "running_var": C3, "statistics": "batch", "momentum": 2.0},
            ValueError,
            "momentum: expected 0 to 1, got 2.0",
        ),
    ],
)
def test_bad_input(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        torchext.modulated_norm(**{"x": X, **arguments})
    assert str(raised.value) == message


def test_every_combination_agrees_with_the_reference() -> None:
    """All 5 x 4 x 3 x 3 x 2 forms on the CPU, in float64."""
    for statistics, maps, weight, gain, last in itertools.product(
        STATISTICS, ("element", "pixel", "channel"), ("none", "pixel", "element"),
        ("one_plus", "plain", "sigmoid"), (False, True),
    ):  # fmt: skip
        check(Case(statistics, maps, weight, gain, 0.2, shape=(2, 3, 5, 7), last=last), "cpu",
              torch.float64)  # fmt: skip
