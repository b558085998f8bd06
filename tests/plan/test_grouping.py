"""Grouping of layers into modules."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localize.plan.grouping import group_by_cost, group_evenly, group_sizes, join_last, join_untrained
from passes.errors import PartitionError


@given(st.integers(1, 120).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_groups_cover_the_layers_in_order_and_differ_by_one_at_most(sizes: tuple[int, int]) -> None:
    layers, modules = sizes
    groups = group_evenly(layers, modules)
    assert [i for group in groups for i in group] == list(range(layers))
    assert len(groups) == modules
    lengths = [len(group) for group in groups]
    assert max(lengths) - min(lengths) <= 1


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 12))
def test_every_loss_but_the_last_trains_something(trained: list[bool], joined: int) -> None:
    groups = join_untrained(join_last(len(trained), joined), trained)
    assert [i for group in groups for i in group] == list(range(len(trained)))
    for group in groups[:-1]:
        # Frozen layers first, then the one that learns.
        assert [trained[i] for i in group] == [False] * (len(group) - 1) + [True]
    assert groups[-1][-joined:] == (*range(len(trained)),)[-joined:]
    if all(trained):
        assert groups == join_last(len(trained), joined)


@pytest.mark.parametrize("modules", [0, -1, 17, 2.0, True, "4"])
def test_impossible_counts_are_refused(modules: Any) -> None:
    with pytest.raises(
        PartitionError, match=f"modules must be an integer from 1 to 16, .*, got {re.escape(repr(modules))}"
    ):
        group_evenly(16, modules)


@pytest.mark.parametrize(("layers", "joined", "expected"), [(4, 1, 4), (4, 2, 3), (4, 4, 1), (4, 9, 1), (4, 0, 4)])
def test_the_last_layers_join(layers: int, joined: int, expected: int) -> None:
    groups = join_last(layers, joined)
    assert len(groups) == expected
    assert [i for group in groups for i in group] == list(range(layers))
    assert all(len(group) == 1 for group in groups[:-1])


def _groupings(layers: int, modules: int) -> list[tuple[tuple[int, ...], ...]]:
    found = []
    for cuts in itertools.combinations(range(1, layers), modules - 1):
        ends = (0, *cuts, layers)
        found.append(tuple(tuple(range(a, b)) for a, b in itertools.pairwise(ends)))
    return found


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=8).flatmap(
        lambda costs: st.tuples(st.just(costs), st.integers(1, len(costs)))
    )
)
def test_groups_by_cost_are_the_best_of_all(case: tuple[list[int], int]) -> None:
    costs, modules = case

    def rank(groups: Sequence[Sequence[int]]) -> tuple[int, int]:
        sums = [sum(costs[i] for i in group) for group in groups]
        return max(sums), sum(cost**2 for cost in sums)

    found = group_by_cost(costs, modules)
    assert found in _groupings(len(costs), modules)
    assert rank(found) == min(map(rank, _groupings(len(costs), modules)))


def test_groups_of_given_sizes() -> None:
    assert group_sizes(6, [1, 3, 2]) == ((0,), (1, 2, 3), (4, 5))


@pytest.mark.parametrize("sizes", [[1, 2], [7], [3, 0, 3], [], [3, -1, 4], [2.0, 4], [True, 5]])
def test_impossible_sizes_are_refused(sizes: Any) -> None:
    with pytest.raises(PartitionError, match="modules must hold integers > 0 that sum to 6"):
        group_sizes(6, sizes)
