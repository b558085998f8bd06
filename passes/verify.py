"""The specification of each stage: value -> list of violations. Empty for every model, or a pass of ours is wrong."""

from __future__ import annotations

from itertools import pairwise

from torch import fx

from passes.ir import Captured, Network, Shapes


def captured(value: Captured) -> list[str]:
    """The graph is well-formed, has one input, and knows scope and module of every node."""
    found = []
    value.graph.lint()
    nodes = value.nodes
    if [n.op for n in nodes].count("placeholder") != 1 or nodes[0].op != "placeholder":
        found.append("the graph must start with its one placeholder")
    modules = dict(value.model.named_modules())
    found += [
        f"{n.name} calls unknown module {n.target}" for n in nodes if n.op == "call_module" and n.target not in modules
    ]
    found += [f"{n.name} has no scope" for n in nodes if n.name not in value.scopes]
    found += [f"call {c.path} ends before it starts" for c in value.calls if c.last < c.first - 1]
    return found


def shapes(graph: Captured, value: Shapes) -> list[str]:
    """Every node has a spec and a cost, and costs are not negative."""
    names = [n.name for n in graph.nodes]
    found = [f"{name} has no spec" for name in names if name not in value.specs]
    found += [f"{name} has no cost" for name in names if name not in value.costs]
    return found + [f"{name} costs less than nothing" for name, cost in value.costs.items() if cost.macs < 0]


def partition(network: Network) -> list[str]:
    """Layers and classifier cover the graph once, in order; only the cut, and what depends on sizes alone, passes."""
    part, graph = network.partition, network.captured
    found = []
    groups = [*part.nodes, part.classifier]
    flat = [name for group in groups for name in group] + list(part.shared)
    expected = [n.name for n in graph.nodes if n.op not in ("placeholder", "output")]
    if sorted(flat) != sorted(expected):
        found.append(f"nodes covered {len(flat)} of {len(expected)}, or some twice")
    order = {n.name: i for i, n in enumerate(graph.nodes)}
    if any(order[a] >= order[b] for a, b in pairwise(part.cuts)):
        found.append("cuts are not in topological order")
    if len(part.cuts) != len(part.layers) or len(part.nodes) != len(part.layers):
        found.append("each layer needs its nodes and its cut")
    return found + _crossings(network, groups)


def _crossings(network: Network, groups: list[tuple[str, ...]]) -> list[str]:
    part = network.partition
    home = {name: i for i, group in enumerate(groups) for name in group}
    home[network.captured.input] = -1
    found = []
    for node in network.captured.nodes:
        for parent in node.all_input_nodes:
            a, b = home.get(parent.name), home.get(node.name)
            if a is None or b is None or a == b or parent.name in part.portable:
                continue
            if a == -1 and b == 0:
                continue
            if b != a + 1 or parent.name != part.cuts[a]:
                found.append(f"{parent.name} crosses from layer {a} to {b} and is not the cut")
    return found


def ownership(network: Network, owned: list[tuple[str, ...]]) -> list[str]:
    """Each trainable parameter that the graph uses belongs to exactly one local module."""
    seen: dict[str, int] = {}
    found = []
    for index, names in enumerate(owned):
        for name in names:
            if name in seen:
                found.append(f"{name} belongs to modules {seen[name]} and {index}")
            seen[name] = index
    return found


def generated(graph: fx.Graph, modules: int) -> list[str]:
    """The generated graph calls each local module once, in order."""
    graph.lint()
    called = [n.target for n in graph.nodes if n.op == "call_module"]
    expected = [f"module_{k}" for k in range(modules)]
    return [] if called == expected else [f"calls {called}, expected {expected}"]
