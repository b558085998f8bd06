"""Which nodes of a graph use which parameters and buffers, and modules that are held without owning theirs."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx, nn

from passes.ir import Captured


def hold(module: nn.Module, /, **values: object) -> None:
    """Set attributes of a module without registering them as its children.

    A module that only calls the layers of another must not own them: their parameters would have two names.

    >>> owner, user = nn.Linear(2, 2), nn.Module()
    >>> hold(user, layer=owner)
    >>> user.layer is owner, list(user.children())
    (True, [])
    """
    for name, value in values.items():
        object.__setattr__(module, name, value)


def own_tensors(captured: Captured, node: fx.Node) -> list[torch.Tensor]:
    """Return the parameters that a node reads itself, and the buffers that its module may write."""
    module = captured.module(node)
    if module is not None:
        return [*module.parameters(), *module.buffers()]
    if node.op == "get_attr":
        value = captured.attribute(str(node.target))
        return [value] if isinstance(value, nn.Parameter) else []
    return []


def tensors_behind(captured: Captured, among: Collection[str]) -> dict[str, list[torch.Tensor]]:
    """Return, for each of the nodes ``among``, the tensors that it is computed from through others of them."""
    behind: dict[str, list[torch.Tensor]] = {}
    for node in captured.nodes:
        if node.name in among:
            inherited = [t for parent in node.all_input_nodes for t in behind.get(parent.name, [])]
            behind[node.name] = list({id(t): t for t in [*own_tensors(captured, node), *inherited]}.values())
    return behind


def uses(captured: Captured, shared: Collection[str], portable: Collection[str]) -> dict[int, list[str]]:
    """Return, for each parameter and each buffer of a module, the nodes that depend on the input and use it.

    Args:
        captured: The graph.
        shared: Nodes that do not depend on the input: a node that reads one uses what that one was computed from.
        portable: Nodes that depend on the input's shape alone: likewise.

    Returns:
        Names of nodes, in execution order, by the identity of the tensor.
    """
    behind = tensors_behind(captured, {*shared, *portable})
    users: dict[int, list[str]] = {}
    for node in captured.nodes[:-1]:
        if node.name in shared:
            continue
        used = [*own_tensors(captured, node), *(t for p in node.all_input_nodes for t in behind.get(p.name, []))]
        for tensor in {id(t) for t in used}:
            users.setdefault(tensor, []).append(node.name)
    return users
