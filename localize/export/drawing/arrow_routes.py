"""Where arrows run in a picture of Graphviz, so that modules stand one below the other and auxiliary networks beside.

A frame's further rows hang on the spine: it goes on, as points, one for each row. Without them a second row would stand
in the spine's way, and the next module one step to the right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from localize.export.drawing.drawing import Drawing, Edge, Group


def rows_of(group: Group) -> list[tuple[str | None, tuple[str, ...]]]:
    """A frame's rows, each with the name of the point on the spine that it hangs on, if it does not hang on a node."""
    found: list[tuple[str | None, tuple[str, ...]]] = []
    for i, row in enumerate(group.rows):
        # A node in an inner frame cannot stand in a row with nodes outside it.
        on_spine = i == 0 and row[0] in group.members
        way = None if on_spine else f"{group.name}_row_{i}"
        names = row if on_spine else row[1:] if i == 0 else row
        found.append((way, names if way is None else (way, *names)))
    return found


class Routes:
    """Where each arrow of a drawing starts, and how it may run."""

    def __init__(self, drawing: Drawing) -> None:
        self._frames = dict(_frames(drawing.members))
        self._rows: dict[str, tuple[str, int]] = {}
        self._hooks: dict[str, str] = {}
        """Node of a row -> the point that its row hangs on."""
        self._ends: dict[str, tuple[str, str]] = {}
        """Node that a module's output leaves -> the last point below it, and its frame."""
        trunks: list[Edge] = []
        for group in _groups(drawing.members):
            rows = rows_of(group)
            ways = [way for way, _ in rows if way is not None]
            leaves = group.rows[0][0] if group.rows else ""
            for i, (way, row) in enumerate(rows):
                self._rows.update({name: (group.name, i) for name in row})
                self._hooks.update({name: way for name in row if way is not None})
            if ways:
                self._frames.update({way: self._frames_of(group) for way in ways})
                self._ends[leaves] = ways[-1], group.name
                trunks += [Edge(a, b, "flow") for a, b in pairwise([leaves, *ways])]
        self.trunks = tuple(trunks)
        """The spine, where it goes on to the rows below."""
        self._trunks = {id(edge) for edge in trunks}

    def _frames_of(self, group: Group) -> tuple[str, ...]:
        whole = self._frames[next(group.nodes())]
        return whole[: whole.index(group.name) + 1]

    def start(self, edge: Edge) -> str:
        """The node or point where an arrow starts."""
        if id(edge) in self._trunks:
            return edge.source
        end, frame = self._ends.get(edge.source, ("", ""))
        if not end:
            return edge.source
        if self._rows.get(edge.target, ("",))[0] != frame:
            return end
        return self._hooks.get(edge.target, edge.source)

    def attributes(self, edge: Edge) -> dict[str, str]:
        """How it may run."""
        if id(edge) in self._trunks:
            return {"arrowhead": "none"}
        start = self.start(edge)
        entered = [name for name in self._frames[edge.target] if name not in self._frames[start]]
        # Further in, the arrow would run across the frame's title.
        return {"lhead": f"cluster_{entered[0]}"} if entered else {}


def _frames(members: Sequence[str | Group], outer: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """For each node the frames that it stands in, from the outside in."""
    for member in members:
        if isinstance(member, Group):
            yield from _frames(member.members, (*outer, member.name))
        else:
            yield member, outer


def _groups(members: Sequence[str | Group]) -> Iterator[Group]:
    for member in members:
        if isinstance(member, Group):
            yield member
            yield from _groups(member.members)
