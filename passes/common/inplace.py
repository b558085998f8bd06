"""Which operations change a tensor in place, and which merely look at the memory of another one."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from typing import Protocol

from torch import fx, nn

SIZES = {
    "shape", "ndim", "size", "dim", "ndimension", "len", "numel", "nelement", "chunk", "split", "unbind", "is_nested",
}  # fmt: skip
"""Attributes and methods of a tensor that depend on its shape alone, unlike type, device and flags."""

VIEWS = {
    "chunk", "contiguous", "detach", "diagonal", "expand", "flatten", "movedim", "narrow", "permute", "reshape",
    "select", "split", "squeeze", "swapaxes", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view",
}  # fmt: skip
"""Names of methods and functions whose result may lie in the memory of their first argument."""

IN_PLACE = {
    "iadd", "imod", "imul", "ipow", "isub", "itruediv", "set_item", "setitem", "store",
}  # fmt: skip
"""Names of functions that change their first argument."""


class HasModules(Protocol):
    """A graph, and the modules that it calls."""

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls; None if it calls none."""


def changes_first_argument(node: fx.Node) -> bool:
    """Return whether a function or method, judged by its name and arguments, overwrites its first argument."""
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    return bool(node.kwargs.get("inplace")) or getattr(node.target, "__name__", "") in IN_PLACE


def mutates_input(code: HasModules, node: fx.Node) -> bool:
    """Return whether a node overwrites its first argument; a module does where it has ``inplace`` set.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> class Functions:
    ...     def module(self, node: fx.Node) -> None: ...
    >>> mutates_input(Functions(), graph.call_method("add_", (x, 1)))
    True
    >>> mutates_input(Functions(), graph.call_method("add", (x, 1)))
    False
    """
    module = code.module(node)
    return changes_first_argument(node) if module is None else bool(getattr(module, "inplace", False))


def is_view(node: fx.Node) -> bool:
    """Return whether a function or method, judged by its name, may yield its first argument's own memory."""
    if node.target is getattr:
        return node.args[1] not in SIZES
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return name in VIEWS or node.target is operator.getitem


def hands_on_memory(code: HasModules, node: fx.Node) -> bool:
    """Return whether a node, which may call a module, may yield its first argument's own memory."""
    module = code.module(node)
    return is_view(node) if module is None else isinstance(module, (nn.Identity, nn.Flatten, nn.Dropout))


def overwritten(code: HasModules, inputs: Collection[str], nodes: Iterable[fx.Node]) -> frozenset[str]:
    """Return the inputs that nodes change in place, directly or through views: run again, they would find them changed.

    Args:
        code: What knows the modules that nodes call.
        inputs: Names of the values handed in.
        nodes: The nodes, in the order in which they run.
    """
    # Which input's memory a value lies in.
    memory = {name: name for name in inputs}
    changed = set()
    for node in nodes:
        first = node.all_input_nodes[0].name if node.all_input_nodes else ""
        if first not in memory:
            continue
        changes = mutates_input(code, node)
        if changes:
            changed.add(memory[first])
        if changes or hands_on_memory(code, node):
            memory[node.name] = memory[first]
    return frozenset(changed)


def is_size(node: fx.Node) -> bool:
    """Return whether a node, judged by its name, is a number read off a shape, or computed from such numbers."""
    if node.target is getattr:
        return node.args[1] in SIZES
    if node.op == "call_method":
        return node.target in SIZES - VIEWS
    parents = node.all_input_nodes
    arithmetic = getattr(node.target, "__module__", "") in ("_operator", "builtins", "math")
    return arithmetic and bool(parents) and all(is_size(parent) for parent in parents)
