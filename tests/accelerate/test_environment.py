"""accelerate reports and never raises, in whatever state PyTorch is, and leaves that state."""

import contextlib
import copy
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.tolerance import assert_close
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torchext
from benchmarks.baselines import modulated_layers as modulated
from benchmarks.baselines import partial_conv as partial
from benchmarks.baselines import region_norm as published


def layers() -> nn.ModuleList:
    return nn.ModuleList(
        [
            partial.PartialConv2d(3, 5, 3, padding=1),
            partial.PartialConv(3, 6, 4, 2, 1),
            published.RN_B(4),
            published.RN_L(4),
            modulated.SPADE("batch", 4, 6),
            modulated.SPDNorm(4, "position"),
            modulated.HardMap(5, 3),
            modulated.ANLs(4, 5),
            modulated.AdaptiveInstanceNorm2d(4),
            modulated.PixelNorm(),
        ]
    )


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS = {
    "default device": lambda: default_device("meta"),
    "device": lambda: torch.device("meta"),
    "default dtype": lambda: default_dtype(torch.float64),
    "half": lambda: default_dtype(torch.float16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "fake": FakeTensorMode,
}


@pytest.mark.parametrize("inside", [False, True], ids=["made before", "made inside"])
@pytest.mark.parametrize("case", SURROUNDINGS)
def test_every_surrounding(case: str, inside: bool) -> None:
    model = None if inside else layers()
    with SURROUNDINGS[case]():
        model = model or layers()
        random, grad = torch.get_rng_state() if case != "fake" else None, torch.is_grad_enabled()
        state = (torch.get_default_dtype(), torch.is_autocast_enabled("cpu"))
        _, report = torchext.accelerate(model)
        assert (torch.get_default_dtype(), torch.is_autocast_enabled("cpu")) == state
        assert torch.is_grad_enabled() == grad
        if random is not None:
            assert torch.equal(torch.get_rng_state(), random)
    # float16 has no eps of 1e-8: there the published layers give NaN.
    expected = 10 if not (inside and case == "half") else len(report.swapped)
    assert len(report.swapped) == expected, str(report)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype(dtype: torch.dtype) -> None:
    _, report = torchext.accelerate(layers().to(dtype))
    assert len(report.layers) == 10
    if dtype != torch.float16:
        assert not report.left, str(report)


def test_from_meta_to_the_device() -> None:
    """Kernels without values count as ones until they have some."""
    torch.manual_seed(0)
    layer = partial.PartialConv(3, 6, 4, 2, 1)
    with torch.device("meta"):
        model = partial.PartialConv(3, 6, 4, 2, 1)
    _, report = torchext.accelerate(model)
    assert report.swapped
    x = torch.randn(2, 3, 8, 9)
    assert model(x.to("meta"), x.to("meta"))[0].shape == (2, 6, 4, 4)
    layer.mask_conv.weight[:, 1] = 3
    model.to_empty(device="cpu").load_state_dict(layer.state_dict())
    mask = (x > 0).float()
    assert_close("y", model(x, mask)[0], layer(x, mask)[0].double(), length=100)


class Raises(nn.Module):
    @property
    def threshold(self) -> float:
        raise RuntimeError("no threshold\nyet")


def test_a_layer_that_raises_is_left_with_the_reason() -> None:
    class RN_L(Raises):
        def __init__(self) -> None:
            super().__init__()
            self.sa = nn.Identity()

    class PixelNorm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise OSError("disk\nfull")

    lazy = modulated.SPADE("batch", 4, 6)
    lazy.mlp_gamma = nn.LazyConv2d(4, 3)
    model = nn.Sequential(RN_L(), PixelNorm(), lazy)
    _, report = torchext.accelerate(model)
    reasons = [layer.reason for layer in report.left]
    assert len(reasons) == 3
    assert reasons[0] == "looking at it failed: RuntimeError: no threshold"
    assert reasons[1] == "the comparison failed: OSError: disk"


def test_the_hooks_of_a_user_are_not_called() -> None:
    layer, called = published.RN_L(3), []
    layer.register_forward_hook(lambda *_: called.append("after"))
    layer.register_forward_pre_hook(lambda *_: called.append("before"))
    _, report = torchext.accelerate(layer)
    assert report.swapped
    assert not called
    layer(torch.randn(2, 3, 8, 9))
    assert called == ["before", "after"]


def unet() -> nn.Module:
    widths = [(3, 64, 7), (64, 128, 5), (128, 256, 5), (256, 512, 3), *[(512, 512, 3)] * 3]
    down = [partial.PartialConv(i, o, k, 2, k // 2) for i, o, k in widths]
    widths = [*[1024] * 3, 768, 384, 192, 67]
    up = [partial.PartialConv(i, max(i // 3, 3), 3, 1, 1, bias=i == 67) for i in widths]
    return nn.ModuleList(down + up)


def resnet() -> nn.Module:
    found, width = [partial.PartialConv2d(3, 64, 7, 2, 3, bias=False)], 64
    for out, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(count):
            stride = 2 if i == 0 and out > 64 else 1
            found += [
                partial.PartialConv2d(width, out, 1, bias=False),
                partial.PartialConv2d(out, out, 3, stride, 1, bias=False),
                partial.PartialConv2d(out, 4 * out, 1, bias=False),
            ]
            width = 4 * out
    return nn.ModuleList(found)


def spade() -> nn.Module:
    widths = (1024, 1024, 1024, 512, 256, 128, 64)
    return nn.ModuleList(modulated.SPADE("batch", width, 35) for width in widths * 2)


def pd_gan() -> nn.Module:
    widths = (1024, 1024, 1024, 512, 256, 128)
    norms = [modulated.SPDNorm(width, "position") for width in widths for _ in range(3)]
    maps = [modulated.HardMap(n, 3 if n < 6 else 5) for n in range(2, 8)]
    return nn.ModuleList([*norms, *maps])


def region_norm() -> nn.Module:
    norms = [published.RN_B(width) for width in (64, 128, 256)]
    return nn.ModuleList([*norms, *(published.RN_L(256) for _ in range(18))])


@pytest.mark.parametrize("network", [unet, resnet, spade, pd_gan, region_norm])
def test_each_structure_is_proved_once(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchext.accelerate import proof

    proved = []
    verify = proof._verify
    monkeypatch.setattr(proof, "_verify", lambda *args: (proved.append(args[0]), verify(*args))[1])
    model = network()
    begin = time.process_time()
    _, report = torchext.accelerate(model)
    assert time.process_time() - begin < 20  # 3 on an idle machine; a full-width proof takes 30
    assert not report.left, str(report)
    assert len(proved) <= 8
    for layer in proved:
        assert max(max(p.shape[:2]) for p in layer.parameters() if p.dim()) <= 20


def test_narrow_copies_hide_no_layer() -> None:
    """What is wrong with one of many equal layers is found in that one."""
    model = unet()
    model[4].mask_conv.weight[7, 100, 1, 1] = 0
    model[4].mask_conv.weight.requires_grad_()
    model[5].input_conv.register_forward_hook(lambda *_: None)
    model[6].input_conv = nn.utils.spectral_norm(model[6].input_conv)
    _, report = torchext.accelerate(model)
    assert {layer.name: layer.reason for layer in report.left} == {
        "4": "mask_conv is trained",
        "5": "a hook looks inside (input_conv)",
        "6": "the weight of input_conv is reparametrised",
    }
    plain = [partial.PartialConv2d(64, 64, 3) for _ in range(3)]
    plain[1].base = 3

    class PartialConv2d(partial.PartialConv2d):
        base = 1.0

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
            return super().forward(x, mask) * self.base

    others = copy.deepcopy(plain)
    for layer in others:
        layer.__class__ = PartialConv2d
    _, report = torchext.accelerate(nn.Sequential(*others))
    assert [layer.swapped for layer in report.layers] == [True, False, True], str(report)


def test_progress_is_shown_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tqdm = pytest.importorskip("tqdm")
    options: dict[str, Any] = {}
    bar = tqdm.tqdm

    def recorded(*args: Any, **kwargs: Any) -> Any:
        options.update(kwargs)
        return bar(*args, **{**kwargs, "delay": 0, "mininterval": 0})

    torchext.accelerate(published.RN_B(3))
    assert "torchext.accelerate" not in capsys.readouterr().err
    monkeypatch.setattr(tqdm, "tqdm", recorded)
    torchext.accelerate(published.RN_B(3))
    assert "torchext.accelerate" in capsys.readouterr().err
    assert options["delay"] >= 2
