"""Turn a drawing into a networkx graph, and write it as GraphML."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence

import networkx as nx

from localize.export.drawing.box_text import shown
from localize.export.drawing.draw import draw
from localize.export.drawing.drawing import Fact, Group
from localize.export.request import Request


def graph_of(request: Request) -> nx.MultiDiGraph[str]:
    """Return a drawing as a networkx graph: boxes become nodes, arrows edges, and their facts attributes.

    A node has the attributes ``kind``, ``label``, ``module`` (index; absent for input and output), ``group`` (names of
    the frames around it, from the outside in, separated by ``/``), and the facts of its kind, such as ``name``,
    ``parameters`` and ``macs``. An edge has ``kind`` and ``label``. The graph has the facts of the plan.
    """
    local, view = request.local, request.view
    network = local.compiled.network if view.module is not None else None
    drawing = draw(local.plan, view, network)
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    graph.graph.update(drawing.facts)
    frames = dict(_places(drawing.members))
    for node in drawing.nodes:
        known: dict[str, Fact] = {"kind": node.kind, "label": "\n".join(node.lines), **node.facts}
        if frames[node.name]:
            known["group"] = frames[node.name]
        if node.module is not None:
            known["module"] = node.module
        graph.add_node(node.name, **known)
    for edge in drawing.edges:
        graph.add_edge(edge.source, edge.target, kind=edge.kind, **({"label": edge.label} if edge.label else {}))
    return graph


def _places(members: Sequence[str | Group], outer: str = "") -> Iterator[tuple[str, str]]:
    """Yield each node with the names of the frames around it, from the outside in, separated by ``/``."""
    for member in members:
        if isinstance(member, Group):
            yield from _places(member.members, f"{outer}/{member.name}".lstrip("/"))
        else:
            yield member, outer


def write_graphml(request: Request) -> bytes:
    """Write a graph as GraphML, which networkx, Gephi and yEd read."""
    graph = graph_of(request)
    for attributes in (graph.graph, *(data for _, data in graph.nodes(data=True))):
        _fit_for_xml(attributes)
    written = io.BytesIO()
    nx.write_graphml_xml(graph, written)
    return written.getvalue()


def _fit_for_xml(attributes: dict[str, Fact]) -> None:
    """Escape, in place, the control characters that XML cannot hold; line breaks in labels stay."""
    for name, value in _texts(attributes):
        attributes[name] = "\n".join(shown(line) for line in value.split("\n")) if name == "label" else shown(value)


def _texts(attributes: Mapping[str, Fact]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in attributes.items() if isinstance(value, str)]
