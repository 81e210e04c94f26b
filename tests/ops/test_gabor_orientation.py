"""torchext.oriented_filter_max and gabor_orientation against the float64 reference."""

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.backends import emulator, parameters, running
from support.tolerance import assert_close, tolerance

import torchext
from torchext import backend, reference

KERNELS = ("cpu", "cuda-emulated", "triton-interpreted", "cuda", "triton")


def bank_of(kind: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Banks of every symmetry: gabor, dog and small are the square's, even is even, plain none."""
    if kind == "gabor":
        return torchext.gabor_bank(dtype=dtype)
    if kind == "dog":
        return torchext.difference_of_gaussians_bank(dtype=dtype)
    if kind == "small":
        return torchext.gabor_bank(32, 5, dtype=dtype)
    if kind == "few":
        return torchext.gabor_bank(4, 3, dtype=dtype)
    if kind == "many":
        return torchext.gabor_bank(72, 7, dtype=dtype)
    if kind == "even":
        return torchext.gabor_bank(19, 7, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    shape = {"plain": (21, 5, 5), "one": (1, 3, 3), "pixel": (3, 1, 1), "wide": (2, 33, 33)}[kind]
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def image_of(shape: tuple, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (255 * torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype)


SHAPES = [(2, 1, 19, 37), (1, 1, 70, 33), (3, 1, 1, 5), (1, 1, 40, 1), (0, 1, 6, 6)]
CASES = [
    *[(kind, SHAPES[0]) for kind in ("gabor", "dog", "few", "many", "even", "plain", "one")],
    *[("small", shape) for shape in SHAPES],
    *[("pixel", SHAPES[0]), ("wide", SHAPES[0]), ("plain", SHAPES[1]), ("plain", SHAPES[4])],
]
# Triton's interpreter takes seconds for a bank of 17 x 17.
SLOW_TO_INTERPRET = ("dog", "many", "wide")


def rectified(responses: torch.Tensor, rectify: str) -> torch.Tensor:
    return responses.abs() if rectify == "abs" else responses.relu()


def check_against_reference(
    bank: torch.Tensor, image: torch.Tensor, rectify: str, name: str
) -> None:
    """Strength, index and both gradients of one backend."""
    image, bank = image.clone(), bank.clone()
    with running(name) as device:
        image = image.to(device).requires_grad_()
        bank = bank.to(device).requires_grad_()
        index, strength = torchext.oriented_filter_max(image, bank, rectify)
        cotangent = torch.randn(strength.shape, dtype=strength.dtype).to(device)
        strength.backward(cotangent)
    image64 = image.detach().cpu().double().requires_grad_()
    bank64 = bank.detach().cpu().double().requires_grad_()
    responses = rectified(reference.filter_responses(image64, bank64), rectify)
    taps, dtype = bank[0].numel(), strength.dtype
    assert index.dtype == torch.int32
    assert dtype == bank.dtype
    assert index.shape == strength.shape == image.shape
    if not image.numel():
        assert not bank.grad.any()
        return
    expected, best = responses.max(dim=1, keepdim=True)
    scale = max(expected.max().item(), 1.0)
    assert_close("strength", strength, expected, length=taps, scale=scale)
    # The filter is the best one, but for rounding; and the first one where they are equal.
    index = index.cpu().long()
    chosen = responses.gather(1, index)
    limit = 2 * tolerance(dtype, taps, scale)
    assert (expected - chosen).max().item() <= limit
    second = responses.topk(min(2, len(bank)), dim=1).values[:, -1:]
    unclear = (expected - second <= limit) if len(bank) > 1 else torch.zeros_like(index).bool()
    unclear &= expected > 0
    assert torch.equal(index[~unclear], best[~unclear])
    if taps > 1 and image.numel() > 100:
        assert unclear.double().mean() < 0.02
    # Gradients of the filter that was chosen.
    chosen.backward(cotangent.cpu().double())
    largest = bank64.detach().abs().max().item() * cotangent.abs().max().item()
    assert_close("image", image.grad, image64.grad, length=taps, scale=4 * largest)
    pixels = image.numel()
    bank_scale = max(bank64.grad.abs().max().item(), 255 * math.sqrt(pixels))
    assert_close("bank", bank.grad, bank64.grad, length=pixels, scale=bank_scale)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("rectify", ["relu", "abs"])
@pytest.mark.parametrize("kind, shape", CASES, ids=str)
def test_forward_and_backward(kind: str, shape: tuple, rectify: str, name: str) -> None:
    if name == "triton-interpreted" and (
        kind in SLOW_TO_INTERPRET or (kind == "gabor" and rectify == "abs")
    ):
        pytest.skip("the interpreter runs one large bank")
    check_against_reference(bank_of(kind), image_of(shape, torch.float32), rectify, name)


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gabor", "small", "plain"])
def test_other_dtypes(kind: str, dtype: torch.dtype, name: str) -> None:
    if name == "triton-interpreted" and kind == "gabor":
        pytest.skip("the interpreter runs one large bank")
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    check_against_reference(
        bank_of(kind, accumulate), image_of((2, 1, 18, 21), dtype), "relu", name
    )


@pytest.mark.parametrize("level", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["gabor", "few", "many", "even", "plain"])
def test_simd_levels(kind: str, dtype: torch.dtype, level: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("TORCHEXT_SIMD", level)
    check_against_reference(bank_of(kind, dtype), image_of((2, 1, 21, 40), dtype), "abs", "cpu")


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "cuda"))
@pytest.mark.parametrize("place", [(0, 0, 0), (13, 8, 8), (31, 2, 11), (8, 16, 8)], ids=str)
def test_a_bank_that_is_nearly_symmetric_is_taken_as_it_is(place: tuple, name: str) -> None:
    """One tap off by a thousandth of the largest: the symmetry would give another result."""
    bank = bank_of("gabor")
    bank[place] += 0.001
    check_against_reference(bank, image_of((1, 1, 24, 40), torch.float32), "relu", name)
    image = image_of((1, 1, 24, 40), torch.float64)
    symmetric = reference.filter_responses(image, bank_of("gabor").double())
    exact = reference.filter_responses(image, bank.double())
    assert (symmetric - exact).abs().max() > 0.1  # so the check above would have failed


@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "cuda"))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bank_that_is_not_finite(value: float, name: str) -> None:
    bank = bank_of("gabor")
    bank[3, 4, 5] = value
    with running(name) as device:
        _, strength = torchext.oriented_filter_max(
            image_of((1, 1, 8, 8), torch.float32).to(device), bank.to(device)
        )
    assert not strength[0, 0, 6, 6].isfinite()


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("rectify", ["relu", "abs"])
def test_first_of_equals(rectify: str, name: str) -> None:
    """32 times the same round filter, whose responses are equal bit for bit; and a flat image."""
    offsets = (torch.arange(5) - 2).float()
    filter_ = torch.exp(-0.25 * (offsets[:, None] ** 2 + offsets**2))
    image = image_of((1, 1, 20, 34), torch.float32)
    image[..., 20:] = 0
    with running(name) as device:
        for count in (32, 7):
            bank = filter_.repeat(count, 1, 1).to(device)
            index, strength = torchext.oriented_filter_max(image.to(device), bank, rectify)
            assert not index.any()
            assert not strength[..., 22:].any()
            # negative responses: relu makes all of them equal
            index, strength = torchext.oriented_filter_max(-image.to(device), bank, rectify)
            assert not index.any()
            assert bool(strength.any()) == (rectify == "abs")


