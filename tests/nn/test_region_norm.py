"""The region-normalisation modules: published constructors, state keys and quirks."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from ops.test_self_aware_region_norm import threshold_of
from support.backends import parameters, running
from support.tolerance import assert_close

from torchext import nn, reference

GENERATOR = torch.Generator().manual_seed(0)


def randomise(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=GENERATOR))


@pytest.mark.parametrize("layer", ["RN_B", "RN_L"])
def test_statistics_per_image(layer: str) -> None:
    module = getattr(nn, layer)(4, scope="instance")
    randomise(module)
    x = torch.randn(3, 4, 10, 12, generator=GENERATOR)
    mask = (torch.rand(3, 1, 10, 12, generator=GENERATOR) > 0.5).float()
    others = (mask,) if layer == "RN_B" else ()
    whole = module(x, *others)
    for i in range(3):
        alone = module(x[i : i + 1], *(value[i : i + 1] for value in others))
        torch.testing.assert_close(whole[i : i + 1], alone)


def test_betas_of_rn_b_in_their_regions() -> None:
    module = nn.RN_B(4, betas="region")
    randomise(module)
    x = torch.randn(2, 4, 10, 12, generator=GENERATOR)
    hole = torch.zeros(2, 1, 10, 12)
    hole[..., 4:] = 1
    y = module(x, hole)
    # Each region's mean is its beta: what is normalised has mean 0.
    torch.testing.assert_close(y[..., 4:].mean((0, 2, 3)), module.foreground_beta)
    torch.testing.assert_close(y[..., :4].mean((0, 2, 3)), module.background_beta)
    with pytest.raises(ValueError, match="betas: expected 'everywhere' or 'region', got 'both'"):
        nn.RN_B(4, betas="both")


def test_published_constructors() -> None:
    signatures = {
        nn.RN_B: ["feature_channels"],
        nn.RN_L: ["feature_channels", "threshold"],
        nn.RN_binarylabel: ["feature_channels"],
        nn.SelfAware_Affine: ["kernel_size"],
    }
    for module, names in signatures.items():
        parameters = inspect.signature(module).parameters.values()
        assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == names
    assert inspect.signature(nn.RN_L).parameters["threshold"].default == 0.8
    assert inspect.signature(nn.SelfAware_Affine).parameters["kernel_size"].default == 7


def test_published_state_keys() -> None:
    def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
        return {key: tuple(value.shape) for key, value in module.state_dict().items()}

    names = ("foreground_gamma", "foreground_beta", "background_gamma", "background_beta")
    assert shapes(nn.RN_B(5)) == dict.fromkeys(names, (5,))
    assert all((value == 0).all() for value in nn.RN_B(5).state_dict().values())
    assert shapes(nn.RN_binarylabel(5)) == {}
    affine = {
        "conv1.weight": (1, 2, 7, 7),
        "gamma_conv.weight": (1, 1, 7, 7),
        "gamma_conv.bias": (1,),
        "beta_conv.weight": (1, 1, 7, 7),
        "beta_conv.bias": (1,),
    }
    assert shapes(nn.SelfAware_Affine()) == affine
    assert shapes(nn.RN_L(5)) == {f"sa.{key}": shape for key, shape in affine.items()}
    assert sum(p.numel() for p in nn.RN_L(256).parameters()) == 198


def published_core(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The published two-batch-norm form, in float64."""
    label = label.expand_as(x)
    total = x.numel() / x.shape[1]
    y = torch.zeros_like(x)
    for region in (label, 1 - label):
        size = region.sum((0, 2, 3))
        size = torch.where(size == 0, 1.0, size)
        mean = ((x * region).sum((0, 2, 3)) / size)[None, :, None, None]
        normal = F.batch_norm(x * region + (1 - region) * mean, None, None, training=True)
        y = y + normal * torch.sqrt(size / total)[None, :, None, None]
    return y


