"""Grouping of layers into modules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.errors import PartitionError
from passes.group import group_evenly, join_last


@given(st.integers(1, 120).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_groups_cover_the_layers_in_order_and_differ_by_one_at_most(sizes: tuple[int, int]) -> None:
    layers, modules = sizes
    groups = group_evenly(layers, modules)
    assert [i for group in groups for i in group] == list(range(layers))
    assert len(groups) == modules
    lengths = [len(group) for group in groups]
    assert max(lengths) - min(lengths) <= 1


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
