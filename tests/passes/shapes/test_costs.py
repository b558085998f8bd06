"""Costs of single operators, counted on fake tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passes.common.fake_tensors import fake_mode
from passes.ir import Cost
from passes.shapes.costs import CostMode


def cost_of(module: nn.Module, *shape: int) -> Cost:
    with fake_mode(), CostMode(shape[0]) as mode, torch.no_grad():
        module(torch.empty(shape))
        cost: Cost = mode.take()
    return cost


@pytest.mark.parametrize(
    ("module", "shape", "cost"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 4, 4), Cost(macs=3 * 8 * 9 * 16, mixing=True)),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (2, 8, 4, 4), Cost(macs=8 * 9 * 16, depthwise=True)),
        (nn.ConvTranspose2d(3, 8, 2, stride=2), (2, 3, 4, 4), Cost(macs=3 * 8 * 4 * 16, mixing=True)),
        (nn.Linear(3, 8), (2, 3), Cost(macs=24, mixing=True)),
        (nn.Linear(3, 8), (2, 5, 3), Cost(macs=5 * 24, mixing=True)),
        (nn.BatchNorm2d(3), (2, 3, 4, 4), Cost()),
    ],
    ids=["convolution", "depthwise", "transposed", "linear", "tokens", "norm"],
)
def test_cost_of_one_sample(module: nn.Module, shape: tuple[int, ...], cost: Cost) -> None:
    assert cost_of(module, *shape) == cost


def test_attention_mixes_and_costs_nothing_by_itself() -> None:
    with fake_mode(), CostMode(1) as mode, torch.no_grad():
        x = torch.empty(1, 2, 4, 8)
        F.scaled_dot_product_attention(x, x, x)
        assert mode.take().mixing


def test_a_sum_starts_again_after_it_was_taken() -> None:
    with fake_mode(), CostMode(1) as mode, torch.no_grad():
        nn.Linear(2, 2)(torch.empty(1, 2))
        mode.take()
        assert mode.take() == Cost()


def test_a_known_cost_is_added() -> None:
    mode = CostMode(4)
    mode.put(Cost(macs=5, mixing=True))
    assert mode.take() == Cost(macs=5, mixing=True)
