"""Borders and segments of graphs built by hand."""

from __future__ import annotations

import pytest
from torch import nn

from passes.errors import PartitionError
from passes.partition.flow import Flow, live_positions
from tests.tools.hand_graphs import HandGraph, chain, residual


def test_one_tensor_crosses_each_border_of_a_chain() -> None:
    flow = Flow(*chain(2))
    assert [border.live for border in flow.borders] == [("x",), ("c0",), ("n0",), ("c1",), ("n1",), ("pool",), ("fc",)]


def test_a_shortcut_is_alive_until_it_is_added() -> None:
    flow = Flow(*residual(1))
    assert [border.live for border in flow.borders[1:5]] == [
        ("stem",),
        ("blocks_0_a", "stem"),
        ("blocks_0_b", "stem"),
        ("add_0",),
    ]


def test_segments_end_at_borders_that_are_narrow_enough() -> None:
    flow = Flow(*residual(1))
    narrow, wide = flow.segments(1), flow.segments(2)
    assert narrow.index["blocks_0_a"] == narrow.index["blocks_0_b"] == narrow.index["add_0"]
    assert wide.index["blocks_0_a"] < wide.index["blocks_0_b"] < wide.index["add_0"]


def test_sizes_make_no_border_wider() -> None:
    hand = HandGraph()
    first = hand.conv("a", hand.x)
    size = hand.number("size", first)
    second = hand.conv("b", first)
    flow = Flow(*hand.finish(hand.linear("fc", hand.op("view", second, size, shape=(2, 4)))))
    assert max(len(border.live) for border in flow.borders) == 1
    assert flow.portable == {"size"}


def test_the_size_of_a_cut_stands_with_the_layer_that_asks_for_it() -> None:
    hand = HandGraph()
    first = hand.conv("a", hand.x)
    size = hand.number("size", first)
    second = hand.conv("b", first)
    last = hand.op("view", second, size, shape=(2, 4))
    segments = Flow(*hand.finish(hand.linear("fc", last))).segments(1)
    assert segments.index["size"] == segments.index["a"] + 1


def test_a_change_in_place_moves_the_border_after_it() -> None:
    hand = HandGraph()
    first = hand.conv("a", hand.x)
    hand.op("mul", first, function="mul_")
    flow = Flow(*hand.finish(hand.linear("fc", hand.op("pool", first, shape=(2, 4)))))
    assert [flow.nodes[b.position].name for b in flow.borders if b.live == ("a",)] == ["mul"]


def test_what_only_further_outputs_need_is_aside() -> None:
    hand = HandGraph()
    first = hand.conv("a", hand.x)
    head = hand.conv("head", first)
    flow = Flow(*hand.finish(hand.conv("b", first), head))
    assert flow.aside == {"head"}
    assert "head" not in flow.line


def test_values_that_are_no_tensors_cannot_be_handed_on() -> None:
    hand = HandGraph()
    pair = hand.op("chunk", hand.conv("a", hand.x), shape=None)
    flow = Flow(*hand.finish(hand.conv("b", hand.op("item", pair))))
    assert [border.tensors for border in flow.borders] == [True, True, False, True, True]


def test_an_output_that_ignores_the_input_is_refused() -> None:
    hand = HandGraph()
    constant = hand.op("zeros")
    with pytest.raises(PartitionError, match="does not depend on its input"):
        Flow(*hand.finish(hand.layer("a", nn.ReLU(), constant)))


def test_a_part_by_itself_ignores_what_passes_round_it() -> None:
    parents = {"a": ["in"], "b": ["a"], "add": ["b", "in"]}
    assert live_positions(["a", "b"], parents, frozenset({"b"}), width=1) == [0, 1]
    assert live_positions(["a", "b", "add"], parents, frozenset({"add"}), width=1) == [2]
