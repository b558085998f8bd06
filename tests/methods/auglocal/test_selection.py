"""Selection and the pyramid: arithmetic on indices."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localize.methods.auglocal.selection import pyramid, repetitive, sequential, uniform


@pytest.mark.parametrize(
    ("layer", "hidden", "layers", "expected"),
    [
        (0, 1, 16, (15,)),
        (0, 3, 16, (5, 10, 15)),
        (4, 3, 16, (8, 11, 15)),
        (5, 4, 16, (8, 10, 12, 15)),  # 7.5 and 12.5 round to even
        (13, 5, 16, (14, 15)),  # two remain
        (15, 2, 16, ()),
        (3, 0, 16, ()),
    ],
)
def test_uniform(layer: int, hidden: int, layers: int, expected: tuple[int, ...]) -> None:
    assert uniform(layer, hidden, layers) == expected


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))), st.integers(0, 20))
def test_uniform_is_increasing_ends_at_the_last_layer_and_takes_no_more_than_there_is(
    sizes: tuple[int, int], hidden: int
) -> None:
    layers, layer = sizes
    found = uniform(layer, hidden, layers)
    assert len(found) == min(hidden, layers - 1 - layer)
    assert all(a < b for a, b in pairwise((layer, *found)))
    assert not found or found[-1] == layers - 1


@pytest.mark.parametrize(
    ("layer", "hidden", "follow", "again"),
    [
        (0, 3, (1, 2, 3), (0, 0, 0)),
        (4, 1, (5,), (4,)),
        (13, 5, (14, 15), (13, 13)),  # two remain
        (15, 2, (), ()),
        (3, 0, (), ()),
    ],
)
def test_sequential_and_repetitive(layer: int, hidden: int, follow: tuple[int, ...], again: tuple[int, ...]) -> None:
    assert sequential(layer, hidden, 16) == follow
    assert repetitive(layer, hidden, 16) == again


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))), st.integers(0, 12))
def test_all_strategies_give_one_depth(sizes: tuple[int, int], hidden: int) -> None:
    layers, layer = sizes
    assert len({len(choose(layer, hidden, layers)) for choose in (uniform, sequential, repetitive)}) == 1


def test_pyramid_of_the_papers_networks() -> None:
    assert [pyramid(3, i, 13, 0.5) for i in range(12)] == [3] * 6 + [2] * 6
    assert [pyramid(5, i, 11, 0.5) for i in range(10)] == [5, 5, 5, 4, 4, 4, 4, 3, 3, 3]


@pytest.mark.parametrize(
    ("hidden", "modules", "tau", "expected"), [(5, 2, 0.5, 5), (0, 9, 0.5, 0), (5, 9, 0.0, 5), (3, 1, 1.0, 3)]
)
def test_pyramid_where_there_is_nothing_to_shrink(hidden: int, modules: int, tau: float, expected: int) -> None:
    assert pyramid(hidden, 0, modules, tau) == expected


@given(st.integers(1, 12), st.integers(3, 120), st.floats(0, 1))
def test_pyramid_never_grows_and_keeps_one_layer(hidden: int, modules: int, tau: float) -> None:
    depths = [pyramid(hidden, i, modules, tau) for i in range(modules - 1)]
    assert depths[0] == hidden
    assert all(a >= b >= 1 for a, b in pairwise([*depths, 1]))
