"""The published forms of DAGAN's and MaskGAN's generators, and the label maps of both."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("skimage")

from benchmarks import label_maps
from benchmarks.baselines import networks as published
from torchext.models.blocks import iterated
from torchext.models.dagan import SPADEGenerator
from torchext.models.maskgan.networks import DenseMappingNetwork


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
