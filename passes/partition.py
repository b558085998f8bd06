"""Partition: Captured + Shapes -> the minimal local layers, and the classifier.

1. The values that every path from input to output goes through (dominators of the output in the dataflow graph of
   tensors that depend on the input) split the graph into a chain of *segments*.
2. A border between two layers needs a mixing operation on either side: norms, activations, pooling, dropout and
   depthwise convolutions go with the mixing operation they belong to.
3. Homologous modules are cut alike: where one instance of a building block cannot be cut, because a skip connection
   passes round it, no instance of it is (:mod:`passes.homology`).
4. Among the values that could be the border, the one where control leaves and enters most modules wins, the latest
   among equals: so a border falls between blocks where there are blocks, and right before the next convolution where
   there are none.
5. The classifier starts where space is gone (global pooling, flattening, taking the class token), and holds every
   mixing operation after that; if the model never had space, or never gives it up, it is the last mixing operation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import torch
from torch import fx, nn

from passes.errors import PartitionError
from passes.homology import Occurrence, indivisible
from passes.ir import Captured, Layer, Partition, Shapes
from passes.mutation import mutates_input


@dataclass(frozen=True, slots=True)
class Chain:
    """The graph as a chain of segments."""

    values: tuple[str, ...]
    """The values every path goes through, from the input (0) to the output."""
    segment: Mapping[str, int]
    """Tensor node -> its segment i, which ends in ``values[i]``; 0 for the input itself."""
    shared: frozenset[str]
    """Nodes that do not depend on the input."""
    portable: frozenset[str]
    """Nodes that depend on the input's shape alone: numbers, and tensors made of them (position tables)."""


def partition(captured: Captured, shapes: Shapes) -> Partition:
    """Finds the minimal local layers.

    Raises:
        PartitionError: Nothing is trainable, or the model is one indivisible unit with its classifier.
    """
    if not any(p.requires_grad for p in captured.model.parameters()):
        raise PartitionError(
            "the model has no trainable parameter",
            where=type(captured.model).__name__,
            remedy="Set requires_grad on the parameters that should learn",
        )
    chain = build_chain(captured, shapes)
    mixing = sorted({i for name, i in chain.segment.items() if shapes.costs[name].mixing})
    if len(mixing) < 2:
        raise PartitionError(
            "the model has no layer before its classifier that could be trained locally",
            where=type(captured.model).__name__,
            why="no single value separates two of its convolutions, linear layers or attentions",
            remedy="Train it with method='bp'" if mixing else "A convolution or linear layer is needed",
        )
    borders = _Borders(captured, shapes, chain)
    flat = _flat_start(chain, shapes)
    head = _classifier_start(flat, mixing)
    cuts: list[int] = []
    for before, after in pairwise(mixing):
        if before >= head:
            break
        # The classifier takes over before space is gone: its pooling is its own.
        last = after - 1 if after < head else max(before, min(after, flat) - 1)
        border = borders.best(range(before, last + 1))
        if border is not None:
            cuts.append(border)
    if not cuts:
        raise PartitionError(
            "the model cannot be cut before its classifier",
            where=type(captured.model).__name__,
            why="its layers share parameters, or belong to one building block",
            remedy="Train it with method='bp'",
        )
    return _assemble(captured, shapes, chain, cuts)


def build_chain(captured: Captured, shapes: Shapes) -> Chain:
    """Splits the graph at the values that every path from input to output goes through."""
    nodes = captured.nodes
    tensors = {n.name for n in nodes if n.op != "output" and n.name not in shapes.numbers}
    source = captured.input
    flow: nx.DiGraph[str] = nx.DiGraph()
    flow.add_node(source)
    dependent, reached = {source}, {source}
    for node in nodes[1:-1]:
        parents = [p.name for p in node.all_input_nodes]
        if any(p in dependent for p in parents):
            dependent.add(node.name)
        if node.name in tensors and any(p in reached for p in parents):
            reached.add(node.name)
            # Sizes are no tensors: what is known from a shape alone never makes a cut wider.
            flow.add_edges_from((p, node.name) for p in parents if p in reached)
    result = captured.result
    if result.name not in flow or not nx.has_path(flow, source, result.name):
        raise PartitionError(
            "the model's output does not depend on its input through tensors",
            where=type(captured.model).__name__,
            remedy="Check that forward returns what it computes from its argument",
        )
    dominator = nx.immediate_dominators(flow, source)
    chain = [result.name]
    while chain[-1] != source:
        chain.append(dominator[chain[-1]])
    chain.reverse()
    shared = frozenset(n.name for n in nodes) - dependent
    return Chain(tuple(chain), _segments(captured, chain, flow, dependent), shared, frozenset(dependent - reached))


