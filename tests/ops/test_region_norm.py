"""torchext.region_norm and region_statistics against the float64 reference, on every backend."""

import itertools

import pytest
import torch
from support.backends import parameters, running
from support.regions import CASES, LARGE_CASES, Case, formula, inputs
from support.tolerance import assert_close

import torchext
from torchext import backend, reference
from torchext.ops.checks import memory_format

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
AFFINE = ("weight", "bias", "spatial_weight", "spatial_bias")


def labels_of(case: Case, data: dict) -> torch.Tensor:
    H, W = case.shape[2:]
    return reference.region_labels(data["mask"], H, W, case.num_regions, True)


def evaluate(case: Case, data: dict) -> dict[str, torch.Tensor]:
    """Output and gradients of torchext.region_norm on the forced backend."""
    x = data["x"].clone().requires_grad_()
    affine = {k: data[k].clone().requires_grad_() for k in AFFINE if data[k] is not None}
    y = torchext.region_norm(x, data["mask"], **affine, **case.options())
    y.backward(data["grad"])
    return {"y": y, "x": x.grad, **{key: value.grad for key, value in affine.items()}}


def expect(case: Case, data: dict) -> dict[str, torch.Tensor]:
    """The same from the reference in float64, for exactly the same input values."""
    x = data["x"].double().requires_grad_()
    affine = [None if data[k] is None else data[k].double().requires_grad_() for k in AFFINE]
    y = reference.region_norm(x, labels_of(case, data), *affine, *case.reference_options())[0]
    y.backward(data["grad"].double())
    gradients = {k: v.grad for k, v in zip(AFFINE, affine, strict=True) if v is not None}
    return {"y": y, "x": x.grad, **gradients}


def compare(case: Case, got: dict, expected: dict, dtype: torch.dtype) -> None:
    N, C, H, W = case.shape
    for key, value in got.items():
        length = C if key.startswith("spatial") else max(N, 1) * H * W
        # A half input's parameters are float32, but their gradients see the rounded half result.
        rounding = torch.float32 if key in AFFINE and dtype != torch.float64 else dtype
        assert_close(
            f"{case.name} {key}",
            value,
            expected[key],
            length=length,
            dtype=rounding,
            condition=1 + abs(case.mean),
        )


def check(case: Case, name: str, dtype: torch.dtype) -> None:
    with running(name) as device:
        data = inputs(case, dtype, device)
        got = evaluate(case, data)
    assert got["y"].dtype == got["x"].dtype == dtype
    assert memory_format(got["y"]) == memory_format(got["x"]) == memory_format(data["x"])
    compare(case, got, expect(case, data), dtype)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float32(case: Case, name: str) -> None:
    check(case, name, torch.float32)


@pytest.mark.parametrize("name", parameters("reference", "cpu", "cuda-emulated", "cuda", "triton"))
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_other_dtypes(case: Case, dtype: torch.dtype, name: str) -> None:
    if case.mean and dtype in DTYPES[2:]:
        case = Case(**{**case.__dict__, "mean": 8.0})  # a half holds no 1e4 with deviation 1
    check(case, name, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", parameters("triton-interpreted"))
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_other_dtypes_interpreted(case: Case, dtype: torch.dtype, name: str) -> None:
    test_other_dtypes(case, dtype, name)


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "cuda", "triton"))
@pytest.mark.parametrize("case", LARGE_CASES, ids=lambda case: case.name)
def test_sizes_around_tiles(case: Case, name: str) -> None:
    check(case, name, torch.float32)


@pytest.mark.parametrize(
    "case",
    [
        Case("aligned", (1, 9, 512, 512), affine="region"),
        Case("not aligned", (2, 5, 501, 503), affine="region"),
        Case("spatial", (1, 9, 512, 512), affine="spatial", scope="instance"),
    ],
    ids=lambda case: case.name,
)
@pytest.mark.parametrize("name", parameters("cpu"))
def test_larger_than_the_cache(case: Case, name: str) -> None:
    check(case, name, torch.float32)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("case", CASES[::5], ids=lambda case: case.name)
