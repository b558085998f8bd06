"""Grouping of layers into modules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.errors import PartitionError
from passes.group import group_evenly, join_last, join_untrained


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
    with pytest.raises(PartitionError, match="the model has 16 local layers"):
        group_evenly(16, modules)


@pytest.mark.parametrize(("layers", "joined", "expected"), [(4, 1, 4), (4, 2, 3), (4, 4, 1), (4, 9, 1), (4, 0, 4)])
def test_the_last_layers_join(layers: int, joined: int, expected: int) -> None:
    groups = join_last(layers, joined)
    assert len(groups) == expected
    assert [i for group in groups for i in group] == list(range(layers))
    assert all(len(group) == 1 for group in groups[:-1])
