"""Peak memory of a training step by torch's own MemTracker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from localize.memory.peak import train_step
from localize.memory.replicas import fake_copy


def tracked(
    module: nn.Module,
    batch: int,
    step: Callable[[Any, torch.Tensor, torch.Tensor], None] = train_step,
    *,
    size: int = 32,
) -> int:
    """Torch's own figure for the second step, when the optimizer has its momentum.

    It comes by another mechanism than ours: hooks on modules and optimizers beside dispatch.
    """
    with fake_copy(module) as replica:
        replica.train()
        images, labels = torch.empty(batch, 3, size, size), torch.zeros(batch, dtype=torch.int64)
        optimizer = torch.optim.SGD(replica.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        tracker = MemTracker()
        tracker.track_external(replica, optimizer, images, labels)
        with tracker:
            for index in range(2):
                if index:
                    tracker.reset_mod_stats()
                step(replica, images, labels)
                optimizer.step()
                optimizer.zero_grad()
        return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])
