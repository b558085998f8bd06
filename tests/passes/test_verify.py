"""Every violation of a stage's specification is noticed, on graphs built by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from passes import verify
from passes.ir import Call, Captured, Cost, Network, Partition
from passes.pipeline import expect
from tests.tools.hand_graphs import HandGraph, chain, network


def partitioned(**changes: Any) -> Network:
    whole = network(chain(3))
    return dataclasses.replace(whole, partition=dataclasses.replace(whole.partition, **changes))


def test_what_passes_give_has_no_violations() -> None:
    whole = network(chain(3))
    assert verify.captured(whole.captured) == []
    assert verify.shapes(whole.captured, whole.shapes) == []
    assert verify.partition(whole) == []


def test_a_second_input() -> None:
    hand = HandGraph()
    hand.op("other", hand.x)
    hand.graph.placeholder("y")
    hand.scopes["y"] = -1
    captured = Captured(hand.model, hand.graph, (), hand.scopes, {}, {})
    assert verify.captured(captured) == ["the graph must start with its one placeholder"]


def test_an_unknown_module() -> None:
    captured, _ = chain(1)
    del captured.model.c0
    assert verify.captured(captured) == ["c0 calls unknown module c0"]


def test_a_node_without_scope() -> None:
    captured, _ = chain(1)
    scopes = {name: scope for name, scope in captured.scopes.items() if name != "pool"}
    assert verify.captured(dataclasses.replace(captured, scopes=scopes)) == ["pool has no scope"]


def test_a_call_that_ends_before_it_starts() -> None:
    captured, _ = chain(1)
    call = Call(path="block", type_name="Block", args=(), kwargs={}, result=None, first=3, last=1, parent=-1)
    assert verify.captured(dataclasses.replace(captured, calls=(call,))) == ["call block ends before it starts"]


def test_a_malformed_graph() -> None:
    captured, _ = chain(1)
    first, second = captured.nodes[1:3]
    first.append(fx.Node(captured.graph, "stray", "call_function", torch.relu, (second,), {}))
    with pytest.raises(RuntimeError):
        verify.captured(captured)


def test_a_node_without_spec_or_cost() -> None:
    captured, shapes = chain(1)
    specs = {name: spec for name, spec in shapes.specs.items() if name != "c0"}
    costs = {name: cost for name, cost in shapes.costs.items() if name != "n0"}
    altered = dataclasses.replace(shapes, specs=specs, costs=costs)
    assert verify.shapes(captured, altered) == ["c0 has no spec", "n0 has no cost"]


def test_a_negative_cost() -> None:
    captured, shapes = chain(1)
    altered = dataclasses.replace(shapes, costs={**shapes.costs, "c0": Cost(macs=-1)})
    assert verify.shapes(captured, altered) == ["c0 costs less than nothing"]


def first_node_gone(part: Partition) -> dict[str, object]:
    return {"nodes": (part.nodes[0][1:], *part.nodes[1:])}


def first_node_twice(part: Partition) -> dict[str, object]:
    return {"classifier": (*part.classifier, part.nodes[0][0])}


def cuts_swapped(part: Partition) -> dict[str, object]:
    return {"live": part.live[::-1], "nodes": part.nodes[::-1]}


def cut_elsewhere(part: Partition) -> dict[str, object]:
    return {"live": (part.entries[0:1], *part.live[1:])}


def layer_without_entry(part: Partition) -> dict[str, object]:
    return {"entries": part.entries[:-1]}


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        (first_node_gone, "nodes covered"),
        (first_node_twice, "or some twice"),
        (cuts_swapped, "not in topological order"),
        (cut_elsewhere, "x is read by an auxiliary network of another layer"),
        (layer_without_entry, "each layer needs its nodes and its cut"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_partition_that_does_not_fit_its_graph(
    change: Callable[[Partition], dict[str, object]], violation: str
) -> None:
    part = network(chain(3)).partition
    assert any(violation in found for found in verify.partition(partitioned(**change(part))))


def test_a_tensor_that_crosses_a_border_unannounced() -> None:
    whole = network(chain(3))
    last = whole.partition.live[0][0]
    moved = partitioned(live=((whole.partition.nodes[0][0],), *whole.partition.live[1:]))
    assert f"{last} crosses from layer 0 to 1 and is not alive there" in verify.partition(moved)


def test_what_only_further_outputs_need_may_read_from_anywhere() -> None:
    hand = HandGraph()
    first = hand.conv("a", hand.x)
    head = hand.linear("head", hand.op("squeezed", first, shape=(2, 4)))
    second = hand.conv("b", first)
    captured, shapes = hand.finish(hand.linear("fc", hand.op("pool", second, shape=(2, 4))), head)
    assert verify.partition(network((captured, shapes))) == []


def test_a_parameter_of_two_modules() -> None:
    assert verify.ownership([("a", "b"), ("b",)]) == ["b belongs to modules 0 and 1"]


def test_a_parameter_of_one_module_each() -> None:
    assert verify.ownership([("a",), ("b",)]) == []


def test_a_local_module_that_is_called_out_of_turn() -> None:
    graph = fx.Graph()
    graph.output(graph.call_module("module_1", (graph.placeholder("x"),)))
    assert verify.generated(graph, 1) == ["calls ['module_1'], expected ['module_0']"]


def test_a_violation_names_its_stage() -> None:
    with pytest.raises(AssertionError, match="shapes produced an invalid value: c0 has no cost"):
        expect("shapes", ["c0 has no cost"])
