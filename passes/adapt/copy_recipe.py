"""The recipe of a copy: the changes to a local layer's graph that make it run on another input. No tensors in here.

Nodes are counted by their position in the layer (first those that do not depend on the input, then the layer's own), so
that layers of one signature share one recipe.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from passes.adapt.outside_shapes import Measured, measured
from passes.adapt.retype import Changes
from passes.common.layer_kinds import Convolution
from passes.ir import Captured, Network, Shapes, TensorSpec
from passes.layers.adapters import Front, Projection

ADDITIONS = {
    operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_", "sub", "sub_"
}  # fmt: skip
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}


@dataclass(frozen=True, slots=True)
class Edits:
    """All changes to a layer's graph, by the position of the node."""

    changes: Mapping[int, Changes] = field(default_factory=dict)
    """Node -> new settings of the leaf layer that it calls."""
    shapes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Node -> new shape of the parameter that it reads."""
    projections: Mapping[tuple[int, int], Projection] = field(default_factory=dict)
    """(node of an addition or product, index of an operand) -> projection that the operand goes through."""
    arguments: Mapping[int, Mapping[tuple[int | str, ...], int]] = field(default_factory=dict)
    """Node -> place of an argument (:data:`passes.adapt.arguments.Path`) -> the number that stands there now."""
    bypassed: frozenset[int] = frozenset()
    """Nodes that are left out: their first input takes the place of their value."""

    def changed(self, i: int, changes: Changes) -> Edits:
        """Return these edits with further settings of the leaf layer that node ``i`` calls."""
        return replace(self, changes={**self.changes, i: {**self.changes.get(i, {}), **changes}})


@dataclass(frozen=True, slots=True)
class CopyRecipe:
    """The way to build a copy of a layer's architecture for another input."""

    source: int
    """Index of the layer that is copied; the number of layers for the classifier."""
    input: TensorSpec
    output: TensorSpec
    stride: int
    """The power of two by which the copy shrinks height and width."""
    edits: Edits
    front: Front | None
    """Layers in front of the copy: pooling, an adapter of channels, a change of layout."""
    repaired: bool
    """False where the copy is unchanged, and an adapter in front of it does what no repair could."""
    projection: bool
    """Whether a shortcut of the block is projected."""
    params: int
    """Number of parameter elements of the copy."""
    macs: int
    """Multiply-accumulates of the copy at batch 1."""


@dataclass(frozen=True, slots=True)
class Body:
    """The graph of a layer, and what it reads from outside."""

    nodes: tuple[fx.Node, ...]
    """Nodes in execution order, first those that do not depend on the input."""
    entry: str
    """The newest tensor that the layer reads."""
    exit: str
    """The tensor that the layer gives."""
    position: Mapping[str, int]
    """Name of a node -> its index in :attr:`nodes`."""
    others: frozenset[str] = frozenset()
    """Further tensors that the layer reads; a copy has one input, which takes their place too."""
    measured: Mapping[str, Measured] = field(default_factory=dict)
    """Tensors from before the layer whose sizes alone it asks for, and how their shapes follow from its input."""

    def reads(self, name: str) -> bool:
        """Return whether the layer reads a value from outside."""
        return name == self.entry or name in self.others

    def positions_of(self, nodes: list[fx.Node]) -> list[int]:
        """Return the positions of those nodes that lie in the layer."""
        return [self.position[node.name] for node in nodes if node.name in self.position]

    def live(self, edits: Edits) -> set[int]:
        """Return the positions of nodes whose value reaches the layer's output, given the nodes that are left out."""
        live: set[int] = set()
        pending = [self.position[self.exit]]
        while pending:
            i = pending.pop()
            if i in live:
                continue
            live.add(i)
            # A bypassed node hands on its first input; the others are no longer read.
            parents = self.nodes[i].all_input_nodes
            pending += self.positions_of(parents[:1] if i in edits.bypassed else parents)
        return live - edits.bypassed


def body_of(network: Network, index: int) -> Body:
    """Return the graph of a local layer, with the constants and sizes that it needs.

    Args:
        network: The network.
        index: Index of the layer; the number of layers for the classifier, of which only what the primary output needs
            is returned.
    """
    part, captured, specs = network.partition, network.captured, network.shapes.specs
    if index < len(part.layers):
        own, entry, leaving = set(part.nodes[index]), part.entries[index], part.live[index][0]
    else:
        leaving = captured.result.name
        own, entry = {leaving} | captured.feeding((leaving,), frozenset(part.classifier)), part.live[-1][0]
    needed = captured.feeding(own, frozenset(part.shared) | (part.portable - own))
    in_order = sorted((*own, *needed), key=captured.positions.__getitem__)
    nodes = [captured.by_name[name] for name in in_order if name in own]
    early = [captured.by_name[name] for name in in_order if name in needed]
    ordered = (*early, *nodes)
    position = {node.name: i for i, node in enumerate(ordered)}
    outside = {p.name for node in ordered for p in node.all_input_nodes} - position.keys() - {entry}
    used = {p.name for node in nodes for p in node.all_input_nodes if node.name not in network.shapes.numbers}
    read = specs[entry]
    assert read is not None
    shapes = {name: measured(spec, read) if (spec := specs[name]) else None for name in sorted(outside - used)}
    # Where a shape does not follow from the input's, the copy asks its input itself, if the two are laid out alike.
    others = frozenset(name for name in outside if shapes.get(name) is None)
    return Body(ordered, entry, leaving, position, others, {k: v for k, v in shapes.items() if v})


def shortcut(captured: Captured, shapes: Shapes, body: Body, node: fx.Node) -> tuple[int, ...] | None:
    """Return the positions on the way from ``node`` back to the block's input, if that way is a shortcut.

    A shortcut is a chain of nodes without a spatial convolution and with one mixing operation at most.

    Returns:
        Positions, last first, none for the identity; None if the way is not a shortcut.
    """
    positions: list[int] = []
    mixing = 0
    while not body.reads(node.name):
        module = captured.module(node)
        if node.name not in body.position or len(node.all_input_nodes) != 1:
            return None
        if isinstance(module, Convolution) and max(module.kernel_size) > 1:
            return None
        mixing += shapes.costs[node.name].mixing
        positions.append(body.position[node.name])
        node = node.all_input_nodes[0]
    return tuple(positions) if mixing <= 1 else None


def projected_shortcuts(captured: Captured, shapes: Shapes, body: Body) -> list[tuple[int, ...]]:
    """Return the block's shortcuts that hold a mixing operation: those that are projections."""
    projected = []
    for node in body.nodes:
        operands = [a for a in node.args if isinstance(a, fx.Node)]
        if node.target not in ADDITIONS or len(operands) != 2:
            continue
        paths = [shortcut(captured, shapes, body, operand) for operand in operands]
        if (paths[0] is None) == (paths[1] is None):
            continue
        path = paths[0] or paths[1]
        if path and any(shapes.costs[body.nodes[p].name].mixing for p in path):
            projected.append(path)
    return projected
