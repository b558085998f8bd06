"""Gradients of local steps, each of which reaches what its module owns and nothing else."""

from __future__ import annotations

import torch

from localize import LocalGraphModule
from tests.models.zoo import gradients


def assert_isolated(local: LocalGraphModule, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of all steps, each of which reaches what its module owns and nothing else."""
    found: dict[str, torch.Tensor] = {}
    for module, out in zip(local.plan.modules, local.steps(x, y), strict=True):
        local.zero_grad()
        out.loss.backward()
        own = {f"primary.{name}" for name in module.parameters}
        own |= {name for name, _ in local.named_parameters() if name.startswith(f"module_{module.index}.")}
        reached = gradients(local)
        assert {*reached} == own
        found |= reached
    assert len(found) == len(list(local.parameters()))
    return found