@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("kind", ["small", "even", "plain"])
def test_nan_stays_in_its_windows(kind: str, name: str) -> None:
    bank = bank_of(kind)
    image = image_of((2, 1, 20, 40), torch.float32)
    image[0, 0, 9, 30] = float("nan")
    with running(name) as device:
        index, strength = torchext.oriented_filter_max(image.to(device), bank.to(device))
    expected = torch.zeros(image.shape, dtype=torch.bool)
    half = bank.shape[-1] // 2
    expected[0, 0, 9 - half : 10 + half, 30 - half : 31 + half] = True
    assert torch.equal(strength.cpu().isnan(), expected)
    assert not index.cpu()[expected].any()


@pytest.mark.parametrize("name", parameters())
def test_no_gradient_where_the_response_is_cut_off(name: str) -> None:
    """A NaN elsewhere does not come through a gradient of zero."""
    bank = bank_of("plain")
    image = -image_of((1, 1, 12, 12), torch.float32)
    with running(name) as device:
        leaf = image.to(device).requires_grad_()
        filters = bank.abs().to(device).requires_grad_()
        _, strength = torchext.oriented_filter_max(leaf, filters)
        strength.sum().backward()
    assert not strength.any()
    assert not leaf.grad.any()
    assert not filters.grad.any()