@pytest.mark.parametrize("name", parameters("reference", "cpu", "cuda-emulated"))
@pytest.mark.parametrize("size", [(12, 16), (48, 40)])
def test_rn_b_is_the_published_form(size: tuple[int, int], name: str) -> None:
    """Mask 1 = hole, nearest resize, gammas per region, and both betas at every pixel."""
    layer = nn.RN_B(4)
    randomise(layer)
    x = torch.randn(2, 4, 12, 16, generator=GENERATOR)
    mask = (torch.rand(2, 1, *size, generator=GENERATOR) > 0.6).float()
    grad = torch.randn(x.shape, generator=GENERATOR)
    with running(name):
        leaf = x.clone().requires_grad_()
        y = layer(leaf, mask)
        y.backward(grad)
    published = copy.deepcopy(layer).double()
    leaf64 = x.double().requires_grad_()
    m = F.interpolate(mask.double(), (12, 16), mode="nearest")
    r = published_core(leaf64, m)
    fg_gamma, fg_beta, bg_gamma, bg_beta = (
        parameter.view(1, -1, 1, 1)
        for parameter in (
            published.foreground_gamma,
            published.foreground_beta,
            published.background_gamma,
            published.background_beta,
        )
    )
    expected = r * m * (1 + fg_gamma) + fg_beta + r * (1 - m) * (1 + bg_gamma) + bg_beta
    for parameter in published.parameters():
        parameter.grad = None
    expected.backward(grad.double())
    assert_close("y", y, expected, length=2 * 12 * 16)
    assert_close("x", leaf.grad, leaf64.grad, length=2 * 12 * 16)
    for (key, ours), theirs in zip(layer.named_parameters(), published.parameters(), strict=True):
        assert_close(key, ours.grad, theirs.grad, length=2 * 12 * 16, scale=20)
    assert torch.equal(layer.foreground_beta.grad, layer.background_beta.grad)


@pytest.mark.parametrize("name", parameters("reference", "cpu", "cuda-emulated"))
def test_rn_l_is_the_published_form(name: str) -> None:
    layer = nn.RN_L(4)
    x = torch.randn(2, 4, 12, 16, generator=GENERATOR)
    layer.threshold = threshold_of(x, list(layer.sa.weights()))
    with running(name):
        y = layer(x)
    affine = copy.deepcopy(layer.sa).double()
    with running("reference"):
        saliency, gamma, beta = affine(x.double())
    label = (saliency >= layer.threshold).double()
    expected = published_core(x.double(), label) * (1 + gamma) + beta
    assert_close("y", y, expected, length=2 * 12 * 16)


def test_core_takes_an_expanded_label_and_is_symmetric() -> None:
    core = nn.RN_binarylabel(3)
    x = torch.randn(2, 3, 8, 8, generator=GENERATOR)
    label = (torch.rand(2, 1, 8, 8, generator=GENERATOR) > 0.5).float()
    y = core(x, label.expand_as(x))
    assert_close("y", y, published_core(x.double(), label.double()), length=128)
    assert_close("swapped", core(x, 1 - label), y.double(), length=128)


def test_training_and_evaluation_are_the_same() -> None:
    layer = nn.RN_B(3)
    x, mask = torch.randn(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
    assert torch.equal(layer.train()(x, mask), layer.eval()(x, mask))


def test_region_norm_2d() -> None:
    layer = nn.RegionNorm2d(4, num_regions=5, scope="instance", eps_form="plain")
    randomise(layer)
    x = torch.randn(2, 4, 10, 10, generator=GENERATOR)
    labels = torch.randint(0, 5, (2, 1, 10, 10), generator=GENERATOR)
    expected = reference.region_norm(
        x.double(),
        labels,
        layer.weight.double(),
        layer.bias.double(),
        None,
        None,
        5,
        True,
        1e-5,
        False,
        False,
    )[0]
    assert_close("y", layer(x, labels), expected, length=100)
    assert nn.RegionNorm2d(4, affine=False).state_dict() == {}
    fresh = nn.RegionNorm2d(4, dtype=torch.float64)
    assert fresh.weight.dtype == torch.float64
    assert (fresh.weight == 1).all()
    assert (fresh.bias == 0).all()


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_whole_module_in_another_dtype(dtype: torch.dtype, last: bool) -> None:
    x = torch.randn(2, 4, 8, 8).to(dtype)
    if last:
        x = x.to(memory_format=torch.channels_last)
    mask = torch.ones(2, 1, 8, 8)
    mask[..., 3:] = 0
    for layer, arguments in ((nn.RN_B(4), (x, mask)), (nn.RN_L(4), (x,))):
        y = layer.to(dtype)(*arguments)
        assert y.dtype == dtype
        assert y.stride() == x.stride()
        y.sum().backward()
        assert all(p.grad.dtype == dtype for p in layer.parameters())
    maps = nn.SelfAware_Affine().to(dtype)(x)
    assert {m.dtype for m in maps} == {dtype}


@pytest.mark.parametrize(
    "layer", [nn.RN_B(3), nn.RN_L(3), nn.RN_binarylabel(3), nn.RegionNorm2d(3)], ids=str
)
def test_copies_and_pickles(layer: torch.nn.Module) -> None:
    randomise(layer)
    x, mask = torch.randn(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    arguments = (x,) if isinstance(layer, nn.RN_L) else (x, mask)
    expected = layer(*arguments)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(*arguments), expected)
        assert str(other) == str(layer)
