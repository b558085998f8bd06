"""Rebuilding: CopyRecipe -> a GraphModule with fresh weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, replace
from typing import Any

import torch
from torch import fx, nn

from passes.adapt.adapter import Adapter
from passes.adapt.arguments import replaced
from passes.adapt.copy_recipe import PRODUCTS, Body, CopyRecipe
from passes.adapt.outside_shapes import stand_in
from passes.adapt.retype import clone
from passes.common.initializer import Initializer
from passes.common.inplace import hands_on_memory, mutates_input
from passes.common.interpreter import arguments_of
from passes.common.layer_kinds import is_norm
from passes.ir import Captured, Network
from passes.layers.adapters import ToLayout, build_front, build_projection

_SMALL = 0.1
"""Scales that are all alike and no larger than this are meant to start a residual branch as next to nothing."""


def rebuild(adapter: Adapter, recipe: CopyRecipe, draw: Initializer) -> fx.GraphModule:
    """The block that ``recipe`` describes: one input of ``recipe.input``, one output of ``recipe.output``."""
    captured, body = adapter.network.captured, adapter.body(recipe.source)
    root: dict[str, Any] = {}
    graph = fx.Graph()
    value: Any = graph.placeholder("x")
    layout = recipe.input.layout
    if recipe.front is not None and not replace(recipe.front, to=None).is_empty:
        root["adapter"] = build_front(recipe.front, draw)
        value = graph.call_module("adapter", (value,))
    reference = value
    if recipe.front is not None and recipe.front.to is not None:
        root["layout"] = ToLayout(layout, recipe.front.to)
        value = graph.call_module("layout", (value,))
    live = body.live(recipe.edits)
    if any(i in live and _overwrites_entry(captured, body, recipe, i) for i in range(len(body.nodes))):
        # The value belongs to the primary network, whose next layer still reads it.
        value = graph.call_method("clone", (value,))
    silent = frozenset() if draw.copies else _silent(adapter.network, body, recipe, live, draw)
    values: dict[int | str, Any] = {-1: value}
    in_place: dict[fx.Node, Callable[..., Any]] = {}
    parents = {p.name for i in live for p in body.nodes[i].all_input_nodes}
    for name, shape in body.measured.items():
        if name in parents:
            values[name] = graph.call_function(stand_in, (reference, layout, *astuple(shape)))
    for i, node in enumerate(body.nodes):
        if i in recipe.edits.bypassed:
            parent = node.all_input_nodes[0]
            values[i] = values[_position(body, parent)]
        elif i in live:
            values[i] = _copy(graph, root, captured, body, recipe, i, values, draw)
            if node.name in captured.in_place:
                in_place[values[i]] = captured.in_place[node.name]
            if i in silent:
                _ones_(root[node.name])
    graph.output(values[body.position[body.exit]])
    _write_in_place(in_place, root)
    graph.lint()
    layers = adapter.network.layers
    name = layers[recipe.source].name if recipe.source < len(layers) else "classifier"
    block = fx.GraphModule(root, graph, "Block_" + re.sub(r"\W", "_", name))
    block.train()
    return block


def counterparts(adapter: Adapter, recipe: CopyRecipe, block: nn.Module) -> list[tuple[str, str]]:
    """For each parameter of a block that :func:`rebuild` made, by name, the parameter of the primary that it copies.

    Only where the two have one shape; what was added to the block copies nothing.
    """
    model, body = adapter.network.captured.model, adapter.body(recipe.source)
    own = dict(block.named_parameters(remove_duplicate=False))
    found = []
    for node in (body.nodes[i] for i in sorted(body.live(recipe.edits))):
        if node.op == "get_attr" and node.name in own:
            found.append((node.name, str(node.target)))
        elif node.op == "call_module":
            # In one order; the names differ where padding was put in front of a convolution.
            copied = (name for name in own if name.startswith(f"{node.name}."))
            source = model.get_submodule(str(node.target)).named_parameters(remove_duplicate=False)
            found += [(name, f"{node.target}.{theirs}") for name, (theirs, _) in zip(copied, source, strict=True)]
    return [(name, theirs) for name, theirs in found if own[name].shape == model.get_parameter(theirs).shape]


def _write_in_place(in_place: Mapping[fx.Node, Callable[..., Any]], root: Mapping[str, Any]) -> None:
    """Makes additions in place what the user's code adds in place, where nobody else needs what is added to.

    Nobody does where a norm of torch's own gave it; one of another library may have an activation at its end.
    """
    for node, function in in_place.items():
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node):
            continue
        made = root.get(str(first.target)) if first.op == "call_module" else None
        its_own = made is not None and is_norm(made) and type(made).__module__.startswith("torch.nn.")
        if its_own and len(first.users) == 1 and node.all_input_nodes.count(first) == 1:
            node.target = function


def _position(body: Body, node: fx.Node) -> int:
    return -1 if body.reads(node.name) else body.position[node.name]


def _overwrites_entry(captured: Captured, body: Body, recipe: CopyRecipe, i: int) -> bool:
    """Whether a node changes the block's input in place, directly or through nodes that hand it on."""
    if not mutates_input(captured, body.nodes[i]):
        return False
    parent = body.nodes[i].all_input_nodes[0]
    while not body.reads(parent.name):
        passes_on = body.position.get(parent.name) in recipe.edits.bypassed or hands_on_memory(captured, parent)
        if not passes_on or parent.name not in body.position:
            return False
        parent = parent.all_input_nodes[0]
    return True


