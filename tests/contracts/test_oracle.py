"""Losses and gradients of the emitted module against the slow truth."""

from __future__ import annotations

import pytest
import torch

from localize import LocalGraphModule
from passes.ir import Captured
from passes.pipeline import analyse
from tests.models.zoo import ZOO, Entry, assert_same, every_model, gradients, localized
from tests.tools.oracle import Oracle


def _reads_first(outputs: tuple[str, ...], live: tuple[str, ...]) -> tuple[str, ...]:
    """The tensors that cross, in the order in which the module gives those it computes."""
    return (*(name for name in outputs if name in live), *(name for name in live if name not in outputs))


def run_oracle(
    local: LocalGraphModule, x: torch.Tensor, y: torch.Tensor, max_cut: int | None = None
) -> list[torch.Tensor]:
    """Losses; gradients stay on the parameters. The model is analysed anew, apart from what ``local`` was made of."""
    network = analyse(local.primary, (2, *x.shape[1:]), max_cut=max_cut)
    captured: Captured = network.captured
    cuts = [
        (_reads_first(module.outputs, network.partition.live[module.plan.layers[-1]]), module.reads)
        for module in local.local_modules[:-1]
    ]
    cuts.append(((captured.result.name,), 1))
    oracle = Oracle(captured, local, cuts, y)
    oracle.run(x)
    return oracle.losses


def assert_equals_oracle(local: LocalGraphModule, x: torch.Tensor, y: torch.Tensor, max_cut: int | None = None) -> None:
    torch.manual_seed(11)
    local.zero_grad()
    losses = []
    for out in local.steps(x, y):
        out.loss.backward()
        losses.append(out.loss.detach())
    found = gradients(local)
    torch.manual_seed(11)
    local.zero_grad()
    expected_losses = run_oracle(local, x, y, max_cut)
    assert len(losses) == len(local.plan.modules)
    assert torch.equal(torch.stack(losses), torch.stack(expected_losses))
    assert_same(found, gradients(local))
    assert sorted(found) == sorted(name for name, _ in local.named_parameters())
    local.zero_grad()


@every_model
def test_auglocal(entry: Entry) -> None:
    assert_equals_oracle(localized(entry), *entry.batch())


@pytest.mark.parametrize("entry", [entry for entry in ZOO if "drop" in entry.name], ids=lambda entry: entry.name)
@pytest.mark.parametrize("method", ["auglocal", "bp"])
def test_several_layers_a_module(entry: Entry, method: str) -> None:
    assert_equals_oracle(localized(entry, method, modules=3 if method == "auglocal" else None), *entry.batch())


def test_backpropagation_differs() -> None:
    """The comparison can fail: with gradients flowing through the cuts, the stem's are others."""
    entry = next(entry for entry in ZOO if entry.name == "cifar_resnet20")
    local, (x, y) = localized(entry), entry.batch()
    local.zero_grad()
    run_oracle(local, x, y)
    apart = gradients(local)
    local.zero_grad()
    torch.nn.functional.cross_entropy(local.primary(x), y).backward()
    whole = gradients(local)
    local.zero_grad()
    assert not torch.allclose(whole["primary.conv1.weight"], apart["primary.conv1.weight"])
    torch.testing.assert_close(whole["primary.fc.weight"], apart["primary.fc.weight"])
