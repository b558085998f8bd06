"""Cascaded losses: gradients against two streams written out by hand, and against a slow oracle on whole models."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localize import LocalGraphModule, Plan, localize
from localize.bench.sweep.isolation import fake_step, reach
from localize.memory.peak import peak_step_bytes
from tests.models.wide import MAKERS
from tests.models.zoo import ZOO, Entry, assert_same, gradients
from tests.tools.cascades import MLM, assert_equals, of_each_step


class Chain(nn.Module):
    """Convolution, norm and ReLU, again and again; no module of its own holds two of them."""

    def __init__(self, layers: int = 5) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(layers))
        self.fc = nn.Linear(6, 4)

    def block(self, i: int, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norms[i](self.convs[i](x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(len(self.convs)):
            x = self.block(i, x)
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def chain(**options: Any) -> tuple[LocalGraphModule, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = Chain().double()
    x, y = torch.randn(4, 3, 6, 6).double(), torch.tensor([0, 1, 2, 3])
    local = localize(model, **{**MLM, "seed": 0, "example_inputs": x, **options})
    assert len(local.plan.modules) == 5
    return local.train(), x, y


@pytest.mark.parametrize("k", [2, 3, 9])
def test_gradients_are_those_of_two_streams_written_out(k: int) -> None:
    local, x, y = chain(k=k, independent=0.3, cascaded=0.7)
    model = local.primary
    assert isinstance(model, Chain)
    steps = of_each_step(local, x, y)
    for j, found in enumerate(steps):
        first = max(0, j - k + 1)
        assert local.plan.modules[j].cascade.reaches == tuple(range(first, j))
        total = torch.zeros(())
        for weight, start, head in ((0.3, j, "auxiliary"), (0.7, first, "cascaded")):
            value = x
            for i in range(start):
                value = model.block(i, value)
            value = value.detach()
            for i in range(start, j + 1):
                value = model.block(i, value)
            logits = model.fc(value.mean((2, 3))) if j == 4 else local.get_submodule(f"module_{j}.{head}")(value)
            total = total + weight * F.cross_entropy(logits, y)
        total.backward()
        expected = gradients(local)
        local.zero_grad()
        assert sorted(found) == sorted(expected)
        reached = {name.split(".")[2] for name in found if name.startswith("primary.convs")}
        assert reached == {str(i) for i in range(first, j + 1)}
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-14)


# Stages of the models below that change a value in place, skip modules, or hand several tensors on.
MODELS = ("resnet18", "mobilenet_v2", "densenet121", "cifar_resnet20", "convnext_atto")


@pytest.mark.parametrize("entry", [entry for entry in ZOO if entry.name in MODELS], ids=lambda entry: entry.name)
def test_whole_models(entry: Entry) -> None:
    local = entry.localize("mlaan", lam=False, modules=5, k=3, d=4)
    assert_equals(local, *entry.batch())


@pytest.mark.parametrize("modules", [None, 3])
@pytest.mark.parametrize("name", MAKERS)
def test_across_wide_cuts(name: str, modules: int | None) -> None:
    """A cascaded loss may miss parameters of the modules it goes through: what only later ones read."""
    torch.manual_seed(0)
    size = 32 if name == "densenet" else 16
    x = torch.randn(4, 3, size, size)
    local = localize(MAKERS[name](), **MLM, k=3, max_cut=3, modules=modules, seed=0, example_inputs=x).train()
    plan = local.plan
    assert max(layer.width for layer in plan.layers) > 1
    if name == "two ways":
        # Layers of the two branches take turns: by itself each learns from what only the last module reads.
        reached = [len(m.cascade.parameters) for m in plan.modules if m.cascade]
        assert reached == ([0, 0, 3, 3, 3, 3, 6] if modules is None else [0, 6, 12])
        assert [m.reads for m in local.local_modules] == ([1] * 7 if modules is None else [2, 2, 1])
    assert_equals(local, x, torch.arange(4))
    assert fake_step(local).violations == ()
    built = sum(p.numel() for module in local.local_modules for p in module.parameters())
    assert built == plan.auxiliary_params
    assert Plan.from_json(plan.to_json()) == plan


def test_no_gradient_leaves_the_window() -> None:
    local, x, y = chain(k=2)
    x.requires_grad_()
    for out in local.steps(x, y):
        out.loss.backward()
    assert x.grad is None


@pytest.mark.parametrize("k", [2, 4])
def test_running_statistics_move_once_a_step(k: int) -> None:
    """As they do without cascades, bit for bit."""
    found = []
    for mlm in (True, False):
        local, x, y = chain(k=k, mlm=mlm)
        for _ in range(2):
            for out in local.steps(x, y):
                out.loss.backward()
            local.loss(x, y).backward()
        found.append({name: value for name, value in local.primary.named_buffers()})
    assert_same(*found)
    assert {int(value) for name, value in found[0].items() if name.endswith("tracked")} == {4}


def test_memory_holds_no_more_than_the_window() -> None:
    """Twice as deep a network takes no more, and a longer cascade does."""

    def peak(layers: int, k: int) -> int:
        local = localize(Chain(layers), **MLM, k=k, seed=0, example_inputs=torch.empty(2, 3, 8, 8))
        state = 3 * 4 * sum(p.numel() for p in local.parameters())  # weights, gradients, momentum
        return peak_step_bytes(local, 64, image_shape=(3, 8, 8), classes=4) - state

    shallow, deep, longer = peak(5, 2), peak(8, 2), peak(8, 4)
    assert abs(deep / shallow - 1) < 0.02
    assert longer > 1.3 * deep


def test_a_deep_copy_trains_by_itself() -> None:
    local, x, y = chain()
    twin = copy.deepcopy(local)
    expected = of_each_step(local, x, y)
    before = {name: p.detach().clone() for name, p in local.named_parameters()}
    for found, own in zip(of_each_step(twin, x, y), expected, strict=True):
        assert_same(found, own)
    twin.loss(x, y).backward()
    torch.optim.SGD(twin.parameters(), 0.1).step()
    assert_same({name: p.detach() for name, p in local.named_parameters()}, before)
    assert gradients(local) == {}


def test_the_output_criterion_is_the_loss_at_the_end_of_both_streams() -> None:
    seen = []

    def output_criterion(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(logits.detach())
        return F.cross_entropy(logits, target)

    plain, x, y = chain()
    expected = of_each_step(plain, x, y)
    torch.manual_seed(0)
    local, _, _ = chain(output_criterion=output_criterion)
    for found, own in zip(of_each_step(local, x, y), expected, strict=True):
        assert_same(found, own)
    assert len(seen) == 2


def test_one_module_is_backpropagation() -> None:
    x, y = torch.randn(4, 3, 6, 6).double(), torch.arange(4)
    found = []
    for method in ("mlaan", "bp"):
        torch.manual_seed(0)
        local = localize(Chain().double(), method, modules=1, example_inputs=x, seed=0).train()
        loss = local.loss(x, y)
        loss.backward()
        found.append({"loss": loss.detach(), **gradients(local)})
    assert_same(*found)


def test_plans_say_what_losses_reach() -> None:
    local, x, y = chain(k=3)
    plan = local.plan
    assert Plan.from_json(plan.to_json()) == plan
    cascade = plan.modules[3].cascade
    assert cascade is not None
    assert cascade.parameters == tuple(name for j in (1, 2) for name in plan.modules[j].parameters)
    assert "0.5 * [d=1: head] + 0.5 * [d=1: head] from module 1 on" in str(plan)
    assert "0.5 * [(output loss)] + 0.5 * [(output loss)] from module 2 on" in str(plan)
    spans = [range(max(0, j - 2), j + 1) for j in range(1, 5)]
    layers = sum(plan.layers[i].macs for span in spans for i in span)
    assert plan.repeated_macs == layers + plan.classifier_macs
    assert reach(local, x, y).violations == ()


def test_a_leak_out_of_a_cascade_is_seen() -> None:
    """What the plan does not say is a violation, in either direction."""
    local, x, y = chain(k=3)
    module = local.plan.modules[3]
    assert module.cascade is not None
    short = dataclasses.replace(module, cascade=dataclasses.replace(module.cascade, parameters=()))
    local.local_modules[3].plan = short
    found = reach(local, x, y).violations
    assert len(found) == 8
    assert all("the loss of module 3" in line and "which belongs to module" in line for line in found)
    named = local.plan.modules[0].parameters
    more = dataclasses.replace(module.cascade, parameters=(*named, *module.cascade.parameters))
    local.local_modules[3].plan = dataclasses.replace(module, cascade=more)
    found = reach(local, x, y).violations
    assert len(found) == len(named)
    assert all("the loss of module 3" in line and "does not reach primary." in line for line in found)
