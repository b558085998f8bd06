"""The interpreter, on graphs built by hand."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx, nn

from passes.common.interpreter import Interpreter, arguments_of, call_target


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.weight = nn.Parameter(torch.full((2,), 3.0))
        self.layer = nn.Hardtanh(-1.0, 4.0)


def test_a_function_is_called_on_the_input() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(operator.mul, (graph.placeholder("x"), 2)))
    assert Interpreter(nn.Module()).run(graph, 21) == 42


def test_a_method_is_called_on_its_first_argument() -> None:
    graph = fx.Graph()
    graph.output(graph.call_method("upper", (graph.placeholder("x"),)))
    assert Interpreter(nn.Module()).run(graph, "a") == "A"


def test_a_submodule_is_called() -> None:
    graph = fx.Graph()
    graph.output(graph.call_module("layer", (graph.placeholder("x"),)))
    assert Interpreter(Holder()).run(graph, torch.tensor(9.0)) == 4.0


def test_an_attribute_is_read_by_its_path() -> None:
    graph, holder = fx.Graph(), Holder()
    graph.output(graph.create_node("get_attr", "inner.weight"))
    assert Interpreter(holder).run(graph) is holder.inner.weight


def test_a_constant_comes_before_an_attribute() -> None:
    graph, constant = fx.Graph(), torch.zeros(1)
    graph.output(graph.create_node("get_attr", "inner.weight"))
    assert Interpreter(Holder(), {"inner.weight": constant}).run(graph) is constant


def test_several_inputs_are_taken_in_order() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(operator.sub, (graph.placeholder("a"), graph.placeholder("b"))))
    assert Interpreter(nn.Module()).run(graph, 5, 3) == 2


def test_a_value_is_dropped_after_its_last_reader() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(operator.neg, (x,))
    second = graph.call_function(operator.add, (first, x))
    graph.output(second)
    dead = Interpreter(nn.Module()).dead_after(graph)
    assert dead[second] == [x, first]


def test_all_values_by_name() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(operator.neg, (x,)))
    assert Interpreter(nn.Module()).run_all(graph, 1) == {"x": 1, "neg": -1, "output": -1}


def test_a_graph_may_grow_between_two_questions() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(operator.neg, (x,))
    runner = Interpreter(nn.Module())
    runner.inputs = iter([1])
    assert runner.value_of(first) == -1
    assert runner.value_of(graph.call_function(operator.neg, (first,))) == 1


def test_a_node_that_failed_is_run_again_when_it_is_asked_for_again() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    quotient = graph.call_function(operator.truediv, (1, x))
    runner = Interpreter(nn.Module())
    runner.inputs = iter([0])
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            runner.value_of(quotient)


def test_a_subclass_replaces_one_kind_of_step() -> None:
    class Written(Interpreter):
        def call(self, node: fx.Node, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
            return f"{node.name}({', '.join(map(str, args))})"

    graph = fx.Graph()
    graph.output(graph.call_function(operator.neg, (graph.placeholder("x"),)))
    assert Written(nn.Module()).run(graph, "x") == "neg(x)"


def test_arguments_within_containers_are_replaced() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.cat, ([x, x],), {"dim": 1})
    assert arguments_of(node, lambda n: n.name) == ((["x", "x"],), {"dim": 1})


def test_a_node_that_calls_nothing_is_refused() -> None:
    graph = fx.Graph()
    with pytest.raises(AssertionError, match="nothing to call"):
        call_target(graph.create_node("get_attr", "weight"), (), {})
