"""Which building blocks are never cut inside: homologous modules are cut alike.

Modules are homologous when their qualified names agree once indices are wildcards (``blocks.*.*``) or when they are of
one class, generic containers excepted. If one of them cannot be cut, because a skip connection passes round what is
inside, none of them is. A container that merely wraps such a block says nothing about its own kind.
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
    """One call of an opened module: its path, class, enclosing occurrence, and the positions of its nodes."""

    path: str
    type_name: str
    parent: int
    nodes: range


def wildcard(path: str) -> str:
    """``layers.3.blocks.0`` -> ``layers.*.blocks.*``."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


class BuildingBlocks:
    """The calls of opened modules, and the mixing operations in each."""

    def __init__(self, captured: Captured, segments: Segments, mixing: frozenset[str], width: int) -> None:
        self.captured, self.segments, self.width = captured, segments, width
        self.names = [node.name for node in captured.nodes]
        self.occurrences = [
            Occurrence(call.path, call.type_name, call.parent, range(call.first, call.last + 1))
            for call in captured.calls
        ]
        where = sorted(i for i, name in enumerate(self.names) if name in mixing)
        self.held = [
            where[bisect_left(where, o.nodes.start) : bisect_left(where, o.nodes.stop)] for o in self.occurrences
        ]
        self.children: dict[int, list[int]] = {}
        for index, occurrence in enumerate(self.occurrences):
            self.children.setdefault(occurrence.parent, []).append(index)

    def span(self, index: int) -> tuple[int, int]:
        """First and last segment of a call's mixing operations."""
        inside = [self._segment(n) for n in self.held[index]]
        return min(inside), max(inside)

    def _segment(self, position: int) -> int:
        return self.segments.index[self.names[position]]

    def indivisible(self) -> list[tuple[int, int]]:
        """First and last segment of every block that must stay whole, since one of its kind cannot be cut."""
        kinds: set[str] = set()
        for index, occurrence in enumerate(self.occurrences):
            whole = len(self.held[index]) > 1 and len({self._segment(n) for n in self.held[index]}) == 1
            if whole and not self._merely_wraps(index):
                kinds |= set(_kinds(occurrence))
        return [
            self.span(index)
            for index, occurrence in enumerate(self.occurrences)
            if self.held[index] and kinds & set(_kinds(occurrence))
        ]

    def listed(self) -> list[tuple[int, int]]:
        """Spans of the blocks a network lists: elements of containers with several mixing operations, the innermost."""
        found = {index for index, held in enumerate(self.held) if len(held) > 1 and self._is_listed(index)}
        outer = set()
        for index in found:
            parent = self.occurrences[index].parent
            while parent >= 0:
                outer.add(parent)
                parent = self.occurrences[parent].parent
        return [self.span(index) for index in sorted(found - outer)]

    def _is_listed(self, index: int) -> bool:
        parent, _, _ = self.occurrences[index].path.rpartition(".")
        return isinstance(self.captured.model.get_submodule(parent), (nn.Sequential, nn.ModuleList, nn.ModuleDict))

    def of_class(self, kinds: tuple[type[nn.Module], ...]) -> list[tuple[int, int]]:
        """Spans of all modules of the given classes."""
        model = self.captured.model
        return [
            self.span(index)
            for index, occurrence in enumerate(self.occurrences)
            if self.held[index] and isinstance(model.get_submodule(occurrence.path), kinds)
        ]

    def _merely_wraps(self, index: int) -> bool:
        """Whether a block within holds all mixing operations and could not be cut even if it stood alone."""
        for child in self.children.get(index, ()):
            if self.held[child] == self.held[index]:
                return self._whole_alone(child) or self._merely_wraps(child)
        return False

    def _whole_alone(self, index: int) -> bool:
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
    # A name without an index has no homologues by name: "layer1" and "layer2" are siblings, not copies.
    if any(part.isdigit() for part in occurrence.path.split(".")):
        yield wildcard(occurrence.path)
    if not occurrence.type_name.startswith(_CONTAINERS):
        yield occurrence.type_name
