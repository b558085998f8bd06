"""One rank of two, started by test_fused: trains under DistributedDataParallel and saves what it saw."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from localize import LocalGraphModule, localize
from localize.models import cifar_resnet


def make() -> LocalGraphModule:
    torch.manual_seed(0)
    return localize(cifar_resnet(8, width=4), d=2, seed=0, example_inputs=torch.empty(2, 3, 16, 16))


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    generator = torch.Generator().manual_seed(100 + rank)
    batches = [
        (torch.randn(4, 3, 16, 16, generator=generator), torch.randint(10, (4,), generator=generator)) for _ in range(3)
    ]
    alone = make()
    start = {name: p.detach().clone() for name, p in alone.named_parameters()}
    for out in alone.steps(*batches[0]):
        out.loss.backward()
    local = make()
    parallel = DistributedDataParallel(local)
    optimizer = torch.optim.SGD(local.parameters(), lr=0.1, momentum=0.9)
    first = {}
    for index, (x, y) in enumerate(batches):
        parallel(x, y).backward()
        if index == 0:
            first = {name: p.grad.clone() for name, p in local.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    result = {
        "alone": {name: p.grad for name, p in alone.named_parameters()},
        "start": start,
        "first": first,
        "weights": {name: p.detach() for name, p in local.named_parameters()},
    }
    torch.save(result, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
