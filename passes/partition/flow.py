"""The graph as consecutive segments, between borders that a bounded number of tensors cross.

A *border* is a point in the order of execution; its *live* tensors are those computed before it and read after it. One
live tensor means that every path from input to output goes through it: it dominates the output. So one walk over the
graph in the order of execution finds the borders of every width.

Constants, position tables and sizes do not count: they never make a border wider. Each local module computes for itself
what it needs of constants, and sizes are handed on next to the cut.
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
"""Live tensors that may cross a border where the user sets no ``max_cut``."""


@dataclass(frozen=True, slots=True)
class Border:
    """A point in the order of execution at which the graph could be cut."""

    position: int
    """Index in the graph of the last node before the border."""
    live: tuple[str, ...]
    """Names of the values that cross, newest first."""
    tensors: bool = True
    """Whether all that crosses are tensors; tuples of tensors and the like cannot be handed from layer to layer."""


@dataclass(frozen=True, slots=True)
class Segments:
    """The graph as consecutive segments; the first is the input itself."""

    borders: tuple[Border, ...]
    """``borders[i]`` is where segment i ends; the last is the output."""
    index: Mapping[str, int]
    """Name of a node that depends on the input -> index of its segment."""
    flow: Flow
    """The flow of tensors that was cut in segments."""

    @property
    def shared(self) -> frozenset[str]:
        """Nodes that do not depend on the input."""
        return self.flow.shared

    @property
    def portable(self) -> frozenset[str]:
        """Nodes that depend on the input's shape alone: numbers, and tensors made of them (position tables)."""
        return self.flow.portable


class Flow:
    """The tensors that flow from the input to the output, and those that are alive after each node.

    Args:
        captured: The graph.
        shapes: Its shapes.

    Raises:
        PartitionError: The model's output does not depend on its input through tensors.
    """

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
        """Nodes that give a tensor which depends on the input."""
        self.dependent = frozenset(dependent)
        """Nodes that depend on the input, sizes included."""
        self.shared = frozenset(n.name for n in captured.nodes) - dependent
        self.portable = frozenset(dependent - self.tensors)
        self.aside = self._needed_aside(graph)
        """Nodes that only the model's further outputs need."""
        # The trunk in order of execution: also what nothing reads keeps its place, since a change in place that moves
        # before or after another node changes outputs.
        self.line = [n.name for n in self.nodes if n.name in graph and n.name not in self.aside]
        self.graph = graph
        self.borders = tuple(self._walk(result))
        """All borders, whatever crosses them, in order; the last is the output."""

    def _trace(self) -> tuple[nx.DiGraph[str], set[str]]:
        """Return the graph of tensors that depend on the input, and the names of all nodes that do."""
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
        """Return the nodes that only the model's further outputs need."""
        result = self.captured.result.name
        ahead = nx.ancestors(graph, result) | {result}
        heads = [node.name for node in self.captured.heads if node.name in graph]
        aside = {n for head in heads for n in (*nx.ancestors(graph, head), head)} - ahead
        for node in self.nodes:
            # A change in place of one of the trunk's tensors must stay where it is: the trunk reads the changed value.
            if node.name in aside and mutates_input(self.captured, node) and node.all_input_nodes[0].name not in aside:
                aside -= nx.ancestors(graph, node.name) | {node.name}
        return frozenset(aside)

    def _walk(self, result: str) -> Iterator[Border]:
        """Yield all borders, in order."""
        # Position of the last node that reads each tensor; later readers overwrite earlier ones.
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
            # Where the same tensors are alive after a change in place, the later point is the border.
            if pending is not None and pending.live != crossing:
                yield pending
            tensors = all(self.shapes.specs[value] is not None for value in crossing)
            pending = Border(self.order[name], crossing, tensors)
        assert pending is not None
        yield pending

    def segments(self, width: int) -> Segments:
        """Return the segments between the borders that at most ``width`` live tensors cross."""
        borders = [b for b in self.borders if len(b.live) <= width and b.tensors]
        positions = [b.position for b in borders]
        segment = {name: bisect_left(positions, self.order[name]) for name in self.line}
        segment |= dict.fromkeys(self.aside, len(borders) - 1)
        self._place_others(segment, borders)
        return Segments(tuple(borders), segment, self)

    def width_after(self, name: str) -> int | None:
        """Return how many live tensors cross right after node ``name``; None where it does not flow to the output."""
        position = self.order.get(name, -1)
        return next((len(b.live) for b in self.borders if b.position == position), None)

    def _place_others(self, segment: dict[str, int], borders: Sequence[Border]) -> None:
        """Find the segments of sizes and of other nodes that depend on the input's shape alone.

        They stand in the segment of what they are computed from. The size of a value that crosses a border stands in
        the segment that asks for it: a layer measures its own input.
        """
        crossing = [frozenset(border.live) for border in borders]
        earliest_use: dict[str, int] = {}
        for node in reversed(self.nodes):
            users = (earliest_use[u.name] for u in node.users if u.name in earliest_use)
            earliest_use[node.name] = segment.get(node.name, min(users, default=len(borders) - 1))
        for node in self.nodes:
            if node.name in self.dependent and node.name not in segment:
                parents = [p.name for p in node.all_input_nodes if p.name in segment]
                first = max(segment[p] for p in parents)
                latest = first + all(p in crossing[first] for p in parents)
                segment[node.name] = max(first, min(earliest_use[node.name], latest))


def live_positions(
    nodes: Sequence[str], parents: Mapping[str, Sequence[str]], leaving: frozenset[str], width: int
) -> list[int]:
    """Return where a part of the graph could be cut if it stood alone.

    Args:
        nodes: Names of the part's nodes, in order.
        parents: Tensors that each node reads, those from outside the part included.
        leaving: Nodes whose value is used outside the part.
        width: Tensors that may cross.

    Returns:
        Indices i such that at most ``width`` tensors are read after ``nodes[i]`` and computed no later.
    """
    last: dict[str, int] = {}
    for i, name in enumerate(nodes):
        last |= dict.fromkeys(parents[name], i)
    last |= dict.fromkeys(leaving, len(nodes))
    live = {p for name in nodes for p in parents[name]} - set(nodes)
    positions = []
    for i, name in enumerate(nodes):
        if name in last:
            live.add(name)
        live = {value for value in live if last[value] > i}
        if 0 < len(live) <= width:
            positions.append(i)
    return positions
