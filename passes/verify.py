"""Specification of each stage: a value -> a list of violations. A violation for any model is a bug of a pass."""

from __future__ import annotations

from itertools import pairwise

from torch import fx

from passes.ir import Captured, Network, Shapes


def captured(value: Captured) -> list[str]:
    """Check that the graph has one input, and that module and scope of every node are known."""
    violations = []
    value.graph.lint()
    nodes = value.nodes
    if [n.op for n in nodes].count("placeholder") != 1 or nodes[0].op != "placeholder":
        violations.append("the graph must start with its one placeholder")
    modules = dict(value.model.named_modules())
    violations += [
        f"{n.name} calls unknown module {n.target}" for n in nodes if n.op == "call_module" and n.target not in modules
    ]
    violations += [f"{n.name} has no scope" for n in nodes if n.name not in value.scopes]
    violations += [f"call {c.path} ends before it starts" for c in value.calls if c.last < c.first - 1]
    return violations


def shapes(graph: Captured, value: Shapes) -> list[str]:
    """Check that every node has a spec and a cost, and that no cost is negative."""
    names = [n.name for n in graph.nodes]
    violations = [f"{name} has no spec" for name in names if name not in value.specs]
    violations += [f"{name} has no cost" for name in names if name not in value.costs]
    return violations + [f"{name} costs less than nothing" for name, cost in value.costs.items() if cost.macs < 0]


def partition(network: Network) -> list[str]:
    """Check that layers and classifier cover the graph once and in order, and that only live tensors pass on."""
    part, graph = network.partition, network.captured
    if len({len(part.cuts), len(part.layers), len(part.nodes), len(part.entries)}) != 1:
        return ["each layer needs its nodes and its cut"]
    violations = []
    groups = [*part.nodes, part.classifier]
    flat = [name for group in groups for name in group] + list(part.shared)
    expected = [n.name for n in graph.nodes if n.op not in ("placeholder", "output")]
    if sorted(flat) != sorted(expected):
        violations.append(f"nodes covered {len(flat)} of {len(expected)}, or some twice")
    order = {n.name: i for i, n in enumerate(graph.nodes)}
    if any(order[a] >= order[b] for a, b in pairwise(part.cuts)):
        violations.append("cuts are not in topological order")
    violations += [
        f"{cut} is read by an auxiliary network of another layer"
        for cut, names in zip(part.cuts, part.nodes, strict=True)
        if cut not in names
    ]
    return violations + _crossings(network, groups)


def _crossings(network: Network, groups: list[tuple[str, ...]]) -> list[str]:
    part, captured = network.partition, network.captured
    home = {name: i for i, group in enumerate(groups) for name in group}
    home[captured.input] = 0
    aside = _only_for_heads(captured)
    violations = []
    for node in captured.nodes:
        for parent in node.all_input_nodes:
            a, b = home.get(parent.name), home.get(node.name)
            if a is None or b is None or a == b or parent.name in part.portable or node.name in aside:
                continue
            if a > b or any(parent.name not in live for live in part.live[a:b]):
                violations.append(f"{parent.name} crosses from layer {a} to {b} and is not alive there")
    return violations


def _only_for_heads(captured: Captured) -> set[str]:
    """Return the nodes that only further outputs need; they belong to the classifier, whatever they read."""
    wanted, aside = {captured.result.name}, set()
    heads = {node.name for node in captured.heads}
    for node in reversed(captured.nodes[:-1]):
        if node.name in wanted or any(user.name in wanted for user in node.users):
            wanted.add(node.name)
        elif node.name in heads or any(user.name in aside for user in node.users):
            aside.add(node.name)
    return aside


def ownership(owned: list[tuple[str, ...]]) -> list[str]:
    """Check that each trainable parameter belongs to one local module only."""
    owner: dict[str, int] = {}
    violations = []
    for index, names in enumerate(owned):
        for name in names:
            if name in owner:
                violations.append(f"{name} belongs to modules {owner[name]} and {index}")
            owner[name] = index
    return violations


def generated(graph: fx.Graph, modules: int) -> list[str]:
    """Check that the generated graph calls each local module once, in order."""
    graph.lint()
    called = [n.target for n in graph.nodes if n.op == "call_module"]
    expected = [f"module_{k}" for k in range(modules)]
    return [] if called == expected else [f"calls {called}, expected {expected}"]
