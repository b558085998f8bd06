"""Names that generated code refers to: modules, tensors, and functions of torch or of the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import fx, nn

from localize.export.python.opened_code import CallSite
from localize.export.python.support_code import SupportCode, is_ours
from localize.export.python.tree import access
from localize.export.python.values import Unwritable


class Opening(Protocol):
    """Writes out modules and functions of other libraries; see :class:`ForeignModules`."""

    inputs: dict[int, int]
    """Number of values that each opened module is called with, by the identity of the module."""

    def function(self, node: fx.Node, site: CallSite) -> tuple[str, list[fx.Node]]:
        """Write out a function; return its name in the file, and the nodes that it is called with."""


class Surroundings:
    """Names that the code of one class refers to.

    Args:
        support: Collects the functions of the file.
        opening: Writes out modules and functions of other libraries.
        owner: The module that the class is written for.
        flag: Text that replaces the training flag of functional calls; None to leave them as they were traced.
        site: Returns the call of a node, with its values.
        own: Expressions for tensors that the class holds in addition to those of the module, by name.
        base: Expression for ``owner``.
    """

    def __init__(
        self,
        support: SupportCode,
        opening: Opening,
        owner: nn.Module,
        flag: str | None,
        site: Callable[[fx.Node], CallSite],
        own: Mapping[str, str] | None = None,
        base: str = "self",
    ) -> None:
        self.support, self.opening = support, opening
        self.owner, self.flag, self.site = owner, flag, site
        self.own, self.base = own or {}, base

    def module(self, node: fx.Node) -> str:
        """Return an expression for the module that a node calls."""
        return access(self.base, str(node.target), self.owner)

    def attribute(self, path: str) -> str:
        """Return an expression for the tensor at a path."""
        return self.own[path] if path in self.own else access(self.base, path, self.owner)

    def helper(self, name: str, source: str) -> None:
        """Add a function to the file."""
        self.support.add(name, source)

    def arguments(self, node: fx.Node) -> list[fx.Node] | None:
        """Return the nodes that an opened module is called with; None for a module whose call stays as it was.

        Raises:
            Unwritable: The number of values differs between calls of the module.
        """
        inputs = self.opening.inputs.get(id(self.owner.get_submodule(str(node.target))))
        if inputs is None:
            return None
        nodes: list[fx.Node] = CallSite((node.args, node.kwargs), lambda: ((), {})).nodes
        if len(nodes) != inputs:
            raise Unwritable(f"the module {node.target}, which is called in several ways")
        return nodes

    def function(self, node: fx.Node) -> tuple[str, list[fx.Node] | None]:
        """Write a function that torch does not have into the file.

        Returns:
            Its name, and the nodes that it is called with; None instead of the nodes if its arguments stay as they are.

        Raises:
            Unwritable: The function cannot be traced, or makes tensors of its own.
        """
        if is_ours(node.target):
            return self.support.need(node.target), None
        return self.opening.function(node, self.site(node))
