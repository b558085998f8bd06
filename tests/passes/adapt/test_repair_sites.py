"""Each repair at one node that is about to run, on graphs built by hand."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from passes.adapt import repairs
from passes.adapt.arguments import Numbers
from passes.adapt.copy_recipe import Body, Edits
from passes.adapt.repairs import RepairSite, Restart, Unreachable, attempt
from passes.ir import Cost
from passes.layers.adapters import Projection
from tests.tools.hand_graphs import HandGraph

MIXING = Cost(macs=100, mixing=True)
WIDE = torch.empty(2, 8, 8, 8)
"""An input of twice the channels that the layer had."""


def site(hand: HandGraph, node: fx.Node, *args: Any, values: dict[str, Any] | None = None, **kwargs: Any) -> RepairSite:
    """Return a site in the layer of all nodes but the input, about to run ``node``, after nodes of these ``values``."""
    captured, shapes = hand.finish(node)
    nodes = captured.nodes[1:-1]
    position = {each.name: i for i, each in enumerate(nodes)}
    known = {position[name]: value for name, value in (values or {}).items()}
    return RepairSite(
        captured=captured,
        shapes=shapes,
        numbers=Numbers(captured, shapes),
        body=Body(nodes, "x", node.name, position),
        edits=Edits(),
        values={-1: WIDE, **known},
        i=position[node.name],
        args=args,
        kwargs=kwargs,
    )


def edits_of(repair: Any, *arguments: Any) -> Edits:
    with pytest.raises(Restart) as caught:
        repair(*arguments)
    return caught.value.edits


def assert_nothing_to_repair(repair: Any, *arguments: Any) -> None:
    """No edit: it would start the trial again."""
    assert repair(*arguments) is None


def test_errors_of_the_users_code_are_reasons() -> None:
    with pytest.raises(Unreachable, match="must match"):
        attempt(lambda: torch.empty(2, 3) + torch.empty(2, 4))
    assert attempt(lambda: 3) == 3


def test_a_split_follows_its_input() -> None:
    hand = HandGraph()
    node = hand.op("split", hand.x, function=torch.split)
    node.args = (hand.x, [1, 3], 1)
    assert edits_of(repairs.follow_split, site(hand, node, WIDE, [1, 3], 1)).arguments == {0: {(1, 0): 2, (1, 1): 6}}


def test_a_split_that_agrees_already_is_left() -> None:
    hand = HandGraph()
    node = hand.op("split", hand.x, function=torch.split)
    node.args = (hand.x, [2, 6], 1)
    assert_nothing_to_repair(repairs.follow_split, site(hand, node, WIDE, [2, 6], 1))


def test_a_split_with_an_empty_part_is_refused() -> None:
    hand = HandGraph()
    node = hand.op("split", hand.x, function=torch.split)
    node.args = (hand.x, [1, 3], 1)
    with pytest.raises(Unreachable, match="parts without channels"):
        repairs.follow_split(site(hand, node, torch.empty(2, 1, 8, 8), [1, 3], 1))


def test_a_written_number_follows_the_size_that_it_is_of() -> None:
    hand = HandGraph()
    node = hand.op("view", hand.x, function="view")
    node.args = (hand.x, 2, 4, 64)
    assert edits_of(repairs.renumber, site(hand, node, WIDE, 2, 4, 64)).arguments == {0: {(2,): 8}}


def test_a_number_read_off_the_input_stays_where_its_tensor_is_as_wide_as_before() -> None:
    hand = HandGraph()
    size = hand.op("size", hand.x, shape=None, function="size")
    size.args = (hand.x, 1)
    hand.numbers.add("size")
    inside = hand.conv("c", hand.x)
    node = hand.op("view", inside, function="view")
    node.args = (inside, 2, size, 64)
    here = site(hand, node, torch.empty(2, 4, 8, 8), 2, 8, 64, values={"size": 8})
    assert edits_of(repairs.keep_numbers, here).arguments == {2: {(2,): 4}}


def test_the_weight_of_a_functional_layer_takes_the_channels() -> None:
    hand = HandGraph((2, 4))
    hand.model.weight = nn.Parameter(torch.empty(3, 4))
    weight = hand.parameter("weight", (3, 4))
    node = hand.op("linear", hand.x, weight, shape=(2, 3), function=functional.linear)
    wide = torch.empty(2, 8)
    here = site(hand, node, wide, hand.model.weight, values={"weight": hand.model.weight})
    assert edits_of(repairs.widen_weight, here).shapes == {0: (3, 8)}


def test_a_class_token_takes_the_channels() -> None:
    hand = HandGraph((2, 16, 4))
    hand.model.token = nn.Parameter(torch.empty(1, 1, 4))
    token = hand.parameter("token", (1, 1, 4))
    node = hand.op("cat", token, hand.x, shape=(2, 17, 4), function=torch.cat)
    node.args = ([token, hand.x], 1)
    wide = torch.empty(2, 16, 8)
    here = site(hand, node, [hand.model.token, wide], 1, values={"token": hand.model.token})
    assert edits_of(repairs.widen_concatenated, here).shapes == {0: (1, 1, 8)}


def test_operands_that_agree_are_left() -> None:
    hand = HandGraph()
    node = hand.op("add", hand.x, hand.conv("c", hand.x), function=operator.add)
    assert_nothing_to_repair(repairs.join, site(hand, node, WIDE, WIDE), [WIDE, WIDE])


def test_the_identity_is_projected_before_the_branch() -> None:
    hand = HandGraph()
    node = hand.op("add", hand.x, hand.conv("c", hand.conv("b", hand.x)), function=operator.add)
    now = [WIDE, torch.empty(2, 4, 8, 8)]
    assert edits_of(repairs.join, site(hand, node, *now), now).projections == {(2, 0): Projection(8, 4, 1, "NCHW")}


def test_a_projection_takes_the_stride_of_the_branch() -> None:
    hand = HandGraph()
    shortcut = hand.conv("shortcut", hand.x)
    node = hand.op("add", shortcut, hand.conv("c", hand.conv("b", hand.x)), function=operator.add)
    now = [torch.empty(2, 4, 8, 8), torch.empty(2, 4, 4, 4)]
    assert edits_of(repairs.join, site(hand, node, *now), now).changes == {0: {"stride": (2, 2)}}


def test_the_last_layer_of_a_gate_takes_the_channels() -> None:
    hand = HandGraph()
    gate = hand.conv("gate", hand.op("mean", hand.x, shape=(2, 4, 1, 1)), (2, 4, 1, 1))
    node = hand.op("mul", hand.x, gate, function=operator.mul)
    now = [WIDE, torch.empty(2, 4, 1, 1)]
    assert edits_of(repairs.join, site(hand, node, *now), now).changes == {1: {"out_channels": 8}}


def test_a_layer_scale_takes_the_channels() -> None:
    hand = HandGraph()
    hand.model.scale = nn.Parameter(torch.empty(1, 4, 1, 1))
    scale = hand.parameter("scale", (1, 4, 1, 1))
    node = hand.op("mul", hand.x, scale, function=operator.mul)
    now = [WIDE, hand.model.scale]
    here = site(hand, node, *now, values={"scale": hand.model.scale})
    assert edits_of(repairs.join, here, now).shapes == {0: (1, 8, 1, 1)}


def test_resolutions_that_no_stride_brings_together() -> None:
    hand = HandGraph()
    node = hand.op("add", hand.x, hand.conv("c", hand.conv("b", hand.x)), function=operator.add)
    now = [torch.empty(2, 4, 8, 8), torch.empty(2, 4, 5, 5)]
    with pytest.raises(Unreachable, match="differ in resolution"):
        repairs.join(site(hand, node, *now), now)
