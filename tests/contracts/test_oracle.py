"""Losses and gradients of the emitted module against the slow truth."""

from __future__ import annotations

import pytest
import torch

from tests.models.zoo import ZOO, Entry, every_model, gradients, localized
from tests.tools.oracle import assert_equals_oracle, run_oracle


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
