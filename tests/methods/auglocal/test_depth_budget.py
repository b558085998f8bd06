"""The budget: depths that together cost no more than a given sum, against brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localize import MethodError, localize
from localize.methods.auglocal.depth_budget import least, lower_depths
from tests.models.wide import EXAMPLE, TwoWays
from tests.tools.auglocal import auxiliaries, resnet

Costs = list[list[int]]
TABLES = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), max_size=5)


def total(costs: Costs, depths: list[int]) -> int:
    return sum(row[depth] for row, depth in zip(costs, depths, strict=True))


@given(TABLES, st.integers(0, 200))
def test_a_budget_is_met_if_it_can_be_and_no_depth_could_be_raised_within_it(costs: Costs, budget: int) -> None:
    every = [total(costs, list(depths)) for depths in itertools.product(*(range(len(row)) for row in costs))]
    found = lower_depths(costs, budget)
    assert (found is None) == (min(every) > budget)
    assert sum(least(costs)) == min(every)
    if found is None:
        return
    assert total(costs, found) <= budget
    for i, row in enumerate(costs):
        for depth in range(found[i] + 1, len(row)):
            assert total(costs, found) - row[found[i]] + row[depth] > budget


@given(TABLES)
def test_boundaries(costs: Costs) -> None:
    deepest = [len(row) - 1 for row in costs]
    cost = total(costs, deepest)
    assert lower_depths(costs, cost) == deepest
    assert lower_depths(costs, cost - 1) != deepest
    cheapest = sum(least(costs))
    found = lower_depths(costs, cheapest)
    assert found is not None
    assert [row[depth] for row, depth in zip(costs, found, strict=True)] == least(costs)
    assert lower_depths(costs, cheapest - 1) is None


EVEN = [[1, 10, 20, 30]] * 3


@pytest.mark.parametrize(
    ("costs", "budget", "expected"),
    [
        (EVEN, 90, [3, 3, 3]),
        (EVEN, 89, [3, 3, 2]),  # the output first
        (EVEN, 70, [3, 2, 2]),
        (EVEN, 60, [2, 2, 2]),
        (EVEN, 59, [2, 2, 1]),  # a second round
        (EVEN, 21, [1, 1, 0]),  # at last the linear classifier alone
        (EVEN, 3, [0, 0, 0]),
        ([[1, 9, 30], [1, 9, 10]], 38, [1, 2]),  # lowering the second was not enough, and is taken back
        ([[1, 50, 20, 30]], 29, [2]),
        ([[1, 50, 20, 30]], 19, [0]),  # one hidden layer would cost more than two
        ([[1, 2], [1, 9]], 10, [1, 0]),
        ([], 0, []),
    ],
)
def test_by_hand(costs: Costs, budget: int, expected: list[int]) -> None:
    assert lower_depths(costs, budget) == expected


# On networks ----------------------------------------------------------------------------------------------------------


def test_budget_boundaries() -> None:
    free = resnet(d=4).plan
    assert resnet(d=4, max_aux_macs=free.auxiliary_macs).plan.modules == free.modules
    tight = resnet(d=4, max_aux_macs=free.auxiliary_macs - 1).plan
    assert tight.auxiliary_macs < free.auxiliary_macs
    lowered = [m.index for m in tight.modules if "to meet max_aux_macs" in m.note]
    # Only the module nearest the output has given up a hidden layer.
    assert lowered == [len(free.modules) - 2]
    assert "module 5: d=2 instead of 3, to meet max_aux_macs" in str(tight)


def test_an_impossible_budget_names_the_least() -> None:
    """Linear classifiers alone: 4 of 16 channels, 2 of 32, 10 classes."""
    least = (4 * 16 + 2 * 32) * 10
    plan = resnet(d=4, max_aux_macs=least).plan
    assert plan.auxiliary_macs == least
    assert {auxiliary.depth for auxiliary in auxiliaries(resnet(d=4, max_aux_macs=least))} == {1}
    with pytest.raises(MethodError, match=rf"cost {least:,} at least .* most by module 4 \(layer2\.0\): 320"):
        resnet(d=4, max_aux_macs=least - 1)


CASES: list[tuple[float, dict[str, Any]]] = [
    *((ratio, {}) for ratio in (0.2, 0.5, 1.0, 1.3)),
    (0.5, {"selection": "conv3x3"}),
    (1.0, {"last": "single", "downsampling": "none"}),
]


@pytest.mark.parametrize(("ratio", "options"), CASES, ids=str)
def test_a_float_is_a_multiple_of_the_primary(ratio: float, options: dict[str, Any]) -> None:
    """And no depth could be raised by a layer within the budget."""
    plan = resnet(d=4, max_aux_macs=ratio, **options).plan
    free = resnet(d=4, **options).plan
    budget = ratio * plan.macs
    assert plan.auxiliary_macs <= budget < free.auxiliary_macs
    assert plan == resnet(d=4, max_aux_macs=ratio, **options).plan
    whole = resnet(d=4, max_aux_macs=math.floor(budget), **options).plan
    assert whole.modules == plan.modules
    for found, asked in zip(plan.modules[:-1], free.modules[:-1], strict=True):
        assert found.auxiliary is not None
        assert asked.auxiliary is not None
        assert ("to meet max_aux_macs" in found.note) == (found.auxiliary.depth < asked.auxiliary.depth)
        for d in range(found.auxiliary.depth + 1, asked.auxiliary.depth + 1):
            # A network of one depth throughout has the auxiliary network that this module would have.
            flat = resnet(**{**options, "tau": 0.0, "last": "single", "d": d}).plan
            other = next(m.auxiliary for m in flat.modules if m.layers == found.layers)
            assert other is not None
            raised = plan.auxiliary_macs - found.auxiliary.macs + other.macs
            assert raised > budget


def test_the_cost_of_merging_counts() -> None:
    """Behind a wide cut, what reads several tensors merges them first, whatever the depth."""
    model = TwoWays()
    options: dict[str, Any] = {"d": 2, "max_cut": 2, "modules": 2, "example_inputs": EXAMPLE}
    free = localize(model, **options).plan
    assert any(module.auxiliary and module.auxiliary.merged for module in free.modules)
    assert localize(model, max_aux_macs=free.auxiliary_macs, **options).plan.modules == free.modules
    lower = localize(model, max_aux_macs=free.auxiliary_macs - 1, **options).plan
    (auxiliary,) = [module.auxiliary for module in lower.modules if module.auxiliary]
    assert (auxiliary.depth, len(auxiliary.merged)) == (1, 1)
    with pytest.raises(MethodError, match=f"cost {lower.auxiliary_macs:,} at least"):
        localize(model, max_aux_macs=lower.auxiliary_macs - 1, **options)
    with pytest.raises(MethodError, match=r"max_aux_macs=1 .* at least"):
        localize(model, max_aux_macs=1, **options)
