"""Emit: Plan -> LocalGraphModule. Nothing is decided here."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from localize.local_module import LocalGraphModule, LocalModule
from localize.methods import Context, get_method
from localize.plan import Plan
from passes.adapt import Adapter
from passes.codegen import generate
from passes.ir import Network, Partition
from passes.partition import own_tensors
from passes.weights import Initializer

Criterion = Callable[[torch.Tensor, Any], torch.Tensor]


def emit(plan: Plan, context: Context, options: Any, criterion: Criterion, seed: int | None) -> LocalGraphModule:
    """Builds what the plan says: generated code for each local module, its auxiliary network, and the graph over them.

    Args:
        plan: The plan, made from the same network.
        context: What the plan was made on.
        options: The method's options.
        criterion: Loss from (logits, target).
        seed: Seed of the auxiliary networks' weights; None draws from torch's global generator.

    Returns:
        A module that shares the user's model, in train mode.
    """
    method = get_method(plan.method)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    draw = Initializer(generator)
    captured, shared = context.network.captured, context.network.partition.shared
    model = captured.model
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    modules = []
    wiring = wire(context.network, [module.layers for module in plan.modules])
    for module, wires in zip(plan.modules, wiring, strict=True):
        stage = generate(captured, wires.members, shared, wires.inputs, wires.outputs, f"Module{module.index}")
        auxiliary = method.build(context, module, options, draw)
        if auxiliary is not None and like is not None:
            auxiliary.to(device=like.device, dtype=like.dtype)
        modules.append(LocalModule(module, stage, auxiliary, wires.inputs, wires.outputs))
    remake = partial(_over, plan, context, options, criterion)
    return LocalGraphModule(model, modules, _graph(modules), plan, criterion, remake)


def _over(plan: Plan, context: Context, options: Any, criterion: Criterion, model: nn.Module) -> LocalGraphModule:
    """The same plan over a copy of the primary network."""
    captured = dataclasses.replace(context.network.captured, model=model)
    network = dataclasses.replace(context.network, captured=captured)
    moved = dataclasses.replace(context, network=network, adapter=Adapter(network))
    return emit(plan, moved, options, criterion, seed=0)


@dataclasses.dataclass(frozen=True, slots=True)
class Wires:
    """What one local module runs, reads and hands on, by node name."""

    members: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def wire(network: Network, groups: Sequence[Sequence[int]]) -> list[Wires]:
    """Nodes, inputs and outputs of each local module; the cut comes first, sizes that later modules need follow."""
    part = network.partition
    by_name = {node.name: node for node in network.captured.nodes}
    members = _members(part, groups)
    home = {name: k for k, names in enumerate(members) for name in names}
    home[network.captured.input] = -1
    needs: list[list[str]] = []
    for k, names in enumerate(members):
        parents = [p.name for name in names for p in by_name[name].all_input_nodes]
        needs.append([name for name in dict.fromkeys(parents) if name in home and home[name] < k])
    wires = []
    for k, names in enumerate(members):
        cut = part.cuts[groups[k][-1]] if k < len(members) - 1 else network.captured.result.name
        later = {name for need in needs[k + 1 :] for name in need}
        own = set(names)
        extra = [name for name in names if name in later and name != cut]
        assert cut in own, f"{cut} leaves module {k} and is not computed in it"
        entry = part.cuts[groups[k][0] - 1] if k else network.captured.input
        inputs = (entry, *(name for name in needs[k] if name != entry))
        wires.append(Wires(tuple(names), inputs, (cut, *extra)))
    return wires


def _members(part: Partition, groups: Sequence[Sequence[int]]) -> list[list[str]]:
    members = [[name for layer in layers for name in part.nodes[layer]] for layers in groups]
    members[-1] += part.classifier
    return members


def _graph(modules: Sequence[LocalModule]) -> fx.Graph:
    """One line a local module."""
    graph = fx.Graph()
    values: dict[str, fx.Node] = {modules[0].inputs[0]: graph.placeholder("x")}
    last: Any = None
    for module in modules:
        target = f"module_{module.plan.index}"
        arguments = tuple(values[name] for name in module.inputs)
        last = graph.create_node("call_module", target, arguments, {}, re.sub(r"\W+", "_", module.plan.name))
        if len(module.outputs) == 1:
            values[module.outputs[0]] = last
        else:
            for i, name in enumerate(module.outputs):
                values[name] = graph.create_node("call_function", operator.getitem, (last, i), {}, name)
    graph.output(last)
    return graph


def parameters_of(network: Network, members: Sequence[str]) -> tuple[str, ...]:
    """Names of the model's parameters that these nodes read, in the model's own order."""
    captured = network.captured
    reading = {*members, *captured.feeding(members, frozenset(network.partition.shared))}
    tensors = (t for node in captured.nodes if node.name in reading for t in own_tensors(captured, node))
    found = {id(t) for t in tensors}
    return tuple(name for name, p in captured.model.named_parameters() if id(p) in found)
