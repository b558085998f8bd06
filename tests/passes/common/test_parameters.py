"""Uses of parameters, on graphs built by hand."""

from __future__ import annotations

import torch
from torch import nn

from passes.common.parameters import own_tensors, tensors_behind, uses
from tests.tools.hand_graphs import HandGraph, chain


def test_a_leaf_uses_its_parameters_and_buffers() -> None:
    captured, _ = chain(1)
    norm = captured.model.get_submodule("n0")
    tensors = own_tensors(captured, captured.by_name["n0"])
    assert {id(t) for t in tensors} == {id(t) for t in [*norm.parameters(), *norm.buffers()]}


def test_an_operation_uses_none_itself() -> None:
    captured, _ = chain(1)
    assert own_tensors(captured, captured.by_name["pool"]) == []


def test_a_tied_layer_is_used_by_both_of_its_calls() -> None:
    hand = HandGraph()
    captured, _ = hand.finish(hand.conv("a", hand.conv("a", hand.x)))
    weight = captured.model.get_parameter("a.weight")
    assert uses(captured, (), ())[id(weight)] == ["a", "a_1"]


def test_who_reads_a_shared_node_uses_what_is_behind_it() -> None:
    hand = HandGraph()
    hand.model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    scale = hand.graph.create_node("get_attr", "scale", name="scale")
    captured, _ = hand.finish(hand.op("product", hand.x, scale))
    parameter = captured.model.get_parameter("scale")
    assert tensors_behind(captured, {"scale"}) == {"scale": [parameter]}
    assert uses(captured, {"scale"}, ())[id(parameter)] == ["product"]
