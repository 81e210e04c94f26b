"""The published baseline of the statistics of all filters; the memory of ours."""

import pytest
import torch

import torchext
from benchmarks import harness, oriented_filter_statistics
from benchmarks.harness import Case


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_both_forms_agree(dtype: torch.dtype) -> None:
    problem = oriented_filter_statistics.setup(Case("NeuralHaircut", (1, 1, 24, 31)), dtype, "cpu")
    grey, clear = problem.inputs
    assert clear.mean() > 0.8
    assert problem.ours(grey, clear).count_nonzero() > 500
    modules = {"published": problem.published, "ours": problem.ours}
    harness.check(problem, modules, dtype, "forward")


def test_memory_is_that_of_few_images() -> None:
    """Published: 7 KiB a pixel. Ours, with the band pass in float64 and without all responses."""
    image = 255 * torch.rand(1, 1, 384, 320)
    bank = torchext.gabor_kernel_bank()

    def run() -> None:
        torchext.oriented_filter_statistics(image, bank, border="wrap")

    def run_all() -> None:
        filtered = torchext.difference_of_gaussians(image)
        torchext.oriented_filter_statistics(filtered, bank, border="wrap")

    assert harness.peak_bytes(run, "cpu") <= 6 * image.nbytes
    assert harness.peak_bytes(run_all, "cpu") <= 12 * image.nbytes
