"""torchext.winograd_conv2d, torchext.nn.Conv2d and the layers that convolve that way."""

import gc
import math
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from support.backends import parameters, running
from support.tolerance import assert_close
from torch import Tensor

import torchext
from torchext import backend, nn
from torchext.ops import winograd_conv

LEVELS = ["portable", "avx2", "avx512"]
# N, Ci, Co, H, W, padding, dilation
CASES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 9, 4, 4, 1, 1),
    (1, 8, 8, 33, 70, 0, 1),
    (3, 5, 17, 13, 3, 2, 1),
    (1, 19, 7, 40, 139, 1, 1),
    (2, 4, 6, 21, 30, 2, 2),
    (1, 6, 3, 17, 9, (3, 1), (2, 3)),
    (1, 2, 3, 5, 5, 4, 1),
    (2, 16, 24, 64, 64, 1, 1),
]
KERNELS = (3, 2)
ROOM = 8.0  # of the direct convolution's tolerance: what the transforms cost


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def tensors(
    case: tuple, seed: int = 0, dtype: torch.dtype = torch.float32, kernel: int = 3
) -> list[torch.Tensor]:
    N, Ci, Co, H, W, *_ = case
    generator = torch.Generator().manual_seed(seed)
    shapes = ((N, Ci, H, W), (Co, Ci, kernel, kernel), (Co,))
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def assert_near(name: str, got: torch.Tensor, wanted: torch.Tensor, length: int) -> None:
    size = wanted.abs().max().item() if wanted.numel() else 0.0
    assert_close(name, got, wanted, length=length, scale=ROOM * max(size, math.sqrt(length)))


