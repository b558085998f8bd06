"""Route the arrows of a Graphviz picture so that modules stand in one column, and auxiliary networks next to it.

The column of layers is called the spine. A frame with several rows continues the spine with one point for each further
row, and the row hangs on that point. Without the points, Graphviz would put a second row into the path of the spine and
shift the next module to the right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from localize.export.drawing.drawing import Drawing, Edge, Group


def rows_of(group: Group) -> list[tuple[str | None, tuple[str, ...]]]:
    """List the rows of a frame, each with the point of the spine that it hangs on; None if it hangs on a node."""
    rows: list[tuple[str | None, tuple[str, ...]]] = []
    for i, row in enumerate(group.rows):
        # A node in an inner frame cannot stand in a row with nodes outside it.
        on_spine = i == 0 and row[0] in group.members
        way = None if on_spine else f"{group.name}_row_{i}"
        names = row if on_spine else row[1:] if i == 0 else row
        rows.append((way, names if way is None else (way, *names)))
    return rows


class Routes:
    """Start and Graphviz attributes of each arrow of a drawing."""

    def __init__(self, drawing: Drawing) -> None:
        self._frames = dict(_frames(drawing.members))
        self._rows: dict[str, tuple[str, int]] = {}
        self._hooks: dict[str, str] = {}
        """Point that a row hangs on, by the name of each node in the row."""
        self._ends: dict[str, tuple[str, str]] = {}
        """Last point of a frame and the name of the frame, by the node that the module's output leaves."""
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
        """Arrows of the spine between the points of the rows."""
        self._trunks = {id(edge) for edge in trunks}

    def _frames_of(self, group: Group) -> tuple[str, ...]:
        whole = self._frames[next(group.nodes())]
        return whole[: whole.index(group.name) + 1]

    def start(self, edge: Edge) -> str:
        """Return the node or point where an arrow starts."""
        if id(edge) in self._trunks:
            return edge.source
        end, frame = self._ends.get(edge.source, ("", ""))
        if not end:
            return edge.source
        if self._rows.get(edge.target, ("",))[0] != frame:
            return end
        return self._hooks.get(edge.target, edge.source)

    def attributes(self, edge: Edge) -> dict[str, str]:
        """Return the Graphviz attributes that route an arrow."""
        if id(edge) in self._trunks:
            return {"arrowhead": "none"}
        start = self.start(edge)
        entered = [name for name in self._frames[edge.target] if name not in self._frames[start]]
        # An arrow that ended further inside would run across the title of the frame.
        return {"lhead": f"cluster_{entered[0]}"} if entered else {}


def _frames(members: Sequence[str | Group], outer: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each node with the names of the frames around it, from the outside in."""
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
