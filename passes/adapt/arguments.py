"""Numbers among the arguments of a layer's operations: channel counts that must change with the input, or must not.

A reshape or a split names sizes, written as numbers or read off some tensor. Behind an input of other channels a number
that was written may have to follow them (a split in equal parts), and one that was read may have to stay what it was
(the width in front of an attention's last projection).
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from passes.common.interpreter import arguments_of, call_target
from passes.ir import Captured, Shapes, TensorSpec

Path = tuple[Any, ...]
"""Where an argument stands: index or keyword, then indices in nested lists."""

SPLITS = {"split", "split_with_sizes", torch.split, torch.functional.split, torch.split_with_sizes}


def leaves(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Every argument with its path, those in lists and tuples one by one."""

    def walk(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
        if isinstance(value, (list, tuple)):
            for k, item in enumerate(value):
                yield from walk((*path, k), item)
        else:
            yield path, value

    for k, value in enumerate(args):
        yield from walk((k,), value)
    for name, value in kwargs.items():
        yield from walk((name,), value)


def replaced(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], new: Mapping[Path, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with other values at some paths."""

    def walk(path: Path, value: Any) -> Any:
        if path in new:
            return new[path]
        if isinstance(value, (list, tuple)):
            return type(value)(walk((*path, k), item) for k, item in enumerate(value))
        return value

    if not new:
        return args, dict(kwargs)
    return tuple(walk((k,), v) for k, v in enumerate(args)), {k: walk((k,), v) for k, v in kwargs.items()}


class Numbers:
    """Values that numbers in the graph have in the primary network, and which of them follow channels."""

    def __init__(self, captured: Captured, shapes: Shapes) -> None:
        self.captured, self.shapes = captured, shapes
        self._values: dict[str, Any] = {}

    def value(self, node: fx.Node) -> Any:
        """What the number was; None if that cannot be told."""
        if node.name not in self._values:
            try:
                self._values[node.name] = self._evaluate(node)
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, ZeroDivisionError, KeyError):
                self._values[node.name] = None
        return self._values[node.name]

    def _evaluate(self, node: fx.Node) -> Any:
        spec = self.shapes.specs[node.name]
        if spec is not None:
            return torch.empty(spec.shape, dtype=spec.dtype, device="meta")
        if node.name not in self.shapes.numbers:
            return None
        return call_target(node, *arguments_of(node, self.value))

    def reads(self, node: fx.Node) -> list[fx.Node]:
        """The numbers, read off a tensor's channel dimension, that a number is made of."""
        found: list[fx.Node] = []
        pending, seen = [node], set()
        while pending:
            number = pending.pop()
            if number.name in seen or number.name not in self.shapes.numbers:
                continue
            seen.add(number.name)
            spec, dim = self._reading(number)
            if spec is None:
                pending += number.all_input_nodes
            elif dim is not None and spec.layout != "other":
                rank = len(spec.shape)
                if dim % rank == spec.channel_dim % rank:
                    found.append(number)
        return found

    def _reading(self, node: fx.Node) -> tuple[TensorSpec | None, int | None]:
        """The tensor and the dimension whose size a number is; (None, None) where it is something else."""
        if node.target == "size" and node.op == "call_method":
            tensor = node.args[0]
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        elif node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            sizes, dim = node.args[0], node.args[1]
            whole = sizes.target is getattr and len(sizes.args) > 1 and sizes.args[1] == "shape"
            if not whole and not (sizes.op == "call_method" and sizes.target == "size" and len(sizes.args) == 1):
                return None, None
            tensor = sizes.args[0]
        else:
            return None, None
        if not isinstance(tensor, fx.Node) or not isinstance(dim, int):
            return None, None
        return self.shapes.specs[tensor.name], dim


def carries(was: TensorSpec, now: tuple[int, ...], channels: int) -> bool:
    """Whether a value still is as wide as it was, seen from a number that was made of ``channels``."""
    if len(now) != len(was.shape):
        return False
    dims = [d for d, size in enumerate(was.shape) if size == channels and d > 0]
    channel_dim = was.channel_dim % len(was.shape)
    # Keys and values together are twice as wide as what they were computed from.
    dims = dims or [d for d in (channel_dim,) if was.layout != "other" and was.shape[d] % channels == 0]
    dim = channel_dim if channel_dim in dims and was.layout != "other" else dims[-1] if dims else None
    return dim is not None and now[dim] == was.shape[dim]


def split_again(sizes: Any, was: int, now: int) -> list[int] | int | None:
    """Sizes of a split of ``now`` in the proportions of one of ``was``; None where parts would be empty."""
    if isinstance(sizes, int):
        count = math.ceil(was / sizes)
        size = math.ceil(now / count)
        return size if math.ceil(now / size) == count else None
    ends = [round(sum(sizes[: k + 1]) * now / was) for k in range(len(sizes))]
    proportional = [after - before for before, after in itertools.pairwise([0, *ends])]
    return proportional if all(part > 0 for part in proportional) else None


def follow(literals: Mapping[Path, int], changed: Mapping[int, int]) -> dict[Path, int]:
    """Numbers of a reshape that must follow the sizes of what is reshaped (old -> new); empty if none can be told.

    A number that is the old size becomes the new one; of two neighbours whose product is the old size, the one that the
    new size allows (as many heads of another width, or else other heads).
    """
    found: dict[Path, int] = {}
    for old, new in changed.items():
        alone = [path for path, value in literals.items() if value == old]
        if alone:
            found.update(dict.fromkeys(alone, new))
            continue
        items = list(literals.items())
        for (first, a), (second, b) in itertools.pairwise(items):
            if a > 0 and b > 0 and a * b == old:
                if new % a == 0:
                    found[second] = new // a
                elif new % b == 0:
                    found[first] = new // b
                break
    return found
