"""torchext.oriented_filter_statistics against the float64 reference; its banks and band pass."""

import importlib
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.backends import emulator, parameters, running
from support.tolerance import assert_close, tolerance

import torchext
from torchext import reference

KERNELS = ("cpu", "cuda-emulated", "triton-interpreted", "cuda", "triton")
CONFIDENCES = ("variance", "spread")


def bank_of(kind: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Banks of every symmetry: published, few and small are the square's, even is even.

    monohair is the square's about the corner of a pixel, but for its first row and column.
    """
    if kind == "published":
        return torchext.gabor_kernel_bank(dtype=dtype)
    if kind == "monohair":
        return torchext.gabor_kernel_bank(20, definition="monohair", size=9, dtype=dtype)
    if kind == "small":  # of rectangles that differ
        return torchext.gabor_kernel_bank(28, sigma_x=0.6, sigma_y=1.3, dtype=dtype)
    if kind == "few":
        return torchext.gabor_bank(4, 3, dtype=dtype)
    if kind == "even":
        return torchext.gabor_bank(19, 7, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    shape = {"plain": (21, 5, 5), "one": (1, 3, 3), "pixel": (3, 1, 1)}[kind]
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def image_of(shape: tuple, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (255 * torch.rand(shape, generator=generator, dtype=torch.float64) - 128).to(dtype)


def angles_of(kind: str | None, count: int) -> torch.Tensor | None:
    if kind is None:
        return None
    exact = torch.arange(count, dtype=torch.float64)
    if kind == "half":  # NeuralHaircut's
        return (exact / count).half() * torch.tensor(math.pi).half()
    return torch.deg2rad(exact * 255 / count)  # Im2Haircut's


def bordered(image: torch.Tensor, width: int, border: str) -> torch.Tensor:
    """As numpy pads, and so scipy's "wrap"."""
    import numpy as np

    mode = {"zero": "constant", "wrap": "wrap", "reflect": "reflect"}[border]
    pairs = ((0, 0), (0, 0), (width, width), (width, width))
    return torch.from_numpy(np.pad(image.numpy(), pairs, mode=mode))


def statistics(
    image: torch.Tensor,
    bank: torch.Tensor,
    angles: torch.Tensor | None,
    index: torch.Tensor,
    confidence: str,
    eps: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Strength and confidence for a given index, written as the projects do; with its border."""
    responses = torch.nn.functional.conv2d(image, bank[:, None]).abs()
    filters = torch.arange(len(bank), dtype=torch.float64) * (math.pi / len(bank))
    table = filters if angles is None else angles.double()
    best = table[index.long()]
    apart = filters[:, None, None] - best
    distance = torch.stack([(apart + shift * math.pi).abs() for shift in (-1, 0, 1)]).amin(0)
    strength = responses.gather(1, index.long())
    if confidence == "spread":
        below = (responses - responses.amax(1, keepdim=True)).square()
        return strength, (distance * below).sum(1, keepdim=True).sqrt()
    total = responses.sum(1, keepdim=True).clamp(min=eps)
    return strength, (distance.square() * responses / total).sum(1, keepdim=True)


def check_against_reference(
    bank: torch.Tensor,
    image: torch.Tensor,
    name: str,
    confidence: str = "variance",
    border: str = "zero",
    angles: str | None = None,
) -> None:
    """Index, strength, confidence and both gradients of one backend."""
    table = angles_of(angles, len(bank))
    image64, bank64 = image.double(), bank.double()
    framed = bordered(image64, bank.shape[-1] // 2, border)
    responses = torch.nn.functional.conv2d(framed, bank64[:, None]).abs()
    expected, best = responses.max(dim=1, keepdim=True)
    taps, dtype = bank[0].numel(), bank.dtype
    scale = expected.max().item() if image.numel() else 1.0
    limit = 2 * tolerance(dtype, taps, scale)
    second = responses.topk(min(2, len(bank)), dim=1).values[:, -1:]
    unclear = (expected - second <= limit) if len(bank) > 1 else torch.zeros_like(best).bool()
    # rounding may choose there, and choose the way of a gradient
    cotangents = [torch.randn(image.shape).to(dtype) * ~unclear for _ in range(2)]

    def run(device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaf = image.to(device, dtype, copy=True).requires_grad_()
        filters = bank.to(device, dtype, copy=True).requires_grad_()
        outputs = torchext.oriented_filter_statistics(
            leaf, filters, confidence=confidence, border=border,
            angles=None if table is None else table.to(device),
        )  # fmt: skip
        (outputs[1] * cotangents[0].to(leaf) + outputs[2] * cotangents[1].to(leaf)).sum().backward()
        return *outputs, leaf.grad, filters.grad

    with running(name) as device:
        index, strength, measured, *gradients = run(device, dtype)
    assert index.dtype == torch.int32
    assert strength.dtype == measured.dtype == dtype
    assert index.shape == strength.shape == measured.shape == image.shape
    if not image.numel():
        assert not gradients[1].any()
        return
    index = index.cpu()
    assert (expected - responses.gather(1, index.long())).max().item() <= limit
    assert torch.equal(index[~unclear].long(), best[~unclear])
    if taps > 1 and image.numel() > 100:
        assert unclear.double().mean() < 0.1
    strength64, measured64 = statistics(framed, bank64, table, index, confidence)
    assert_close("strength", strength, strength64, length=taps, scale=scale)
    # of sums over all filters
    assert_close(confidence, measured, measured64, length=taps * len(bank), dtype=dtype)
    with running("reference"):
        *_, of_image, of_bank = run("cpu", torch.float64)
    length = taps * len(bank)
    assert_close("image", gradients[0], of_image, length=length, dtype=dtype)
    assert_close("bank", gradients[1], of_bank, length=length * image.numel(), dtype=dtype)


SHAPES = [(2, 1, 19, 37), (1, 1, 70, 33), (3, 1, 1, 5), (1, 1, 40, 1), (1, 1, 1, 1), (0, 1, 6, 6)]
CASES = [
    ("published", (1, 1, 15, 30)),
    *[(kind, SHAPES[0]) for kind in ("monohair", "few", "even", "plain", "one")],
    *[("small", shape) for shape in SHAPES],
    *[("pixel", SHAPES[0]), ("plain", SHAPES[1]), ("plain", SHAPES[4]), ("plain", SHAPES[5])],
]


def skip_slow(kind: str, name: str) -> None:
    if name == "triton-interpreted" and kind == "published":
        pytest.skip("the interpreter takes a minute for 180 filters")


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("kind, shape", CASES, ids=str)
def test_forward_and_backward(kind: str, shape: tuple, confidence: str, name: str) -> None:
    skip_slow(kind, name)
    check_against_reference(bank_of(kind), image_of(shape), name, confidence)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["published", "small", "plain"])
def test_other_dtypes(kind: str, dtype: torch.dtype, name: str) -> None:
    skip_slow(kind, name)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    bank = bank_of(kind, accumulate)
    image = image_of((1, 1, 18, 21), dtype)
    if dtype in (torch.float16, torch.bfloat16):  # the image's gradient is rounded to its dtype
        with running(name) as device:
            index, strength, measured = torchext.oriented_filter_statistics(
                image.to(device), bank.to(device)
            )
            same = torchext.oriented_filter_statistics(image.float().to(device), bank.to(device))
            leaf = image.to(device).requires_grad_()
            torchext.oriented_filter_statistics(leaf, bank.to(device))[1].sum().backward()
        assert leaf.grad.dtype == dtype
        assert all(
            torch.equal(a, b) for a, b in zip((index, strength, measured), same, strict=True)
        )
    else:
        check_against_reference(bank, image, name)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("border", ["zero", "wrap", "reflect"])
@pytest.mark.parametrize("angles", [None, "half", "wrong"])
def test_borders_and_angles(border: str, angles: str | None, name: str) -> None:
    for shape in ((1, 1, 11, 13), (1, 1, 3, 2), (1, 1, 1, 4)):  # also smaller than a filter
        check_against_reference(bank_of("small"), image_of(shape), name, "variance", border, angles)
    check_against_reference(
        bank_of("small"), image_of((1, 1, 9, 8)), name, "spread", border, angles
    )


@pytest.mark.parametrize("level", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize(
    "kind", ["published", "monohair", "small", "few", "even", "plain", "pixel"]
)
def test_simd_levels(
    kind: str, confidence: str, dtype: torch.dtype, level: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TORCHEXT_SIMD", level)
    image = image_of((2, 1, 21, 40), dtype)
    check_against_reference(bank_of(kind, dtype), image, "cpu", confidence)


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "cuda"))
@pytest.mark.parametrize("place", [(0, 0, 2), (9, 4, 4), (27, 2, 3), (7, 4, 8)], ids=str)
def test_a_bank_that_is_nearly_symmetric_is_taken_as_it_is(place: tuple, name: str) -> None:
    """Also where a tap is not 0 outside its filter's rectangle alone."""
    bank = torchext.gabor_kernel_bank(28, sigma_x=1.0, sigma_y=1.3)
    symmetric = bank.double().clone()
    bank[place] += 0.001
    image = image_of((1, 1, 24, 40))
    check_against_reference(bank, image, name)
    apart = reference.filter_responses(image.double(), symmetric)
    apart -= reference.filter_responses(image.double(), bank.double())
    assert apart.abs().max() > 0.1  # so the check above would have failed


@pytest.mark.parametrize("name", parameters())
def test_zero_responses(name: str) -> None:
    """Black: index 0, a variance of NaN or, with eps, 0; a spread of 0 and no gradient."""
    bank = bank_of("small")
    image = image_of((1, 1, 12, 30))
    image[..., 15:] = 0
    black = (..., slice(15 + bank.shape[-1] // 2, None))
    with running(name) as device:
        leaf, filters = image.to(device).requires_grad_(), bank.to(device)
        index, strength, variance = torchext.oriented_filter_statistics(leaf, filters)
        _, _, sure = torchext.oriented_filter_statistics(leaf, filters, eps=1e-12)
        _, _, spread = torchext.oriented_filter_statistics(leaf, filters, confidence="spread")
        assert not index[black].any()
        assert not strength[black].any()
        assert variance[black].isnan().all()
        assert not variance[..., :15].isnan().any()
        assert torch.equal(sure[..., :15], variance[..., :15])
        assert not sure[black].any()
        assert not spread[black].any()
        (spread.sum() + variance[..., :15].sum()).backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.any()


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("kind", ["small", "even", "plain"])
def test_nan_stays_in_its_windows(kind: str, name: str) -> None:
    bank = bank_of(kind)
    image = image_of((2, 1, 20, 40))
    image[0, 0, 9, 30] = float("nan")
    with running(name) as device:
        index, strength, variance = torchext.oriented_filter_statistics(
            image.to(device), bank.to(device)
        )
    expected = torch.zeros(image.shape, dtype=torch.bool)
    half = bank.shape[-1] // 2
    expected[0, 0, 9 - half : 10 + half, 30 - half : 31 + half] = True
    surely = torch.zeros_like(expected)  # corners may have no weight
    surely[0, 0, 9 - half : 10 + half, 30] = True
    for values in (strength, variance):
        assert not values.cpu().isnan()[~expected].any()
        assert values.cpu().isnan()[surely].all()
    assert not index.cpu()[surely].any()


@pytest.mark.parametrize("name", parameters())
def test_first_of_equals(name: str) -> None:
    """The same round filter again and again: index 0, no spread, the variance of even weights."""
    offsets = (torch.arange(5) - 2).float()
    filter_ = torch.exp(-0.25 * (offsets[:, None] ** 2 + offsets**2))
    with running(name) as device:
        for count in (32, 7):
            bank = filter_.repeat(count, 1, 1).to(device)
            image = image_of((1, 1, 20, 34)).to(device)
            index, _, spread = torchext.oriented_filter_statistics(image, bank, confidence="spread")
            variance = torchext.oriented_filter_statistics(image, bank)[2]
            assert not index.any()
            assert not spread.any()
            steps = torch.arange(count, dtype=torch.float64)
            distance = torch.minimum(steps, count - steps) * (math.pi / count)
            expected = distance.square().mean().expand(image.shape)
            assert_close("variance", variance, expected, length=25 * count)


@pytest.mark.parametrize("name", parameters("cpu"))
def test_backward_in_bands(name: str, monkeypatch: Any) -> None:
    """Many rows at a time, or one: the same gradients."""
    module = importlib.import_module("torchext.ops.gabor_orientation")  # not its function
    gradients = []
    for responses in (1 << 22, 1, 28 * 33 * 4):
        monkeypatch.setattr(module, "_RESPONSES", responses)
        image = image_of((2, 1, 21, 33), torch.float64).requires_grad_()
        bank = bank_of("small", torch.float64).requires_grad_()
        with running(name):
            _, strength, variance = torchext.oriented_filter_statistics(image, bank)
            (strength.square().sum() + variance.square().sum()).backward()
        gradients.append((image.grad, bank.grad))
    for values in zip(*gradients, strict=True):
        for other in values[1:]:
            assert torch.allclose(values[0], other, rtol=1e-10, atol=1e-10)


def test_compile_and_functorch() -> None:
    bank = bank_of("small")

    def function(image: torch.Tensor) -> torch.Tensor:
        _, strength, variance = torchext.oriented_filter_statistics(image, bank, border="wrap")
        return (strength * variance).sum()

    image = image_of((1, 1, 12, 14))
    expected = torch.func.grad(function)(image)
    leaf = image.clone().requires_grad_()
    torch.compile(function, fullgraph=True, backend="aot_eager")(leaf).backward()
    assert torch.allclose(leaf.grad, expected, rtol=1e-5, atol=1e-6)
    images = image_of((3, 1, 1, 12, 14))
    each = torch.func.vmap(function)(images)
    assert torch.allclose(each, torch.stack([function(one) for one in images]))


@pytest.mark.parametrize("name", parameters("cuda-emulated"))
@pytest.mark.parametrize("kibibytes", [64, 227])
def test_shared_memory_of_any_device(kibibytes: int, name: str) -> None:
    with emulator().shared_memory(kibibytes):
        for dtype, size in ((torch.float32, 43), (torch.float64, 17)):
            bank = torchext.gabor_bank(8, size, dtype=dtype)
            check_against_reference(bank, image_of((1, 1, 9, 40), dtype), name)


def test_threads_and_place_do_not_change_a_bit() -> None:
    image, bank = image_of((1, 1, 90, 101)), bank_of("small")
    threads = torch.get_num_threads()
    expected = torchext.oriented_filter_statistics(image, bank)
    try:
        torch.set_num_threads(1)
        single = torchext.oriented_filter_statistics(image, bank)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(single, expected, strict=True))
    part = torchext.oriented_filter_statistics(image[:, :, 13:, 7:], bank)
    inner = (..., slice(8, None), slice(8, None))
    for a, b in zip(part, expected, strict=True):
        assert torch.equal(a[inner], b[..., 21:, 15:])


def test_ops_called_directly_check_what_memory_safety_needs() -> None:
    ops = torch.ops.torchext
    image, bank, positions = image_of((1, 1, 12, 12)), bank_of("plain"), torch.arange(21.0)
    refused = (ValueError, RuntimeError)  # a RuntimeError from torch 2.15 on
    with pytest.raises(refused, match="image: expected at least the filters' size"):
        ops.oriented_filter_statistics(image[..., :4].contiguous(), bank, positions, False, 0.0)
    with pytest.raises(refused, match="positions: expected"):
        ops.oriented_filter_statistics(image, bank, positions[:5], False, 0.0)
    with pytest.raises(refused, match="bank: expected"):
        ops.oriented_filter_statistics(image, bank.double(), positions, False, 0.0)


# --- banks and the band pass --------------------------------------------------------------------


def test_filters_are_scikit_images() -> None:
    skimage = pytest.importorskip("skimage.filters")
    bank = torchext.gabor_kernel_bank(
        36, frequency=0.15, sigma_x=2.5, sigma_y=4.0, phase=0.3, dtype=torch.float64
    )
    assert bank.shape == (36, 25, 25)
    for i, kernel in enumerate(bank):
        expected = skimage.gabor_kernel(
            0.15, theta=math.pi - i * math.pi / 36, sigma_x=2.5, sigma_y=4.0, offset=0.3
        ).real
        rows, columns = (25 - size for size in expected.shape)
        inner = kernel[rows // 2 : 25 - rows // 2, columns // 2 : 25 - columns // 2]
        assert torch.allclose(inner, torch.from_numpy(expected), atol=1e-15)
        assert kernel.count_nonzero() <= expected.size
    by_bandwidth = torchext.gabor_kernel_bank(
        1, frequency=0.2, sigma_x=None, sigma_y=None, bandwidth=1.5, stds=2, dtype=torch.float64
    )
    expected = skimage.gabor_kernel(0.2, theta=math.pi, bandwidth=1.5, n_stds=2).real
    assert torch.allclose(by_bandwidth[0], torch.from_numpy(expected), atol=1e-15)


def test_monohairs_filters() -> None:
    bank = torchext.gabor_kernel_bank(definition="monohair", dtype=torch.float64)
    assert bank.shape == (180, 17, 17)
    for k, row, column in ((0, 0, 0), (37, 3, 16), (120, 9, 2)):
        t, r, q = math.pi * k / 180, row - 8.5, column - 8.5
        u, v = r * math.cos(t) + q * math.sin(t), q * math.cos(t) - r * math.sin(t)
        expected = math.exp(-(u * u / 1.8**2 + v * v / 2.4**2) / 2) * math.cos(math.pi / 2 * u)
        assert bank[k, row, column].item() == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("definition, turned", [("scikit-image", 90), ("monohair", 0)])
def test_gratings_give_their_angle(definition: str, turned: int) -> None:
    row, column = torch.arange(64.0, dtype=torch.float64).expand(2, 64)
    bank = torchext.gabor_kernel_bank(definition=definition, dtype=torch.float64)
    for degrees in range(0, 180, 15):
        angle = math.radians(degrees)  # of the lines, counter-clockwise from horizontal
        across = row[:, None] * math.cos(angle) + column * math.sin(angle)
        image = (2 * math.pi * 0.25 * across + 0.123).sin()[None, None]
        index, strength, _ = torchext.oriented_filter_statistics(image, bank)
        off = (index - degrees - turned + 90) % 180 - 90
        clear = strength > strength.max() / 2  # on the lines, not between them
        clear[..., :12, :] = clear[..., -12:, :] = clear[..., :12] = clear[..., -12:] = False
        assert clear.sum() > 500
        assert off[clear].abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_difference_of_gaussians_is_scikit_images(dtype: torch.dtype) -> None:
    skimage = pytest.importorskip("skimage.filters")
    image = (image_of((2, 3, 150, 41), torch.float64) + 128).to(dtype)
    got = torchext.difference_of_gaussians(image)
    assert got.dtype == (torch.float64 if dtype == torch.uint8 else dtype)
    for n in range(2):
        for c in range(3):
            expected = skimage.difference_of_gaussians(image[n, c].numpy(), 0.4, 10)
            limit = 1e-12 if dtype != torch.float32 else 5e-5
            assert (got[n, c] - torch.from_numpy(expected)).abs().max() < limit


def test_difference_of_gaussians_has_gradients() -> None:
    image = image_of((1, 2, 5, 7), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda image: torchext.difference_of_gaussians(image, 0.5, 2), (image,)
    )


# --- bad input ----------------------------------------------------------------------------------

IMAGE = torch.zeros(2, 1, 8, 6)
BANK = torch.zeros(4, 3, 3)
STATISTICS = torchext.oriented_filter_statistics
BAD: list[tuple[Any, tuple, dict[str, Any], type[Exception], str]] = [
    (STATISTICS, ([1.0], BANK), {}, TypeError, "image: expected a torch.Tensor, got list"),
    (
        STATISTICS,
        (IMAGE.expand(2, 3, 8, 6), BANK),
        {},
        ValueError,
        "image: expected the shape (N, 1, H, W), got (2, 3, 8, 6)",
    ),
    (
        STATISTICS,
        (IMAGE, BANK[:, :2, :2]),
        {},
        ValueError,
        "bank: expected the shape (K, k, k) or (K, 1, k, k) with K at most 1024 and k odd and at"
        " most 63, got (4, 2, 2)",
    ),
    (
        STATISTICS,
        (IMAGE, BANK),
        {"confidence": "deviation"},
        ValueError,
        "confidence: expected one of ['spread', 'variance'], got 'deviation'",
    ),
    (
        STATISTICS,
        (IMAGE, BANK),
        {"border": "edge"},
        ValueError,
        "border: expected one of ['reflect', 'wrap', 'zero'], got 'edge'",
    ),
    (
        STATISTICS,
        (IMAGE, BANK),
        {"eps": -1.0},
        ValueError,
        "eps: expected a finite number of at least 0, got -1.0",
    ),
    (STATISTICS, (IMAGE, BANK), {"eps": "0"}, TypeError, "eps: expected a number, got str"),
    (
        STATISTICS,
        (IMAGE, BANK),
        {"angles": torch.zeros(3)},
        ValueError,
        "angles: expected the shape (4,), got (3,)",
    ),
    (
        STATISTICS,
        (IMAGE, BANK),
        {"angles": torch.arange(4)},
        TypeError,
        "angles: expected a floating-point tensor, got torch.int64",
    ),
    (
        torchext.gabor_kernel_bank,
        (),
        {"definition": "opencv"},
        ValueError,
        "definition: expected one of ['monohair', 'scikit-image'], got 'opencv'",
    ),
    (
        torchext.gabor_kernel_bank,
        (),
        {"size": 15},
        ValueError,
        "size: expected at least 17, which the filters take, got 15",
    ),
    (
        torchext.gabor_kernel_bank,
        (),
        {"size": 18},
        ValueError,
        "size: expected an odd number, got 18",
    ),
    (
        torchext.gabor_kernel_bank,
        (),
        {"sigma_y": 30.0},
        ValueError,
        "sigma_x, sigma_y: expected filters of at most 63, got 181",
    ),
    (
        torchext.gabor_kernel_bank,
        (),
        {"frequency": 0},
        ValueError,
        "frequency: expected a positive finite number, got 0",
    ),
    (
        torchext.difference_of_gaussians,
        (IMAGE, 2.0, 1.0),
        {},
        ValueError,
        "high: expected at least low, 2.0, got 1.0",
    ),
    (
        torchext.difference_of_gaussians,
        (IMAGE.long(),),
        {},
        TypeError,
        "image: expected float32, float64, float16 or bfloat16, got torch.int64",
    ),
]


@pytest.mark.parametrize("function, arguments, options, kind, message", BAD)
def test_bad_input(
    function: Any, arguments: tuple, options: dict, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        function(*arguments, **options)
    assert str(error.value) == message


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated"))
def test_fuzz(name: str) -> None:
    """Any arguments either give a result like the reference's, or raise a named error."""
    sizes = st.integers(0, 30)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.tuples(st.integers(0, 2), st.integers(1, 2), sizes, sizes),
        st.integers(0, 34),
        st.integers(0, 9),
        st.booleans(),
        st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int32]),
        st.sampled_from(["variance", "spread", "mean"]),
        st.sampled_from(["zero", "wrap", "reflect", "edge"]),
    )
    def run(shape, count, size, symmetric, dtype, confidence, border) -> None:
        image = image_of(shape, dtype)
        if symmetric and count and size % 2:
            bank = torchext.gabor_bank(count, size)
        else:
            bank = torch.randn(count, size, size)
        options = {"confidence": confidence, "border": border}
        try:
            with running(name):
                index, strength, measured = torchext.oriented_filter_statistics(
                    image, bank, **options
                )
        except (TypeError, ValueError) as error:
            assert str(error).split(":")[0] in ("image", "bank", *options)
            return
        assert index.shape == strength.shape == measured.shape == image.shape
        framed = bordered(image.double(), size // 2, border)
        expected, wanted = statistics(framed, bank.double(), None, index, confidence)
        assert_close("strength", strength, expected, length=size * size, dtype=torch.float32)
        length = size * size * count
        assert_close("confidence", measured, wanted, length=length, dtype=torch.float32)

    run()
