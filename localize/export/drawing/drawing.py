"""The drawing of a localized model as boxes, arrows and frames: plain data that every drawn format starts from.

Local modules are groups of nodes. In each, the primary network's layers stand one below the other; the auxiliary
network stands to their right, hidden layer by hidden layer, up to the local loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["input", "layer", "operation", "module", "classifier", "output", "block", "head", "term", "loss"]
"""Kind of a node. ``"module"``: a local module as one box. ``"block"``: a hidden layer of an auxiliary network."""
Flow = Literal["flow", "cut", "auxiliary", "loss", "sum"]
"""Kind of an arrow. ``"flow"``: a value within a module. ``"cut"``: a detached value for the next module.
``"auxiliary"``: a value within an auxiliary network. ``"loss"``: a prediction for a loss. ``"sum"``: one part of a
local loss, added to the others."""
Fact = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Node:
    """A box."""

    name: str
    """Name of the node, unique in its drawing; letters, digits and underscores."""
    kind: Kind
    lines: tuple[str, ...]
    """Lines of text in the box, escaped for every format; the first is the title."""
    facts: Mapping[str, Fact]
    """Everything known about the node, by name. Names that the user chose are not escaped."""
    module: int | None = None
    """Index of the local module that the node belongs to; None for input and output."""


@dataclass(frozen=True, slots=True)
class Edge:
    """An arrow."""

    source: str
    """Name of the node that the arrow leaves."""
    target: str
    """Name of the node that the arrow enters."""
    kind: Flow
    label: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """A frame around nodes and other groups: a local module, a layer with its operations, or a repeated part."""

    name: str
    kind: Literal["module", "layer", "repeat"]
    title: str
    members: tuple[str | Group, ...]
    """Names of the nodes in the frame, and the groups in it."""
    rows: tuple[tuple[str, ...], ...] = ()
    """Rows of nodes that stand side by side: a layer, and the auxiliary network that reads it."""

    def nodes(self) -> Iterator[str]:
        """Yield the names of all nodes in the frame, at any depth."""
        for member in self.members:
            if isinstance(member, Group):
                yield from member.nodes()
            else:
                yield member


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes, arrows and frames."""

    title: tuple[str, ...]
    """Lines of the title."""
    nodes: tuple[Node, ...]
    """Nodes in the order of execution."""
    edges: tuple[Edge, ...]
    members: tuple[str | Group, ...]
    """Names of all nodes, each once, within the groups that they stand in."""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    """Facts about the whole plan, by name."""