def _silent(network: Network, body: Body, recipe: CopyRecipe, live: set[int], draw: Initializer) -> frozenset[int]:
    """Nodes whose scales start so small that the block's output, and any gradient behind it, would be next to nothing.

    A residual branch may start as zero: its shortcut stays. A layer that is cut out of a block may be that branch
    alone, and then starts with ones.
    """
    numbers = network.shapes.numbers
    zeros = {i for i in live if _is_small(network.captured, body.nodes[i], draw)}
    small = set(zeros)
    for i in sorted(live if zeros else ()):
        values = [body.position.get(p.name) for p in body.nodes[i].all_input_nodes if p.name not in numbers]
        if values and body.nodes[i].op != "call_module" and all(k in small for k in values):
            small.add(i)  # a view of one
    scaled = {i for i in live if body.nodes[i].target in PRODUCTS}
    pending, seen = [body.nodes[body.position[body.exit]]] if zeros else [], set()
    while pending:
        node = pending.pop()
        if body.reads(node.name):
            return frozenset()
        i = body.position.get(node.name, -1)
        parents = node.all_input_nodes[:1] if i in recipe.edits.bypassed else node.all_input_nodes
        nothing = i in small or (i in scaled and any(body.position.get(p.name) in small for p in parents))
        if i >= 0 and i not in seen and not nothing:
            seen.add(i)
            pending += [parent for parent in parents if parent.name not in numbers]
    return frozenset(zeros)


def _is_small(captured: Captured, node: fx.Node, draw: Initializer) -> bool:
    """Whether a node scales by a parameter that starts as zero, or nearly (layer scale)."""
    scale = captured.attribute(str(node.target)) if node.op == "get_attr" else _scale(captured.module(node))
    value = draw.constant(scale) if isinstance(scale, nn.Parameter) else None
    return value is not None and abs(value) <= _SMALL


def _scale(module: nn.Module | None) -> nn.Parameter | None:
    """The scale of a norm, or the parameter of a layer that has but this one and looks like a scale."""
    if module is None or is_norm(module):
        return module._parameters.get("weight") if module is not None else None
    own = list(module.parameters())
    return own[0] if len(own) == 1 and max(own[0].shape, default=1) == own[0].numel() else None


def _ones_(made: Any) -> None:
    scale = _scale(made) if isinstance(made, nn.Module) else made
    assert scale is not None
    with torch.no_grad():
        scale.fill_(1.0)


def _copy(
    graph: fx.Graph,
    root: dict[str, Any],
    captured: Captured,
    body: Body,
    recipe: CopyRecipe,
    i: int,
    values: dict[int | str, Any],
    draw: Initializer,
) -> fx.Node:
    node, edits = body.nodes[i], recipe.edits

    def value_of(parent: fx.Node) -> Any:
        return values[parent.name if parent.name in body.measured else _position(body, parent)]

    if node.op == "get_attr":
        root[node.name] = _tensor(captured, str(node.target), edits.shapes.get(i), draw)
        return graph.get_attr(node.name)
    args, kwargs = arguments_of(node, value_of)
    if node.op == "call_module":
        root[node.name] = clone(captured.model.get_submodule(str(node.target)), edits.changes.get(i, {}), draw)
        return graph.create_node("call_module", node.name, args, kwargs, node.name)
    args, kwargs = replaced(args, kwargs, edits.arguments.get(i, {}))
    operands = list(args)
    for k in range(len(operands)):
        if (i, k) in edits.projections:
            name = f"projection_{node.name}"
            root[name] = build_projection(edits.projections[i, k], draw)
            operands[k] = graph.call_module(name, (operands[k],))
    return graph.create_node(node.op, node.target, tuple(operands), kwargs, node.name)


def _tensor(captured: Captured, target: str, shape: tuple[int, ...] | None, draw: Initializer) -> torch.Tensor:
    value: torch.Tensor = captured.attribute(target)
    if isinstance(value, nn.Parameter):
        return draw.like(value, shape or tuple(value.shape))
    return value.detach().clone()
