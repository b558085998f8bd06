"""Emit: Plan -> LocalGraphModule. Nothing is decided here."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import fx, nn

from localize.methods.base import Compiled, Context
from localize.methods.networks.blocks import Piece, Recomputed, recompute_blocks
from localize.methods.networks.merge import Merged
from localize.plan.plan import LocalModulePlan, Plan
from localize.runtime.local_graph import LocalGraphModule
from localize.runtime.local_module import LocalModule
from passes.codegen.generate import generate
from passes.common.initializer import Initializer
from passes.common.inplace import overwritten
from passes.common.parameters import own_tensors
from passes.ir import Network, Partition, TensorSpec
from passes.partition.cuts import mergeable


def emit(plan: Plan, compiled: Compiled, draw: Initializer | None = None) -> LocalGraphModule:
    """Builds what the plan says: generated code for each local module, its auxiliary network, and the graph over them.

    Args:
        plan: The plan, made from the same network.
        compiled: What the plan was made of.
        draw: Source of the auxiliary networks' weights; by default one of its own, for copies, whose
            weights are then replaced.

    Returns:
        A module that shares the user's model, in train mode.
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
    """The code of a module, layer by layer."""
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
    """An auxiliary network, behind all that it reads, where the model's parameters are (``place`` is one of them)."""
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


@dataclasses.dataclass(frozen=True, slots=True)
class Wires:
    """What one local module runs, reads and hands on, by node name."""

    members: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reads: tuple[str, ...]
    """The first of its outputs: those that its local loss is computed from."""


def wire(network: Network, groups: Sequence[Sequence[int]]) -> list[Wires]:
    """Nodes, inputs and outputs of each local module; the last one's layers may be none, and it the classifier alone.

    The tensors that the local loss is computed from come first, others and sizes that later modules need follow.
    """
    part = network.partition
    by_name = network.captured.by_name
    members = _members(part, groups)
    home = {name: k for k, names in enumerate(members) for name in names}
    home[network.captured.input] = -1
    needs: list[list[str]] = []
    given = _sizes_given(network, home)
    for k, names in enumerate(members):
        parents = [p.name for name in names for p in by_name[name].all_input_nodes] + given.get(k, [])
        if k == len(members) - 1:
            parents += [node.name for node in network.captured.heads]
        needs.append([name for name in dict.fromkeys(parents) if name in home and home[name] < k])
    wires = []
    for k, names in enumerate(members):
        if k < len(members) - 1:
            reads = _reads(network, names, part.live[groups[k][-1]])
        else:
            reads = tuple(node.name for node in (network.captured.result, *network.captured.heads))
        later = {name for need in needs[k + 1 :] for name in need}
        extra = [name for name in names if name in later and name not in reads]
        entry = part.entries[groups[k][0]] if groups[k] else part.cuts[-1]
        inputs = sorted(needs[k], key=lambda name: name != entry)
        wires.append(Wires(tuple(names), tuple(inputs), (*reads, *extra), reads))
    return wires


def _sizes_given(network: Network, home: Mapping[str, int]) -> dict[int, list[str]]:
    """For each local module the sizes that are arguments of calls within it, used there or not."""
    captured = network.captured
    found: dict[int, list[str]] = {}
    for call in captured.calls:
        inside = {home[n.name] for n in captured.nodes[call.first : call.last + 1] if n.name in home}
        if len(inside) == 1:
            sizes = [name for name in call.given if name in network.partition.portable]
            found.setdefault(inside.pop(), []).extend(sizes)
    return found


def _reads(network: Network, members: Sequence[str], live: Sequence[str]) -> tuple[str, ...]:
    """The newest of the tensors that leave a module, and those that parameters depend on which it does not reach."""
    own = frozenset(members)
    assert live[0] in own, f"{live[0]} leaves a module and is not computed in it"
    reads = [live[0]]
    if len(live) == 1:
        return (live[0],)
    covered = _reached(network, own, live[0])
    for name in live[1:]:
        if name in own and mergeable(network.shapes, name):
            reached = _reached(network, own, name)
            if not reached <= covered:
                reads.append(name)
                covered |= reached
    return tuple(reads)


def _reached(network: Network, own: frozenset[str], name: str) -> frozenset[int]:
    """Identities of the parameters that a tensor depends on through the module's own nodes."""
    captured = network.captured
    among = own | frozenset(network.partition.shared)
    nodes = (name, *captured.feeding((name,), among))
    tensors = (t for node in nodes for t in own_tensors(captured, captured.by_name[node]))
    return frozenset(id(t) for t in tensors if isinstance(t, nn.Parameter))


def reached_through(network: Network, window: Sequence[Wires]) -> frozenset[str]:
    """Names of the parameters that what the last of consecutive modules is trained on depends on within all of them."""
    own = frozenset(name for wires in window for name in wires.members)
    held = frozenset[int]().union(*(_reached(network, own, name) for name in window[-1].reads))
    return frozenset(name for name, p in network.captured.model.named_parameters() if id(p) in held)


def known(spec: TensorSpec | None) -> TensorSpec:
    """The spec of a value that is known to be a tensor."""
    assert spec is not None
    return spec


def _members(part: Partition, groups: Sequence[Sequence[int]]) -> list[list[str]]:
    members = [[name for layer in layers for name in part.nodes[layer]] for layers in groups]
    members[-1] += part.classifier
    return members


def _graph(modules: Sequence[LocalModule]) -> fx.Graph:
    """One line a local module."""
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


def parameters_of(network: Network, wiring: Sequence[Wires]) -> list[tuple[str, ...]]:
    """For each local module the names of the model's parameters that it reads, in the model's own order."""
    captured = network.captured
    names = {id(p): (i, name) for i, (name, p) in enumerate(captured.model.named_parameters())}
    shared = frozenset(network.partition.shared)
    found = []
    for wires in wiring:
        reading = {*wires.members, *captured.feeding(wires.members, shared)}
        held = {names[id(t)] for n in reading for t in own_tensors(captured, captured.by_name[n]) if id(t) in names}
        found.append(tuple(name for _, name in sorted(held)))
    return found