def test_threads_and_place_do_not_change_a_bit() -> None:
    image, bank = image_of((1, 1, 90, 101), torch.float32), bank_of("gabor")

    def run(image: torch.Tensor) -> list[torch.Tensor]:
        leaf, filters = image.clone().requires_grad_(), bank.clone().requires_grad_()
        index, strength = torchext.oriented_filter_max(leaf, filters)
        strength.square().sum().backward()
        return [index, strength.detach(), leaf.grad, filters.grad]

    threads = torch.get_num_threads()
    expected = run(image)
    try:
        torch.set_num_threads(1)
        assert all(torch.equal(a, b) for a, b in zip(run(image), expected, strict=True))
    finally:
        torch.set_num_threads(threads)
    part = run(image[:, :, 13:, 7:])
    inner = (..., slice(8, None), slice(8, None))
    assert torch.equal(part[0][inner], expected[0][..., 21:, 15:])
    assert torch.equal(part[1][inner], expected[1][..., 21:, 15:])


def test_saved_for_backward_is_little() -> None:
    saved = []
    image = image_of((1, 1, 64, 64), torch.float32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        torchext.oriented_filter_max(image, bank_of("gabor"))
    assert sum(t.numel() for t in saved if t.numel() >= 4096 and t.dim() == 4) <= 3 * 64 * 64


def test_ops_called_directly_check_what_memory_safety_needs() -> None:
    ops = torch.ops.torchext
    image, bank = image_of((1, 1, 8, 8), torch.float32), bank_of("small")
    index = torch.full(image.shape, 32, dtype=torch.int32)
    refused = (ValueError, RuntimeError)  # a RuntimeError from torch 2.15 on
    with pytest.raises(refused, match="bank: expected at most 1024 filters of an odd size"):
        ops.oriented_filter_max(image, bank[:, :4, :4].contiguous(), False)
    with pytest.raises(refused, match="image: expected a contiguous"):
        ops.oriented_filter_max(image.expand(1, 2, 8, 8), bank, False)
    with pytest.raises(refused, match="index: expected values from 0 to K - 1"):
        ops.oriented_filter_max_backward_image(image, index, bank)
    with pytest.raises(refused, match="index: expected values from 0 to K - 1"):
        ops.oriented_filter_max_backward_bank(image, -index, image, 40, 5)


# --- banks and angles ---------------------------------------------------------------------------


def test_banks_are_the_published_formulas() -> None:
    gabor, dog = bank_of("gabor", torch.float64), bank_of("dog", torch.float64)
    for k in (0, 5, 16, 29):
        theta = math.pi * k / 32
        for u, v in ((0, 0), (3, -2), (-8, 8), (1, 7)):
            a = u * math.cos(theta) + v * math.sin(theta)
            b = v * math.cos(theta) - u * math.sin(theta)
            expected = math.exp(-0.5 * (a * a / 4 + b * b / 9)) * math.cos(math.pi / 2 * a)
            assert gabor[k, u + 8, v + 8].item() == pytest.approx(expected, abs=1e-12)
            narrow = math.exp(-0.5 * (a * a + b * b / 4))
            broad = math.exp(-0.5 * (a * a / 4 + b * b / 4)) / 2
            assert dog[k, u + 8, v + 8].item() == pytest.approx(2 * (narrow - broad), abs=1e-12)
    assert torchext.gabor_bank(8, 5, phase=0.3).shape == (8, 5, 5)
    assert dog.sum((1, 2)).abs().max() < 1e-3


@pytest.mark.parametrize("name", parameters("reference", "cpu", "cuda-emulated", "cuda"))
@pytest.mark.parametrize("kind", ["gabor", "dog"])
def test_gratings_give_their_angle(kind: str, name: str) -> None:
    """64 angles, half of them midway between two filters: off by half a step at most."""
    size = 41 if name == "cuda-emulated" else 64
    row, column = (torch.arange(size, dtype=torch.float64) for _ in range(2))
    wavelength = 4.0 if kind == "gabor" else 6.0
    step = math.pi / 32
    for j in range(64):
        angle = j * math.pi / 64
        across = row[:, None] * math.cos(angle) + column * math.sin(angle)
        phase = 2 * math.pi / wavelength * across + 0.123
        with running(name) as device:
            image = (100 * phase.cos())[None, None].float().to(device)
            index, _ = torchext.oriented_filter_max(image, bank_of(kind).to(device), "abs")
        inner = (0, 0, slice(8, -8), slice(8, -8))
        off = (index[inner].cpu() * step - angle + math.pi / 2) % math.pi - math.pi / 2
        crossing = phase.cos()[8:-8, 8:-8].abs() < 1e-4  # all responses are 0 there
        assert crossing.double().mean() < 0.2
        assert off[~crossing].abs().max().item() <= step / 2 + 1e-6


@pytest.mark.parametrize("name", parameters("reference", "cpu"))
def test_gabor_orientation(name: str) -> None:
    image = image_of((2, 3, 20, 24), torch.float64).div(127.5).sub(1).float()
    with running(name) as device:
        angle, strength = torchext.gabor_orientation(image.to(device))
    red, green, blue = ((image.double() + 1) / 2 * 255).split(1, dim=1)
    for weight, grey in ((0.144, "published"), (0.114, "standard")):
        values = 0.299 * red + 0.587 * green + weight * blue
        index, expected = torchext.oriented_filter_max(values, bank_of("gabor", torch.float64))
        with running(name):
            angle, strength = torchext.gabor_orientation(image, grey=grey)
            again = torchext.gabor_orientation(
                (values / 255).float(), bank_of("gabor"), value_range=(0, 1)
            )
        for got_angle, got in ((angle, strength), again):
            assert_close("strength", got, expected, length=300)
            assert (got_angle != index.float() * (math.pi / 32)).double().mean() < 0.01
    assert angle.min() >= 0
    assert angle.max() < math.pi


def test_maps_and_angles() -> None:
    angle = torch.linspace(0, math.pi, 101, dtype=torch.float64)[:-1].view(1, 1, 10, 10)
    confidence = torch.rand(1, 1, 10, 10, dtype=torch.float64) + 0.1
    for order, channels in (("sin_cos", (0, 1)), ("cos_sin", (1, 0))):
        two_channel = torchext.orientation_map(angle, confidence, order)
        assert torch.allclose(two_channel[:, channels[0]], (confidence * (2 * angle).sin())[:, 0])
        assert torch.allclose(two_channel[:, channels[1]], (confidence * (2 * angle).cos())[:, 0])
        assert torch.allclose(torchext.orientation_angle(two_channel, order), angle, atol=1e-12)
        assert torch.allclose(
            torchext.orientation_angle(torchext.orientation_map(angle, order=order), order), angle
        )
    nearly = torch.tensor([-1e-20, 1.0]).view(1, 2, 1, 1)  # a hair below 0, taken up by pi
    assert 0 <= torchext.orientation_angle(nearly).item() < math.pi


# --- bad input ----------------------------------------------------------------------------------

IMAGE = torch.zeros(2, 1, 8, 6)
BANK = torch.zeros(4, 3, 3)
BAD: list[tuple[Any, tuple, dict[str, Any], type[Exception], str]] = [
    (
        torchext.oriented_filter_max,
        ([1.0], BANK),
        {},
        TypeError,
        "image: expected a torch.Tensor, got list",
    ),
    (
        torchext.oriented_filter_max,
        (IMAGE.expand(2, 3, 8, 6), BANK),
        {},
        ValueError,
        "image: expected the shape (N, 1, H, W), got (2, 3, 8, 6)",
    ),
    (
        torchext.oriented_filter_max,
        (IMAGE, BANK.long()),
        {},
        TypeError,
        "bank: expected a floating-point tensor, got torch.int64",
    ),
    (
        torchext.oriented_filter_max,
        (IMAGE, BANK[:, :2, :2]),
        {},
        ValueError,
        "bank: expected the shape (K, k, k) or (K, 1, k, k) with K at most 1024 and k odd and at"
        " most 63, got (4, 2, 2)",
    ),
    (
        torchext.oriented_filter_max,
        (IMAGE, BANK.to("meta")),
        {},
        ValueError,
        "bank: expected the device of image, cpu, got meta",
    ),
    (
        torchext.oriented_filter_max,
        (IMAGE, BANK, "square"),
        {},
        ValueError,
        "rectify: expected one of ['abs', 'relu'], got 'square'",
    ),
    (
        torchext.gabor_orientation,
        (IMAGE.expand(2, 2, 8, 6),),
        {},
        ValueError,
        "image: expected the shape (N, 3, H, W) or (N, 1, H, W), got (2, 2, 8, 6)",
    ),
    (
        torchext.gabor_orientation,
        (IMAGE, "canny"),
        {},
        ValueError,
        "bank: expected one of ['dog', 'gabor'], got 'canny'",
    ),
    (
        torchext.gabor_orientation,
        (IMAGE,),
        {"grey": "mean"},
        ValueError,
        "grey: expected one of ['published', 'standard'], got 'mean'",
    ),
    (
        torchext.gabor_orientation,
        (IMAGE,),
        {"value_range": (1.0, 1.0)},
        ValueError,
        "value_range: expected two finite numbers that differ, got (1.0, 1.0)",
    ),
    (
        torchext.gabor_orientation,
        (IMAGE,),
        {"value_range": 255},
        TypeError,
        "value_range: expected two numbers (black, white), got 255",
    ),
    (torchext.gabor_bank, (32, 16), {}, ValueError, "size: expected an odd number, got 16"),
    (torchext.gabor_bank, (0,), {}, ValueError, "count: expected 1 to 1024, got 0"),
    (
        torchext.gabor_bank,
        (),
        {"dtype": torch.int32},
        TypeError,
        "dtype: expected float32 or float64, got torch.int32",
    ),
    (
        torchext.difference_of_gaussians_bank,
        (),
        {"sigma_low": 1.0},
        ValueError,
        "sigma_low: expected another value than sigma_high, got 1.0",
    ),
    (
        torchext.orientation_map,
        (IMAGE, IMAGE[:1]),
        {},
        ValueError,
        "confidence: expected the shape (2, 1, 8, 6), got (1, 1, 8, 6)",
    ),
    (
        torchext.orientation_angle,
        (IMAGE,),
        {},
        ValueError,
        "two_channel: expected the shape (N, 2, H, W), got (2, 1, 8, 6)",
    ),
]


@pytest.mark.parametrize("function, arguments, options, kind, message", BAD)
def test_bad_input(
    function: Any, arguments: tuple, options: dict, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        function(*arguments, **options)
    assert str(error.value) == message


@pytest.mark.parametrize("name", parameters("reference", "cpu", "cuda-emulated"))
def test_fuzz(name: str) -> None:
    """Any arguments either give a result like the reference's, or raise a named error."""
    sizes = st.integers(0, 40)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.tuples(st.integers(0, 2), st.integers(1, 2), sizes, sizes),
        st.integers(0, 34),
        st.integers(0, 9),
        st.booleans(),
        st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int32]),
        st.sampled_from(["relu", "abs", "max"]),
    )
    def run(shape, count, size, symmetric, dtype, rectify) -> None:
        image = image_of(shape, dtype)
        if symmetric and count and size % 2:
            bank = torchext.gabor_bank(count, size)
        else:
            bank = torch.randn(count, size, size)
        try:
            with running(name):
                index, strength = torchext.oriented_filter_max(image, bank, rectify)
        except (TypeError, ValueError) as error:
            assert str(error).split(":")[0] in ("image", "bank", "rectify")
            return
        responses = reference.filter_responses(image.double(), bank.double())
        expected = rectified(responses, rectify).max(dim=1, keepdim=True).values
        assert_close("strength", strength, expected, length=size * size, dtype=torch.float32)
        assert index.shape == image.shape

    run()


