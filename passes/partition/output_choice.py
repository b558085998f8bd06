"""Models whose outputs belong together, such as feature pyramids: which output ends the trunk, and where outputs fuse.

The *trunk* is what the primary output needs. What only further outputs need stands with the classifier, and does not
make cuts wider; so the trunk of such a model should end in the output that shares most nodes with the others.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import networkx as nx

from passes.ir import Captured, Shapes

if TYPE_CHECKING:
    from passes.partition.flow import Flow


def deepest_first(captured: Captured, shapes: Shapes) -> tuple[Captured, Shapes]:
    """Make the deepest of the values that a model returns its primary output.

    The deepest value is the one with most nodes on every path from the input to it (its dominators). Of a feature
    pyramid that is the coarsest level, which all of the backbone leads up to; a fine level also has short ways through
    early stages. With the coarsest level as primary output, cuts stay one tensor wide; with the finest one, lateral
    connections make them up to four tensors wide.

    Args:
        captured: A graph that returns several values.
        shapes: Its shapes.

    Returns:
        The graph with another primary output, and its shapes; both as they were if it is the first value already.
    """
    graph = nx.DiGraph([(captured.input, captured.nodes[-1].name)])
    for node in captured.nodes[1:]:
        if node.name not in shapes.numbers:
            graph.add_edges_from((p.name, node.name) for p in node.all_input_nodes if p.name in graph)
    above = nx.immediate_dominators(graph, captured.input)
    returned = (captured.result, *captured.heads)

    def depth(index: int) -> int:
        name, count = returned[index].name, 0
        while name in above and above[name] not in (None, name):
            name, count = above[name], count + 1
        return count

    order = sorted(range(len(returned)), key=lambda i: (shapes.specs[returned[i].name] is None, -depth(i)))
    if order[0] == 0:
        return captured, shapes
    order = [order[0], *(i for i in range(len(returned)) if i != order[0])]
    result = shapes.specs[returned[order[0]].name]
    assert result is not None
    assert captured.primary == 0, "an output has been chosen before"
    moved = dataclasses.replace(captured, structure=captured.structure.reordered(order), primary=order[0])
    return moved, dataclasses.replace(shapes, output=result)


def fusion_points(flow: Flow) -> list[str]:
    """Return the tensors of the trunk from which on further outputs are computed from several of its tensors together.

    A feature pyramid's levels are fused from the deepest features and those of earlier stages: from there on
    everything serves all outputs, and no loss on the trunk alone should train it. An output that reads one tensor of
    the trunk, such as an auxiliary classifier's, fuses nothing.
    """
    points = []
    for part in nx.weakly_connected_components(flow.graph.subgraph(flow.aside)):
        read = {p for name in part for p in flow.graph.predecessors(name) if p not in flow.aside}
        if len(read) > 1:
            points.append(max(read, key=flow.order.__getitem__))
    return points
