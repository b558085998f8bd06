"""Proxies that do two things which fx's cannot: answer questions about sizes, and be changed in place."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Attribute

from passes.common.inplace import is_size, is_view


def store(buffer: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a value into a buffer; the graph calls this for ``self.buffer = value``."""
    with torch.no_grad():
        buffer.copy_(value)


def set_item(tensor: torch.Tensor, index: Any, value: float | torch.Tensor) -> torch.Tensor:
    """Assign to items of a tensor; the graph calls this for ``tensor[index] = value``."""
    tensor[index] = value
    return tensor


BinaryFunction = Callable[[Any, Any], Any]


class Sized(fx.Proxy):
    """A proxy that Python may convert to numbers where these depend on sizes alone."""

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

    def __setitem__(self, index: object, value: object) -> None:
        changed = self.tracer.create_proxy("call_function", set_item, (self, index, value), {})
        # Every later use of this tensor reads it changed.
        object.__setattr__(self, "node" if type(self) is Sized else "_node", changed.node)

    def _change(self, in_place: BinaryFunction, other: object) -> object:
        """Record ``self += other``, after which every variable that refers to this tensor refers to the changed one.

        Tensors are recorded out of place, so that cuts may fall around the operation; only a view, whose memory is
        another tensor's, is recorded in place. Numbers are immutable: the result replaces this one variable's value.
        """
        plain = type(self) is not Sized or self.node.op == "get_attr" or is_size(self.node)
        if not plain and is_view(self.node):
            result = self.tracer.create_proxy("call_function", in_place, (self, other), {})
        else:
            result = _OUT_OF_PLACE[in_place](self, other)
            self.tracer.in_place[result.node.name] = in_place
        if plain:
            return result
        self.node = result.node
        return self

    def __iadd__(self, other: object) -> object:
        return self._change(operator.iadd, other)

    def __isub__(self, other: object) -> object:
        return self._change(operator.isub, other)

    def __imul__(self, other: object) -> object:
        return self._change(operator.imul, other)

    def __itruediv__(self, other: object) -> object:
        return self._change(operator.itruediv, other)


_OUT_OF_PLACE: dict[BinaryFunction, BinaryFunction] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class SizedAttribute(Attribute, Sized):
    """An attribute of a proxy, recorded when it is used."""
