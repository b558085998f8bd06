"""Copies of models that take no memory: on the meta device, or of fake tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from localize.compiler.emit import emit
from localize.runtime.local_graph import LocalGraphModule
from passes.common.fake_tensors import fake_mode, fill_with_fakes, on_meta


@contextmanager
def fake_copy(module: nn.Module) -> Iterator[nn.Module]:
    """Make a copy of a module with fake CPU tensors, inside a mode in which all new tensors are fake.

    On the CPU, because fake GPU tensors cannot run backward on a machine without a GPU. Tied parameters stay tied.
    """
    replica = meta_copy(module)
    # Constants that a forward makes or holds as plain attributes stay real; the mode takes them as they are.
    with fake_mode():
        fill_with_fakes(replica)
        yield replica


def meta_copy(module: nn.Module) -> nn.Module:
    """Make a copy of a module on the meta device, where parameters and buffers take no memory.

    A localized model is compiled again over the copy of its primary network; auxiliary networks are there too.
    """
    memo = on_meta(module)
    with torch.random.fork_rng(devices=[]):  # a copy may build layers anew, and draw weights for them
        return _remade(module, memo) if isinstance(module, LocalGraphModule) else copy.deepcopy(module, memo)


def _remade(local: LocalGraphModule, memo: dict[int, object]) -> LocalGraphModule:
    model, output = copy.deepcopy(local.primary, memo), copy.deepcopy(local.output_criterion, memo)
    twin = emit(local.plan, local.compiled.over(model, output))
    twin.criterion = copy.deepcopy(local.criterion, memo)
    for old, new in zip(local.parameters(), twin.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    twin.train(local.training)
    return twin
