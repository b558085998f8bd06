"""Steps of cascaded losses against streams that are run from the input, one for each loss."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn import functional as F

from localize import LocalGraphModule
from passes.codegen.generate import returned
from tests.models.zoo import assert_same, gradients

MLM: dict[str, Any] = {"method": "mlaan", "lam": False}


def of_each_step(local: LocalGraphModule, x: torch.Tensor, y: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Gradients of each loss by itself."""
    found = []
    torch.manual_seed(1)
    for out in local.steps(x, y):
        local.zero_grad()
        out.loss.backward()
        found.append(gradients(local))
    local.zero_grad()
    return found


def oracle(local: LocalGraphModule, x: torch.Tensor, y: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Gradients of each loss, each stream run anew from the input."""

    def stream(start: int, end: int) -> list[Any]:
        values: dict[str, Any] = {local.local_modules[0].inputs[0]: x.clone()}
        for module in local.local_modules[: end + 1]:
            if module.plan.index == start:
                values = {n: v.detach().clone() if isinstance(v, torch.Tensor) else v for n, v in values.items()}
            with torch.set_grad_enabled(module.plan.index >= start):
                results = module.attached(*[values[name] for name in module.inputs])
            values.update(zip(module.outputs, returned(module.outputs, results), strict=True))
        last = local.local_modules[end]
        return [values[name] for name in last.outputs[: last.reads]]

    found = []
    torch.manual_seed(1)
    for j, module in enumerate(local.local_modules):
        cascade = module.plan.cascade
        assert cascade is not None
        # In the order of the steps: the engine adds up gradients of one parameter in the order of the runs.
        upstream = stream(cascade.reaches[0], j) if cascade.reaches else None
        own = stream(j, j)
        beyond = upstream or own
        first = own[0] if module.auxiliary is None else module.auxiliary(*own)
        second = beyond[0] if module.cascaded is None else module.cascaded(*beyond)
        loss = cascade.independent * F.cross_entropy(first, y) + cascade.cascaded * F.cross_entropy(second, y)
        local.zero_grad()
        loss.backward()
        found.append(gradients(local))
    local.zero_grad()
    return found


def assert_equals(local: LocalGraphModule, x: torch.Tensor, y: torch.Tensor) -> None:
    """Compare steps with the oracle and the fused loss with the steps, bit for bit; check where gradients arrive."""
    twin = copy.deepcopy(local)
    steps = of_each_step(local, x, y)
    for k, (found, expected) in enumerate(zip(steps, oracle(twin, x, y), strict=True)):
        assert_same(found, expected)
        names = {id(p): name for name, p in local.named_parameters()}
        assert {names[id(p)] for p in local.parameters_of(k)} == set(found)
    torch.manual_seed(2)
    for out in local.steps(x, y):
        out.loss.backward()
    summed = gradients(local)
    local.zero_grad()
    torch.manual_seed(2)
    local.loss(x, y).backward()
    assert_same(gradients(local), summed)
    local.zero_grad()
