"""What the spawned processes of the distributed tests run: they import it by name."""

import torch
import torch.distributed as dist

import torchext

from .backends import running

SPLIT = (2, 1)  # images per process


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


def ddp_worker(rank: int, folder: str) -> None:
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


def modulated_problem() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    shape = (sum(SPLIT), 3, 10, 12)
    data = {key: torch.randn(shape, generator=generator) for key in ("x", "gamma", "beta", "grad")}
    data["x"][:2] += 100  # the processes' means are far apart
    return data


def evaluate_modulated(
    data: dict[str, torch.Tensor], group: dist.ProcessGroup | None
) -> dict[str, torch.Tensor]:
    x, gamma, beta = (data[key].clone().requires_grad_() for key in ("x", "gamma", "beta"))
    running = {"running_mean": torch.zeros(3, dtype=x.dtype), "running_var": torch.ones(3).to(x)}
    y = torchext.modulated_norm(
        x, gamma, beta, statistics="batch", activation=0.2, process_group=group, **running
    )
    y.backward(data["grad"])
    gradients = {"x": x.grad, "gamma": gamma.grad, "beta": beta.grad}
    return {"y": y.detach(), **gradients, **running}


def modulated_worker(rank: int, folder: str, name: str) -> None:
    store = dist.FileStore(f"{folder}/store", len(SPLIT))
    dist.init_process_group("gloo", rank=rank, world_size=len(SPLIT), store=store)
    begin = sum(SPLIT[:rank])
    data = {key: value[begin : begin + SPLIT[rank]] for key, value in modulated_problem().items()}
    with running(name):
        torch.save(evaluate_modulated(data, dist.group.WORLD), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
