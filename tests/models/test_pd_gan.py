"""PD-GAN's samples share what does not depend on the noise."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from torchext import backend
from torchext.models import papers
from torchext.models.paper import configure
from torchext.models.pd_gan import Sampler, networks
from torchext.models.pd_gan.first_stage import restore

PAPER = papers.find("pd_gan")


@pytest.fixture(scope="module")
def built() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return networks(configure(PAPER.config, {"width": 4, "size": 128, "noise": 16}))


@pytest.fixture(scope="module")
def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, 128, 128, generator=generator)
    known = torch.ones(2, 1, 128, 128)
    known[0, :, 30:90, 40:80] = 0
    known[1, :, :, 70:] = 0
    return image, known, torch.randn(3, 2, 16, generator=generator)


def test_samples_equal_separate_passes(built, given):
    image, known, noise = given
    sampler = Sampler(built["encoder"], built["decoder"], built["generator"])
    # Whether a convolution takes Winograd's form depends on the size of the batch.
    with backend.convolution("direct"):
        samples = sampler(image, known, 3, noise=noise)
        assert samples.shape == (3, 2, 3, 128, 128)
        for network in built.values():
            network.eval()
        with torch.no_grad():
            prior = restore(built["encoder"], built["decoder"], image * 2 - 1, known)
            for z, sample in zip(noise, samples, strict=True):
                fill = (built["generator"](z, prior, known) + 1) / 2
                expected = torch.where(known == 1, image, fill)
                torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-5)
    assert not samples[0].equal(samples[1])


def test_three_fifths_of_the_work_is_shared():
    config = PAPER.config()
    with torch.device("meta"):
        generator = networks(config)["generator"].eval()
        prior = torch.empty(1, 3, 256, 256)
        x, counts = torch.empty(1, 1024, 4, 4), []
    # Convolutions of one block on the card's count: the shared half against all.
    for unit in generator.generated:
        size = tuple(x.shape[2:])
        with torch.no_grad(), FlopCounterMode(display=False) as shared:
            block = unit.block
            features = block.conv_to_f(prior[..., : size[0], : size[1]])
            for norm in (block.norm_0, block.norm_1, block.norm_s):
                norm.maps(prior[..., : size[0], : size[1]])
            weight = block.attention[0].weight[:, : features.shape[1]]
            torch.nn.functional.conv2d(features, weight, padding=1)
        counts.append(shared.get_total_flops())
        fout = unit.up.out_channels
        x = torch.empty(1, fout, 2 * size[0], 2 * size[1], device="meta")
    assert sum(counts) / 1e9 == pytest.approx(77, abs=2)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n": 0}, "n: expected at least 1"),
        ({"noise": torch.zeros(1, 2, 5)}, r"noise: expected the shape \(3, 2, 16\)"),
        ({"known": torch.ones(2, 1, 64, 64)}, r"known: expected the shape"),
        ({"image": torch.zeros(2, 1, 128, 128)}, r"image: expected the shape \(N, 3, H, W\)"),
    ],
)
def test_bad_input_is_named(change, message, built, given):
    sampler = Sampler(built["encoder"], built["decoder"], built["generator"])
    arguments = {"image": given[0], "known": given[1], "n": 3, **change}
    with pytest.raises(ValueError, match=message):
        sampler(**arguments)