def _segments(captured: Captured, chain: Sequence[str], flow: nx.DiGraph[str], dependent: set[str]) -> dict[str, int]:
    segment = {name: i for i, name in enumerate(chain)}
    nodes = [n for n in captured.nodes if n.op != "output"]
    for node in reversed(nodes):
        if node.name in flow and node.name not in segment:
            users = [segment[u] for u in flow.successors(node.name) if u in segment]
            if users:
                segment[node.name] = min(users)
    # Sizes, and what nothing uses (an assertion, an in-place call), stand with what they are computed from. The size of
    # a border value stands in the segment that asks for it.
    position = {name: i for i, name in enumerate(chain)}
    asked: dict[str, int] = {}
    for node in reversed(nodes):
        asked[node.name] = segment.get(
            node.name, min((asked[u.name] for u in node.users if u.name in asked), default=len(chain) - 1)
        )
    for node in nodes:
        if node.name in dependent and node.name not in segment:
            parents = [p.name for p in node.all_input_nodes if p.name in segment]
            first = max(segment[p] for p in parents)
            latest = first + all(position.get(p) == first for p in parents)
            segment[node.name] = max(first, min(asked[node.name], latest))
    return segment


def _flat_start(chain: Chain, shapes: Shapes) -> int:
    """Index of the first value after which nothing in the chain has spatial extent; its length if the last one has."""
    start = len(chain.values)
    while start > 0:
        spec = shapes.specs[chain.values[start - 1]]
        if spec is None or any(size > 1 for size in spec.spatial):
            break
        start -= 1
    return start


def _classifier_start(flat: int, mixing: Sequence[int]) -> int:
    """The first segment whose mixing operations belong to the classifier, given the first value without space."""
    if flat >= mixing[-1] or flat < mixing[0]:
        return mixing[-1]
    return next(i for i in mixing if i > flat)


def _barred(captured: Captured, shapes: Shapes, chain: Chain) -> frozenset[int]:
    """Positions no border may take: inside building blocks, and between two uses of the same parameters."""
    occurrences = [
        Occurrence(call.path, call.type_name, call.parent, frozenset(range(call.first, call.last + 1)))
        for call in captured.calls
    ]
    order = {node.name: i for i, node in enumerate(captured.nodes)}
    segments = {order[name]: i for name, i in chain.segment.items()}
    mixing = {order[name] for name in chain.segment if shapes.costs[name].mixing}
    spans = indivisible(occurrences, segments, mixing, captured)
    spans += _parameter_spans(captured, chain)
    return frozenset(i for first, last in spans for i in range(first, last))


def _parameter_spans(captured: Captured, chain: Chain) -> list[tuple[int, int]]:
    """First and last segment of every parameter and stateful module used in more than one."""
    uses: dict[int, set[int]] = {}
    carried: dict[str, set[int]] = {}
    for node in captured.nodes:
        if node.op == "output":
            continue
        held = {tensor for p in node.all_input_nodes for tensor in carried.get(p.name, ())}
        held |= {id(t) for t in own_tensors(captured, node)}
        if node.name in chain.shared or node.name in chain.portable:
            carried[node.name] = held
        if node.name in chain.shared:
            continue
        for tensor in held:
            uses.setdefault(tensor, set()).add(chain.segment[node.name])
    return [(min(segments), max(segments)) for segments in uses.values() if len(segments) > 1]


def own_tensors(captured: Captured, node: fx.Node) -> list[torch.Tensor]:
    """Parameters a node reads, and buffers its module may write."""
    module = captured.module(node)
    if module is not None:
        return [*module.parameters(), *module.buffers()]
    if node.op == "get_attr":
        value = captured.attribute(str(node.target))
        return [value] if isinstance(value, nn.Parameter) else []
    return []


