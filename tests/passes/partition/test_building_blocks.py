"""Blocks of one kind are cut alike, on graphs built by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from passes.partition.building_blocks import BuildingBlocks, wildcard
from passes.partition.flow import Flow
from tests.tools.hand_graphs import HandGraph, network, residual


def one_with_and_one_without_shortcut(kind: str = "Block") -> HandGraph:
    """Two blocks of two convolutions: the first has a shortcut, the second has none."""
    hand = HandGraph()
    stem = hand.conv("stem", hand.x)
    hand.model.add_module("blocks", nn.ModuleList([nn.Module(), nn.Module()]))
    first = hand.conv("blocks.0.a", stem)
    second = hand.conv("blocks.0.b", first)
    joined = hand.op("join", stem, second, function=torch.add)
    hand.call("blocks.0", [first, second, joined], "Block")
    third = hand.conv("blocks.1.a", joined)
    fourth = hand.conv("blocks.1.b", third)
    hand.call("blocks.1", [third, fourth], kind)
    return hand


def blocks_of(hand: HandGraph, width: int = 1) -> BuildingBlocks:
    last = next(reversed(list(hand.graph.nodes)))
    captured, shapes = hand.finish(hand.linear("fc", hand.op("pool", last, shape=(2, 4))))
    mixing = frozenset(name for name, cost in shapes.costs.items() if cost.mixing)
    return BuildingBlocks(captured, Flow(captured, shapes).segments(width), mixing, width)


def test_a_block_without_shortcut_stays_whole_where_its_sibling_must() -> None:
    spans = blocks_of(one_with_and_one_without_shortcut()).indivisible()
    assert [(span.subject, span.because, span.needed) for span in spans] == [
        ("blocks.0", "blocks.0", 2),
        ("blocks.1", "blocks.0", 2),
    ]


def test_siblings_by_path_are_of_one_kind_whatever_their_class() -> None:
    spans = blocks_of(one_with_and_one_without_shortcut(kind="Other")).indivisible()
    assert [span.subject for span in spans] == ["blocks.0", "blocks.1"]


def test_wide_cuts_leave_all_blocks_free() -> None:
    assert blocks_of(one_with_and_one_without_shortcut(), width=2).indivisible() == []


def test_the_refusal_names_the_sibling_and_the_max_cut() -> None:
    hand = one_with_and_one_without_shortcut()
    last = next(reversed(list(hand.graph.nodes)))
    graph = hand.finish(hand.linear("fc", hand.op("pool", last, shape=(2, 4))))
    border = next(b for b in network(graph).partition.candidates if b.after == "blocks_1_a")
    assert border.refusal is not None
    assert border.refusal.reason == "blocks.1 is kept whole, as blocks.0 of its kind cannot be cut"
    assert border.refusal.option == "max_cut=2"


def test_a_container_that_wraps_a_block_says_nothing_of_its_own_kind() -> None:
    hand = HandGraph()
    stem = hand.conv("stem", hand.x)
    first = hand.conv("wrap.block.a", stem)
    second = hand.conv("wrap.block.b", first)
    joined = hand.op("join", stem, second, function=torch.add)
    outer = hand.call("wrap", [first, second, joined], "Wrapper")
    hand.call("wrap.block", [first, second, joined], "Block", parent=outer)
    assert [span.subject for span in blocks_of(hand).indivisible()] == ["wrap.block"]


def test_listed_blocks_are_the_innermost_elements_of_containers() -> None:
    captured, shapes = residual(2)
    mixing = frozenset(name for name, cost in shapes.costs.items() if cost.mixing)
    blocks = BuildingBlocks(captured, Flow(captured, shapes).segments(1), mixing, 1)
    assert [span.subject for span in blocks.listed()] == ["blocks.0", "blocks.1"]


def test_blocks_of_a_class() -> None:
    captured, shapes = residual(2)
    mixing = frozenset(name for name, cost in shapes.costs.items() if cost.mixing)
    blocks = BuildingBlocks(captured, Flow(captured, shapes).segments(1), mixing, 1)
    assert [span.subject for span in blocks.of_class((nn.Module,))] == ["blocks.0", "blocks.1"]
    assert blocks.of_class((nn.Linear,)) == []


@pytest.mark.parametrize(
    ("path", "expected"), [("layers.3.blocks.0", "layers.*.blocks.*"), ("layer1", "layer1"), ("", "")]
)
def test_wildcards(path: str, expected: str) -> None:
    assert wildcard(path) == expected
