"""Building blocks that are never cut inside, because modules of one kind are cut alike.

Two modules are of one kind (*homologous*) when their paths agree once indices are wildcards (``blocks.*.*``), or when
they are of one class, generic containers excepted. If one of them cannot be cut, because a skip connection passes round
what is inside, none of them is. A container that merely wraps such a block says nothing about its own kind.

MobileNetV2 shows why: its blocks of stride 2 have no shortcut and could be cut, the others have one and cannot. Cut
alike, the network has 19 local layers, one for each block.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from passes.ir import Captured
from passes.partition.flow import Segments, live_positions

_CONTAINERS = ("torch.nn.modules.container.",)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One call of a module whose inside was traced."""

    path: str
    type_name: str
    parent: int
    """Index of the enclosing occurrence; -1 for the network itself."""
    nodes: range
    """Positions of the nodes that were recorded during the call."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the graph that must stay in one local layer."""

    first: int
    """Segment of its first mixing operation."""
    last: int
    """Segment of its last mixing operation."""
    start: int
    """Position in the graph of its first mixing operation."""
    stop: int
    """Position in the graph of its last mixing operation."""
    subject: str
    """The module that stays whole, or the parameter that is used throughout."""
    because: str = ""
    """Path of the module of the same kind that cannot be cut; empty where the span stays whole for another reason."""
    needed: int = 0
    """Tensors that would have to be allowed to cross, for that module to be cut."""


def wildcard(path: str) -> str:
    """Replace the indices in a path by wildcards: ``layers.3.blocks.0`` -> ``layers.*.blocks.*``."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


class BuildingBlocks:
    """The calls of opened modules, and the mixing operations in each.

    Args:
        captured: The graph.
        segments: Its segments and borders.
        mixing: Names of the nodes that mix channels: convolutions, linear layers, attentions.
        width: Tensors that may cross a border.
    """

    def __init__(self, captured: Captured, segments: Segments, mixing: frozenset[str], width: int) -> None:
        self.captured, self.segments, self.width = captured, segments, width
        self.names = [node.name for node in captured.nodes]
        self.occurrences = [
            Occurrence(call.path, call.type_name, call.parent, range(call.first, call.last + 1))
            for call in captured.calls
        ]
        positions = sorted(i for i, name in enumerate(self.names) if name in mixing)
        self.held = [
            positions[bisect_left(positions, o.nodes.start) : bisect_left(positions, o.nodes.stop)]
            for o in self.occurrences
        ]
        """Positions of the mixing operations in each occurrence."""
        self.children: dict[int, list[int]] = {}
        for index, occurrence in enumerate(self.occurrences):
            self.children.setdefault(occurrence.parent, []).append(index)

    def span(self, index: int, because: str = "", needed: int = 0) -> Span:
        """Return the span from the first to the last mixing operation of an occurrence."""
        start, stop = self.held[index][0], self.held[index][-1]
        segments = [self._segment(position) for position in self.held[index]]
        path = self.occurrences[index].path
        return Span(
            first=min(segments),
            last=max(segments),
            start=start,
            stop=stop,
            subject=path,
            because=because,
            needed=needed,
        )

    def _segment(self, position: int) -> int:
        return self.segments.index[self.names[position]]

    def indivisible(self) -> list[Span]:
        """Return the spans of all blocks that must stay whole, since one of their kind cannot be cut."""
        uncuttable: dict[str, int] = {}
        for index, occurrence in enumerate(self.occurrences):
            # All of its mixing operations in one segment: no border inside is narrow enough.
            whole = len(self.held[index]) > 1 and len({self._segment(n) for n in self.held[index]}) == 1
            if whole and not self._merely_wraps(index):
                for kind in _kinds(occurrence):
                    uncuttable.setdefault(kind, index)
        needed = {index: self._needed(index) for index in set(uncuttable.values())}
        spans = []
        for index, occurrence in enumerate(self.occurrences):
            example = next((uncuttable[kind] for kind in _kinds(occurrence) if kind in uncuttable), None)
            if self.held[index] and example is not None:
                spans.append(self.span(index, self.occurrences[example].path, needed[example]))
        return spans

    def _needed(self, index: int) -> int:
        """Return how many tensors cross the narrowest border inside an occurrence; 0 where there is none."""
        start, stop = self.held[index][0], self.held[index][-1]
        borders = self.segments.flow.borders
        return min((len(b.live) for b in borders if b.tensors and start <= b.position < stop), default=0)

    def listed(self) -> list[Span]:
        """Return the spans of the blocks that a network lists.

        These are the elements of containers that hold several mixing operations each; the innermost where they nest.
        """
        listed = {index for index, held in enumerate(self.held) if len(held) > 1 and self._is_listed(index)}
        outer = set()
        for index in listed:
            parent = self.occurrences[index].parent
            while parent >= 0:
                outer.add(parent)
                parent = self.occurrences[parent].parent
        return [self.span(index) for index in sorted(listed - outer)]

    def _is_listed(self, index: int) -> bool:
        parent, _, _ = self.occurrences[index].path.rpartition(".")
        return isinstance(self.captured.model.get_submodule(parent), (nn.Sequential, nn.ModuleList, nn.ModuleDict))

    def of_class(self, kinds: tuple[type[nn.Module], ...]) -> list[Span]:
        """Return the spans of all modules of the given classes."""
        model = self.captured.model
        return [
            self.span(index)
            for index, occurrence in enumerate(self.occurrences)
            if self.held[index] and isinstance(model.get_submodule(occurrence.path), kinds)
        ]

    def _merely_wraps(self, index: int) -> bool:
        """Return whether a block inside holds all mixing operations and could not be cut even if it stood alone."""
        for child in self.children.get(index, ()):
            if self.held[child] == self.held[index]:
                return self._whole_alone(child) or self._merely_wraps(child)
        return False

    def _whole_alone(self, index: int) -> bool:
        """Return whether no border between two mixing operations of an occurrence is narrow, seen by itself.

        Tensors that pass round the occurrence are left out: they are no property of the block.
        """
        flow = self.segments.flow
        nodes = [n for n in self.captured.nodes[slice(*_bounds(self.occurrences[index]))] if n.name in flow.tensors]
        parents = {n.name: [p.name for p in n.all_input_nodes if p.name in flow.tensors] for n in nodes}
        beyond = (flow.tensors | {self.names[-1]}) - parents.keys()
        leaving = frozenset(n.name for n in nodes if any(u.name in beyond for u in n.users))
        order = {n.name: i for i, n in enumerate(nodes)}
        first, last = order[self.names[self.held[index][0]]], order[self.names[self.held[index][-1]]]
        return not any(first <= i < last for i in live_positions([*order], parents, leaving, self.width))


def _bounds(occurrence: Occurrence) -> tuple[int, int]:
    return occurrence.nodes.start, occurrence.nodes.stop


def _kinds(occurrence: Occurrence) -> Iterable[str]:
    """Yield what an occurrence may have in common with others of its kind."""
    # A path without an index has no homologues by name: "layer1" and "layer2" are siblings, not copies.
    if any(part.isdigit() for part in occurrence.path.split(".")):
        yield wildcard(occurrence.path)
    if not occurrence.type_name.startswith(_CONTAINERS):
        yield occurrence.type_name
