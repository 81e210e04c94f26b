"""MONAI's own networks, where it is installed (`pip install monai einops`)."""

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from support.tolerance import assert_close
from torch import Tensor, nn

import torchext

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def networks() -> ModuleType:
    pytest.importorskip("einops", reason="einops, which MONAI's networks need, is not installed")
    return pytest.importorskip("monai.networks.nets", reason="MONAI is not installed")


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(N: int, K: int, *size: int) -> Tensor:
    """One-hot, in blocks."""
    coarse = image(N, K, *(n // 4 for n in size), seed=3).argmax(dim=1)
    for dim in range(1, len(size) + 1):
        coarse = coarse.repeat_interleave(4, dim)
    return nn.functional.one_hot(coarse, K).movedim(-1, 1).float()


def autoencoder(networks: ModuleType, dims: int) -> tuple[nn.Module, Callable[[nn.Module], Any]]:
    net = networks.SPADEAutoencoderKL(
        dims, 6, 1, 1, (1, 1), (8, 16), (False, False), 4, 8, spade_intermediate_channels=16,
        with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
    )  # fmt: skip
    size = (16,) * dims
    z, seg = image(2, 4, *(n // 2 for n in size)), labels(2, 6, *size)
    return net, lambda net: net.decode(z, seg)


def diffusion(networks: ModuleType, dims: int) -> tuple[nn.Module, Callable[[nn.Module], Any]]:
    net = networks.SPADEDiffusionModelUNet(
        dims, 3, 3, 6, 1, (16, 32), (False, False), norm_num_groups=8,
        spade_intermediate_channels=16,
    )  # fmt: skip
    size = (8,) * dims
    x, seg, steps = image(2, 3, *size), labels(2, 6, *(2 * n for n in size)), torch.tensor([3, 7])
    return net, lambda net: net(x, steps, seg)


def generator(networks: ModuleType, dims: int) -> tuple[nn.Module, Callable[[nn.Module], Any]]:
    size = (16,) * dims
    net = networks.SPADENet(
        dims, 1, 1, 6, list(size), [8, 16], z_dim=4, is_vae=False, spade_intermediate_channels=16
    )
    seg, z = labels(2, 6, *size), image(2, 4)
    return net, lambda net: net.decoder(seg, z)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("make", [autoencoder, diffusion, generator])
def test_networks(make: Callable[..., Any], dims: int, training: bool, networks: Any) -> None:
    torch.manual_seed(0)
    net, call = make(networks, dims)
    with torch.no_grad():
        for value in net.parameters():  # some start at zero
            value.add_(0.02 * torch.randn_like(value))
    net.train(training)
    fast, report = torchext.accelerate(copy.deepcopy(net))
    norms = [path for path, part in net.named_modules() if type(part).__name__ == "SPADE"]
    assert norms
    assert [layer.name for layer in report.swapped] == norms
    expected, got = call(net), call(fast)
    assert_close("y", got, expected.double(), length=4000, condition=100)
    got.square().mean().backward()
    expected.square().mean().backward()
    mine = dict(fast.named_parameters())
    for name, value in net.named_parameters():
        cancelled = name.endswith(("mlp_gamma.conv.bias", "mlp_beta.conv.bias"))
        if value.grad is not None and not cancelled:  # in front of a norm: rounding alone
            largest = float(value.grad.abs().max())
            assert_close(
                name, mine[name].grad, value.grad.double(), length=4000, condition=1000,
                scale=max(largest, 1e-4),
            )  # fmt: skip


def test_steps_of_diffusion_share_their_maps(networks: Any) -> None:
    torch.manual_seed(0)
    net, call = diffusion(networks, 2)
    fast, report = torchext.accelerate(net.eval())
    with torch.no_grad():
        expected = call(fast)
        with torchext.fixed_condition() as kept:
            for _step in range(3):
                assert torch.equal(call(fast), expected)
    assert (kept.made, kept.reused) == (len(report.swapped), 2 * len(report.swapped))
