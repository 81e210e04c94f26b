"""The published forms of the papers' generators, and the label maps of some."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("skimage")

import torchext
from benchmarks import label_maps
from benchmarks.baselines import networks as published
from torchext.models.blocks import iterated
from torchext.models.dagan import SPADEGenerator
from torchext.models.deepfaceediting.networks import GeometryEncoder, PartGenerator
from torchext.models.fe_gan.networks import InpaintingGenerator
from torchext.models.maggan import MagGANGenerator
from torchext.models.maskgan.networks import DenseMappingNetwork
from torchext.models.michigan.networks import HairGenerator
from torchext.models.semantic_photo_manipulation.networks import ProgressiveGenerator


@pytest.mark.parametrize("upsampling", ["normal", "more"])
def test_dagan_agrees_with_its_published_form(upsampling):
    torch.manual_seed(0)
    ours = SPADEGenerator(4, 7, 64, num_upsampling_layers=upsampling).double()
    iterated(ours)
    maps = [label_maps.segmented(64, 64, 7, name) for name in label_maps.PHOTOGRAPHS[:2]]
    labels = torch.from_numpy(np.stack(maps))[:, None]
    theirs = published.DAGAN(ours).double()
    for training in (False, True):
        state = copy.deepcopy(ours.state_dict())
        expected = theirs.train(training)(labels)
        ours.load_state_dict(state)  # both make the same power iteration
        got = ours.train(training)(labels)
        assert expected.std() > 0.01
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_maskgan_agrees_with_its_published_form():
    torch.manual_seed(0)
    ours = DenseMappingNetwork(7, ngf=4, n_downsampling=2, n_blocks=2).double()
    maps = [label_maps.segmented(64, 64, 7, name) for name in label_maps.PHOTOGRAPHS[:4]]
    labels, style_labels = torch.from_numpy(np.stack(maps))[:, None].chunk(2)
    image = torch.rand(2, 3, 64, 64).double() * 2 - 1
    expected = published.MaskGAN(ours).double()(labels, style_labels, image)
    assert expected.std() > 0.01
    got = ours(labels, style_labels, image)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


CASES = {
    "michigan": (
        published.michigan,
        lambda: iterated(HairGenerator(4, padding=32)),
        lambda: (
            *(torch.rand(1, 3, 128, 128), disc(128), torch.rand(1, 3, 128, 128), disc(128)),
            *(torch.rand(1, 2, 128, 128) * disc(128), torch.rand(1, 3, 128, 128)),
        ),
    ),
    "fe_gan": (
        published.fe_gan,
        lambda: iterated(InpaintingGenerator(4, blocks=2)),
        lambda: (torch.cat((torch.rand(2, 23, 32, 32), disc(32).expand(2, -1, -1, -1),
                            torch.rand(2, 5, 32, 32)), 1),),
    ),
    "maggan": (
        published.maggan,
        lambda: MagGANGenerator(3, 4, 3, 2),
        lambda: (torch.rand(2, 3, 32, 48), torch.rand(2, 3), torch.rand(2, 3, 32, 48)),
    ),
    "deepfaceediting": (
        published.deepfaceediting,
        lambda: published.DeepFaceEditing(
            GeometryEncoder(ngf=4), PartGenerator(ngf=4, n_blocks=2, appearance_width=4)
        ),
        lambda: tuple(torch.rand(2, 2, 3, 64, 64) * 2 - 1),
    ),
    "progressive": (
        published.progressive,
        lambda: ProgressiveGenerator(sizes=(16, 16, 8, 8, 4)),
        lambda: (torch.randn(2, 16),),
    ),
}  # fmt: skip


def disc(size: int) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((rows - size / 3) ** 2 + (columns - size / 2) ** 2 < size**2 / 12)[None, None].float()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_others_agree_with_their_published_forms(name, training):
    torch.manual_seed(0)
    publish, make, inputs = CASES[name]
    ours = make().double()
    given = tuple(x.double() for x in inputs())
    theirs = publish(ours).double()
    state = copy.deepcopy(ours.state_dict())
    torch.manual_seed(1)  # MichiGAN draws how far its background is from the hair
    expected = theirs.train(training)(*given)
    ours.load_state_dict(state)  # both make the same power iteration
    torch.manual_seed(1)
    got = ours.train(training)(*given)
    assert expected.std() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_winograds_convolutions_change_networks_by_rounding(name):
    torch.manual_seed(0)
    _, make, inputs = CASES[name]
    network, given = make().eval(), inputs()
    results = {}
    for convolution in ("direct", "winograd"):
        torch.manual_seed(1)
        with torchext.backend.convolution(convolution):
            outputs = network(*given)
            loss = outputs.square().mean()
        weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
        results[convolution] = [outputs.detach(), torch.cat([g.flatten() for g in gradients])]
    assert not torch.equal(results["direct"][0], results["winograd"][0])
    for direct, winograd in zip(results["direct"], results["winograd"], strict=True):
        size = 1e-3 * direct.abs().max().item()
        torch.testing.assert_close(winograd, direct, rtol=0, atol=size)


@pytest.mark.parametrize("photograph", label_maps.PHOTOGRAPHS)
def test_label_maps_are_segments(photograph):
    labels = label_maps.segmented(256, 256, 151, photograph)
    assert labels.shape == (256, 256)
    assert labels.dtype == np.int64
    assert 5 < len(np.unique(labels)) <= labels.max() + 1 <= 151
    beside = (labels[:, 1:] == labels[:, :-1]).mean()
    assert beside > 0.9  # regions, not noise
    few = label_maps.segmented(256, 256, 5, photograph)
    assert np.array_equal(few, labels % 5)