def test_namespace_of_every_backend_has_the_ops() -> None:
    for name in ("oriented_filter_max", "oriented_filter_max_backward_image"):
        assert backend.which(name, IMAGE) == "cpu"


@pytest.mark.parametrize("name", parameters("cuda-emulated"))
@pytest.mark.parametrize("kibibytes", [64, 99, 163, 227])
@pytest.mark.parametrize(
    "dtype, size", [(torch.float32, 43), (torch.float32, 63), (torch.float64, 17)], ids=str
)
def test_shared_memory_of_any_device(
    dtype: torch.dtype, size: int, kibibytes: int, name: str
) -> None:
    """Tiles shrink to what a block may have: 64 KiB on a T4, 99 on an RTX, 163 on an A100."""
    with emulator().shared_memory(kibibytes):
        check_against_reference(
            torchext.gabor_bank(32, size, dtype=dtype), image_of((1, 1, 9, 40), dtype), "abs", name
        )


@pytest.mark.parametrize("name", parameters("cuda-emulated"))
def test_too_little_shared_memory_is_said(name: str) -> None:
    bank = torchext.gabor_bank(4, 63, dtype=torch.float64).requires_grad_()
    image = image_of((1, 1, 4, 4), torch.float64).requires_grad_()
    with running(name), emulator().shared_memory(64):
        _, strength = torchext.oriented_filter_max(image, bank)
        with pytest.raises(ValueError, match=r"bank: filters of 63 x 63 .* more shared memory"):
            strength.sum().backward()
    with running(name), emulator().shared_memory(163):
        torchext.oriented_filter_max(image, bank)[1].sum().backward()
