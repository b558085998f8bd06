"""The graph as consecutive segments, between borders that a bounded number of tensors cross.

A *border* is a point in the order of execution; its *live* tensors are those computed before it and read after it. One
live tensor means that every path from input to output goes through it: it dominates the output. Sizes and constants are
no tensors of the flow: they never make a border wider.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from passes.common.inplace import mutates_input
from passes.errors import PartitionError
from passes.ir import Captured, Shapes

WIDEST = 16
"""Live tensors that the compiler lets cross a border of its own accord."""


@dataclass(frozen=True, slots=True)
class Border:
    """A point where the graph could be cut."""

    position: int
    """Index in the graph of the last node before it."""
    live: tuple[str, ...]
    """Names of the values that cross, newest first."""
    tensors: bool = True
    """Whether all that crosses are tensors; tuples of tensors and the like cannot be handed from layer to layer."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments, and the borders they end at: the input itself first, the output last."""

    borders: tuple[Border, ...]
    index: Mapping[str, int]
    """Tensor node, or what depends on one -> its segment i, which ends at ``borders[i]``; 0 for the input itself."""
    flow: Flow

    @property
    def shared(self) -> frozenset[str]:
        """Nodes that do not depend on the input."""
        return self.flow.shared

    @property
    def portable(self) -> frozenset[str]:
        """Nodes that depend on the input's shape alone: numbers, and tensors made of them (position tables)."""
        return self.flow.portable


class Flow:
    """Which tensors flow from the input to the output, and how many of them are alive after each node."""

    def __init__(self, captured: Captured, shapes: Shapes) -> None:
        self.captured, self.shapes = captured, shapes
        self.nodes = captured.nodes[:-1]
        self.order = {node.name: i for i, node in enumerate(self.nodes)}
        graph, dependent = self._trace()
        result = captured.result.name
        if result not in graph or result == captured.input:
            raise PartitionError(
                "the model's output does not depend on its input through tensors",
                where=type(captured.model).__name__,
                remedy="Check that forward returns what it computes from its argument",
            )
        self.tensors = frozenset(graph)
        self.dependent = frozenset(dependent)
        self.shared = frozenset(n.name for n in captured.nodes) - dependent
        self.portable = frozenset(dependent - self.tensors)
        self.aside = self._needed_aside(graph)
        """Nodes that only the model's further outputs need."""
        self.line = [n.name for n in self.nodes if n.name in graph and n.name not in self.aside]
        self.graph = graph
        self.borders = tuple(self._walk(result))
        """All borders, whatever crosses them, in order; the last is the output."""

    def _trace(self) -> tuple[nx.DiGraph[str], set[str]]:
        numbers, source = self.shapes.numbers, self.captured.input
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_node(source)
        dependent = {source}
        for node in self.nodes[1:]:
            parents = [p.name for p in node.all_input_nodes]
            if any(p in dependent for p in parents):
                dependent.add(node.name)
            if node.name not in numbers:
                graph.add_edges_from((p, node.name) for p in parents if p in graph)
        return graph, dependent

    def _needed_aside(self, graph: nx.DiGraph[str]) -> frozenset[str]:
        result = self.captured.result.name
        ahead = nx.ancestors(graph, result) | {result}
        heads = [node.name for node in self.captured.heads if node.name in graph]
        aside = {n for head in heads for n in (*nx.ancestors(graph, head), head)} - ahead
        for node in self.nodes:
            # What changes the trunk's tensors in place stands where it stood.
            if node.name in aside and mutates_input(self.captured, node) and node.all_input_nodes[0].name not in aside:
                aside -= nx.ancestors(graph, node.name) | {node.name}
        return frozenset(aside)

    def _walk(self, result: str) -> Iterator[Border]:
        """Yield all borders, in order."""
        last = {name: i for i, name in enumerate(self.line) for name in (name, *self.graph.predecessors(name))}
        last[result] = len(self.line)
        live: dict[str, None] = {}
        pending: Border | None = None
        for i, name in enumerate(self.line):
            for parent in self.graph.predecessors(name):
                if last[parent] <= i:
                    live.pop(parent, None)
            if last[name] > i:
                live[name] = None
            crossing = tuple(reversed(live))
            # The same tensors after a change in place: the later point is the border.
            if pending is not None and pending.live != crossing:
                yield pending
            tensors = all(self.shapes.specs[value] is not None for value in crossing)
            pending = Border(self.order[name], crossing, tensors)
        assert pending is not None
        yield pending

    def segments(self, width: int) -> Segments:
        """Segments between the borders that at most ``width`` live tensors cross."""
        borders = [b for b in self.borders if len(b.live) <= width and b.tensors]
        positions = [b.position for b in borders]
        segment = {name: bisect_left(positions, self.order[name]) for name in self.line}
        segment |= dict.fromkeys(self.aside, len(borders) - 1)
        self._place_others(segment, borders)
        return Segments(tuple(borders), segment, self)

    def width_after(self, name: str) -> int | None:
        """How many live tensors cross right after node ``name``; None where it does not flow to the output."""
        position = self.order.get(name, -1)
        return next((len(b.live) for b in self.borders if b.position == position), None)

    def _place_others(self, segment: dict[str, int], borders: Sequence[Border]) -> None:
        # Sizes stand with what they are computed from; the size of a value that crosses a border stands in the segment
        # that asks for it.
        crossing = [frozenset(border.live) for border in borders]
        asked: dict[str, int] = {}
        for node in reversed(self.nodes):
            users = (asked[u.name] for u in node.users if u.name in asked)
            asked[node.name] = segment.get(node.name, min(users, default=len(borders) - 1))
        for node in self.nodes:
            if node.name in self.dependent and node.name not in segment:
                parents = [p.name for p in node.all_input_nodes if p.name in segment]
                first = max(segment[p] for p in parents)
                latest = first + all(p in crossing[first] for p in parents)
                segment[node.name] = max(first, min(asked[node.name], latest))


def live_positions(
    nodes: Sequence[str], parents: Mapping[str, Sequence[str]], leaving: frozenset[str], width: int
) -> list[int]:
    """Where a part of the graph could be cut if it stood alone.

    Args:
        nodes: Its nodes, in order.
        parents: Tensors that each node reads, those from outside included.
        leaving: Nodes whose value is used outside it.
        width: Tensors that may cross.

    Returns:
        Indices i such that at most ``width`` tensors are read after ``nodes[i]`` and computed no later.
    """
    last: dict[str, int] = {}
    for i, name in enumerate(nodes):
        last |= dict.fromkeys(parents[name], i)
    last |= dict.fromkeys(leaving, len(nodes))
    live = {p for name in nodes for p in parents[name]} - set(nodes)
    found = []
    for i, name in enumerate(nodes):
        if name in last:
            live.add(name)
        live = {value for value in live if last[value] > i}
        if 0 < len(live) <= width:
            found.append(i)
    return found
