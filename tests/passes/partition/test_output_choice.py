"""Models with several outputs: which one ends the trunk, and where outputs are fused, on graphs built by hand."""

from __future__ import annotations

import torch

from passes.partition.flow import Flow
from passes.partition.output_choice import deepest_first, fusion_points
from passes.partition.partition import partition
from tests.tools.hand_graphs import HandGraph


def pyramid() -> HandGraph:
    """Two stages, and two levels: the fine one reads both stages, the coarse one the last."""
    hand = HandGraph()
    fine = hand.conv("fine", hand.conv("stem", hand.x))
    coarse = hand.conv("coarse", fine, (2, 4, 4, 4))
    top = hand.conv("top", coarse, (2, 4, 4, 4))
    hand.op("up", top)
    hand.op("level", fine, hand.node("up"), function=torch.add)
    return hand


def test_the_deepest_output_becomes_the_primary_one() -> None:
    hand = pyramid()
    captured, shapes = hand.finish(hand.node("level"), hand.node("top"), joint=True)
    moved, changed = deepest_first(captured, shapes)
    assert (moved.result.name, [node.name for node in moved.heads]) == ("top", ["level"])
    assert changed.output == shapes.specs["top"]


def test_the_graph_that_was_given_stays_as_it_was() -> None:
    hand = pyramid()
    captured, shapes = hand.finish(hand.node("level"), hand.node("top"), joint=True)
    deepest_first(captured, shapes)
    assert captured.result.name == "level"
    assert captured.nodes[-1].args == ((hand.node("level"), hand.node("top")),)


def test_a_deepest_output_that_is_first_changes_nothing() -> None:
    hand = pyramid()
    captured, shapes = hand.finish(hand.node("top"), hand.node("level"), joint=True)
    assert deepest_first(captured, shapes) == (captured, shapes)


def test_outputs_are_fused_where_a_head_reads_several_tensors_of_the_trunk() -> None:
    hand = pyramid()
    captured, shapes = hand.finish(hand.node("top"), hand.node("level"), joint=True)
    assert fusion_points(Flow(captured, shapes)) == ["top"]


def test_an_auxiliary_classifier_fuses_nothing() -> None:
    hand = HandGraph()
    first = hand.conv("a", hand.x)
    captured, shapes = hand.finish(hand.conv("b", first), hand.conv("head", first), joint=True)
    assert fusion_points(Flow(captured, shapes)) == []


def test_the_classifier_begins_where_outputs_are_fused() -> None:
    hand = HandGraph()
    stem = hand.conv("stem", hand.x)
    second = hand.conv("second", stem)
    head = hand.op("head", stem, second, function=torch.add)
    last = hand.conv("last", hand.conv("third", second))
    captured, shapes = hand.finish(last, head, joint=True)
    assert partition(captured, shapes, 1).cuts == ("stem",)
    assert {border.refusal.reason for border in partition(captured, shapes, 1).candidates if border.refusal} == {
        "what follows is the classifier, which begins where outputs are fused"
    }
