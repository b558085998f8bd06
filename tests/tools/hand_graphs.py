"""Graphs built by hand, node by node, for tests of one pass: no tracing, no shape inference, no model that runs.

>>> hand = HandGraph()
>>> last = hand.conv("a", hand.x)
>>> captured, shapes = hand.finish(hand.linear("fc", hand.op("flat", last, shape=(2, 4))))
>>> [node.name for node in captured.nodes]
['x', 'a', 'flat', 'fc', 'output']
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx, nn

from passes.ir import Call, Captured, Cost, Layout, Network, Shapes, TensorSpec
from passes.partition.partition import partition

IMAGE = (2, 4, 8, 8)
"""Shape of the input, and of every value for which no other is given."""
LAYOUTS: dict[int, Layout] = {4: "NCHW", 3: "NLC", 2: "NC"}
"""Number of dimensions -> layout."""


def identity(*values: object) -> object:
    """Stand for any function: graphs built by hand do not run."""
    return values[0]


class HandGraph:
    """A graph under construction; each method adds a node and returns it.

    Args:
        shape: Shape of the input, batch first.
    """

    def __init__(self, shape: tuple[int, ...] = IMAGE) -> None:
        self.model = nn.Module()
        self.graph = fx.Graph()
        self.calls: list[Call] = []
        self.scopes: dict[str, int] = {}
        self.specs: dict[str, TensorSpec | None] = {}
        self.costs: dict[str, Cost] = {}
        self.numbers: set[str] = set()
        self.x = self._noted(self.graph.placeholder("x"), shape, Cost())

    def _noted(self, node: fx.Node, shape: tuple[int, ...] | None, cost: Cost) -> fx.Node:
        self.specs[node.name] = None if shape is None else TensorSpec(shape, layout=LAYOUTS[len(shape)])
        self.costs[node.name], self.scopes[node.name] = cost, -1
        return node

    def conv(self, path: str, of: fx.Node, shape: tuple[int, ...] = IMAGE, *, depthwise: bool = False) -> fx.Node:
        """Add a convolution: a call of the leaf module at ``path``, which is made where there is none."""
        cost = Cost(macs=100, mixing=not depthwise, depthwise=depthwise)
        return self.layer(path, nn.Conv2d(4, shape[1], 1, groups=4 if depthwise else 1), of, shape=shape, cost=cost)

    def linear(self, path: str, of: fx.Node, outputs: int = 10) -> fx.Node:
        """Add a linear layer, as a classifier is."""
        return self.layer(path, nn.Linear(4, outputs), of, shape=(2, outputs), cost=Cost(macs=40, mixing=True))

    def layer(
        self, path: str, module: nn.Module, of: fx.Node, shape: tuple[int, ...] = IMAGE, cost: Cost | None = None
    ) -> fx.Node:
        """Add a call of the leaf module at ``path``; without ``cost`` it does not mix channels."""
        *around, name = path.split(".")
        owner = self.model
        for part in around:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if name not in owner._modules:
            owner.add_module(name, module)
        return self._noted(self.graph.call_module(path, (of,)), shape, cost or Cost())

    def op(
        self,
        name: str,
        *of: fx.Node,
        shape: tuple[int, ...] | None = IMAGE,
        function: Callable[..., object] | str = identity,
    ) -> fx.Node:
        """Add an operation that is no module; its value is no tensor where ``shape`` is None."""
        kind = "call_method" if isinstance(function, str) else "call_function"
        return self._noted(self.graph.create_node(kind, function, of, name=name), shape, Cost())

    def node(self, name: str) -> fx.Node:
        """Return the node of this name."""
        nodes: list[fx.Node] = list(self.graph.nodes)
        return next(node for node in nodes if node.name == name)

    def parameter(self, path: str, shape: tuple[int, ...]) -> fx.Node:
        """Add a node that reads a parameter of the model."""
        return self._noted(self.graph.create_node("get_attr", path, name=path), shape, Cost())

    def number(self, name: str, of: fx.Node) -> fx.Node:
        """Add a size: an operation whose value holds no tensor."""
        node = self.op(name, of, shape=None)
        self.numbers.add(node.name)
        return node

    def call(self, path: str, nodes: Sequence[fx.Node], kind: str = "Block", parent: int = -1) -> int:
        """Say that consecutive nodes were recorded in one call of the module at ``path``; return the call's index."""
        positions = [list(self.graph.nodes).index(node) for node in nodes]
        index = len(self.calls)
        call = Call(
            path=path,
            type_name=kind,
            args=(),
            kwargs={},
            result=nodes[-1],
            first=min(positions),
            last=max(positions),
            parent=parent,
        )
        self.calls.append(call)
        self.scopes |= {node.name: index for node in nodes}
        return index

    def finish(self, result: fx.Node, *heads: fx.Node, joint: bool = False) -> tuple[Captured, Shapes]:
        """Return the captured graph that gives ``result``, and ``heads`` next to it, with its shapes."""
        output = self.graph.output((result, *heads) if heads else result)
        self._noted(output, None, Cost())
        captured = Captured(
            model=self.model,
            graph=self.graph,
            calls=tuple(self.calls),
            scopes=self.scopes,
            sources={name: f"hand.py:{i}" for i, name in enumerate(self.specs)},
            constants={},
            joint=joint,
        )
        given, returned = self.specs["x"], self.specs[result.name]
        assert given is not None
        assert returned is not None
        return captured, Shapes(self.specs, self.costs, frozenset(self.numbers), given, returned)


def chain(count: int = 3) -> tuple[Captured, Shapes]:
    """Return a chain of convolutions ``c0``, ``c1``, ..., each with a norm, then pooling and a classifier."""
    hand = HandGraph()
    value = hand.x
    for i in range(count):
        value = hand.layer(f"n{i}", nn.BatchNorm2d(4), hand.conv(f"c{i}", value))
    return hand.finish(hand.linear("fc", hand.op("pool", value, shape=(2, 4))))


def residual(blocks: int = 2) -> tuple[Captured, Shapes]:
    """Return a stem, residual blocks of two convolutions each, pooling and a classifier."""
    hand = HandGraph()
    value = hand.conv("stem", hand.x)
    hand.model.add_module("blocks", nn.ModuleList(nn.Module() for _ in range(blocks)))
    for i in range(blocks):
        first = hand.conv(f"blocks.{i}.a", value)
        second = hand.conv(f"blocks.{i}.b", first)
        value = hand.op(f"add_{i}", value, second, function=torch.add)
        hand.call(f"blocks.{i}", [first, second, value])
    return hand.finish(hand.linear("fc", hand.op("pool", value, shape=(2, 4))))


def network(graph: tuple[Captured, Shapes], max_cut: int = 1) -> Network:
    """Return a graph built by hand as a network, partitioned."""
    return Network(*graph, partition(*graph, max_cut))
