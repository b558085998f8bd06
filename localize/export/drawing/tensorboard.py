"""Turn a drawing into a graph for TensorBoard, which shows names with slashes as boxes that open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from localize.export.drawing.box_text import shown
from localize.export.drawing.draw import draw
from localize.export.drawing.drawing import Drawing, Group
from localize.export.request import Request
from localize.runtime.exporting import ExportError


def write_graph(request: Request, writer: Any) -> None:
    """Add the graph to a ``torch.utils.tensorboard.SummaryWriter``.

    Raises:
        ExportError: TensorBoard is not installed, or ``writer`` is not a ``SummaryWriter``.
    """
    graph = graph_def(draw(request.local.plan, request.view))
    file_writer = getattr(writer, "_get_file_writer", None)
    if file_writer is None:
        raise ExportError(
            f"a {type(writer).__name__} does not write for TensorBoard",
            remedy="Give a torch.utils.tensorboard.SummaryWriter",
        )
    from tensorboard.compat.proto.config_pb2 import RunMetadata

    file_writer().add_graph((graph, RunMetadata()))


def graph_def(drawing: Drawing) -> Any:
    """Return a ``GraphDef`` with a node for each box, in scopes named by the frames around it.

    Raises:
        ExportError: TensorBoard is not installed.
    """
    try:
        from tensorboard.compat.proto.attr_value_pb2 import AttrValue
        from tensorboard.compat.proto.graph_pb2 import GraphDef
        from tensorboard.compat.proto.node_def_pb2 import NodeDef
        from tensorboard.compat.proto.versions_pb2 import VersionDef
    except ImportError as error:
        raise ExportError("TensorBoard is not installed", why=str(error), remedy="pip install tensorboard") from error
    names = _names(drawing)
    inputs: dict[str, list[str]] = {node.name: [] for node in drawing.nodes}
    for edge in drawing.edges:
        inputs[edge.target].append(names[edge.source])
    nodes = [
        NodeDef(
            name=names[node.name],
            op=node.kind,
            input=inputs[node.name],
            attr={key: AttrValue(s=shown(str(value)).encode("utf-8")) for key, value in node.facts.items()},
        )
        for node in drawing.nodes
    ]
    return GraphDef(node=nodes, versions=VersionDef(producer=22))


def _names(drawing: Drawing) -> Mapping[str, str]:
    """Return a unique name for each node, with its scopes, of the characters that TensorBoard takes."""
    scopes = _scopes(drawing.members)
    return {
        node.name: "/".join([*scopes[node.name], _word(node.name, str(node.facts.get("name", "")))])
        for node in drawing.nodes
    }


def _scopes(members: Sequence[str | Group], outer: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Return the names of the scopes around each node, from the outside in."""
    scopes: dict[str, tuple[str, ...]] = {}
    for member in members:
        if isinstance(member, Group):
            word = _word(member.name, member.title.partition("  ")[2] if member.kind == "module" else "")
            scopes |= _scopes(member.members, (*outer, word))
        else:
            scopes[member] = outer
    return scopes


def _word(name: str, known: str) -> str:
    """Join a unique name with the name that people know; the second part is left out if empty."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", known)
    return f"{name}.{plain}" if plain else name
