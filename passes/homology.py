"""Which building blocks are never cut inside: homologous modules are cut alike.

Modules are homologous when their qualified names agree once indices are wildcards (``blocks.*.*``) or when they are of
one class, generic containers excepted. If one of them cannot be cut, because a skip connection passes round what is
inside, none of them is. A container that merely wraps such a block says nothing about its own kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from passes.ir import Captured

_CONTAINERS = ("torch.nn.modules.container.",)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One call of an opened module: its path, class, enclosing occurrence, and the positions of its nodes."""

    path: str
    type_name: str
    parent: int
    nodes: frozenset[int]


def wildcard(path: str) -> str:
    """``layers.3.blocks.0`` -> ``layers.*.blocks.*``."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def indivisible(
    occurrences: Sequence[Occurrence], segments: Mapping[int, int], mixing: set[int], captured: Captured
) -> list[tuple[int, int]]:
    """First and last segment of every block that must stay whole.

    Args:
        occurrences: All calls of opened modules, outermost first.
        segments: Node position -> segment, for nodes that depend on the input.
        mixing: Positions of mixing nodes.
        captured: The graph they stand in.
    """
    held = [sorted(occurrence.nodes & mixing) for occurrence in occurrences]
    kinds: set[str] = set()
    for index, occurrence in enumerate(occurrences):
        whole = len(held[index]) > 1 and len({segments[n] for n in held[index]}) == 1
        if whole and not _merely_wraps(index, occurrences, held, captured):
            kinds |= set(_kinds(occurrence))
    spans = []
    for index, occurrence in enumerate(occurrences):
        if held[index] and kinds & set(_kinds(occurrence)):
            inside = [segments[n] for n in held[index]]
            spans.append((min(inside), max(inside)))
    return spans


def _kinds(occurrence: Occurrence) -> Iterable[str]:
    # A name without an index has no homologues by name: "layer1" and "layer2" are siblings, not copies.
    if any(part.isdigit() for part in occurrence.path.split(".")):
        yield wildcard(occurrence.path)
    if not occurrence.type_name.startswith(_CONTAINERS):
        yield occurrence.type_name


def _merely_wraps(index: int, occurrences: Sequence[Occurrence], held: Sequence[list[int]], captured: Captured) -> bool:
    """Whether a block within holds all mixing operations and could not be cut even if it stood alone."""
    for child, occurrence in enumerate(occurrences):
        if occurrence.parent == index and held[child] == held[index]:
            return _whole_alone(occurrence, held[child], captured) or _merely_wraps(child, occurrences, held, captured)
    return False


def _whole_alone(occurrence: Occurrence, mixing: Sequence[int], captured: Captured) -> bool:
    nodes = captured.nodes
    names = {nodes[i].name for i in occurrence.nodes}
    flow: nx.DiGraph[str] = nx.DiGraph()
    flow.add_node("<in>")
    flow.add_node("<out>")
    for i in sorted(occurrence.nodes):
        node = nodes[i]
        for parent in node.all_input_nodes:
            flow.add_edge(parent.name if parent.name in names else "<in>", node.name)
        if any(user.name not in names for user in node.users):
            flow.add_edge(node.name, "<out>")
    dominator = nx.immediate_dominators(flow, "<in>")
    if "<out>" not in dominator:
        return True
    chain = {"<out>"}
    value = "<out>"
    while value != "<in>":
        value = dominator[value]
        chain.add(value)
    order = {nodes[i].name: i for i in occurrence.nodes}
    # A value of the chain between the first and the last mixing operation, itself included at the start, separates.
    return not any(name in order and mixing[0] <= order[name] < mixing[-1] for name in chain)
