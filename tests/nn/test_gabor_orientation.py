"""GaborOrientation and OrientationLoss against the published sequence, written out."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.backends import parameters, running
from support.tolerance import assert_close

import torchext
from torchext import nn

GENERATOR = torch.Generator().manual_seed(0)
IMAGE = 2 * torch.rand(2, 3, 26, 30, generator=GENERATOR) - 1
HAIR = (torch.rand(2, 1, 26, 30, generator=GENERATOR) > 0.4).float()
CODE = torch.randint(0, 256, (2, 1, 26, 30), generator=GENERATOR).float()


def published(
    image: torch.Tensor, label: torch.Tensor, hair: torch.Tensor, kind: str
) -> tuple[torch.Tensor, ...]:
    """The published operations in float64: two-channel map, confidence, both losses."""
    bank = {"gabor": torchext.gabor_bank, "dog": torchext.difference_of_gaussians_bank}[kind]
    red, green, blue = ((image + 1) / 2 * 255).unbind(1)
    grey = (0.299 * red + 0.587 * green + 0.144 * blue)[:, None]
    responses = F.conv2d(grey, bank(dtype=torch.float64)[:, None], padding=8)
    responses = torch.where(responses < 0, 0, responses)
    strength, index = responses.max(1, keepdim=True)
    angle = math.pi * index.double() / 32
    if kind == "gabor":
        confidence = (torch.tanh(strength) + 1) / 2
    else:
        masked = strength * hair
        confidence = masked / masked.max()
    two_channel = torch.cat((torch.sin(2 * angle), torch.cos(2 * angle)), 1) * confidence
    target = math.pi * label / 255
    target = torch.cat((torch.sin(2 * target), torch.cos(2 * target)), 1)
    orientation = F.l1_loss(two_channel * hair, target * hair)
    if kind == "gabor":
        loss = -(torch.log(confidence.clamp(0.001, 1)) * hair).sum() / hair.sum()
    else:
        loss = (confidence * hair - hair).abs().sum() / (hair.sum() + 1e-5)
    return two_channel, confidence, orientation, loss


@pytest.mark.parametrize("name", parameters("reference", "cpu", "cuda-emulated", "cuda"))
@pytest.mark.parametrize("kind", ["gabor", "dog"])
@pytest.mark.parametrize("dark", [False, True])
def test_published_form(kind: str, dark: bool, name: str) -> None:
    image = (0.02 * IMAGE - 0.98 if dark else IMAGE).double()
    with running(name) as device:
        leaf = image.clone().to(device).requires_grad_()
        hair, code = HAIR.to(device), CODE.to(device)
        losses = nn.OrientationLoss(kind)(leaf, code, hair)
        sum(losses).backward()
        two_channel, confidence = nn.GaborOrientation(kind)(leaf.detach(), hair)
    leaf64 = image.detach().clone().requires_grad_()
    expected = published(leaf64, CODE.double(), HAIR.double(), kind)
    (expected[2] + expected[3]).backward()
    assert_close("two_channel", two_channel, expected[0], length=3000)
    assert_close("confidence", confidence, expected[1], length=3000)
    for got, want in zip(losses, expected[2:], strict=True):
        assert_close("loss", got[None], want[None], length=2000)
    assert_close("gradient", leaf.grad, leaf64.grad, length=300, condition=16)
    assert leaf64.grad.abs().max() > 0


def test_label_of_two_channels_and_other_order() -> None:
    two_channel = torchext.orientation_map(CODE * (math.pi / 255))
    expected = nn.OrientationLoss()(IMAGE, CODE, HAIR)
    got = nn.OrientationLoss()(IMAGE, two_channel, HAIR)
    paper = nn.OrientationLoss(order="cos_sin")(IMAGE, two_channel.flip(1), HAIR.bool())
    for a, b, c in zip(expected, got, paper, strict=True):
        assert torch.allclose(a, b)
        assert torch.allclose(a, c)


def test_paper_form() -> None:
    layer = nn.GaborOrientation(rectify="abs", order="cos_sin", grey="standard")
    two_channel, confidence = layer(IMAGE)
    angle, strength = torchext.gabor_orientation(IMAGE, rectify="abs", grey="standard")
    assert torch.equal(confidence, (torch.tanh(strength) + 1) / 2)
    assert torch.equal(two_channel, torchext.orientation_map(angle, confidence, "cos_sin"))
    assert layer.state_dict() == {}
    assert "rectify='abs'" in repr(layer)


@pytest.mark.parametrize("kind", ["gabor", "dog"])
def test_no_hair_at_all_gives_zeros_not_nan(kind: str) -> None:
    image = IMAGE.clone().requires_grad_()
    orientation, confidence = nn.OrientationLoss(kind)(image, CODE, torch.zeros_like(HAIR))
    (orientation + confidence).backward()
    assert orientation.item() == confidence.item() == 0
    assert not image.grad.any()


def test_autocast_keeps_float32() -> None:
    expected = nn.GaborOrientation()(IMAGE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = nn.GaborOrientation()(IMAGE)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_compile_and_empty_batch() -> None:
    loss = nn.OrientationLoss("dog")
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(IMAGE, CODE, HAIR), loss(IMAGE, CODE, HAIR), strict=True):
        assert torch.allclose(a, b)
    two_channel, confidence = nn.GaborOrientation("dog")(IMAGE[:0], HAIR[:0])
    assert two_channel.shape == (0, 2, 26, 30)
    assert confidence.shape == (0, 1, 26, 30)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"label": CODE[..., :5]},
        ValueError,
        "label: expected the shape (2, 1, 26, 30) or (2, 2, 26, 30), got (2, 1, 26, 5)",
    ),
    ({"mask": HAIR[:1]}, ValueError, "mask: expected the shape (2, 1, 26, 30), got (1, 1, 26, 30)"),
    ({"mask": None}, TypeError, "mask: expected a torch.Tensor, got NoneType"),
    (
        {"image": HAIR[:, 0]},
        ValueError,
        "image: expected the shape (N, C, H, W), got (2, 26, 30)",
    ),
    (
        {"label": CODE.to("meta")},
        ValueError,
        "label: expected the device of x, cpu, got meta",
    ),
]


@pytest.mark.parametrize("change, kind, message", BAD)
def test_bad_input(change: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        nn.OrientationLoss()(**{"image": IMAGE, "label": CODE, "mask": HAIR, **change})
    assert str(error.value) == message


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="order: expected one of"):
        nn.GaborOrientation(order="cos")
    with pytest.raises(ValueError, match="bank: expected one of"):
        nn.OrientationLoss("sobel")
