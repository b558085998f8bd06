"""Cascades of modules that change values in place: run once more, they find them as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from localize import localize
from tests.models.control_flow import EXAMPLE
from tests.models.in_place import InPlace
from tests.models.zoo import assert_same
from tests.tools.cascades import MLM, assert_equals, of_each_step, oracle


@pytest.mark.parametrize("max_cut", [2, 3, None])
@pytest.mark.parametrize("k", [2, 3, 9])
def test_values_changed_in_place_are_found_unchanged(max_cut: int | None, k: int) -> None:
    torch.manual_seed(0)
    local = localize(InPlace(), **MLM, k=k, seed=0, max_cut=max_cut, example_inputs=EXAMPLE).train()
    assert len(local.plan.modules) > 2
    assert_equals(local, torch.randn(4, 4, 8, 8), torch.arange(4))


class InPlaceViews(nn.Module):
    """Changes its input, and later, through a view, a value that waits beside the trunk, read before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(7))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.mul_(0.5)
        waiting = self.layers[0](x)
        x = self.layers[1](waiting * 2)
        x = self.layers[2](x + waiting)
        waiting.flatten(1).mul_(-0.5)
        x = self.layers[3](x)
        x = self.layers[4](x) + waiting.sigmoid()
        waiting.flatten(1).add_(2.0)
        x = self.layers[6](self.layers[5](x) * waiting)
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("k", [2, 3, 4, 9])
def test_what_modules_change_in_place_is_found_as_it_was(k: int) -> None:
    torch.manual_seed(0)
    local = localize(InPlaceViews(), **MLM, k=k, seed=0, max_cut=2, example_inputs=EXAMPLE).train()
    assert sum(bool(module.overwrites) for module in local.local_modules) >= 3
    x, y = torch.randn(4, 4, 8, 8), torch.arange(4)
    expected = oracle(copy.deepcopy(local), x, y)
    for found, own in zip(of_each_step(local, x.clone(), y), expected, strict=True):
        assert_same(found, own)
