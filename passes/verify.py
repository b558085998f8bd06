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
    """Layers and classifier cover the graph once, in order; only live tensors and what sizes alone decide pass."""
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
    found += [
        f"{cut} is read by an auxiliary network of another layer"
        for cut, names in zip(part.cuts, part.nodes, strict=True)
        if cut not in names
    ]
    if len({len(part.cuts), len(part.layers), len(part.nodes), len(part.entries)}) != 1:
        found.append("each layer needs its nodes and its cut")
    return found + _crossings(network, groups)


def _crossings(network: Network, groups: list[tuple[str, ...]]) -> list[str]:
    part, captured = network.partition, network.captured
    home = {name: i for i, group in enumerate(groups) for name in group}
    home[captured.input] = 0
    aside = _only_for_heads(captured)
    found = []
    for node in captured.nodes:
        for parent in node.all_input_nodes:
            a, b = home.get(parent.name), home.get(node.name)
            if a is None or b is None or a == b or parent.name in part.portable or node.name in aside:
                continue
            if a > b or any(parent.name not in live for live in part.live[a:b]):
                found.append(f"{parent.name} crosses from layer {a} to {b} and is not alive there")
    return found


def _only_for_heads(captured: Captured) -> set[str]:
    """Nodes that only the model's further outputs need; they stand with the classifier, whatever they read."""
    wanted, found = {captured.result.name}, set()
    heads = {node.name for node in captured.heads}
    for node in reversed(captured.nodes[:-1]):
        if node.name in wanted or any(user.name in wanted for user in node.users):
            wanted.add(node.name)
        elif node.name in heads or any(user.name in found for user in node.users):
            found.add(node.name)
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
