"""Rebuilding: the recipe of a copy -> a module with weights of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, replace

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
"""The largest scale that counts as meant to start a residual branch as next to nothing (layer scale)."""


def rebuild(adapter: Adapter, recipe: CopyRecipe, draw: Initializer) -> fx.GraphModule:
    """Build the block that a recipe describes.

    Args:
        adapter: The adapter that made the recipe.
        recipe: The recipe.
        draw: Source of the weights.

    Returns:
        A module in train mode with one input of ``recipe.input`` and one output of ``recipe.output``.
    """
    captured, body = adapter.network.captured, adapter.body(recipe.source)
    root: dict[str, nn.Module | torch.Tensor] = {}
    graph = fx.Graph()
    value = graph.placeholder("x")
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
        # The input belongs to the primary network, whose next layer still reads it.
        value = graph.call_method("clone", (value,))
    silent = frozenset() if draw.copies else _silent(adapter.network, body, recipe, live, draw)
    values: dict[int | str, fx.Node] = {-1: value}
    in_place: dict[fx.Node, Callable[..., object]] = {}
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
    """Return which parameter of the primary network each parameter of a block copies.

    Args:
        adapter: The adapter that made the recipe.
        recipe: The recipe.
        block: The block that :func:`rebuild` made of it.

    Returns:
        Pairs of names, of the block's and of the primary network's parameter, where the two have one shape. Whole
        tensors only: channels of a layer that reads other features correspond to nothing, one by one.
    """
    model, body = adapter.network.captured.model, adapter.body(recipe.source)
    own = dict(block.named_parameters(remove_duplicate=False))
    pairs = []
    for node in (body.nodes[i] for i in sorted(body.live(recipe.edits))):
        if node.op == "get_attr" and node.name in own:
            pairs.append((node.name, str(node.target)))
        elif node.op == "call_module":
            # Paired by their order; the names differ where padding was put in front of a convolution.
            copied = (name for name in own if name.startswith(f"{node.name}."))
            source = model.get_submodule(str(node.target)).named_parameters(remove_duplicate=False)
            pairs += [(name, f"{node.target}.{theirs}") for name, (theirs, _) in zip(copied, source, strict=True)]
    return [(name, theirs) for name, theirs in pairs if own[name].shape == model.get_parameter(theirs).shape]


def _write_in_place(
    in_place: Mapping[fx.Node, Callable[..., object]], root: Mapping[str, nn.Module | torch.Tensor]
) -> None:
    """Add in place where the user's code does, if nothing else needs the first operand.

    Capture writes such additions out of place, and one full map more would then be alive. Nothing else needs the
    operand where a norm of torch's own gave it; one of another library may have an activation at its end, whose
    backward pass does.
    """
    for node, function in in_place.items():
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node):
            continue
        giver = root.get(str(first.target)) if first.op == "call_module" else None
        torch_norm = isinstance(giver, nn.Module) and is_norm(giver) and type(giver).__module__.startswith("torch.nn.")
        if torch_norm and len(first.users) == 1 and node.all_input_nodes.count(first) == 1:
            node.target = function


def _position(body: Body, node: fx.Node) -> int:
    return -1 if body.reads(node.name) else body.position[node.name]


def _overwrites_entry(captured: Captured, body: Body, recipe: CopyRecipe, i: int) -> bool:
    """Return whether a node changes the block's input in place, directly or through nodes that hand it on."""
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
    """Return the nodes whose scales start so small that the block's output would be next to nothing.

    A residual branch may start as zero, since its shortcut still carries the input: then no node is returned. A layer
    that is cut out of a block may be that branch alone; its scales then start as ones, or no gradient would come
    through.
    """
    numbers = network.shapes.numbers
    zeros = {i for i in live if _is_small(network.captured, body.nodes[i], draw)}
    small = set(zeros)
    # What only reshapes a small scale is small too (`scale.view(1, -1, 1, 1)`). In execution order, one pass is enough.
    for i in sorted(live if zeros else ()):
        values = [body.position.get(p.name) for p in body.nodes[i].all_input_nodes if p.name not in numbers]
        if values and body.nodes[i].op != "call_module" and all(k in small for k in values):
            small.add(i)
    scaled = {i for i in live if body.nodes[i].target in PRODUCTS}
    # Walk back from the output along what is not next to nothing; if the input is reached, the block carries it.
    pending, visited = [body.nodes[body.position[body.exit]]] if zeros else [], set()
    while pending:
        node = pending.pop()
        if body.reads(node.name):
            return frozenset()
        i = body.position.get(node.name, -1)
        parents = node.all_input_nodes[:1] if i in recipe.edits.bypassed else node.all_input_nodes
        nothing = i in small or (i in scaled and any(body.position.get(p.name) in small for p in parents))
        if i >= 0 and i not in visited and not nothing:
            visited.add(i)
            pending += [parent for parent in parents if parent.name not in numbers]
    return frozenset(zeros)


def _is_small(captured: Captured, node: fx.Node, draw: Initializer) -> bool:
    """Return whether a node scales by a parameter that starts as zero, or nearly (layer scale)."""
    scale = captured.attribute(str(node.target)) if node.op == "get_attr" else _scale(captured.module(node))
    value = draw.constant(scale) if isinstance(scale, nn.Parameter) else None
    return value is not None and abs(value) <= _SMALL


def _scale(module: nn.Module | None) -> nn.Parameter | None:
    """Return the scale of a norm, or the only parameter of a layer if it has one entry a channel; None for others."""
    if module is None or is_norm(module):
        return module._parameters.get("weight") if module is not None else None
    own = list(module.parameters())
    return own[0] if len(own) == 1 and max(own[0].shape, default=1) == own[0].numel() else None


def _ones_(scaling: nn.Module | torch.Tensor) -> None:
    scale = _scale(scaling) if isinstance(scaling, nn.Module) else scaling
    assert scale is not None
    with torch.no_grad():
        scale.fill_(1.0)


def _copy(
    graph: fx.Graph,
    root: dict[str, nn.Module | torch.Tensor],
    captured: Captured,
    body: Body,
    recipe: CopyRecipe,
    i: int,
    values: Mapping[int | str, fx.Node],
    draw: Initializer,
) -> fx.Node:
    """Add a copy of node ``i`` to the graph, and its module or tensor to ``root``."""
    node, edits = body.nodes[i], recipe.edits

    def value_of(parent: fx.Node) -> fx.Node:
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
