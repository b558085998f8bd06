"""Every rule on real architectures: figures as planned, and a real step whose losses reach their own parameters."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from localize import Plan, localize
from localize.bench.sweep.isolation import fake_step, reach

RULES = ["dgl", "predsim", "infopro", "auglocal+infopro"]
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "mobilenetv2_100": {},
    "efficientnet_b0": {},
    "convnext_atto": {"depths": (1, 1, 2, 1)},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 4},
    "densenet121": {"block_config": (2, 2, 3, 2)},
}
"""With what is changed of them: less of the same, to be quick."""
SHALLOW: dict[str, dict[str, Any]] = {
    "resnet26": {},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 2, 1)},
    "deit_tiny_distilled_patch16_224": {"depth": 4},
}
SIZE = 64

every_rule = pytest.mark.parametrize("method", RULES)


@pytest.mark.registry  # with fewer local modules by default: tests/contracts/test_every_method.py
@every_rule
@pytest.mark.parametrize("name", MODELS)
def test_a_real_step(name: str, method: str) -> None:
    model = timm.create_model(name, num_classes=10, **MODELS[name])
    x, y = torch.rand(2, 3, SIZE, SIZE), torch.tensor([3, 7])
    local = localize(model, method, d=2, seed=0, example_inputs=x, verify=False)
    assert len(local.plan.modules) >= 7
    assert Plan.from_json(local.plan.to_json()) == local.plan
    for planned, module in zip(local.plan.modules[:-1], local.local_modules, strict=False):
        assert planned.auxiliary is not None
        assert sum(p.numel() for p in module.parameters()) == planned.auxiliary.params
    for out in local.steps(x, y):
        out.loss.backward()
        assert out.logits.shape == (2, 10)
        assert bool(out.loss.isfinite())
    assert [n for n, p in local.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())] == []
    found = reach(local, x, y)
    assert (found.violations, found.untrained) == ((), ())


@every_rule
@pytest.mark.parametrize("name", SHALLOW)
def test_full_size_without_memory(name: str, method: str) -> None:
    """Bottlenecks, channels last, and two tokens in front: on the meta device, at the resolution of the paper."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10, **SHALLOW[name])
    local = localize(model, method, d=2)
    for planned, module in zip(local.plan.modules[:-1], local.local_modules, strict=False):
        assert planned.auxiliary is not None
        assert sum(p.numel() for p in module.parameters()) == planned.auxiliary.params
    assert fake_step(local).violations == ()
