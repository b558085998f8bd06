"""CIFAR ResNets localized by AugLocal, and what holds of all auxiliary networks."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from localize import Auxiliary, LocalGraphModule, Plan, localize
from localize.models import cifar_resnet


@cache
def resnet(depth: int = 20, **options: Any) -> LocalGraphModule:
    with torch.device("meta"):
        model = cifar_resnet(depth)
    return localize(model, **options)


def auxiliaries(local: LocalGraphModule) -> list[Auxiliary]:
    return [module.auxiliary for module in local.plan.modules[:-1] if module.auxiliary is not None]


def assert_trains(local: LocalGraphModule, size: int = 16) -> None:
    """Every parameter gets a gradient, and plans count what is built."""
    generator = torch.Generator().manual_seed(0)
    for out in local.steps(torch.randn(4, 3, size, size, generator=generator), torch.arange(4)):
        out.loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in local.parameters())
    assert Plan.from_json(local.plan.to_json()) == local.plan
    built = sum(p.numel() for module in local.local_modules for p in module.parameters())
    assert built == local.plan.auxiliary_params
