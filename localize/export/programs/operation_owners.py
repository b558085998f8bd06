"""Which local module each operation of an exported program is in."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from localize.export.programs.module_chain import AUXILIARY, module_key
from localize.export.programs.programs import Program
from localize.plan.plan import Plan

MODULE, NETWORK = "localize.module", "localize.network"
"""Names of what a node's metadata says of it."""


@dataclass(frozen=True, slots=True)
class OperationOwner:
    """Where an operation belongs."""

    module: int
    """Index of the local module."""
    auxiliary: bool = False
    """Whether it is in the module's auxiliary networks, and not in the primary network."""

    @property
    def key(self) -> str:
        """The name under which modules have it: ``module_3``, ``module_3.auxiliary``."""
        return f"{module_key(self.module)}.{AUXILIARY}" if self.auxiliary else module_key(self.module)

    def properties(self, plan: Plan) -> dict[str, str]:
        """The same in words, as metadata of a node."""
        name = f"{self.module} {plan.modules[self.module].name}"
        return {MODULE: name, NETWORK: "auxiliary" if self.auxiliary else "primary"}


@dataclass(frozen=True, slots=True)
class OperationOwners:
    """Where all operations of a program belong."""

    by_node: Mapping[fx.Node, OperationOwner]
    exact: bool
    """Whether it was read off the local modules' own code; if not, it follows from names and order."""


def operation_owners(made: Program, plan: Plan) -> OperationOwners:
    """The local module of each operation.

    The program that runs one local module after the other says so itself. What was exported from the user's own forward
    is laid beside it: as a rule they are the same, operation by operation.
    """
    nodes = _operations(made.exported)
    found, exact = _found(made, nodes, plan)
    known = dict(zip(nodes, found, strict=True))
    # All that is there, also what changes a tensor in place and what it gives is not read.
    whole = [node for node in made.exported.graph.nodes if node.op == "call_function"]
    return OperationOwners(dict(zip(whole, _filled(whole, [known.get(node) for node in whole]), strict=True)), exact)


def _found(made: Program, nodes: Sequence[fx.Node], plan: Plan) -> tuple[Sequence[OperationOwner | None], bool]:
    if made.chain is None:
        return _by_name(nodes, plan), False
    beside = _operations(made.chain)
    told = _filled(beside, [_told(node) for node in beside])
    if made.chain is made.exported or _keys(made.exported, nodes) == _keys(made.chain, beside):
        return told, True
    return _aligned(nodes, beside, told), False


def _operations(program: ExportedProgram) -> list[fx.Node]:
    """What is computed, in order; what nothing comes of left out."""
    used: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node.op == "output" or node in used:
            used.update(node.all_input_nodes)
    return [node for node in program.graph.nodes if node.op == "call_function" and node in used]


def _told(node: fx.Node) -> OperationOwner | None:
    """What the modules say in whose forward it stands."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    stage = next((path for path in paths if path.startswith("module_") and "." not in path), None)
    if stage is None:
        return None
    inside = f"{stage}.{AUXILIARY}"
    return OperationOwner(
        int(stage.removeprefix("module_")), any(p == inside or p.startswith(f"{inside}.") for p in paths)
    )


def _keys(program: ExportedProgram, nodes: Sequence[fx.Node]) -> list[Any]:
    """Each operation with all that it reads: two programs of equal keys do the same."""
    places: dict[fx.Node, Any] = {node: ("operation", i) for i, node in enumerate(nodes)}
    tensors = _tensors(program)
    for node in program.graph.nodes:
        if node.op != "call_function":
            places[node] = tensors.get(node.name, ("input",))
    return [(_operator(node), *(_plain(part, places) for part in (node.args, node.kwargs))) for node in nodes]


def _operator(node: fx.Node) -> str:
    """What it does; whether in place is no matter, since capture writes additions out of place."""
    return re.sub(r"_(?=\.|$)", "", str(node.target))


def _tensors(program: ExportedProgram) -> dict[str, tuple[Any, ...]]:
    """The parameter, buffer or constant that a placeholder stands for: by what it holds, since names differ."""
    found: dict[str, tuple[Any, ...]] = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is None:
            continue
        value = program.state_dict.get(spec.target, program.constants.get(spec.target))
        if not isinstance(value, torch.Tensor):
            found[spec.arg.name] = ("value", repr(value))
        elif spec.target in program.state_dict:
            found[spec.arg.name] = ("tensor", value.data_ptr(), tuple(value.shape))
        else:  # each program has its own copies of constants
            found[spec.arg.name] = ("constant", tuple(value.shape), value.detach().cpu().contiguous().view(-1).tolist())
    return found


def _plain(value: Any, places: Mapping[fx.Node, Any]) -> Any:
    if isinstance(value, fx.Node):
        return places.get(value, ("nowhere",))
    if isinstance(value, (tuple, list)):
        return tuple(_plain(item, places) for item in value)
    if isinstance(value, Mapping):
        return tuple((key, _plain(item, places)) for key, item in value.items())
    return str(value)


def _aligned(
    nodes: Sequence[fx.Node], beside: Sequence[fx.Node], told: Sequence[OperationOwner]
) -> list[OperationOwner | None]:
    """Of two programs that are not the same, the operations that both have, in order and by name."""
    found: list[OperationOwner | None] = [None] * len(nodes)
    first, second = ([f"{_operator(node)} {_path(node)}" for node in each] for each in (beside, nodes))
    for block in difflib.SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        found[block.b : block.b + block.size] = told[block.a : block.a + block.size]
    return found


def _path(node: fx.Node) -> str:
    """The innermost module in whose forward it stands, by its name in the primary network."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return paths[-1].removeprefix("primary.").partition("@")[0] if paths else ""


def _by_name(nodes: Sequence[fx.Node], plan: Plan) -> list[OperationOwner | None]:
    """Where there is nothing to lay beside: by the parameters' names, which the plan has of each module."""
    owners = {name.rpartition(".")[0]: module.index for module in plan.modules for name in module.parameters}
    return [OperationOwner(owners[_path(node)]) if _path(node) in owners else None for node in nodes]


def _filled(nodes: Sequence[fx.Node], found: Sequence[OperationOwner | None]) -> list[OperationOwner]:
    """Puts what is not known with what it reads, and sizes and constants with the first operation that reads them."""
    known = {node: owner for node, owner in zip(nodes, found, strict=True) if owner is not None}
    among = set(nodes)
    for node in reversed(nodes):
        readers = [known[user] for user in node.users if user in known]
        if node not in known and readers and not among.intersection(node.all_input_nodes):
            known[node] = min(readers, key=lambda owner: owner.module)
    for node in nodes:
        read = [known[parent] for parent in node.all_input_nodes if parent in known]
        known.setdefault(node, max(read, key=lambda owner: owner.module, default=OperationOwner(0)))
    return [known[node] for node in nodes]
