"""Recipes: what must be changed in a local layer's graph so that it stands behind another input. Data, no tensors.

Nodes are counted by their position in the layer (first those that do not depend on the input, then the layer's own), so
that layers of one signature share one recipe.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from passes.adapt.arguments import Path
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
    """All changes to a layer's graph, by node position."""

    changes: Mapping[int, Changes] = field(default_factory=dict)
    """New settings of the leaf layers that nodes call."""
    shapes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """New shapes of parameters that the graph reads directly."""
    projections: Mapping[tuple[int, int], Projection] = field(default_factory=dict)
    """(join, operand) -> projection."""
    arguments: Mapping[int, Mapping[Path, int]] = field(default_factory=dict)
    """Numbers among a node's arguments that are others here."""
    bypassed: frozenset[int] = frozenset()
    """Nodes that hand on their input."""

    def changed(self, i: int, changes: Changes) -> Edits:
        """The same with new settings of the leaf layer that node ``i`` calls."""
        return replace(self, changes={**self.changes, i: {**self.changes.get(i, {}), **changes}})


@dataclass(frozen=True, slots=True)
class CopyRecipe:
    """How to build layer ``source``'s architecture behind ``input``."""

    source: int
    input: TensorSpec
    output: TensorSpec
    stride: int
    edits: Edits
    front: Front | None
    repaired: bool
    """False where the copy is unchanged and an adapter in front of it does what repair could not."""
    projection: bool
    """Whether a shortcut of the block is projected."""
    params: int
    macs: int


@dataclass(frozen=True, slots=True)
class Body:
    """A layer's nodes in order, by position, and the value it reads."""

    nodes: tuple[fx.Node, ...]
    entry: str
    exit: str
    position: Mapping[str, int]
    others: frozenset[str] = frozenset()
    """Further tensors it reads: in a copy, the one input stands for them too."""
    measured: Mapping[str, Measured] = field(default_factory=dict)
    """Tensors computed before it of which it asks sizes alone, and how their shapes follow from its input."""

    def reads(self, name: str) -> bool:
        """Whether a value is one that the layer reads of those computed before it."""
        return name == self.entry or name in self.others

    def positions_of(self, nodes: list[fx.Node]) -> list[int]:
        """Positions of those nodes that stand in the layer."""
        return [self.position[node.name] for node in nodes if node.name in self.position]

    def live(self, edits: Edits) -> set[int]:
        """Positions of nodes whose value reaches the layer's output once bypasses hold."""
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
    """The graph of local layer ``index``, preceded by the input-independent nodes and the sizes that it needs.

    Index L stands for the classifier: what of it the primary output needs.
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
    # Where nothing can be said of a shape, the input's own is asked for, if the two are laid out alike.
    others = frozenset(name for name in outside if shapes.get(name) is None)
    return Body(ordered, entry, leaving, position, others, {k: v for k, v in shapes.items() if v})


def shortcut(captured: Captured, shapes: Shapes, body: Body, node: fx.Node) -> tuple[int, ...] | None:
    """Positions on the way from ``node`` back to the block's input, if that way is a shortcut.

    A shortcut is a chain without a spatial convolution and with one mixing operation at most; the identity is the empty
    one.

    Returns:
        Positions, last first; None if the way is no shortcut.
    """
    found: list[int] = []
    mixing = 0
    while not body.reads(node.name):
        module = captured.module(node)
        if node.name not in body.position or len(node.all_input_nodes) != 1:
            return None
        if isinstance(module, Convolution) and max(module.kernel_size) > 1:
            return None
        mixing += shapes.costs[node.name].mixing
        found.append(body.position[node.name])
        node = node.all_input_nodes[0]
    return tuple(found) if mixing <= 1 else None


def projected_shortcuts(captured: Captured, shapes: Shapes, body: Body) -> list[tuple[int, ...]]:
    """The block's shortcuts that hold a mixing operation: those that are projections."""
    found = []
    for node in body.nodes:
        operands = [a for a in node.args if isinstance(a, fx.Node)]
        if node.target not in ADDITIONS or len(operands) != 2:
            continue
        paths = [shortcut(captured, shapes, body, operand) for operand in operands]
        if (paths[0] is None) == (paths[1] is None):
            continue
        path = paths[0] or paths[1]
        if path and any(shapes.costs[body.nodes[p].name].mixing for p in path):
            found.append(path)
    return found
