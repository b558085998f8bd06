"""A drawing: what is to be seen of a localized model, as boxes and arrows, whatever draws them. Plain data.

Local modules are groups of nodes. In each, the primary network's layers stand one below the other, and to their right
the auxiliary network, hidden layer by hidden layer, up to the local loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["input", "layer", "operation", "module", "classifier", "output", "block", "head", "term", "loss"]
"""What a node is. ``"module"``: a local module as one box. ``"block"``: a hidden layer of an auxiliary network."""
Flow = Literal["flow", "cut", "auxiliary", "loss", "sum"]
"""What an arrow carries: a value within a module; a detached one, to the next module; what an auxiliary network reads
or hands on; a prediction, to a loss; or a part of a local loss, to the whole."""
Fact = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Node:
    """A box."""

    name: str
    """Unique in its drawing; of letters, digits and underscores."""
    kind: Kind
    lines: tuple[str, ...]
    """What is written in it, fit for every format; the first is its title."""
    facts: Mapping[str, Fact]
    """All that is known of it, by name: names of the user's as they are."""
    module: int | None = None
    """Index of its local module; None for input and output."""


@dataclass(frozen=True, slots=True)
class Edge:
    """An arrow."""

    source: str
    target: str
    kind: Flow
    label: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """A frame around nodes and other groups: a local module, a layer that is looked into, or what is repeated."""

    name: str
    kind: Literal["module", "layer", "repeat"]
    title: str
    members: tuple[str | Group, ...]
    """Names of nodes, and groups."""
    rows: tuple[tuple[str, ...], ...] = ()
    """Nodes that stand side by side: a layer and the auxiliary network that reads it."""

    def nodes(self) -> Iterator[str]:
        """Names of all nodes in it, at any depth."""
        for member in self.members:
            if isinstance(member, Group):
                yield from member.nodes()
            else:
                yield member


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes, arrows and frames."""

    title: tuple[str, ...]
    """Lines."""
    nodes: tuple[Node, ...]
    """In the order of execution."""
    edges: tuple[Edge, ...]
    members: tuple[str | Group, ...]
    """All nodes, each once, in the groups that they stand in."""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    """Of the whole."""