@pytest.fixture
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A SIMD level that the machine has."""
    monkeypatch.setenv("TORCHEXT_SIMD", request.param)
    if backend.simd_level() != request.param:
        pytest.skip(f"the processor has no {request.param}")
    return request.param


@pytest.mark.parametrize("level", LEVELS, indirect=True)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_a_direct_convolution(case: tuple, kernel: int, level: str) -> None:
    leaves = [leaf.requires_grad_() for leaf in tensors(case, kernel=kernel)]
    y = torchext.winograd_conv2d(*leaves, *case[5:])
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = F.conv2d(*doubles, padding=case[5], dilation=case[6])
    length = 9 * case[1]
    assert_near("y", y, wanted, length)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(y, leaves, weights)
    expected = torch.autograd.grad(wanted, doubles, weights.double())
    for name, value, gradient in zip(("x", "weight", "bias"), got, expected, strict=True):
        assert_near(name, value, gradient, 9 * case[2] if name == "x" else y.numel() // case[2])


def test_it_is_not_the_direct_convolution() -> None:
    """So that the comparisons above compare something."""
    x, weight, bias = tensors(CASES[-1])
    assert not torch.equal(
        torchext.winograd_conv2d(x, weight, bias), F.conv2d(x, weight, bias, 1, 1)
    )


@pytest.mark.parametrize("name", parameters())
def test_backends(name: str) -> None:
    case = CASES[1]
    with running(name) as device:
        leaves = [leaf.to(device).requires_grad_() for leaf in tensors(case)]
        y = torchext.winograd_conv2d(*leaves, *case[5:])
        got = torch.autograd.grad(y.square().sum(), leaves)
    doubles = [leaf.detach().double().cpu().requires_grad_() for leaf in leaves]
    wanted = F.conv2d(*doubles, padding=case[5], dilation=case[6])
    assert_near("y", y, wanted, 27)
    for value, gradient in zip(
        got, torch.autograd.grad(wanted.square().sum(), doubles), strict=True
    ):
        assert_near("gradient", value, gradient, 27 * 16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_convolved_by_pytorch(dtype: torch.dtype) -> None:
    given = tensors(CASES[1], dtype=dtype)
    assert torch.equal(torchext.winograd_conv2d(*given), F.conv2d(*given, padding=1))


def test_channels_last_is_convolved_by_pytorch() -> None:
    x, weight, bias = tensors(CASES[-1])
    x = x.contiguous(memory_format=torch.channels_last)
    y = torchext.winograd_conv2d(x, weight, bias)
    assert torch.equal(y, F.conv2d(x, weight, bias, padding=1))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_second_derivatives() -> None:
    leaves = [leaf.requires_grad_() for leaf in tensors(CASES[1])]
    y = torchext.winograd_conv2d(*leaves)
    [first] = torch.autograd.grad(y.pow(3).sum(), leaves[:1], create_graph=True)
    got = torch.autograd.grad(first.square().sum(), leaves)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = F.conv2d(*doubles, padding=1)
    [first] = torch.autograd.grad(wanted.pow(3).sum(), doubles[:1], create_graph=True)
    for value, gradient in zip(
        got, torch.autograd.grad(first.square().sum(), doubles), strict=True
    ):
        scale = 1e-4 * gradient.abs().max().item()
        torch.testing.assert_close(value.double(), gradient, rtol=0, atol=scale)


@pytest.mark.parametrize("size", [(16, 16), (90, 100)], ids=str)
def test_result_does_not_depend_on_the_threads(size: tuple[int, int]) -> None:
    leaves = [leaf.requires_grad_() for leaf in tensors((1, 40, 20, *size))]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            y = torchext.winograd_conv2d(*leaves)
            results.append((y, *torch.autograd.grad(y.sin().sum(), leaves[:2])))
    finally:
        torch.set_num_threads(threads)
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))


# --- partial convolution --------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("form", ["ratio", "sum"])
@pytest.mark.parametrize("tail", [False, True], ids=["plain", "norm and activation"])
def test_partial_convolution(tail: bool, form: str, dilation: int, images: int) -> None:
    x, weight, bias = tensors((2, 6, 9, 21, 34))
    generator = torch.Generator().manual_seed(2)
    mask = (torch.rand(images, 1, 21, 34, generator=generator) > 0.6).float()
    garbage = torch.where(mask > 0, x, math.nan)
    options: dict = {"padding": dilation, "dilation": dilation, "form": form}
    if tail:
        options |= {"negative_slope": 0.2, "mask_output": True}
    affine = {"norm_weight": bias.flip(0), "norm_bias": bias + 1} if tail else {}
    with backend.convolution("winograd"):
        y, updated = torchext.partial_conv2d(garbage, mask, weight, bias, **options, **affine)
    with backend.use("reference"):
        wanted, known = torchext.partial_conv2d(
            x.double(), mask.double(), weight.double(), bias.double(), **options,
            **{name: value.double() for name, value in affine.items()},
        )  # fmt: skip
    assert_near("y", y, wanted, 54)
    assert torch.equal(updated.double(), known)


def test_gradients_of_partial_convolution() -> None:
    x, weight, bias = tensors((2, 6, 9, 21, 34))
    mask = (torch.rand(2, 1, 21, 34, generator=torch.Generator().manual_seed(2)) > 0.6).float()
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    with backend.convolution("winograd"):
        y, _ = torchext.partial_conv2d(leaves[0], mask, *leaves[1:], padding=1)
        got = torch.autograd.grad(y.square().sum(), leaves)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    with backend.use("reference"):
        wanted, _ = torchext.partial_conv2d(doubles[0], mask.double(), *doubles[1:], padding=1)
    for value, gradient in zip(
        got, torch.autograd.grad(wanted.square().sum(), doubles), strict=True
    ):
        scale = 2e-5 * gradient.abs().max().item()
        torch.testing.assert_close(value.double(), gradient, rtol=0, atol=scale)


# --- which convolution ----------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A True for each Winograd convolution of the test."""
    seen: list[bool] = []
    real = winograd_conv.apply

    def counted(*given: object, **more: object) -> torch.Tensor:
        seen.append(True)
        return real(*given, **more)

    monkeypatch.setattr(winograd_conv, "apply", counted)
    return seen


