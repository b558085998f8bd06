"""Module k's loss reaches exactly the parameters that the plan gives to module k: every one of them, and no other."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import nn

from localize import LocalGraphModule, localize
from localize.models import CifarResNet, cifar_resnet
from tests.models.zoo import ZOO, Entry, every_model, localized


def reached(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is not None}


def planned(local: LocalGraphModule, index: int) -> set[str]:
    """Names of the trainable parameters that belong to module ``index``."""
    own = {f"primary.{name}" for name in local.plan.modules[index].parameters}
    own |= {name for name, _ in local.named_parameters() if name.startswith(f"module_{index}.")}
    return {name for name in own if local.get_parameter(name).requires_grad}


def trainable(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def assert_isolated(local: LocalGraphModule, x: torch.Tensor, y: torch.Tensor) -> None:
    seen: list[str] = []
    for index, out in enumerate(local.steps(x, y)):
        local.zero_grad()
        out.loss.backward()
        assert out.name == local.plan.modules[index].name
        assert reached(local) == planned(local, index)
        assert {id(p) for p in local.parameters_of(index)} == {id(local.get_parameter(name)) for name in reached(local)}
        seen += reached(local)
    local.zero_grad()
    assert sorted(seen) == sorted(trainable(local))
    assert len(local.plan.modules) == index + 1


@every_model
def test_every_model(entry: Entry) -> None:
    local = localized(entry)
    assert len(local.plan.modules) == len(local.plan.layers) - 1
    assert_isolated(local, *entry.batch())


@pytest.mark.parametrize("entry", [entry for entry in ZOO if "drop" in entry.name], ids=lambda entry: entry.name)
def test_three_modules(entry: Entry) -> None:
    local = localized(entry, modules=3)
    assert len(local.plan.modules) == 3
    assert_isolated(local, *entry.batch())


@pytest.mark.parametrize("modules", range(1, 11))
def test_every_number_of_modules(modules: int) -> None:
    local = localize(cifar_resnet(20, width=4), d=3, modules=modules, example_inputs=torch.empty(2, 3, 16, 16), seed=0)
    assert len(local.plan.layers) == 10
    assert [index for module in local.plan.modules for index in module.layers] == list(range(10))
    assert_isolated(local, torch.randn(2, 3, 16, 16), torch.tensor([1, 2]))


@pytest.mark.parametrize("last", ["joint", "single"])
@pytest.mark.parametrize("d", [1, 2, 3, 5, 20])
def test_every_depth(d: int, last: str) -> None:
    local = localize(cifar_resnet(20, width=4), d=d, last=last, example_inputs=torch.empty(2, 3, 16, 16), seed=0)
    assert len(local.plan.modules) == (10 if last == "single" else max(1, 10 - (d - 1)))
    assert_isolated(local, torch.randn(2, 3, 16, 16), torch.tensor([1, 2]))


def test_backpropagation_is_one_module(resnet: CifarResNet, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    local = localize(resnet, "bp", example_inputs=batch[0])
    assert local.plan.modules[0].parameters == tuple(name for name, _ in resnet.named_parameters())
    assert local.plan.modules[0].auxiliary is None
    assert_isolated(local, *batch)


def test_the_primary_output_reaches_the_last_module_only(
    resnet: CifarResNet, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    local = localize(resnet, d=2, seed=0, max_cut=1, example_inputs=batch[0])
    local(batch[0]).sum().backward()
    assert reached(local) == {f"primary.{name}" for name in local.plan.modules[-1].parameters}
    assert len(local.plan.modules) == 3


def freeze(model: nn.Module, prefixes: Iterable[str]) -> set[str]:
    frozen = {name for name, _ in model.named_parameters() if name.startswith(tuple(prefixes))}
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    assert frozen
    return {f"primary.{name}" for name in frozen}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("prefixes", [("conv1", "bn1"), ("layer1.0.conv2",), ("layer",), ("layer2.0", "fc.bias")])
def test_frozen_parameters_get_none(when: str, prefixes: tuple[str, ...], resnet: CifarResNet) -> None:
    x, y = torch.randn(4, 3, 16, 16), torch.arange(4)
    frozen = freeze(resnet, prefixes) if when == "before" else set()
    local = localize(resnet, d=2, seed=0, example_inputs=x)
    frozen = freeze(resnet, prefixes) if when == "after" else frozen
    assert_isolated(local, x, y)
    local.loss(x, y).backward()
    assert reached(local) == {name for name, _ in local.named_parameters()} - frozen
    # Freezing a layer says nothing about the copies of it that train others.
    assert {name for name in trainable(local) if name.startswith("module_")} == {
        name for name, _ in local.named_parameters() if name.startswith("module_")
    }


def test_frozen_auxiliary(resnet: CifarResNet, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    local = localize(resnet, d=2, seed=0, example_inputs=batch[0])
    auxiliary = local.local_modules[0].auxiliary
    assert auxiliary is not None
    auxiliary.requires_grad_(False)
    assert_isolated(local, *batch)


class Tied(nn.Module):
    """Two layers that share a weight, with another between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.second.weight = self.first.weight
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = self.second(self.middle(self.first(x).relu()).relu()).relu()
        logits: torch.Tensor = self.fc(self.last(x).relu().mean((2, 3)))
        return logits


def test_tied_layers_stay_in_one_module() -> None:
    model = Tied()
    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    local = localize(model, d=2, seed=0, example_inputs=x)
    homes = [m.index for m in local.plan.modules if {"first.weight", "middle.weight"} & {*m.parameters}]
    assert len(homes) == 1
    assert {"first.weight", "first.bias", "middle.weight", "second.bias"} <= {*local.plan.modules[homes[0]].parameters}
    assert len(local.plan.layers) == 3
    assert model.second.weight is model.first.weight
    assert_isolated(local, x, y)


class Shared(nn.Module):
    """A parameter read by every layer through a value that does not depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, 8, 3, padding=1) for a in (3, 8, 8, 8))
        self.bias = nn.Parameter(torch.zeros(8, 1, 1))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.bias.exp()
        x = self.convs[1](self.convs[0](x).relu() + bias).relu() + bias
        x = self.convs[3](self.convs[2](x).relu())
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def test_a_parameter_behind_a_shared_value_has_one_owner() -> None:
    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    local = localize(Shared(), d=2, seed=0, example_inputs=x)
    owners = [m.index for m in local.plan.modules if "bias" in m.parameters]
    # Both additions stand in one layer: the one that holds the second convolution.
    assert [owner for owner in owners if "convs.1.weight" in local.plan.modules[owner].parameters] == owners
    assert len(owners) == 1
    assert len(local.plan.layers) == 4
    assert_isolated(local, x, y)
