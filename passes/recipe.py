"""Recipes: what must be changed in a local layer's graph so that it stands behind another input. Data, no tensors.

Nodes are counted by their position in the layer (first those that do not depend on the input, then the layer's own), so
that layers of one signature share one recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from passes.errors import AdaptError
from passes.ir import Layout, Network, TensorSpec
from passes.resolution import Downsampling
from passes.retype import Changes
from passes.weights import Initializer, bare


@dataclass(frozen=True, slots=True)
class Projection:
    """A 1x1 convolution (or linear layer) and norm on one operand of a join."""

    in_channels: int
    out_channels: int
    stride: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class Front:
    """What stands in front of a block: channels first, then resolution."""

    in_channels: int
    out_channels: int
    pool: Downsampling | None
    layout: Layout
    factor: int = 2
    """By how much it pools."""

    @property
    def is_empty(self) -> bool:
        """Whether it does nothing."""
        return self.pool is None and self.in_channels == self.out_channels

    def __str__(self) -> str:
        parts = []
        if self.in_channels != self.out_channels:
            parts.append("conv1x1+norm" if self.layout == "NCHW" else "linear+norm")
        if self.pool:
            parts.append(f"{self.pool} {self.factor}x{self.factor}")
        return " > ".join(parts) or "unchanged copy"


@dataclass(frozen=True, slots=True)
class Edits:
    """All changes to a layer's graph, by node position."""

    changes: Mapping[int, Changes] = field(default_factory=dict)
    """New settings of the leaf layers that nodes call."""
    shapes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """New shapes of parameters that the graph reads directly."""
    projections: Mapping[tuple[int, int], Projection] = field(default_factory=dict)
    """(join, operand) -> projection."""
    bypassed: frozenset[int] = frozenset()
    """Nodes that hand on their input."""


@dataclass(frozen=True, slots=True)
class Recipe:
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
    """The graph of local layer ``index``, preceded by the input-independent nodes it needs."""
    part = network.partition
    own = set(part.nodes[index])
    needed = network.captured.feeding(own, frozenset(part.shared))
    in_order = sorted((*own, *needed), key=network.captured.positions.__getitem__)
    nodes = [network.captured.by_name[name] for name in in_order if name in own]
    constant = [network.captured.by_name[name] for name in in_order if name in needed]
    ordered = (*constant, *nodes)
    position = {node.name: i for i, node in enumerate(ordered)}
    outside = {p.name for node in nodes for p in node.all_input_nodes} - position.keys()
    others = outside - network.shapes.numbers - part.portable - {part.entries[index]}
    return Body(ordered, part.entries[index], part.cuts[index], position, frozenset(others))


def build_projection(projection: Projection, draw: Initializer) -> nn.Module:
    """1x1 convolution + batch norm for images, linear + layer norm for what has its channels last.

    Raises:
        AdaptError: Tokens cannot be strided, and volumes not projected.
    """
    if projection.layout == "NCHW":
        convolution = bare(nn.Conv2d, projection.in_channels, projection.out_channels, 1, projection.stride, bias=False)
        return draw.plain_(nn.Sequential(convolution, nn.BatchNorm2d(projection.out_channels)))
    if projection.layout == "NCDHW":
        raise AdaptError("a shortcut of volumes cannot be projected")
    if projection.stride > 1:
        raise AdaptError(f"a shortcut in {projection.layout} cannot be strided")
    linear = bare(nn.Linear, projection.in_channels, projection.out_channels, bias=False)
    return draw.plain_(nn.Sequential(linear, nn.LayerNorm(projection.out_channels)))


def build_front(front: Front, draw: Initializer) -> nn.Module:
    """Channels first, then resolution, for images; channels alone for what has them last.

    Raises:
        AdaptError: Only images with channels first can be pooled.
    """
    parts: list[nn.Module] = []
    if front.in_channels != front.out_channels:
        parts.append(build_projection(Projection(front.in_channels, front.out_channels, 1, front.layout), draw))
    if front.pool:
        if front.layout != "NCHW":
            raise AdaptError(f"values in {front.layout} cannot be pooled")
        # Odd sizes round up, as behind a strided 3x3 convolution.
        kinds: dict[Any, type[nn.Module]] = {"max_pool": nn.MaxPool2d, "avg_pool": nn.AvgPool2d}
        parts.append(kinds[front.pool](front.factor, ceil_mode=True))
    return nn.Sequential(*parts)
