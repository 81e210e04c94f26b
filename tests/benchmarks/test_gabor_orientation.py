"""The published baseline of the oriented filters; the memory of ours and of the command line."""

from pathlib import Path

import pytest
import torch

import torchext
from benchmarks import gabor_orientation, harness
from benchmarks.harness import Case
from torchext import orientation

Image = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("direction", harness.DIRECTIONS)
def test_both_forms_agree(dtype: torch.dtype, direction: str) -> None:
    problem = gabor_orientation.setup(Case("Gabor", (1, 1, 64, 48)), dtype, "cpu")
    assert problem.grad.count_nonzero() > 100
    modules = {"published": problem.published, "ours": problem.ours}
    harness.check(problem, modules, dtype, direction)


def test_memory_is_that_of_few_images() -> None:
    """Published: more than 64 images, and as many again for the backward."""
    image = 255 * torch.rand(1, 1, 256, 256)
    bank = torchext.gabor_bank()

    def forward_backward() -> None:
        leaf = image.detach().requires_grad_()
        _, strength = torchext.oriented_filter_max(leaf, bank)
        torch.autograd.grad(strength, leaf, image)

    forward = harness.peak_bytes(lambda: torchext.oriented_filter_max(image, bank), "cpu")
    assert forward <= 2.1 * image.nbytes
    assert harness.peak_bytes(forward_backward, "cpu") <= 6 * image.nbytes


def test_memory_does_not_grow_with_the_photograph(tmp_path: Path) -> None:
    """Tensors alive at once, as PyTorch's allocator counts them."""
    peaks = []
    for height in (400, 1600):
        photo = tmp_path / f"{height}.png"
        noise = torch.randint(0, 256, (height, 300, 3), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(photo)
        peaks.append(
            harness.peak_bytes(
                lambda photo=photo: orientation.convert_photo(
                    photo, tmp_path / "out.png", band_pixels=300 * 64
                ),
                "cpu",
            )
        )
    assert peaks[1] <= 1.05 * peaks[0]
