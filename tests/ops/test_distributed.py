"""Statistics over processes: two gloo processes against one process on the joined batch."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from support.backends import parameters, running
from support.processes import (
    SPLIT,
    ddp_worker,
    evaluate,
    evaluate_modulated,
    modulated_problem,
    modulated_worker,
    problem,
    worker,
)
from support.tolerance import assert_close

import torchext

KEYS = ("y", "x", "weight", "bias")


@pytest.mark.slow
@pytest.mark.parametrize("name", parameters("cpu", "reference", "cuda-emulated"))
@pytest.mark.parametrize("affine", ["region", "spatial"])
def test_two_processes_equal_one(affine: str, name: str, tmp_path: Path) -> None:
    mp.spawn(worker, (str(tmp_path), affine, name), nprocs=len(SPLIT))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(SPLIT))]
    data = {key: value.double() for key, value in problem(affine).items()}
    with running("reference"):
        expected = evaluate(data, affine, None)
    for key in KEYS:
        if affine == "region" and key in ("weight", "bias"):
            got = parts[0][key] + parts[1][key]  # local gradients, for DDP to average
        else:
            got = torch.cat([part[key] for part in parts])
        assert_close(key, got, expected[key], length=360, condition=100)


@pytest.mark.slow
def test_data_parallel_training_equals_one_process(tmp_path: Path) -> None:
    mp.spawn(ddp_worker, (str(tmp_path),), nprocs=2)
    layer = torchext.nn.RegionNorm2d(3)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    mask = torch.ones(1, 1, 8, 8)
    mask[..., :3] = 0
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        layer(x, mask).square().mean().backward()
        optimiser.step()
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        for key, value in layer.state_dict().items():
            assert_close(key, state[key], value.double(), length=500)


@pytest.mark.slow
@pytest.mark.parametrize("name", parameters("cpu", "reference", "cuda-emulated"))
def test_modulated_batch_statistics_of_two_processes(name: str, tmp_path: Path) -> None:
    mp.spawn(modulated_worker, (str(tmp_path), name), nprocs=len(SPLIT))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(SPLIT))]
    data = {key: value.double() for key, value in modulated_problem().items()}
    with running("reference"):
        expected = evaluate_modulated(data, None)
    for key, value in expected.items():
        if key.startswith("running"):
            assert_close(key, parts[0][key], value, length=360, condition=10)
            assert torch.equal(parts[0][key], parts[1][key])
        else:
            got = torch.cat([part[key] for part in parts])
            assert_close(key, got, value, length=360, condition=100)
