"""Depths of auxiliary networks that together cost no more than a budget. Arithmetic on tables of costs.

Fewer hidden layers can cost more: the last hidden layer is always a copy of the widest layer, and a block halves
resolution once at most. ResNet-34 on ImageNet costs 16.0 G multiply-accumulates at d=2 and 15.8 G at d=5. So depth does
not measure cost, and this file works on tables of costs.
"""

from __future__ import annotations

from collections.abc import Sequence


def least(costs: Sequence[Sequence[int]]) -> list[int]:
    """Return, for each local module, the least cost of any depth."""
    return [min(row) for row in costs]


def lower_depths(costs: Sequence[Sequence[int]], budget: int) -> list[int] | None:
    """Return the number of hidden layers of each auxiliary network such that all together cost at most ``budget``.

    AugLocal (ICLR 2024), equation 2, bounds the FLOPs of auxiliary networks by gamma and leaves open how. Here depths
    are lowered from the output down to the input, one hidden layer a module and round, until the sum is met. A depth
    that costs no less than the present one is skipped. Then depths are raised again from the input up, one hidden layer
    a module and round, as long as the sum allows, so that none could be raised by itself within the budget.

    Args:
        costs: ``costs[i][h]``, the cost of module i's auxiliary network with h hidden layers, up to those asked for.
        budget: The most that all together may cost.

    Returns:
        h for each module, or None if even the cheapest depths cost more.

    >>> lower_depths([[1, 5, 9], [1, 4, 8]], 10)
    [1, 1]
    """
    depths = [len(row) - 1 for row in costs]
    total = sum(row[depth] for row, depth in zip(costs, depths, strict=True))
    if sum(least(costs)) > budget:
        return None
    while total > budget:
        for i in reversed(range(len(costs))):
            cheaper = [h for h in range(depths[i]) if costs[i][h] < costs[i][depths[i]]]
            if cheaper and total > budget:
                total += costs[i][cheaper[-1]] - costs[i][depths[i]]
                depths[i] = cheaper[-1]
    while raised := _raised(costs, depths, budget):
        depths = raised
    return depths


def _raised(costs: Sequence[Sequence[int]], depths: Sequence[int], budget: int) -> list[int] | None:
    """Return depths after raising each by one step, as far as the budget allows; None if none can be raised."""
    raised = list(depths)
    total = sum(row[depth] for row, depth in zip(costs, depths, strict=True))
    for i, row in enumerate(costs):
        within = [h for h in range(raised[i] + 1, len(row)) if total + row[h] - row[raised[i]] <= budget]
        if within:
            total += row[within[0]] - row[raised[i]]
            raised[i] = within[0]
    return raised if raised != list(depths) else None
