"""Find the local module that each operation of an exported program belongs to."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx
from torch.export import ExportedProgram

from localize.export.programs.module_chain import AUXILIARY, module_key
from localize.export.programs.programs import Program
from localize.plan.plan import Plan

MODULE, NETWORK = "localize.module", "localize.network"
"""Keys of a node's metadata for its local module, and for its network."""


@dataclass(frozen=True, slots=True)
class OperationOwner:
    """The local module and network that an operation belongs to."""

    module: int
    """Index of the local module."""
    auxiliary: bool = False
    """Whether the operation is in the auxiliary networks of the module, and not in the primary network."""

    @property
    def key(self) -> str:
        """Name of the owner among the children of a chain: ``module_3`` or ``module_3.auxiliary``."""
        return f"{module_key(self.module)}.{AUXILIARY}" if self.auxiliary else module_key(self.module)

    def properties(self, plan: Plan) -> dict[str, str]:
        """Return the owner as metadata of a node."""
        name = f"{self.module} {plan.modules[self.module].name}"
        return {MODULE: name, NETWORK: "auxiliary" if self.auxiliary else "primary"}


@dataclass(frozen=True, slots=True)
class OperationOwners:
    """The owners of all operations of a program."""

    by_node: Mapping[fx.Node, OperationOwner]
    exact: bool
    """Whether owners were read from a chain of the local modules; if not, they were inferred from names and order."""


def operation_owners(made: Program, plan: Plan) -> OperationOwners:
    """Find the owner of each operation.

    In the program that runs one local module after the other, each operation records its module. A program that was
    exported from the model's own forward is compared with that one: as a rule they are equal, operation by operation,
    apart from in-place additions that capture replaced. If a forward pass branches on its mode, operations are matched
    by name and order instead.
    """
    nodes = _operations(made.exported)
    owners, exact = _owners(made, nodes, plan)
    known = dict(zip(nodes, owners, strict=True))
    # Operations whose result nobody reads need an owner too: they may change a tensor in place.
    whole = [node for node in made.exported.graph.nodes if node.op == "call_function"]
    return OperationOwners(dict(zip(whole, _filled(whole, [known.get(node) for node in whole]), strict=True)), exact)


def _owners(made: Program, nodes: Sequence[fx.Node], plan: Plan) -> tuple[Sequence[OperationOwner | None], bool]:
    if made.chain is None:
        return _by_name(nodes, plan), False
    traced = _operations(made.chain)
    owners = _filled(traced, [_recorded(node) for node in traced])
    if made.chain is made.exported or _keys(made.exported, nodes) == _keys(made.chain, traced):
        return owners, True
    return _aligned(nodes, traced, owners), False


def _operations(program: ExportedProgram) -> list[fx.Node]:
    """List the operations that contribute to an output, in order."""
    used: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node.op == "output" or node in used:
            used.update(node.all_input_nodes)
    return [node for node in program.graph.nodes if node.op == "call_function" and node in used]


def _recorded(node: fx.Node) -> OperationOwner | None:
    """Read the owner of an operation from the stack of modules that called it; None outside of all local modules."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    stage = next((path for path in paths if path.startswith("module_") and "." not in path), None)
    if stage is None:
        return None
    inside = f"{stage}.{AUXILIARY}"
    return OperationOwner(
        int(stage.removeprefix("module_")), any(p == inside or p.startswith(f"{inside}.") for p in paths)
    )


def _keys(program: ExportedProgram, nodes: Sequence[fx.Node]) -> list[object]:
    """Return a key for each operation that includes all it reads: programs with equal keys compute the same."""
    places: dict[fx.Node, object] = {node: ("operation", i) for i, node in enumerate(nodes)}
    tensors = _tensors(program)
    for node in program.graph.nodes:
        if node.op != "call_function":
            places[node] = tensors.get(node.name, ("input",))
    return [(_operator(node), *(_plain(part, places) for part in (node.args, node.kwargs))) for node in nodes]


def _operator(node: fx.Node) -> str:
    """Name an operation; in-place ones like the others, since capture replaces additions in place."""
    return re.sub(r"_(?=\.|$)", "", str(node.target))


def _tensors(program: ExportedProgram) -> dict[str, tuple[object, ...]]:
    """Identify the parameter, buffer or constant of each placeholder by its contents: names differ between programs."""
    identified: dict[str, tuple[object, ...]] = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is None:
            continue
        value = program.state_dict.get(spec.target, program.constants.get(spec.target))
        if not isinstance(value, torch.Tensor):
            identified[spec.arg.name] = ("value", repr(value))
        elif spec.target in program.state_dict:
            identified[spec.arg.name] = ("tensor", value.data_ptr(), tuple(value.shape))
        else:  # each program has its own copies of constants
            numbers = value.detach().cpu().contiguous().view(-1).tolist()
            identified[spec.arg.name] = ("constant", tuple(value.shape), numbers)
    return identified


def _plain(value: object, places: Mapping[fx.Node, object]) -> object:
    if isinstance(value, fx.Node):
        return places.get(value, ("nowhere",))
    if isinstance(value, (tuple, list)):
        return tuple(_plain(item, places) for item in value)
    if isinstance(value, Mapping):
        return tuple((key, _plain(item, places)) for key, item in value.items())
    return str(value)


def _aligned(
    nodes: Sequence[fx.Node], traced: Sequence[fx.Node], owners: Sequence[OperationOwner]
) -> list[OperationOwner | None]:
    """Copy owners between two programs that differ, for the operations that match in order and by name."""
    matched: list[OperationOwner | None] = [None] * len(nodes)
    first, second = ([f"{_operator(node)} {_path(node)}" for node in each] for each in (traced, nodes))
    for block in difflib.SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        matched[block.b : block.b + block.size] = owners[block.a : block.a + block.size]
    return matched


def _path(node: fx.Node) -> str:
    """Return the name of the innermost module that called an operation, as in the primary network; empty if none."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return paths[-1].removeprefix("primary.").partition("@")[0] if paths else ""


def _by_name(nodes: Sequence[fx.Node], plan: Plan) -> list[OperationOwner | None]:
    """Infer owners from the names of parameters, which the plan lists for each module; used where there is no chain."""
    owners = {name.rpartition(".")[0]: module.index for module in plan.modules for name in module.parameters}
    return [OperationOwner(owners[_path(node)]) if _path(node) in owners else None for node in nodes]


def _filled(nodes: Sequence[fx.Node], owners: Sequence[OperationOwner | None]) -> list[OperationOwner]:
    """Fill in missing owners: that of the operands; for sizes and constants, that of the first reader."""
    known = {node: owner for node, owner in zip(nodes, owners, strict=True) if owner is not None}
    among = set(nodes)
    for node in reversed(nodes):
        readers = [known[user] for user in node.users if user in known]
        if node not in known and readers and not among.intersection(node.all_input_nodes):
            known[node] = min(readers, key=lambda owner: owner.module)
    for node in nodes:
        read = [known[parent] for parent in node.all_input_nodes if parent in known]
        known.setdefault(node, max(read, key=lambda owner: owner.module, default=OperationOwner(0)))
    return [known[node] for node in nodes]