class _Borders:
    """Chooses where, between two mixing operations, one layer ends and the next begins."""

    def __init__(self, captured: Captured, shapes: Shapes, chain: Chain) -> None:
        self.captured, self.shapes, self.chain = captured, shapes, chain
        self.barred = _barred(captured, shapes, chain)
        self.depthwise = {i for name, i in chain.segment.items() if shapes.costs[name].depthwise}
        self.node = {node.name: node for node in captured.nodes}
        self.first: dict[int, str] = {}
        for node in captured.nodes:
            if node.name in chain.segment:
                self.first.setdefault(chain.segment[node.name], node.name)

    def best(self, positions: range) -> int | None:
        """The position whose value becomes the cut; None where none may."""
        candidates = []
        for i in positions:
            if i > positions.start and i in self.depthwise:
                break
            spec = self.shapes.specs[self.chain.values[i]]
            if i in self.barred or spec is None or not spec.dtype.is_floating_point:
                continue
            value = self.node[self.chain.values[i]]
            kept = not any(mutates_input(self.captured, user) for user in value.users)
            crossed = enclosing(self.captured, value.name) ^ enclosing(self.captured, self.first[i + 1])
            # A value whose channels we cannot name (inside a channel shuffle) is the last that one would hand on.
            candidates.append((spec.layout != "other", kept, len(crossed), i))
        return max(candidates)[-1] if candidates else None


def enclosing(captured: Captured, name: str) -> frozenset[int]:
    """Indices of the calls that a node stands in."""
    found = []
    index = captured.scopes[name]
    while index >= 0:
        found.append(index)
        index = captured.calls[index].parent
    return frozenset(found)


def _assemble(captured: Captured, shapes: Shapes, chain: Chain, cuts: Sequence[int]) -> Partition:
    members: list[list[fx.Node]] = [[] for _ in range(len(cuts) + 1)]
    for node in captured.nodes[1:]:
        if node.name in chain.segment:
            members[bisect_left(cuts, chain.segment[node.name])].append(node)
    carried = _shared_parameters(captured, chain)
    values = tuple(chain.values[cut] for cut in cuts)
    borders = (captured.input, *values)
    names = _names(captured, shapes, members)
    layers = tuple(
        _layer(captured, shapes, carried, index, names[index], nodes, borders[index : index + 2])
        for index, nodes in enumerate(members[:-1])
    )
    return Partition(
        layers,
        tuple(tuple(n.name for n in nodes) for nodes in members[:-1]),
        values,
        tuple(n.name for n in members[-1]),
        _count(captured, members[-1], carried),
        sum(shapes.costs[n.name].macs for n in members[-1]),
        tuple(n.name for n in captured.nodes if n.name in chain.shared and n.op != "output"),
        chain.portable,
    )


def _layer(
    captured: Captured,
    shapes: Shapes,
    carried: Mapping[str, list[torch.Tensor]],
    index: int,
    name: str,
    nodes: Sequence[fx.Node],
    borders: Sequence[str],
) -> Layer:
    source, result = (shapes.specs[border] for border in borders)
    assert source is not None and result is not None
    specs = [spec for n in nodes if (spec := shapes.specs[n.name]) is not None]
    return Layer(
        index,
        name,
        _count(captured, nodes, carried),
        sum(shapes.costs[n.name].macs for n in nodes),
        sum(spec.bytes_per_sample for spec in specs),
        source,
        result,
    )


def _shared_parameters(captured: Captured, chain: Chain) -> dict[str, list[torch.Tensor]]:
    carried: dict[str, list[torch.Tensor]] = {}
    for node in captured.nodes:
        if node.name in chain.shared:
            carried[node.name] = own_tensors(captured, node) + [
                t for p in node.all_input_nodes for t in carried.get(p.name, [])
            ]
    return carried


def _count(captured: Captured, nodes: Sequence[fx.Node], carried: Mapping[str, list[torch.Tensor]]) -> int:
    found = {
        id(t): t.numel()
        for n in nodes
        for t in [*own_tensors(captured, n), *(t for p in n.all_input_nodes for t in carried.get(p.name, []))]
        if isinstance(t, nn.Parameter)
    }
    return sum(found.values())


def _names(captured: Captured, shapes: Shapes, members: Sequence[Sequence[fx.Node]]) -> list[str]:
    """For each group the outermost module whose mixing operations are just the group's; else its first mixing leaf."""
    mixing = [[n for n in group if shapes.costs[n.name].mixing] for group in members]
    inside: Counter[int] = Counter(call for group in mixing for n in group for call in enclosing(captured, n.name))
    names = []
    for group in mixing[:-1]:
        common = frozenset.intersection(*(enclosing(captured, n.name) for n in group))
        own = sorted(call for call in common if inside[call] == len(group))
        leaf = str(group[0].target) if group[0].op == "call_module" else captured.scope_path(group[0].name)
        names.append(captured.calls[own[0]].path if own else leaf or group[0].name)
    return names
