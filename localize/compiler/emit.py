"""Emit: Plan -> LocalGraphModule. Every decision stands in the plan."""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import fx, nn

from localize.compiler.wiring import Wires, known, wire
from localize.methods.base import Compiled, Context
from localize.methods.networks.blocks import Piece, Recomputed, recompute_blocks
from localize.methods.networks.merge import Merged
from localize.plan.plan import LocalModulePlan, Plan
from localize.runtime.local_graph import LocalGraphModule
from localize.runtime.local_module import LocalModule
from passes.codegen.generate import generate
from passes.common.initializer import Initializer
from passes.common.inplace import overwritten
from passes.ir import Network


def emit(plan: Plan, compiled: Compiled, draw: Initializer | None = None) -> LocalGraphModule:
    """Build a localized model: the code of each local module, its auxiliary networks, and the graph over them.

    Args:
        plan: A plan for the network in ``compiled``.
        compiled: The record that the plan was made of.
        draw: Source of the auxiliary networks' initial weights. By default a new one: copies replace their weights
            anyway.

    Returns:
        A module that shares the user's model, in its mode (train or eval).
    """
    draw = draw or Initializer(torch.Generator().manual_seed(0))
    method, context = compiled.method, compiled.context
    captured, shared = context.network.captured, context.network.partition.shared
    model = captured.model
    place = next((p for p in model.parameters() if p.is_floating_point()), None)
    modules = []
    wiring = wire(context.network, [module.layers for module in plan.modules])
    for module, wires in zip(plan.modules, wiring, strict=True):
        stage = generate(captured, wires.members, shared, wires.inputs, wires.outputs, f"Module{module.index}")
        built = partial(_network, context, module, draw, wires, place)
        modules.append(
            LocalModule(
                module,
                stage,
                built(method.build),
                wires.inputs,
                wires.outputs,
                reads=len(wires.reads),
                cascaded=built(method.build_cascaded) if module.cascade else None,
                recomputed=_recomputed(context.network, plan, module, wires) if "layers" in module.recompute else None,
                overwrites=overwritten(captured, wires.inputs, [captured.by_name[name] for name in wires.members]),
            )
        )
    local = LocalGraphModule(model, modules, _graph(modules), plan, compiled)
    method.attach(local, context)
    return local


def _recomputed(network: Network, plan: Plan, module: LocalModulePlan, wires: Wires) -> Recomputed:
    """Return the code of a module in one piece per layer, so that each can be recomputed in the backward pass."""
    captured, shared = network.captured, network.partition.shared
    classifier_alone = [()] if not plan.modules[-1].layers else []
    alone = wire(network, [*((layer,) for layer in range(len(network.layers))), *classifier_alone])
    pieces = [
        Piece(
            generate(captured, w.members, shared, w.inputs, w.outputs, f"Layer{layer}"),
            w.inputs,
            w.outputs,
            overwritten(captured, w.inputs, [captured.by_name[name] for name in w.members]),
        )
        for layer, w in enumerate(alone)
        if layer in module.layers
    ]
    return Recomputed(pieces, wires.inputs, wires.outputs)


def _network(
    context: Context,
    module: LocalModulePlan,
    draw: Initializer,
    wires: Wires,
    place: torch.Tensor | None,
    build: Callable[[Context, LocalModulePlan, Initializer], nn.Module | None],
) -> nn.Module | None:
    """Build an auxiliary network on the device and in the type of ``place``, one of the model's parameters.

    If the local loss reads several tensors, the network begins with what merges them.
    """
    with torch.device("meta") if place is not None and place.is_meta else contextlib.nullcontext():
        network = build(context, module, draw)
        if network is not None and len(wires.reads) > 1:
            like, *others = (known(context.network.shapes.specs[name]) for name in wires.reads)
            network = Merged(like, others, network, draw)
    if network is not None and place is not None:
        network.to(device=place.device, dtype=place.dtype)
    if network is not None and {"blocks", "norms"} & {*module.recompute}:
        recompute_blocks(network, norms="blocks" not in module.recompute)
    return network


def _graph(modules: Sequence[LocalModule]) -> fx.Graph:
    """Return a graph that calls one local module after the other."""
    graph = fx.Graph()
    values: dict[str, fx.Node] = {modules[0].inputs[0]: graph.placeholder("x")}
    for module in modules:
        target = f"module_{module.plan.index}"
        arguments = tuple(values[name] for name in module.inputs)
        called = graph.create_node("call_module", target, arguments, {}, re.sub(r"\W+", "_", module.plan.name))
        if len(module.outputs) == 1:
            values[module.outputs[0]] = called
        else:
            for i, name in enumerate(module.outputs):
                values[name] = graph.create_node("call_function", operator.getitem, (called, i), {}, name)
    returned = tuple(values[name] for name in modules[-1].outputs[: modules[-1].reads])
    graph.output(returned[0] if len(returned) == 1 else returned)
    return graph
