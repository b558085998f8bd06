"""Peak memory of one training step, against what the authors' released code takes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from localize import LocalGraphModule, localize
from localize.memory.peak import peak_step_bytes
from localize.models import CifarResNet, cifar_resnet
from tests.tools.tracked import tracked

BATCH = 1024
MEASURED = {2: 0.86e9, 3: 0.70e9, 4: 0.84e9, 5: 1.06e9, 6: 1.21e9}
"""Depth of the auxiliary networks -> peak bytes of the authors' code: ResNet-110, batch 1024, SGD with momentum."""

Step = Callable[[LocalGraphModule, torch.Tensor, torch.Tensor], None]


def stepwise(local: LocalGraphModule, x: torch.Tensor, y: torch.Tensor) -> None:
    for out in local.steps(x, y):
        out.loss.backward()


def summed(local: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    assert isinstance(local, LocalGraphModule)
    torch.stack([out.loss for out in local.steps(x, y)]).sum().backward()


@cache
def resnet110(d: int) -> LocalGraphModule:
    return localize(cifar_resnet(110), d=d, seed=0)


@pytest.mark.parametrize("d", [2, *(pytest.param(d, marks=pytest.mark.slow) for d in (3, 4, 5, 6))])
def test_resnet110_takes_what_the_authors_code_takes(d: int) -> None:
    assert 0.5 * MEASURED[d] < peak_step_bytes(resnet110(d), BATCH) <= 1.05 * MEASURED[d]


@pytest.mark.slow
def test_mem_tracker_says_the_same() -> None:
    """On a smaller network: MemTracker takes five minutes over ResNet-110."""
    local = localize(cifar_resnet(32), d=2, seed=0)
    assert tracked(local, BATCH, stepwise) == pytest.approx(peak_step_bytes(local, BATCH), rel=0.01)


def test_summing_the_losses_saves_nothing() -> None:
    local = localize(cifar_resnet(32), d=2, seed=0)
    apart = peak_step_bytes(local, 256)
    assert peak_step_bytes(local, 256, step=summed) > 2 * apart
    assert peak_step_bytes(local, 256, step=lambda module, x, y: module.loss(x, y).backward()) < 1.01 * apart


@pytest.mark.slow
def test_summing_the_losses_saves_nothing_by_mem_tracker() -> None:
    local = localize(cifar_resnet(14), d=2, seed=0)
    assert tracked(local, 256, summed) > 1.5 * tracked(local, 256, stepwise)


def test_backpropagation_takes_more() -> None:
    bp = localize(cifar_resnet(32), "bp")
    local = localize(cifar_resnet(32), d=2, seed=0)
    assert peak_step_bytes(local, 256) < 0.4 * peak_step_bytes(bp, 256)


class Kept:
    """Holds a tensor that a graph saved for its backward pass; gone when the graph is."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


class Saved:
    """Counts the tensors that graphs hold, by the local module that was running when they were saved."""

    def __init__(self) -> None:
        self.module = 0
        self.held: dict[int, list[weakref.ref[Kept]]] = {}

    def pack(self, value: torch.Tensor) -> Kept:
        kept = Kept(value.detach())  # with its history a value that its own operation saved would keep itself alive
        self.held.setdefault(self.module, []).append(weakref.ref(kept))
        return kept

    def alive(self, module: int) -> int:
        """How many there are; those that only a cycle keeps are none."""
        if self.holds(module):
            gc.collect()
        return sum(ref() is not None for ref in self.held[module])

    def holds(self, module: int) -> bool:
        """Whether there are any, cycles included."""
        return any(ref() is not None for ref in self.held[module])


Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.mark.parametrize("backward", [True, False], ids=["backward", "loss only dropped"])
def test_a_modules_graph_is_gone_when_the_next_one_runs(backward: bool, resnet: CifarResNet, batch: Batch) -> None:
    local = localize(resnet, d=2, seed=0, example_inputs=batch[0])
    saved = Saved()
    found: list[int] = []
    # Runs as the first thing in each module after the first.
    for module in local.local_modules[1:]:
        module.register_forward_pre_hook(lambda *_: found.append(saved.alive(saved.module - 1)))
    with saved_tensors_hooks(saved.pack, lambda kept: kept.value):
        for out in local.steps(*batch):
            assert saved.holds(saved.module)
            if backward:
                out.loss.backward()
            saved.module += 1
            del out
    assert found == [0] * (len(local.local_modules) - 1)


def test_loss_frees_each_graph(resnet: CifarResNet, batch: Batch) -> None:
    local = localize(resnet, d=2, seed=0, example_inputs=batch[0])
    saved = Saved()
    found: list[int] = []

    def before(*_: object) -> None:
        found.append(saved.alive(saved.module))
        saved.module += 1

    for module in local.local_modules[1:]:
        module.register_forward_pre_hook(before)
    with saved_tensors_hooks(saved.pack, lambda kept: kept.value):
        value = local.loss(*batch)
    assert found == [0] * (len(local.local_modules) - 1)
    assert saved.alive(saved.module) == 0
    assert len(saved.held) == len(local.local_modules)
    value.backward()


def test_the_count_can_tell(resnet: CifarResNet, batch: Batch) -> None:
    """Keeping every loss keeps every graph: the counts above are no zeros by construction."""
    local = localize(resnet, d=2, seed=0, example_inputs=batch[0])
    saved = Saved()
    with saved_tensors_hooks(saved.pack, lambda kept: kept.value):
        outs = []
        for out in local.steps(*batch):
            outs.append(out)
            saved.module += 1
    assert all(saved.alive(index) > 0 for index in range(len(outs)))
    nn.Module.zero_grad(local)
