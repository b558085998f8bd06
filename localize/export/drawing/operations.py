"""Draw the operations of one local module, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from localize.compiler.wiring import Wires, wire
from localize.export.drawing import node_facts
from localize.export.drawing.box_text import short
from localize.export.drawing.drawing import Edge, Fact, Group, Node
from localize.plan.plan import LocalModulePlan, Plan
from passes.ir import Network


@dataclass(frozen=True, slots=True)
class OpenedModule:
    """The drawn operations of a local module."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    members: tuple[Group, ...]
    entries: tuple[str, ...]
    """Names of the nodes that read a tensor from before the module."""
    leaves: str
    """Name of the node that the auxiliary networks of the module read."""


def open_module(plan: Plan, module: LocalModulePlan, network: Network) -> OpenedModule:
    """Draw the operations of a local module, in one frame for each layer."""
    part = network.partition
    wires = wire(network, [each.layers for each in plan.modules])[module.index]
    names = {name: f"operation_{i}" for i, name in enumerate(wires.members)}
    layers = [(f"layer_{i}", node_facts.of_layer(plan.layers[i]), part.nodes[i]) for i in module.layers]
    if module.index == len(plan.modules) - 1:
        layers.append(("classifier", node_facts.of_classifier(plan), part.classifier))
    groups, nodes = [], []
    for key, known, members in layers:
        held = [name for name in members if name in names]
        title = f"{key.replace('_', ' ')}  {short(str(known['name']))}" if "layer" in known else key
        groups.append(Group(f"opened_{key}", "layer", title, tuple(names[name] for name in held)))
        nodes += [Node(names[name], "operation", *_described(network, name), module.index) for name in held]
    return OpenedModule(
        nodes=tuple(nodes),
        edges=tuple(_edges(network, names)),
        members=tuple(groups),
        entries=tuple(_entries(network, wires, names)),
        leaves=names[wires.reads[0]],
    )


def _edges(network: Network, names: Mapping[str, str]) -> list[Edge]:
    by_name = network.captured.by_name
    return [
        Edge(names[parent.name], own, "flow")
        for name, own in names.items()
        for parent in dict.fromkeys(by_name[name].all_input_nodes)
        if parent.name in names
    ]


def _entries(network: Network, wires: Wires, names: Mapping[str, str]) -> list[str]:
    """Return the nodes that read a tensor from before the module; the first node of all if none does."""
    by_name, outside = network.captured.by_name, {*wires.inputs}
    readers = [own for name, own in names.items() if any(p.name in outside for p in by_name[name].all_input_nodes)]
    return readers or [next(iter(names.values()))]


def _described(network: Network, name: str) -> tuple[tuple[str, ...], dict[str, Fact]]:
    """Return the lines in the box of an operation, and its facts."""
    captured, node = network.captured, network.captured.by_name[name]
    spec, cost = network.shapes.specs.get(name), network.shapes.costs[name]
    what = _operation(network, node)
    path = str(node.target) if node.op in ("call_module", "get_attr") else captured.scope_path(name)
    known: dict[str, Fact] = {
        "operation": what,
        "name": path or "(the model's own forward)",
        "output": str(spec) if spec else "",
        "macs": cost.macs,
        "source": captured.sources.get(name, ""),
    }
    lines: Sequence[str] = [short(what), short(path)] if path else [short(what)]
    return (*lines, *([f"\N{RIGHTWARDS ARROW} {spec}"] if spec else [])), {k: v for k, v in known.items() if v != ""}


def _operation(network: Network, node: fx.Node) -> str:
    module = network.captured.module(node)
    if module is not None:
        return type(module).__name__
    if node.op == "get_attr":
        return "parameter"
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
