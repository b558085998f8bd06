"""Proxies that behave like tensors where fx's do not: they answer for sizes, and can be changed."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Attribute

from passes.common.inplace import is_size, is_view


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
            self.tracer.in_place[result.node.name] = in_place
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


_OUT_OF_PLACE: dict[Any, Callable[[Any, Any], Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class SizedAttribute(Attribute, Sized):
    """An attribute of a proxy, recorded when it is used."""
