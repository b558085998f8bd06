"""What changes a tensor in place, and what merely looks at one."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import fx, nn


class HasModules(Protocol):
    """A graph, and the modules that it calls."""

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls; None if it calls none."""


_VIEWS = {"view", "reshape", "permute", "transpose", "flatten", "squeeze", "unsqueeze", "contiguous", "chunk", "split"}

_IN_PLACE = {"iadd", "imul", "isub", "itruediv", "imod", "ipow", "setitem", "set_item", "store"}


def mutates_input(code: HasModules, node: fx.Node) -> bool:
    """Whether a node overwrites its first argument."""
    module = code.module(node)
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    name = getattr(node.target, "__name__", "")
    return bool(node.kwargs.get("inplace")) or name in _IN_PLACE


def is_view(code: HasModules, node: fx.Node) -> bool:
    """Whether a node may hand on its input's own memory."""
    module = code.module(node)
    if module is not None:
        return isinstance(module, (nn.Identity, nn.Flatten, nn.Dropout))
    if node.op == "call_method":
        return node.target in _VIEWS
    return node.target in {getattr(torch, name) for name in _VIEWS if hasattr(torch, name)}
