"""Write a drawing in Graphviz's language, dot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from localize.export.drawing.arrow_routes import Routes, rows_of
from localize.export.drawing.box_text import shown
from localize.export.drawing.draw import draw
from localize.export.drawing.drawing import Drawing, Edge, Group, Node
from localize.export.request import Request
from localize.text import format_count

FONT = "Helvetica,Arial,DejaVu Sans,sans-serif"
INK, MUTED, CARD_LINE = "#20262e", "#616973", "#c9c6bd"
SPINE_FILL, SPINE_LINE = "#e8eff6", "#6d8cab"
AUXILIARY_FILL, AUXILIARY_LINE = "#faf3e3", "#c4a25e"
LOSS_FILL, LOSS_LINE = "#fbe8e2", "#bf5539"
"""Colours; the page has the same ones (``assets/theme.css``)."""
FILLS = {
    "input": ("#ffffff", MUTED),
    "output": ("#ffffff", MUTED),
    "layer": (SPINE_FILL, SPINE_LINE),
    "module": (SPINE_FILL, SPINE_LINE),
    "operation": (SPINE_FILL, SPINE_LINE),
    "classifier": (SPINE_FILL, SPINE_LINE),
    "block": (AUXILIARY_FILL, AUXILIARY_LINE),
    "head": (AUXILIARY_FILL, AUXILIARY_LINE),
    "term": (AUXILIARY_FILL, AUXILIARY_LINE),
    "loss": (LOSS_FILL, LOSS_LINE),
}
"""Fill and border of each kind of node."""
SPINE = ("input", "layer", "module", "classifier", "output")
"""Kinds of nodes that stand one below the other, from input to output."""
EDGES: Mapping[str, Mapping[str, str]] = {
    "flow": {"color": SPINE_LINE, "weight": "20"},
    "cut": {
        "color": LOSS_LINE,
        "fontcolor": LOSS_LINE,
        "style": "dashed",
        "penwidth": "1.6",
        "arrowhead": "normalodot",
    },
    "auxiliary": {"color": AUXILIARY_LINE},
    "loss": {"color": LOSS_LINE, "fontcolor": LOSS_LINE},
}
"""Graphviz attributes of each kind of arrow."""


def write_dot(request: Request) -> bytes:
    """Write a graph for ``dot``: the network from top to bottom, auxiliary networks to its right."""
    local, view = request.local, request.view
    network = local.compiled.network if view.module is not None else None
    return dot_source(draw(local.plan, view, network)).encode("utf-8")


def dot_source(drawing: Drawing) -> str:
    """Write the dot source of a drawing."""
    nodes = {node.name: node for node in drawing.nodes}
    title = "\\l".join(_escaped(line) for line in drawing.title) + "\\l"
    lines = [
        "digraph localized {",
        f'  graph [label="{title}", labelloc=t, labeljust=l, fontname="{FONT}", fontsize=13, fontcolor="{INK}",',
        "         bgcolor=white, rankdir=TB, newrank=true, compound=true, nodesep=0.28, ranksep=0.34, pad=0.25];",
        '  node [shape=box, style="filled,rounded", margin="0.14,0.07",',
        f'        fontname="{FONT}", fontsize=11, fontcolor="{INK}"];',
        f'  edge [fontname="{FONT}", fontsize=10, arrowsize=0.7];',
    ]
    for member in drawing.members:
        lines += _member(member, nodes, "  ")
    routes = Routes(drawing)
    lines += [f"  {_edge(edge, routes)}" for edge in (*routes.trunks, *drawing.edges) if edge.kind != "sum"]
    return "\n".join([*lines, "}", ""])


def _member(member: str | Group, nodes: Mapping[str, Node], indent: str) -> Iterator[str]:
    if isinstance(member, str):
        yield f"{indent}{_node(nodes[member])}"
        return
    looks = {
        "module": f'style="rounded,filled", fillcolor="#fbfaf7", color="{CARD_LINE}", penwidth=1.2',
        "layer": f'style="rounded", color="{SPINE_LINE}"',
        "repeat": f'style="rounded,dashed", color="{MUTED}", penwidth=1.2',
    }[member.kind]
    yield f"{indent}subgraph cluster_{member.name} {{"
    yield (
        f'{indent}  graph [label="{_escaped(member.title)}", labeljust=l, fontsize=11, fontcolor="{MUTED}", {looks}];'
    )
    for inner in member.members:
        yield from _member(inner, nodes, f"{indent}  ")
    for way, row in rows_of(member):
        if way is not None:
            yield f'{indent}  {way} [shape=point, width=0.03, color="{EDGES["flow"]["color"]}", group=spine];'
        if len(row) > 1:
            yield f"{indent}  {{ rank=same; {'; '.join(row)}; }}"
    yield f"{indent}}}"


def _node(node: Node) -> str:
    fill, border = FILLS[node.kind]
    label = "\\n".join(_escaped(line) for line in node.lines)
    tip = "\\n".join(_escaped(f"{name.replace('_', ' ')}: {_fact(name, value)}") for name, value in node.facts.items())
    shape = ", shape=ellipse, style=filled" if node.kind in ("input", "output") else ""
    shape += ", group=spine" if node.kind in SPINE else ""
    return f'{node.name} [label="{label}", tooltip="{tip}", fillcolor="{fill}", color="{border}"{shape}];'


def _fact(name: str, value: object) -> str:
    counted = isinstance(value, int) and not isinstance(value, bool) and name.endswith(("parameters", "macs"))
    return f"{value:,} ({format_count(value)})" if counted and isinstance(value, int) and value > 999 else str(value)


def _edge(edge: Edge, routes: Routes) -> str:
    looks = {**EDGES[edge.kind], **routes.attributes(edge)}
    if edge.label:
        looks["label"] = f"   {_escaped(edge.label)} "  # blanks keep the text clear of the arrow's head
    words = ", ".join(f'{name}="{value}"' for name, value in looks.items())
    return f"{routes.start(edge)} -> {edge.target} [{words}];"


def _escaped(text: str) -> str:
    """Escape text for a quoted string: Graphviz reads backslashes as escapes of its own, and ampersands as HTML's."""
    return shown(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
