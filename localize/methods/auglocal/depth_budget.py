"""Budget: depths of auxiliary networks that together cost no more than a given sum. Arithmetic on tables of costs."""

from __future__ import annotations

from collections.abc import Sequence


def least(costs: Sequence[Sequence[int]]) -> list[int]:
    """For each local module the least that any depth costs."""
    return [min(row) for row in costs]


def lower_depths(costs: Sequence[Sequence[int]], budget: int) -> list[int] | None:
    """Hidden layers of each local module's auxiliary network, such that all together cost ``budget`` at most.

    AugLocal (ICLR 2024), equation 2, bounds the FLOPs of auxiliary networks by gamma and leaves open how. Here depths
    are lowered from the output down to the input, one hidden layer a module and round, until the sum is met. A depth
    that costs no less than the one before is passed over: fewer hidden layers can cost more, since the last of them is
    always a copy of the widest layer. Then depths are raised again from the input up, one hidden layer a module and
    round, as long as the sum allows, so that none could be raised by itself within the budget.

    Args:
        costs: ``costs[i][h]``, what module i's auxiliary network costs with h hidden layers, up to those asked for.
        budget: The most that all together may cost.

    Returns:
        h for each module, or None where even the cheapest depths cost more.
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
    """Depths after one round of raising each by one step within the budget; None where none can be."""
    found = list(depths)
    total = sum(row[depth] for row, depth in zip(costs, depths, strict=True))
    for i, row in enumerate(costs):
        within = [h for h in range(found[i] + 1, len(row)) if total + row[h] - row[found[i]] <= budget]
        if within:
            total += row[within[0]] - row[found[i]]
            found[i] = within[0]
    return found if found != list(depths) else None
