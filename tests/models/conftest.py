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
    """Six crops of real photographs, 96 pixels wide; beside them maps of five shades.

    And a file of CelebA's attributes: each photograph has every third one.
    """
    from support.training import attributes_of, labels_of  # needs Pillow and safetensors

    from torchext.models.maggan import CELEBA

    folder = tmp_path_factory.mktemp("photos")
    labels_of(folder).mkdir()
    lines: list[str] = []
    for name in ("astronaut", "chelsea", "coffee"):
        picture = Image.fromarray(getattr(skimage, name)())
        for i, left in enumerate((40, 200)):
            crop = picture.crop((left, 20, left + 192, 212)).resize((96, 96))
            crop.save(folder / f"{name}-{i}.png")
            shades = crop.convert("L").point(lambda value: 5 * value // 256)
            shades.save(labels_of(folder) / f"{name}-{i}.png")
            shown = (1 if (k + len(lines)) % 3 == 0 else -1 for k in range(len(CELEBA)))
            lines.append(f"{name}-{i}.jpg {' '.join(map(str, shown))}")
    attributes_of(folder).write_text("\n".join([str(len(lines)), " ".join(CELEBA), *lines]))
    return folder


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Seeded weights of VGGs in torchvision's format, a classifier's entries among them."""
    from torchext.models.vgg import VGGFeatures  # needs safetensors

    folder = tmp_path_factory.mktemp("vgg")
    files = {}
    for depth, last, deepest in ((16, "relu5_3", "relu5_3"), (19, "relu5_1", "relu5_2")):
        torch.manual_seed(3)
        state = VGGFeatures(depth, (last,)).state_dict()
        for value in state.values():
            if value.dim() == 4:  # of a scale that survives the layers, as trained weights' does
                torch.nn.init.kaiming_normal_(value)
        state = {**VGGFeatures(depth, (deepest,)).state_dict(), **state}
        state["classifier.6.bias"] = torch.zeros(1000)
        files[f"vgg{depth}"] = folder / f"vgg{depth}.pth"
        torch.save(state, files[f"vgg{depth}"])
    return files


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