@pytest.mark.parametrize(
    "channels, out_channels, size, taken",
    [
        (64, 64, 128, True),
        (256, 256, 32, True),
        (64, 3, 128, True),  # PyTorch's computes sixteen channels
        (3, 64, 128, False),  # the transforms would dominate
        (64, 64, 2, False),
    ],
)
def test_automatic_choice(
    channels: int, out_channels: int, size: int, taken: bool, calls: list[bool]
) -> None:
    layer = nn.Conv2d(channels, out_channels, 3, padding=1)
    if backend.simd_level() not in ("avx2", "avx512"):
        pytest.skip("below AVX2 direct convolutions are as fast")
    with torch.no_grad():
        layer(torch.randn(1, channels, size, size))
    assert bool(calls) == taken


def test_choice_by_name(calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Conv2d(4, 5, 3, padding=1), torch.randn(1, 4, 6, 7)
    with backend.convolution("winograd"):
        layer(x)
        assert len(calls) == 1
        with backend.convolution("direct"):
            assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
        with backend.use("reference"):
            layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        nn.Conv2d(4, 5, 3, stride=2)(x)
        nn.Conv2d(4, 4, 3, groups=2)(x)
        nn.Conv2d(4, 5, 5)(x)
        nn.Conv2d(4, 5, 3).double()(x.double())
        layer(x[0])  # without a batch
    assert len(calls) == 1
    expected = r"name: expected one of \['auto', 'direct', 'winograd'\]"
    with pytest.raises(ValueError, match=expected), backend.convolution("fft"):
        pass
    monkeypatch.setattr(backend, "_convolution", "fft")
    with pytest.raises(ValueError, match="TORCHEXT_CONVOLUTION: expected one of"):
        layer(x)


def test_a_model_of_the_cost_grows_with_the_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "simd_level", lambda: "avx512")
    gains = [
        winograd_conv.gain(torch.empty(1, n, 64, 64), n, (64, 64), (1, 1)) for n in (8, 64, 256)
    ]
    assert 1 < gains[0] < 1.9 < gains[1] < gains[2] < 4
    monkeypatch.setattr(backend, "simd_level", lambda: "portable")
    assert winograd_conv.gain(torch.empty(1, 256, 64, 64), 256, (64, 64), (1, 1)) == 0


def test_the_choice_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "simd_level", lambda: "avx512")
    x, explain = torch.empty(1, 64, 64, 64), torchext.explain_convolution
    weight, few = torch.empty(64, 64, 3, 3), torch.empty(64, 3, 3, 3)
    assert explain(x, weight, padding=1).startswith("winograd: expected to be 2.")
    assert explain(x[:, :3].contiguous(), few, padding="same").startswith("direct: Winograd's is")
    assert explain(x, weight, stride=2).startswith("direct: takes kernels of 3x3 and 2x2")
    assert explain(x.double(), weight.double()) == "direct: takes images in float32 on the CPU"
    assert explain(x.double(), weight).startswith("direct: takes x and weight in float32")
    with backend.convolution("direct"):
        assert explain(x, weight) == "direct: torchext.backend.convolution says so"
    with backend.use("reference"):
        assert explain(x, weight) == "direct: the CPU's kernels do not run"
    with pytest.raises(ValueError, match=r"weight: expected the shape \(Co, 64 / groups, kh, kw\)"):
        explain(x, weight[:, :3])
    with pytest.raises(ValueError, match="groups: expected 1 to"):
        explain(x, weight, groups=0)


# --- the weight's panels --------------------------------------------------------------------------


