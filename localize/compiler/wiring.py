"""Wiring: the nodes, inputs and outputs of each local module, from the layers that the plan gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from passes.common.parameters import own_tensors
from passes.ir import Network, Partition, TensorSpec
from passes.partition.cuts import mergeable


@dataclass(frozen=True, slots=True)
class Wires:
    """Nodes, inputs and outputs of one local module, by node name."""

    members: tuple[str, ...]
    """Nodes that the module runs, in the order of the graph."""
    inputs: tuple[str, ...]
    """Values that it takes from earlier modules; the tensor of the cut before it comes first."""
    outputs: tuple[str, ...]
    """Values that it returns: ``reads``, then whatever else later modules need."""
    reads: tuple[str, ...]
    """Outputs that its local loss is computed from, the newest tensor first."""


def wire(network: Network, groups: Sequence[Sequence[int]]) -> list[Wires]:
    """Wire up local modules.

    Args:
        network: The network that is trained.
        groups: Consecutive layers of each module, which together are all layers. The last group may be empty: then
            that module is the classifier alone.
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
            # The model's own auxiliary outputs may be computed earlier; the last loss reads them.
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
        # The tensor of the cut goes first: it is the one that every module has.
        entry = part.entries[groups[k][0]] if groups[k] else part.cuts[-1]
        inputs = sorted(needs[k], key=lambda name: name != entry)
        wires.append(
            Wires(members=tuple(names), inputs=tuple(inputs), outputs=(*reads, *extra), reads=reads),
        )
    return wires


def parameters_of(network: Network, wiring: Sequence[Wires]) -> list[tuple[str, ...]]:
    """Return, for each local module, the names of the model's parameters that it reads, in the model's own order."""
    captured = network.captured
    names = {id(p): (i, name) for i, (name, p) in enumerate(captured.model.named_parameters())}
    shared = frozenset(network.partition.shared)
    by_module = []
    for wires in wiring:
        # Shared nodes (a weight that is computed, say) belong to no module; whoever reads them depends on them.
        reading = {*wires.members, *captured.feeding(wires.members, shared)}
        held = {names[id(t)] for n in reading for t in own_tensors(captured, captured.by_name[n]) if id(t) in names}
        by_module.append(tuple(name for _, name in sorted(held)))
    return by_module


def reached_through(network: Network, window: Sequence[Wires]) -> frozenset[str]:
    """Return the names of the parameters that a cascaded loss reaches.

    It may miss parameters of the modules that it goes through: where a cut is wide, some of what they compute is read
    by later modules only.

    Args:
        network: The network that is trained.
        window: Consecutive modules. The loss is computed from what the last one's local loss reads.
    """
    own = frozenset(name for wires in window for name in wires.members)
    held = frozenset[int]().union(*(_reached(network, own, name) for name in window[-1].reads))
    return frozenset(name for name, p in network.captured.model.named_parameters() if id(p) in held)


def known(spec: TensorSpec | None) -> TensorSpec:
    """Return the spec of a value that must be a tensor."""
    assert spec is not None
    return spec


def _members(part: Partition, groups: Sequence[Sequence[int]]) -> list[list[str]]:
    """Return the nodes of each group; those of the classifier belong to the last one."""
    members = [[name for layer in layers for name in part.nodes[layer]] for layers in groups]
    members[-1] += part.classifier
    return members


def _sizes_given(network: Network, home: Mapping[str, int]) -> dict[int, list[str]]:
    """Return, for each local module, the sizes that are arguments of calls inside it, whether they are used or not.

    A call that lies within one module may be written out as the user's own call, with all its arguments.
    """
    captured = network.captured
    by_module: dict[int, list[str]] = {}
    for call in captured.calls:
        inside = {home[n.name] for n in captured.nodes[call.first : call.last + 1] if n.name in home}
        if len(inside) == 1:
            sizes = [name for name in call.given if name in network.partition.portable]
            by_module.setdefault(inside.pop(), []).extend(sizes)
    return by_module


def _reads(network: Network, members: Sequence[str], live: Sequence[str]) -> tuple[str, ...]:
    """Return the tensors that the local loss of a module is computed from.

    These are the newest tensor that leaves the module, then older ones, each only if it depends on parameters that the
    ones before it do not: otherwise those parameters would not be trained.
    """
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
    """Return the identities of the parameters that a tensor depends on through the nodes in ``own``."""
    captured = network.captured
    among = own | frozenset(network.partition.shared)
    nodes = (name, *captured.feeding((name,), among))
    tensors = (t for node in nodes for t in own_tensors(captured, captured.by_name[node]))
    return frozenset(id(t) for t in tensors if isinstance(t, nn.Parameter))
