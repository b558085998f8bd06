"""Where one local layer ends and the next begins: a border between two consecutive mixing operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from passes.common.inplace import mutates_input
from passes.common.parameters import own_tensors, uses
from passes.errors import PartitionError
from passes.ir import Captured, Shapes, TensorSpec
from passes.partition.building_blocks import BuildingBlocks
from passes.partition.flow import Border, Flow, Segments
from passes.partition.granularity import Granularity, Named, named_borders, whole_spans
from passes.partition.output_choice import fusion_points


@dataclass(frozen=True, slots=True)
class Cut:
    """A border that was chosen."""

    index: int
    """Index among :attr:`Segments.borders`: the segment that ends here."""
    value: str
    """The tensor that auxiliary networks read: the newest whose channels are known."""
    name: str | None = None
    """What the user calls the layer that ends here."""


class Cutter:
    """Chooses where, between two mixing operations, one layer ends and the next begins."""

    def __init__(self, flow: Flow, width: int, granularity: Granularity | Named) -> None:
        self.captured, self.shapes, self.width, self.granularity = flow.captured, flow.shapes, width, granularity
        self.segments = flow.segments(width)
        costs, segment = self.shapes.costs, self.segments.index
        trunk = [name for name in segment if name not in flow.aside]
        self.mixing = sorted({segment[name] for name in trunk if costs[name].mixing})
        self.depthwise = {segment[name] for name in trunk if costs[name].depthwise}
        self.flat = _flat_start(self.segments, self.shapes)
        self.head = _classifier_start(self.flat, self.mixing)
        if self.captured.joint and self.mixing:
            fused = [i for name in fusion_points(flow) if (i := segment[name]) >= self.mixing[0]]
            self.head = min([self.head, *(max(i for i in self.mixing if i <= f) for f in fused)])
        self.tied = parameter_spans(self.captured, self.segments)
        self.first: dict[int, str] = {}
        for node in flow.nodes:
            if node.name in segment:
                self.first.setdefault(segment[node.name], node.name)

    def cuts(self) -> list[Cut]:
        """The cuts, input to output; empty where there are none."""
        if len(self.mixing) < 2:
            return []
        aside = self.segments.flow.aside
        mixing = frozenset(n for n in self.segments.index if self.shapes.costs[n].mixing and n not in aside)
        blocks = BuildingBlocks(self.captured, self.segments, mixing, self.width)
        spans = [*blocks.indivisible(), *whole_spans(blocks, self.granularity), *self.tied]
        barred = frozenset(i for first, last in spans for i in range(first, last))
        found: list[Cut] = []
        for before, after in pairwise(self.mixing):
            if before >= self.head:
                break
            # The classifier takes over before space is gone: its pooling is its own.
            last = after - 1 if after < self.head else max(before, min(after, self.flat) - 1)
            cut = self._best(range(before, last + 1), found[-1].index + 1 if found else 0, barred)
            if cut is not None:
                found.append(cut)
        return found

    def named(self) -> list[Cut]:
        """The cuts that the user named.

        Raises:
            PartitionError: One of them is not possible.
        """
        assert isinstance(self.granularity, Named)
        found = []
        for name, index in named_borders(self.segments, self.granularity, self.mixing, self.tied):
            value = self._value(index, 0)
            if value is None:
                raise PartitionError(f"no tensor after {name!r} can be read by an auxiliary network", where=name)
            found.append(Cut(index, value, name))
        return found

    def _best(self, positions: range, start: int, barred: frozenset[int]) -> Cut | None:
        """The border taken, of those at ``positions``, for a layer from segment ``start``; None where none may be."""
        candidates = []
        for i in positions:
            if i > positions.start and i in self.depthwise:
                break
            value = self._value(i, positions.start)
            if i in barred or value is None or not self._covers(i, start):
                continue
            border = self.segments.borders[i]
            last = self.captured.nodes[border.position].name
            crossed = enclosing(self.captured, last) ^ enclosing(self.captured, self.first[i + 1])
            candidates.append(((self._kept(border), -len(border.live), len(crossed)), i, value))
        return Cut(*max(candidates)[1:]) if candidates else None

    def _value(self, index: int, since: int) -> str | None:
        """What an auxiliary network reads at a border: the newest tensor that it can make a prediction a sample of."""
        for name in self.segments.borders[index].live:
            if self.segments.index[name] >= since and self._readable(name):
                return name
        return None

    def _readable(self, name: str) -> bool:
        # Not where we cannot name the channels (inside a channel shuffle), or where samples are taken apart (windows).
        spec = self.shapes.specs[name]
        if spec is None or spec.layout == "other" or not mergeable(self.shapes, name):
            return False
        # Nor where positions are averaged away (a squeeze-excite) while the output is a map.
        return _is_map(spec) or not _is_map(self.shapes.output)

    def _covers(self, index: int, start: int) -> bool:
        """Whether every parameter of the layer that ends at a border reaches a tensor which a local loss can read."""
        segments, graph = self.segments, self.segments.flow.graph
        own = [name for name in segments.borders[index].live if segments.index[name] >= start]
        hidden = [name for name in own if _is_float(self.shapes, name) and not mergeable(self.shapes, name)]
        if not hidden:
            return True

        def parameters(names: list[str]) -> set[int]:
            seen = set(names)
            pending = list(names)
            while pending:
                for parent in graph.predecessors(pending.pop()):
                    if parent not in seen and segments.index[parent] >= start:
                        seen.add(parent)
                        pending.append(parent)
            nodes = (self.captured.by_name[name] for name in seen)
            return {
                id(t) for node in nodes for p in (node, *node.all_input_nodes) for t in own_tensors(self.captured, p)
            }

        return parameters(hidden) <= parameters([name for name in own if name not in hidden])

    def _kept(self, border: Border) -> bool:
        """Whether nothing after the border overwrites what crosses it."""
        later = (u for name in border.live for u in self.captured.by_name[name].users)
        order = self.segments.flow.order
        return not any(order.get(u.name, -1) > border.position and mutates_input(self.captured, u) for u in later)


def _is_map(spec: TensorSpec) -> bool:
    return any(size > 1 for size in spec.spatial)


def _is_float(shapes: Shapes, name: str) -> bool:
    spec = shapes.specs[name]
    return spec is not None and spec.dtype.is_floating_point


def mergeable(shapes: Shapes, name: str) -> bool:
    """Whether an auxiliary network can read a value: floats, with the input's samples in its first dimension."""
    spec = shapes.specs[name]
    return spec is not None and spec.dtype.is_floating_point and spec.shape[:1] == shapes.input.shape[:1]


