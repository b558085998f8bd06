"""Drawing -> the graph that TensorBoard shows: names with slashes are boxes that open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from localize.export.drawing.box_text import shown
from localize.export.drawing.draw import draw
from localize.export.drawing.drawing import Drawing, Group
from localize.export.request import ExportError, Request


def write_graph(request: Request, writer: Any) -> None:
    """Adds the graph to a ``SummaryWriter``.

    Raises:
        ExportError: TensorBoard is not installed, or ``writer`` is no such writer.
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
    """A ``GraphDef``: each box a node, in the scopes of the frames that it stands in.

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
    """Unique names, in scopes, of what TensorBoard takes in a name."""
    scopes = _scopes(drawing.members)
    return {
        node.name: "/".join([*scopes[node.name], _word(node.name, str(node.facts.get("name", "")))])
        for node in drawing.nodes
    }


def _scopes(members: Sequence[str | Group], outer: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """For each node the frames that it stands in, as words."""
    found: dict[str, tuple[str, ...]] = {}
    for member in members:
        if isinstance(member, Group):
            word = _word(member.name, member.title.partition("  ")[2] if member.kind == "module" else "")
            found |= _scopes(member.members, (*outer, word))
        else:
            found[member] = outer
    return found


def _word(name: str, known: str) -> str:
    """A unique name, with what people call it behind."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", known)
    return f"{name}.{plain}" if plain else name
