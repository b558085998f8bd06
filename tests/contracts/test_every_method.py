"""Every method on many models: a real step is finite and isolated, and losses reach what the plan says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from localize import METHODS, LocalizeError, Plan, localize
from localize.bench.sweep.isolation import fake_step, reach
from localize.models import cifar_resnet
from tests.models.real import CLASSES, OTHERS, PAIRED, SIZE, SMALLER, Make

REFUSED: dict[tuple[str, str], str] = {
    ("vit_tiny_patch16_224", "gn-dgl"): "scaled_dot_product_attention of Attention cannot be split in 2 groups",
    ("swin_tiny", "gn-dgl"): "matmul of WindowAttention cannot be split in 2 groups",
    ("mixer_s32", "gn-dgl"): "add of MixerBlock cannot be split in 2 groups",
    ("ghostnet_050", "gn-dgl"): "iadd of GhostBottleneck cannot be split in 2 groups",
}
"""Pairs that cannot be, with what is said."""


def _allowed(name: str, method: str) -> str | None:
    return REFUSED.get((name, method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SMALLER)
def test_one_real_step(name: str, method: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.rand(2, 3, SIZE, SIZE, generator=generator), torch.tensor([1, 3])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = SMALLER[name]().train()
    modules = 4 if METHODS[method].local else None
    refused = _allowed(name, method)
    if refused is not None:
        with pytest.raises(LocalizeError, match=refused):
            localize(model, method, d=2, modules=modules, example_inputs=x, seed=0)
        return
    local = localize(model, method, d=2, modules=modules, example_inputs=x, seed=0)
    plan = local.plan
    assert Plan.from_json(plan.to_json()) == plan
    built = [sum(p.numel() for p in module.parameters()) for module in local.local_modules]
    assert built == [sum(network.params for network in module.networks) for module in plan.modules]
    assert sum(built) == plan.auxiliary_params
    found = reach(local, x, y)
    assert found.violations == ()
    assert found.untrained == ()
    for out in local.steps(x, y):
        out.loss.backward()
        assert out.logits.shape == (2, CLASSES)
        assert bool(out.loss.isfinite())
    gradients = [p.grad for p in local.parameters() if p.requires_grad]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    torch.optim.SGD((p for p in local.parameters() if p.requires_grad), lr=0.01).step()
    assert all(bool(p.isfinite().all()) for p in local.parameters())


@pytest.mark.registry
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*PAIRED, *OTHERS])
def test_losses_reach_what_the_plan_says(name: str, method: str) -> None:
    with torch.device("meta"):
        model = {**PAIRED, **OTHERS}[name]().train()
    size = 32 if name == "cifar_resnet32" else SIZE
    x = torch.empty(2, 3, size, size, device="meta")
    refused = _allowed(name, method)
    if refused is not None:
        with pytest.raises(LocalizeError, match=refused):
            localize(model, method, d=2, example_inputs=x)
        return
    found = fake_step(localize(model, method, d=2, example_inputs=x))
    assert found.violations == ()


ONE: dict[str, dict[str, Any]] = {"gn-dgl": {"head": "joint"}}
"""Options by which a method trains the classifier with the last local module, where that is not its default."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [lambda: cifar_resnet(8), PAIRED["convnext_atto"]], ids=["cifar_resnet8", "convnext"])
def test_one_local_module_is_backpropagation_bit_for_bit(make: Make, method: str) -> None:
    x, y = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)), torch.tensor([1, 3])
    found = []
    for name in ("bp", method):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = make().train()
            local = localize(model, name, modules=1, example_inputs=x, **(ONE.get(name, {}) if name == method else {}))
            (out,) = local.steps(x, y)
            out.loss.backward()
        found.append((out.loss.detach(), out.logits.detach(), [p.grad for p in model.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    for a, b in zip(found[0][2], found[1][2], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)
