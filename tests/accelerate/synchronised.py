"""One of two processes: SPADE with PyTorch's synchronised norm, RN_L inside a DDP, a sparse norm.

Arguments: rank, folder.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import torchext

sys.path += [str(Path(__file__).parents[i]) for i in (1, 2)]
from support import living_layers

from benchmarks.baselines.modulated_layers import SPADE
from benchmarks.baselines.region_norm import RN_L

SPLIT = (2, 1)


def layer(norm: type[nn.Module]) -> SPADE:
    torch.manual_seed(0)
    spade = SPADE("batch", 4, 3)
    spade.param_free_norm = norm(4, affine=False)
    return spade.train()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(SPLIT), 4, 6, 7, generator=generator)
    x[: SPLIT[0]] += 10  # the processes' means differ
    return x, torch.randn(sum(SPLIT), 3, 12, 14, generator=generator)


class SparseSyncBatchNorm2d(nn.SyncBatchNorm):
    forward = living_layers._of_a_list


def sparse_mask() -> torch.Tensor:
    return (
        torch.rand(sum(SPLIT), 1, 3, 7, generator=torch.Generator().manual_seed(2)) > 0.4
    ).float()


def main(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", len(SPLIT))
    dist.init_process_group("gloo", rank=rank, world_size=len(SPLIT), store=store)
    spade = layer(nn.SyncBatchNorm)
    if rank == 0:  # a comparison that waited for the other process would hang
        torchext.accelerate(layer(nn.SyncBatchNorm))
    _, report = torchext.accelerate(spade)
    assert report.swapped, str(report)
    x, labels = (value.split(SPLIT)[rank] for value in inputs())
    x = x.clone().requires_grad_()
    y = spade(x, labels)
    y.square().sum().backward()
    wrapped = nn.parallel.DistributedDataParallel(RN_L(4))
    _, report = torchext.accelerate(wrapped)
    assert [row.name for row in report.swapped] == ["module"], str(report)
    wrapped(x.detach()).sum().backward()
    assert wrapped.module.sa.gamma_conv.weight.grad is not None
    sparse = SparseSyncBatchNorm2d(4)
    _, report = torchext.accelerate(sparse)
    assert report.swapped, str(report)
    z = x.detach().clone().requires_grad_()
    with living_layers.active(sparse_mask().split(SPLIT)[rank]):
        sparse_y = sparse(z)
    sparse_y.square().mul(z.detach()).sum().backward()
    result = {"y": y.detach(), "x": x.grad, **spade.param_free_norm.state_dict()}
    result |= {"sparse y": sparse_y.detach(), "sparse x": z.grad}
    result |= {f"sparse {name}": value for name, value in sparse.named_buffers()}
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
