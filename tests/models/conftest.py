"""Photographs, masks and weights that the tests of the models train on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")
skimage = pytest.importorskip("skimage.data")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six crops of real photographs, 96 pixels wide."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "chelsea", "coffee"):
        picture = Image.fromarray(getattr(skimage, name)())
        for i, left in enumerate((40, 200)):
            picture.crop((left, 20, left + 192, 212)).resize((96, 96)).save(
                folder / f"{name}-{i}.png"
            )
    return folder


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded weights of VGG-16 in torchvision's format, a classifier's entries among them."""
    from torchext.models.vgg import VGGFeatures  # needs safetensors

    torch.manual_seed(3)
    state = VGGFeatures(16, ("relu5_3",)).state_dict()
    for value in state.values():
        if value.dim() == 4:  # of a scale that survives 13 layers, as trained weights' does
            torch.nn.init.kaiming_normal_(value)
    state["classifier.6.bias"] = torch.zeros(1000)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
