"""One way to run a graph node by node: an interpreter whose steps subclasses replace."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a call."""


def arguments_of(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Arguments:
    """Return the arguments of a node, with ``value_of(n)`` in the place of each node n among them."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
    return tuple(args), dict(kwargs)


def call_target(node: fx.Node, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """Call the function or the method that a node names.

    Args:
        node: A node whose ``op`` is ``call_function`` or ``call_method``.
        args: Positional arguments; the first one of a method is its object.
        kwargs: Keyword arguments.
    """
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target), f"{node.op} has nothing to call"
    return node.target(*args, **kwargs)


class Interpreter:
    """Runs the nodes of a graph in order, over the modules and tensors of a model.

    Unlike :class:`torch.fx.Interpreter` it also runs a graph that is still being recorded (:meth:`value_of`), and reads
    constants that are not attributes of the model. Each kind of node has a method of its own, which a subclass may
    replace; :meth:`run_node` stands around all of them.

    Args:
        root: The module whose submodules and attributes the graph names.
        constants: Further tensors, by the name under which the graph reads them.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> end = graph.output(graph.call_function(operator.mul, (x, 2)))
    >>> Interpreter(nn.Module()).run(graph, 21)
    42
    """

    def __init__(self, root: nn.Module, constants: Mapping[str, torch.Tensor] | None = None) -> None:
        self.root = root
        self.constants = {} if constants is None else constants
        self.values: dict[fx.Node, Any] = {}
        self.inputs: Iterator[object] = iter(())
        self._newest: fx.Node | None = None

    def run(self, graph: fx.Graph, *inputs: object) -> Any:
        """Run a whole graph and return its output; a value is dropped after the last node that reads it."""
        self.inputs = iter(inputs)
        dead = self.dead_after(graph)
        value = None
        for node in graph.nodes:
            value = self.values[node] = self.run_node(node)
            for other in dead.get(node, ()):
                del self.values[other]
        return value

    def dead_after(self, graph: fx.Graph) -> Mapping[fx.Node, list[fx.Node]]:
        """Return, for each node, the nodes whose values nobody reads after it."""
        last_reader: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            last_reader[node] = node
            for parent in node.all_input_nodes:
                last_reader[parent] = node
        dead: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node, reader in last_reader.items():
            dead[reader].append(node)
        return dead

    def run_all(self, graph: fx.Graph, *inputs: object) -> dict[str, Any]:
        """Run a whole graph and return the value of every node, by the node's name."""
        self.inputs = iter(inputs)
        for node in graph.nodes:
            self.values[node] = self.run_node(node)
        return {node.name: value for node, value in self.values.items()}

    def value_of(self, node: fx.Node) -> Any:
        """Return the value of a node; run it and all nodes before it where that has not been done.

        Nodes may be appended to the graph between two calls.
        """
        while node not in self.values:
            following = self._newest.next if self._newest is not None else next(iter(node.graph.nodes))
            assert following.op != "root", f"{node.name} was not recorded after what has been run"
            self.values[following] = self.run_node(following)
            self._newest = following
        return self.values[node]

    def run_node(self, node: fx.Node) -> object:
        """Return the value of one node, whose arguments have been computed."""
        if node.op == "placeholder":
            return self.placeholder(node)
        if node.op == "get_attr":
            return self.get_attr(node)
        args, kwargs = arguments_of(node, self.known)
        if node.op == "output":
            return args[0]
        if node.op == "call_module":
            return self.call_module(node, args, kwargs)
        return self.call(node, args, kwargs)

    def known(self, node: fx.Node) -> Any:
        """Return the value of a node that has been run."""
        return self.values[node]

    def placeholder(self, node: fx.Node) -> object:
        """Return the value of an input of the graph."""
        return next(self.inputs)

    def get_attr(self, node: fx.Node) -> object:
        """Return the parameter, buffer or constant that a node reads."""
        path = str(node.target)
        return self.constants[path] if path in self.constants else operator.attrgetter(path)(self.root)

    def call_module(self, node: fx.Node, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Call a submodule."""
        return self.root.get_submodule(str(node.target))(*args, **kwargs)

    def call(self, node: fx.Node, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Call a function or a method."""
        return call_target(node, args, kwargs)