@pytest.mark.parametrize("write", ["data", "in place", "optimiser", "state dict"])
def test_a_changed_weight_is_seen(write: str) -> None:
    layer, x = nn.Conv2d(4, 5, 3, padding=1), torch.randn(1, 4, 9, 9)
    with backend.convolution("winograd"), torch.no_grad():
        before = [layer(x) for _ in range(3)]
        assert all(torch.equal(y, before[0]) for y in before)
        if write == "data":
            layer.weight.data.mul_(-1)
        elif write == "in place":
            layer.weight.mul_(-1)
        elif write == "optimiser":
            layer.weight.grad = 2 * layer.weight
            torch.optim.SGD(layer.parameters(), 1.0).step()
        else:
            layer.load_state_dict({"weight": -layer.weight, "bias": layer.bias})
        after = layer(x)
    bias = layer.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(after - bias, bias - before[0], rtol=1e-5, atol=1e-5)


def test_panels_are_kept_in_evaluation_and_freed_with_the_weight() -> None:
    layer, x = nn.Conv2d(4, 5, 3, padding=1), torch.randn(1, 4, 9, 9)
    before = len(winograd_conv._known)
    with backend.convolution("winograd"), torch.no_grad():
        for _ in range(3):
            layer(x)
        [derived] = winograd_conv._known[layer.weight].values()
        kept = derived.kept
        assert kept is not None
        layer(x)
        assert derived.kept is kept
        layer.weight.add_(1)
        layer(x)
        assert derived.kept is None
    del layer, derived
    gc.collect()
    assert len(winograd_conv._known) == before


def test_parts_of_a_decoders_weight_are_kept_in_evaluation() -> None:
    """A U-Net's stage convolves two parts of its weight, one of them by phases."""
    weight = torch.nn.Parameter(torch.randn(6, 7, 3, 3))
    x, mask = torch.randn(1, 4, 16, 16), (torch.rand(1, 1, 16, 16) > 0.2).float()
    skip, known = torch.randn(1, 3, 32, 32), torch.ones(1, 1, 32, 32)

    def stage(weight: Tensor) -> Tensor:
        return torchext.partial_upsample_conv2d(x, mask, weight, skip=skip, skip_mask=known)[0]

    before = len(winograd_conv._known), len(winograd_conv._kept)
    with backend.convolution("winograd"):
        with torch.inference_mode():
            for _ in range(3):
                y = stage(weight)
            assert torch.equal(y, stage(weight.clone()))
            assert len(winograd_conv._kept) == before[1] + 5  # parts, phases, panels of both
            weight.data[0].mul_(2)
            torch.testing.assert_close(stage(weight)[:, 0], 2 * y[:, 0])
            torch.testing.assert_close(stage(weight)[:, 1:], y[:, 1:], rtol=0, atol=0)
        stage(weight).sum().backward()
    leaf = weight.detach().clone().requires_grad_()
    with backend.convolution("direct"):
        stage(leaf).sum().backward()
    torch.testing.assert_close(weight.grad, leaf.grad, rtol=1e-4, atol=1e-3)
    del weight
    gc.collect()
    assert (len(winograd_conv._known), len(winograd_conv._kept)) == before


def test_what_is_kept_counts_where_it_is_chosen() -> None:
    """A layer's weight in inference; not one that is made anew at each call."""
    x, weight = torch.randn(1, 256, 14, 14), torch.nn.Parameter(torch.randn(256, 256, 3, 3))

    def expected(weight: Tensor) -> float:
        text = torchext.explain_convolution(x, weight, padding=1)
        return float(re.search(r"expected to be ([0-9.]+) times", text)[1])

    learning = expected(weight)
    with torch.no_grad():
        assert expected(weight) > learning
        assert expected(weight * 1) == learning


def test_nothing_is_kept_in_training() -> None:
    layer, x = nn.Conv2d(4, 5, 3, padding=1), torch.randn(1, 4, 9, 9, requires_grad=True)
    optimiser = torch.optim.SGD(layer.parameters(), 0.1)
    with backend.convolution("winograd"):
        for _ in range(3):
            layer(x).square().sum().backward()
            optimiser.step()
        made = winograd_conv._known[layer.weight].values()
    assert len(made) == 2  # forward, and backward
    assert all(derived.kept is None for derived in made)


