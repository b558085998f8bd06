"""What generated code refers to: modules and tensors by name, functions of torch or of the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import fx, nn

from localize.export.python.opened_code import CallSite
from localize.export.python.support_code import SupportCode, is_ours
from localize.export.python.tree import access
from localize.export.python.values import Unwritable


class Opening(Protocol):
    """Who opens modules and functions of other libraries."""

    inputs: dict[int, int]
    """Of each module that was opened, by identity, how many values it is called with."""

    def function(self, node: fx.Node, site: CallSite) -> tuple[str, list[fx.Node]]:
        """A function, opened: its name in the file, and the nodes that it is called with."""


class Surroundings:
    """What the code of a class refers to: its own modules and tensors.

    Args:
        support: Where functions of the file go.
        opening: Of modules and functions of other libraries.
        owner: The module that ``self`` stands for.
        flag: Text of the training flag of functional calls; None to leave them as they were traced.
        site: A node as a call whose values are known.
        own: Names of tensors that the class holds beside the module's.
        base: What stands for ``owner``.
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
        """What a node calls."""
        return access(self.base, str(node.target), self.owner)

    def attribute(self, path: str) -> str:
        """What a node reads."""
        return self.own[path] if path in self.own else access(self.base, path, self.owner)

    def helper(self, name: str, source: str) -> None:
        """Adds a function of the file."""
        self.support.add(name, source)

    def arguments(self, node: fx.Node) -> list[fx.Node] | None:
        """What an opened module is called with; None for one that is called as it was.

        Raises:
            Unwritable: It is called in several ways.
        """
        inputs = self.opening.inputs.get(id(self.owner.get_submodule(str(node.target))))
        if inputs is None:
            return None
        found: list[fx.Node] = CallSite((node.args, node.kwargs), lambda: ((), {})).nodes
        if len(found) != inputs:
            raise Unwritable(f"the module {node.target}, which is called in several ways")
        return found

    def function(self, node: fx.Node) -> tuple[str, list[fx.Node] | None]:
        """A function that torch has not, as one of the file's; its arguments, or None for those that it has.

        Raises:
            Unwritable: It cannot be opened.
        """
        if is_ours(node.target):
            return self.support.need(node.target), None
        return self.opening.function(node, self.site(node))
