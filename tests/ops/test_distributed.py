"""Statistics over processes: two gloo processes against one process on the joined batch."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.backends import parameters, running
from support.tolerance import assert_close

import torchext

SPLIT = (2, 1)  # images per process
KEYS = ("y", "x", "weight", "bias")


def problem(affine: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    N = sum(SPLIT)
    x = torch.randn(N, 3, 10, 12, generator=generator)
    x[:2] += 100  # the processes' means are far apart
    shape = (2, 3) if affine == "region" else (N, 1, 10, 12)
    return {
        "x": x,
        "mask": (torch.rand(N, 1, 10, 12, generator=generator) > 0.4).float(),
        "grad": torch.randn(N, 3, 10, 12, generator=generator),
        "weight": torch.randn(shape, generator=generator),
        "bias": torch.randn(shape, generator=generator),
    }


def evaluate(data: dict, affine: str, group: dist.ProcessGroup | None) -> dict[str, torch.Tensor]:
    x, weight, bias = (data[key].clone().requires_grad_() for key in ("x", "weight", "bias"))
    prefix = "" if affine == "region" else "spatial_"
    named = {prefix + "weight": weight, prefix + "bias": bias}
    y = torchext.region_norm(x, data["mask"], **named, process_group=group)
    y.backward(data["grad"])
    return {"y": y.detach(), "x": x.grad, "weight": weight.grad, "bias": bias.grad}


def worker(rank: int, folder: str, affine: str, name: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE=str(len(SPLIT)))
    store = dist.FileStore(f"{folder}/store", len(SPLIT))
    dist.init_process_group("gloo", rank=rank, world_size=len(SPLIT), store=store)
    data = problem(affine)
    begin = sum(SPLIT[:rank])
    for key, value in data.items():
        if value.shape[0] == sum(SPLIT):
            data[key] = value[begin : begin + SPLIT[rank]]
    with running(name):
        torch.save(evaluate(data, affine, dist.group.WORLD), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


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


def ddp_worker(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE="2")
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store)
    torch.manual_seed(0)
    layer = torch.nn.parallel.DistributedDataParallel(
        torchext.nn.RegionNorm2d(3, process_group=dist.group.WORLD)
    )
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))[rank : rank + 1]
    mask = torch.ones(1, 1, 8, 8)
    mask[..., :3] = 0
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        layer(x, mask).square().mean().backward()
        optimiser.step()
    torch.save(layer.module.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


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