@pytest.mark.parametrize("kind", [nn.UpsampleConv2d, nn.Conv2d])
def test_what_inference_mode_leaves_serves_training(kind: type[torch.nn.Conv2d]) -> None:
    layer, x = kind(8, 8, 3).requires_grad_(False), torch.randn(1, 8, 20, 20)
    with backend.convolution("winograd"):
        with torch.inference_mode():
            before = [layer(x) for _ in range(3)]
        assert torch.equal(layer(x.requires_grad_()), before[0])
        [got] = torch.autograd.grad(layer(x).sum(), x)
    with backend.convolution("direct"):
        [wanted] = torch.autograd.grad(kind.forward(layer, x).sum(), x)
    assert_near("gradient", got, wanted.double(), 72)


def test_threads_may_share_a_layer() -> None:
    layer, x = nn.Conv2d(4, 5, 3, padding=1), torch.randn(1, 4, 9, 9)
    with backend.convolution("winograd"), torch.no_grad(), ThreadPoolExecutor(4) as threads:
        for i in range(20):
            layer.weight.fill_(i)  # so that what is kept is dropped while it is looked at
            results = list(threads.map(lambda _: layer(x), range(8)))
            assert all(torch.equal(y, results[0]) for y in results)


# --- the layer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 2, "same", "valid"])
def test_layer_stands_for_pytorchs(padding: int | str, padding_mode: str) -> None:
    if padding == "valid" and padding_mode != "zeros":
        pytest.skip("is the same")
    options: dict = {"padding": padding, "padding_mode": padding_mode, "dilation": 2}
    theirs, ours = torch.nn.Conv2d(4, 6, 3, **options), nn.Conv2d(4, 6, 3, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 12, 15)
    with backend.convolution("winograd"):
        y = ours(x)
    assert_near("y", y, theirs.double()(x.double()), 36)


def test_compile_export_and_transforms() -> None:
    layer, x = nn.Conv2d(16, 16, 3, padding=1), torch.randn(2, 16, 32, 32)
    with backend.convolution("winograd"):
        wanted = layer(x)
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert_near("compiled", compiled(x), wanted.double(), 144)
        exported = torch.export.export(layer, (x,)).module()
        assert_near("exported", exported(x), wanted.double(), 144)

        def call(x: torch.Tensor) -> torch.Tensor:
            return layer(x[None])[0]

        assert_near("vmap", torch.func.vmap(call)(x), wanted.double(), 144)
        _, tangent = torch.func.jvp(layer, (x,), (x,))
        bias = layer.bias.view(1, -1, 1, 1)
        assert_near("jvp", tangent, (wanted - bias).double(), 144)
        [gradient] = torch.autograd.grad(layer(x.requires_grad_()).square().sum(), [x])
        functional = torch.func.grad(lambda x: layer(x).square().sum())(x.detach())
        assert_near("grad", functional, gradient.double(), 144 * 16)


@pytest.mark.parametrize(
    "change, error",
    [
        ({"weight": torch.zeros(3, 4, 5, 5)}, "weight: expected the shape (Co, Ci, 3, 3) or"),
        ({"weight": torch.zeros(3, 5, 3, 3)}, "weight: expected the shape (3, 4, 3, 3), got"),
        ({"bias": torch.zeros(4)}, "bias: expected the shape (3,), got (4,)"),
        ({"padding": -1}, "padding: expected 0 to 2147483647, got -1"),
        ({"padding": 0, "x": torch.zeros(1, 4, 2, 9)}, "weight: expected windows that fit"),
    ],
)  # fmt: skip
def test_bad_input(change: dict, error: str) -> None:
    given = {"x": torch.zeros(2, 4, 5, 6), "weight": torch.zeros(3, 4, 3, 3)} | change
    with pytest.raises(ValueError) as raised:
        torchext.winograd_conv2d(**given)
    assert str(raised.value).startswith(error)


def test_dtypes_must_agree() -> None:
    with pytest.raises(TypeError, match="weight: expected the dtype of x"):
        torchext.winograd_conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3).double())
