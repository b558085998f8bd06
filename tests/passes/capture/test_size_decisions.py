"""Decisions on sizes, on graphs built by hand: each asks one node one question."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from passes.capture.size_decisions import Sizes, Undecided, guard
from passes.errors import InputError
from passes.ir import TensorSpec


class Recorded:
    """A graph that is being recorded for an input of shape (2, 3, 8, 8), and the sizes of its values."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.x = self.graph.placeholder("x")
        self.sizes = Sizes(nn.Module(), TensorSpec((2, 3, 8, 8)), {})

    def size(self, dim: int) -> fx.Node:
        return self.graph.call_method("size", (self.x, dim))

    def function(self, function: Callable[..., object], *args: Any) -> fx.Node:
        return self.graph.call_function(function, args)


def test_a_number_of_channels_is_known() -> None:
    graph = Recorded()
    assert graph.sizes.decide(graph.size(1), "int").answer == 3


def test_another_input_might_have_other_channels() -> None:
    graph = Recorded()
    assert graph.sizes.decide(graph.size(1), "int").varies


def test_a_rank_is_the_same_for_every_input() -> None:
    graph = Recorded()
    decision = graph.sizes.decide(graph.function(getattr, graph.x, "ndim"), "int")
    assert (decision.answer, decision.varies) == (4, False)


def test_the_length_of_a_shape_is_a_rank() -> None:
    graph = Recorded()
    decision = graph.sizes.decide(graph.function(getattr, graph.x, "shape"), "len")
    assert (decision.answer, decision.varies) == (4, False)


def test_a_batch_size_is_undecided() -> None:
    graph = Recorded()
    with pytest.raises(Undecided, match=r"batch size \(2 or 4\)"):
        graph.sizes.decide(graph.size(0), "int")


def test_a_comparison_with_the_batch_size_that_holds_for_both_is_decided_on_it() -> None:
    graph = Recorded()
    decision = graph.sizes.decide(graph.function(operator.gt, graph.size(0), 1), "bool")
    assert (decision.answer, decision.on_batch) == (True, True)


def test_a_comparison_of_other_sizes_is_not_decided_on_the_batch() -> None:
    graph = Recorded()
    decision = graph.sizes.decide(graph.function(operator.gt, graph.size(2), 4), "bool")
    assert (decision.answer, decision.on_batch) == (True, False)


def test_values_of_a_tensor_are_undecided() -> None:
    graph = Recorded()
    with pytest.raises(Undecided, match="values of a tensor"):
        graph.sizes.decide(graph.graph.call_method("sum", (graph.x,)), "bool")


def test_a_type_may_be_another_in_a_real_run() -> None:
    graph = Recorded()
    kind = graph.function(getattr, graph.x, "dtype")
    with pytest.raises(Undecided, match="dtype of a tensor"):
        graph.sizes.decide(graph.function(operator.eq, kind, torch.float32), "bool")


def test_a_node_that_fails_says_why_to_who_asks() -> None:
    graph = Recorded()
    with pytest.raises(Undecided, match="division"):
        graph.sizes.decide(graph.function(operator.truediv, graph.size(1), 0), "int")


def test_a_node_that_fails_does_not_matter_to_others() -> None:
    graph = Recorded()
    graph.function(operator.truediv, graph.size(1), 0)
    assert graph.sizes.decide(graph.size(2), "int").answer == 8


def test_nodes_may_be_recorded_after_a_decision() -> None:
    graph = Recorded()
    graph.sizes.decide(graph.size(1), "int")
    assert graph.sizes.decide(graph.function(operator.mul, graph.size(2), 2), "int").answer == 16


def test_a_guard_that_was_recorded_is_not_run() -> None:
    graph = Recorded()
    graph.function(guard, graph.size(0), "int", 2, "net.py:1")
    assert graph.sizes.decide(graph.size(1), "int").answer == 3


def test_a_size_is_a_number_and_a_tensor_is_not() -> None:
    graph = Recorded()
    assert graph.sizes.is_number(graph.size(0))
    assert not graph.sizes.is_number(graph.graph.call_method("relu", (graph.x,)))


def test_none_is_none_for_both_batch_sizes() -> None:
    graph = Recorded()
    assert graph.sizes.is_none(graph.function(operator.getitem, (None, 1), 0))
    assert not graph.sizes.is_none(graph.x)


def assert_passes(*arguments: Any) -> None:
    guard(*arguments)


def test_a_guard_lets_the_same_answer_pass() -> None:
    assert_passes(torch.Size((2, 3)), "len", 2, "net.py:1")


def test_a_guard_refuses_another_answer() -> None:
    with pytest.raises(InputError, match=r"net\.py:1.*3 where the example has 4"):
        guard(3, "int", 4, "net.py:1")
