"""Proxies that behave like tensors where fx's do not: they answer for sizes, and can be changed."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Attribute

SIZES = {
    "shape",
    "ndim",
    "size",
    "dim",
    "ndimension",
    "len",
    "numel",
    "nelement",
    "chunk",
    "split",
    "unbind",
    "is_nested",
}
"""What of a tensor depends on its shape alone: not its type, its device or flags, which may be others in a real run."""


def store(buffer: torch.Tensor, value: torch.Tensor) -> None:
    """Stands in the graph for ``self.buffer = value``."""
    with torch.no_grad():
        buffer.copy_(value)


def set_item(tensor: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """Stands in the graph for ``tensor[index] = value``."""
    tensor[index] = value
    return tensor


class Sized(fx.Proxy):
    """A proxy that Python may ask for numbers that depend on sizes alone."""

    tracer: Any

    def __getattr__(self, k: str) -> SizedAttribute:
        return SizedAttribute(self, k)

    def __len__(self) -> int:
        return int(self.tracer.decide(self, "len"))

    def __int__(self) -> int:
        return int(self.tracer.decide(self, "int"))

    def __index__(self) -> int:
        return int(self.tracer.decide(self, "index"))

    def __float__(self) -> float:
        return float(self.tracer.decide(self, "float"))

    def __setitem__(self, index: Any, value: Any) -> None:
        changed = self.tracer.create_proxy("call_function", set_item, (self, index, value), {})
        # Who reads this tensor from here on reads it changed.
        object.__setattr__(self, "node" if type(self) is Sized else "_node", changed.node)

    def _change(self, in_place: Callable[[Any, Any], Any], other: Any) -> Any:
        """``self += other``: all who hold this tensor hold it changed. Numbers are not changed, but replaced.

        Out of place, so that cuts may fall around it; but in place where the memory is another tensor's.
        """
        plain = type(self) is not Sized or self.node.op == "get_attr" or is_size(self.node)
        if not plain and is_view(self.node):
            result = self.tracer.create_proxy("call_function", in_place, (self, other), {})
        else:
            result = _OUT_OF_PLACE[in_place](self, other)
            result.node.meta[WRITTEN] = in_place
        if plain:
            return result
        self.node = result.node
        return self

    def __iadd__(self, other: Any) -> Any:
        return self._change(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._change(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._change(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._change(operator.itruediv, other)


WRITTEN = "written_in_place"
"""Key of a node's ``meta`` under which stands the function that changes in place, where the user's code does so."""

_OUT_OF_PLACE: dict[Any, Callable[[Any, Any], Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_VIEWS = {
    "chunk", "detach", "diagonal", "expand", "flatten", "movedim", "narrow", "permute", "reshape", "select", "split",
    "squeeze", "swapaxes", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view",
}  # fmt: skip


def is_view(node: fx.Node) -> bool:
    """Whether a node, by the look of it, may yield another tensor's memory."""
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return name in _VIEWS or node.target in (operator.getitem, getattr)


def is_size(node: fx.Node) -> bool:
    """Whether a node, by the look of it, is a number read off a shape, or computed from such."""
    if node.target is getattr:
        return node.args[1] in SIZES
    if node.op == "call_method":
        return node.target in SIZES - _VIEWS
    parents = node.all_input_nodes
    arithmetic = getattr(node.target, "__module__", "") in ("_operator", "builtins", "math")
    return arithmetic and bool(parents) and all(is_size(parent) for parent in parents)


class SizedAttribute(Attribute, Sized):
    """An attribute of a proxy, recorded when it is used."""


IN_PLACE = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow, operator.imod, set_item
}  # fmt: skip
"""Functions that change their first argument."""