def _flat_start(segments: Segments, shapes: Shapes) -> int:
    """Index of the first border after which nothing has spatial extent; their number if the last one has."""
    start = len(segments.borders)
    while start > 0:
        specs = [shapes.specs[name] for name in segments.borders[start - 1].live]
        if any(spec is None or any(size > 1 for size in spec.spatial) for spec in specs):
            break
        start -= 1
    return start


def _classifier_start(flat: int, mixing: Sequence[int]) -> int:
    """The first segment whose mixing operations belong to the classifier, given the first border without space."""
    if not mixing or flat >= mixing[-1] or flat < mixing[0]:
        return mixing[-1] if mixing else 0
    return next(i for i in mixing if i > flat)


def parameter_spans(captured: Captured, segments: Segments) -> list[tuple[int, int]]:
    """First and last segment of every parameter and stateful module used in more than one."""
    spans: dict[int, set[int]] = {}
    for tensor, users in uses(captured, segments.shared, segments.portable).items():
        spans[tensor] = {segments.index[name] for name in users}
    return [(min(indices), max(indices)) for indices in spans.values() if len(indices) > 1]


def enclosing(captured: Captured, name: str) -> frozenset[int]:
    """Indices of the calls that a node stands in."""
    found = []
    index = captured.scopes[name]
    while index >= 0:
        found.append(index)
        index = captured.calls[index].parent
    return frozenset(found)