def test_statistics(case: Case, name: str) -> None:
    with running(name) as device:
        data = inputs(case, torch.float32, device)
        options = case.options()
        del options["eps_form"]
        got = torchext.region_statistics(data["x"], data["mask"], **options)
    num_regions, per_instance, *_, ignore_holes = case.reference_options()
    expected = reference.region_statistics(
        data["x"].double(), labels_of(case, data), num_regions, per_instance, ignore_holes
    )
    assert torch.equal(got[0].cpu(), expected[0].cpu())
    length = data["x"].numel()
    for key, g, e in zip(("mean", "variance"), got[1:], expected[1:], strict=True):
        assert_close(key, g, e, length=length, condition=1 + abs(case.mean))


@pytest.mark.parametrize("name", parameters())
def test_regions_of_very_different_mean(name: str) -> None:
    """|mean| = 1e4 deviations in one region must not cost the other, or itself, its variance."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 40, 40, generator=generator)
    mask = torch.ones(2, 1, 40, 40)
    mask[:, :, :13] = 0
    x[:, :, :13] += 1e4
    x[0, :, 0, 0] = -1e4  # the first value met is an outlier
    with running(name) as device:
        y = torchext.region_norm(x.to(device), mask.to(device)).cpu()
    expected = formula(x.double(), mask)
    known = mask.bool().expand_as(x)
    assert_close("known", y[known], expected[known], length=2 * 40 * 40, dtype=torch.float32)
    holes = (y[~known], expected[~known])
    assert_close("holes", *holes, length=2 * 13 * 40, dtype=torch.float32, condition=30)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("channels_last", [False, True])
def test_nan_in_ignored_holes(name: str, channels_last: bool) -> None:
    case = Case("nan", (2, 4, 12, 16), affine="region", ignore_holes=True)
    with running(name) as device:
        data = inputs(case, torch.float32, device)
        hole = (data["mask"] == 0).expand_as(data["x"])
        clean = evaluate(case, data)
        for key in ("x", "grad"):
            data[key] = torch.where(hole, float("nan"), data[key])
            if channels_last:
                data[key] = data[key].to(memory_format=torch.channels_last)
        got = evaluate(case, data)
    for key, value in got.items():
        assert_close(key, value, clean[key].double(), length=1000)
    assert (got["y"][hole] == 0).all()
    assert (got["x"][hole] == 0).all()


@pytest.mark.parametrize("name", parameters())
def test_nan_stays_in_its_region_and_channel(name: str) -> None:
    case = Case("nan_region", (1, 3, 12, 16))
    with running(name) as device:
        data = inputs(case, torch.float32, device)
        known = data["mask"].bool()[0, 0]
        row, column = known.nonzero()[0]
        data["x"][0, 1, row, column] = float("nan")
        y = torchext.region_norm(data["x"], data["mask"])
    assert y[0, 1][known].isnan().all()
    assert not y[0, 1][~known].isnan().any()
    assert not y[0, [0, 2]].isnan().any()


@pytest.mark.parametrize("name", parameters())
def test_one_pixel_region_is_exact(name: str) -> None:
    case = Case("one", (1, 4, 12, 12), pattern="one_pixel", affine="region")
    with running(name) as device:
        data = inputs(case, torch.float32, device)
        got = evaluate(case, data)
    assert torch.equal(got["y"][0, :, 6, 6].detach(), data["bias"][0])
    assert (got["x"][0, :, 6, 6] == 0).all()


@pytest.mark.parametrize("name", parameters())
def test_half_overflow(name: str) -> None:
    """Sums beyond float16's range must not give NaN: statistics are float32."""
    x = torch.full((1, 2, 16, 16), 6e4, dtype=torch.float16)
    x[..., ::2] = -6e4
    mask = torch.ones(1, 1, 16, 16)
    with running(name) as device:
        y = torchext.region_norm(x.to(device), mask.to(device))
    assert_close("y", y, x.double().sign(), length=256)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64]
)
@pytest.mark.parametrize("size", [(8, 12), (16, 24), (48, 7), (5, 40)], ids=str)
def test_mask_dtypes_and_resize(name: str, dtype: torch.dtype, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 8, 12, generator=generator)
    mask = (torch.rand(2, 1, *size, generator=generator) > 0.4).to(dtype)
    nearest = torch.nn.functional.interpolate(mask.float(), (8, 12), mode="nearest")
    with running(name) as device:
        y = torchext.region_norm(x.to(device), mask.to(device), resize_mask=True)
    expected = formula(x.double(), nearest)
    assert_close("y", y, expected, length=2 * 8 * 12)


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "triton-interpreted", "cuda"))
def test_other_strides_are_made_contiguous(name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    whole = torch.randn(2, 6, 20, 24, generator=generator)
    mask = torch.rand(2, 1, 20, 24, generator=generator) > 0.5
    views = [whole[:, ::2], whole[..., ::3], whole.transpose(2, 3), whole[:, :, 1:, :-1]]
    with running(name) as device:
        for view in views:
            own = (
                mask.transpose(2, 3)
                if view.shape[2] == 24
                else mask[..., : view.shape[2], :][..., : view.shape[3]]
            )
            y = torchext.region_norm(view.to(device), own.to(device))
            expected = formula(view.double(), own)
            assert_close("y", y, expected, length=1000)


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated"))
def test_expanded_mask_channels(name: str) -> None:
    x = torch.randn(2, 3, 6, 6)
    mask = torch.rand(2, 1, 6, 6) > 0.5
    with running(name):
        expanded = torchext.region_norm(x, mask.expand(2, 3, 6, 6))
        assert torch.equal(expanded, torchext.region_norm(x, mask))


@pytest.mark.parametrize("level", ["portable", "avx2", "avx512"])
def test_simd_levels(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = ["portable", "avx2", "avx512"]
    highest = torchext.build_info().get("simd_highest", "portable")
    if levels.index(level) > levels.index(highest):
        pytest.skip(f"this processor's highest level is {highest}")
    monkeypatch.setenv("TORCHEXT_SIMD", level)
    assert torchext.build_info()["simd"] == level
    for case, dtype in itertools.product(CASES + LARGE_CASES, DTYPES):
        if not (case.mean and dtype in DTYPES[2:]):
            check(case, "cpu", dtype)


@pytest.mark.parametrize("case", CASES[1::4] + LARGE_CASES, ids=lambda case: case.name)
def test_independent_of_threads(case: Case) -> None:
    data = inputs(case, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with running("cpu"):
                results.append(evaluate(case, data))
    finally:
        torch.set_num_threads(threads)
    for key, value in results[0].items():
        assert all(torch.equal(value, other[key]) for other in results[1:]), key


GRADIENT_CASES = [
    Case("g_batch", (2, 2, 4, 5), affine="region"),
    Case("g_instance", (2, 2, 3, 4), scope="instance", affine="spatial"),
    Case("g_labels", (2, 2, 4, 4), pattern="labels", num_regions=4, affine="region"),
    Case("g_ignore", (1, 2, 4, 5), ignore_holes=True, affine="region", eps_form="plain"),
    Case("g_last", (2, 2, 3, 4), affine="spatial", channels_last=True),
    Case("g_one", (1, 2, 4, 4), pattern="one_pixel"),
]


def test_first_gradient_is_the_same_with_create_graph() -> None:
    """Differentiating twice goes through the reference: both routes must agree."""
    case = Case("twice", (2, 4, 9, 9), affine="region")
    data = inputs(case, torch.float32)
    x = data["x"].requires_grad_()
    y = torchext.region_norm(x, data["mask"], data["weight"], data["bias"])
    (once,) = torch.autograd.grad(y, x, data["grad"], retain_graph=True)
    (twice,) = torch.autograd.grad(y, x, data["grad"], create_graph=True)
    assert twice.requires_grad
    assert_close("x", once, twice.double(), length=200)


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "cuda", "triton"))
def test_autocast(name: str) -> None:
    """A norm takes the halves in and gives them out; statistics stay float32."""
    with running(name) as device:
        x = torch.randn(2, 8, 16, 16, device=device)
        mask = torch.rand(2, 1, 16, 16, device=device) > 0.3
        convolution = torch.nn.Conv2d(8, 8, 3, device=device, padding=1)
        layer = torchext.nn.RegionNorm2d(8, device=device)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast(device, dtype=dtype):
                h = convolution(x)
                y = layer(h, mask)
            assert h.dtype == y.dtype == dtype
            expected = formula(h.double(), mask)
            assert_close("y", y, expected, length=512)
            y.float().square().sum().backward()
            assert layer.weight.grad.dtype == torch.float32


def test_value_checks_can_be_asked_for_on_any_device() -> None:
    x = torch.zeros(1, 1, 2, 2)
    assert backend.checks_values(x)
    meta = x.to("meta")
    assert not backend.checks_values(meta)
    with backend.check_values():
        assert backend.checks_values(meta)
    assert not backend.checks_values(meta)
