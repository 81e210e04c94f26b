"""Images and masks from Python are checked before any work, by every paper alike."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.training import FILLING, KINDS, SMALL
from torch import Tensor, nn

from torchext.models import checks, papers
from torchext.models.discriminators import MultiscaleDiscriminator, PatchDiscriminator
from torchext.models.losses import gram, total_variation_in_holes
from torchext.models.partial_convolutions import InpaintingLoss, VGG16PartialLoss, classifiers
from torchext.models.partial_convolutions import fill as fill_by_partial_convolutions
from torchext.models.pd_gan import Sampler
from torchext.models.pd_gan.first_stage import restore
from torchext.models.pd_gan.training import diversity
from torchext.models.region_normalization import fill as fill_by_region_normalization
from torchext.models.region_normalization.training import l1_in_holes
from torchext.models.vgg import VGGFeatures

Fill = Callable[[Tensor, Tensor], Tensor]


def built(name: str) -> dict[str, nn.Module]:
    paper = papers.find(name)
    torch.manual_seed(0)
    return paper.networks(papers.configure(paper.config, SMALL[name]))


def fills() -> dict[str, tuple[int, Fill]]:
    """The size that each fill is tried with."""
    unet = built("partial_convolutions")["generator"].eval()
    generator = built("region_normalization")["generator"].eval()
    networks = built("pd_gan")
    sampler = Sampler(networks["encoder"], networks["decoder"], networks["generator"])
    return {
        "partial_convolutions": (
            32,
            lambda image, known: fill_by_partial_convolutions(unet, image, known),
        ),
        "region_normalization": (
            32,
            lambda image, known: fill_by_region_normalization(generator, image, known),
        ),
        "pd_gan": (128, lambda image, known: sampler(image, known, 1)[0]),
    }


FILLS = fills()


def pair(size: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    known = torch.ones(batch, 1, size, size)
    known[..., size // 4 : size // 2, size // 4 : size // 2] = 0
    return torch.rand(batch, 3, size, size, generator=generator), known


BAD: dict[str, tuple[Callable[[Tensor, Tensor], tuple[Any, Any]], type, str]] = {
    "mask of 255": (
        lambda image, known: (image, known * 255),
        ValueError,
        r"known: expected values from 0 to 1, got 255",
    ),
    "8-bit mask": (
        lambda image, known: (image, (known * 255).to(torch.uint8)),
        ValueError,
        r"known: expected values from 0 to 1, got 255",
    ),
    "NaN in the mask": (
        lambda image, known: (image, known.masked_fill(known == 0, float("nan"))),
        ValueError,
        r"known: expected values from 0 to 1, got nan",
    ),
    "8-bit image": (
        lambda image, known: ((image * 255).to(torch.uint8), known),
        TypeError,
        r"image: expected a floating-point tensor, got torch\.uint8; divide 8-bit images by 255",
    ),
    "image of 255": (
        lambda image, known: (image * 255, known),
        ValueError,
        r"image: expected values from 0 to 1 where it is known, got .* to 25\d",
    ),
    "image from -1": (
        lambda image, known: (image * 2 - 1, known),
        ValueError,
        r"image: expected values from 0 to 1 where it is known, got -0\.99",
    ),
    "NaN in the image": (
        lambda image, known: (image * float("nan"), known),
        ValueError,
        r"image: expected values from 0 to 1 where it is known, got nan",
    ),
    "no batch": (
        lambda image, known: (image[0], known[0]),
        ValueError,
        r"image: expected the shape \(N, 3, H, W\), got \(3, .*; x\[None\] makes a batch of one",
    ),
    "no batch of masks": (
        lambda image, known: (image, known[0]),
        ValueError,
        r"known: expected the shape \(2 or 1, 1, .* of the image, got \(1, ",
    ),
    "grey image": (
        lambda image, known: (image[:, :1], known),
        ValueError,
        r"image: expected the shape \(N, 3, H, W\), got \(2, 1, ",
    ),
    "array": (
        lambda image, known: (image.numpy(), known),
        TypeError,
        r"image: expected a torch\.Tensor, got ndarray",
    ),
    "no mask": (
        lambda image, known: (image, None),
        TypeError,
        r"known: expected a torch\.Tensor, got NoneType",
    ),
}


def test_every_paper_is_tried():
    assert KINDS.keys() == set(papers.NAMES)
    assert FILLS.keys() == set(FILLING)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("paper", FILLS)
def test_fill_names_what_does_not_fit(paper, bad):
    size, fill = FILLS[paper]
    change, kind, message = BAD[bad]
    with pytest.raises(kind, match=message):
        fill(*change(*pair(size)))


@pytest.mark.parametrize("paper", FILLS)
def test_fill_takes_bools_one_mask_for_all_and_anything_in_the_holes(paper):
    size, fill = FILLS[paper]
    image, known = pair(size)
    wild = torch.where(known == 1, image, torch.tensor(float("nan")))
    torch.manual_seed(0)
    wanted = fill(image, known)
    assert wanted.isfinite().all()
    assert wanted.min() >= 0
    assert wanted.max() <= 1
    torch.manual_seed(0)
    assert fill(wild, known[:1].bool()).equal(wanted)
    assert wanted[known.expand_as(image) == 1].equal(image[known.expand_as(image) == 1])


def test_a_little_beyond_the_range_is_rounding():
    image, known = pair(8)
    checks.check_image_and_mask(image.clamp(0, 1) * 1.0005, known)
    with pytest.raises(ValueError, match="image: expected values from 0 to 1"):
        checks.check_image_and_mask(image * 1.1, known)
    checks.check_image_and_mask(image[:0], known[:1])  # nothing to look at


IMAGE, KNOWN = pair(128)
VGG = VGGFeatures(16, ("pool1", "pool2", "pool3"))
STAGE = [built("pd_gan")[name] for name in ("encoder", "decoder")]
# What takes a mask: the argument's name and a call.
MASKED: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "InpaintingLoss": ("mask", lambda mask: InpaintingLoss(VGG)(IMAGE, mask, IMAGE, IMAGE)),
    "l1_in_holes": ("hole", lambda mask: l1_in_holes(IMAGE, IMAGE, mask)),
    "total_variation_in_holes": ("known", lambda mask: total_variation_in_holes(IMAGE, mask)),
    "diversity": ("hole", lambda mask: diversity(VGG, IMAGE, IMAGE, mask)),
    "restore": ("known", lambda mask: restore(*STAGE, IMAGE, mask)),
    "Encoder": (r"source\[1\]", lambda mask: STAGE[0]([IMAGE, mask])),
    "SPDNormGenerator": (
        "mask",
        lambda mask: built("pd_gan")["generator"].conditions(IMAGE, mask),
    ),
    "PConvUNet": (
        "input_mask",
        lambda mask: built("partial_convolutions")["generator"](IMAGE, mask),
    ),
    "G_Net": ("mask", lambda mask: built("region_normalization")["generator"](IMAGE, mask)),
}


@pytest.mark.parametrize("name", MASKED)
def test_masks_are_named(name):
    argument, call = MASKED[name]
    with pytest.raises(ValueError, match=rf"^{argument}: expected values from 0 to 1, got 255"):
        call(KNOWN * 255)
    with pytest.raises(ValueError, match=rf"^{argument}: expected the shape"):
        call(KNOWN[0])
    with pytest.raises(ValueError, match=rf"^{argument}: expected the shape"):
        call(KNOWN[..., :64])


NETWORKS: dict[str, Callable[[Tensor], Any]] = {
    "PConvUNet": lambda x: built("partial_convolutions")["generator"](x, KNOWN),
    "G_Net": lambda x: built("region_normalization")["generator"](x, KNOWN),
    "D_Net": lambda x: built("region_normalization")["discriminator"](x),
    "Encoder": lambda x: STAGE[0]([x, KNOWN]),
    "restore": lambda x: restore(*STAGE, x, KNOWN),
    "SPDNormGenerator": lambda x: built("pd_gan")["generator"].conditions(x, KNOWN),
    "PatchDiscriminator": lambda x: PatchDiscriminator(3, 4)(x),
    "MultiscaleDiscriminator": lambda x: MultiscaleDiscriminator(ndf=4, input_nc_D=3)(x),
    "VGGFeatures": lambda x: VGG(x),
    "PaddedResNet": lambda x: classifiers.build("pdresnet18", 4)(x),
    "InpaintingLoss": lambda x: InpaintingLoss(VGG)(x, KNOWN, IMAGE, IMAGE),
    "VGG16PartialLoss": lambda x: VGG16PartialLoss(vgg=VGG)(x, IMAGE),
    "gram": gram,
    "total_variation_in_holes": lambda x: total_variation_in_holes(x, KNOWN),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_images_without_a_batch_or_of_bytes_are_named(name):
    with pytest.raises(
        ValueError, match=r"expected the shape \(N, (3|C), H, W\), got \(3, 128, 128"
    ):
        NETWORKS[name](IMAGE[0])
    with pytest.raises(TypeError, match=r"expected a floating-point tensor, got torch\.uint8"):
        NETWORKS[name]((IMAGE * 255).to(torch.uint8))


@pytest.mark.parametrize(
    "call",
    [
        lambda other: InpaintingLoss(VGG)(other, KNOWN, IMAGE, IMAGE),
        lambda other: InpaintingLoss(VGG)(IMAGE, KNOWN, other, IMAGE),
        lambda other: VGG16PartialLoss(vgg=VGG)(other, IMAGE),
    ],
)
def test_images_of_a_loss_are_alike(call):
    with pytest.raises(ValueError, match=r"put: expected the shape of (gt|target), \(2, 3"):
        call(IMAGE[:1])  # would be repeated


# --- nothing to divide by -------------------------------------------------------------------------


@pytest.mark.parametrize("hole", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_l1_without_a_hole_is_nothing(hole, dtype):
    image = IMAGE.to(dtype)
    prediction = (image * 0.5).requires_grad_()
    mask = torch.full_like(KNOWN, hole, dtype=dtype)
    merged = torch.where(mask == 1, prediction, image)
    loss = l1_in_holes(image, merged, mask)
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert gradient.isfinite().all()
    if hole:
        assert loss.item() == pytest.approx((image / 2).abs().mean().item(), rel=0.02)
        assert gradient.abs().sum() > 0
    else:
        assert loss == 0
        assert not gradient.any()


def test_l1_in_a_small_hole_is_a_mean_over_it():
    image, known = torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    known[..., 3, 4] = 0
    assert l1_in_holes(image, torch.where(known == 1, image, 0.25), 1 - known) == 0.25
