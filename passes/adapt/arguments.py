"""Numbers among the arguments of a layer's operations: channel counts that must change with the input, or must not.

A reshape or a split names sizes, written as numbers or read off a tensor. On an input of other channels

- a number that was written may have to follow: the parts of a split are parts of the new channels;
- a number that was read may have to stay what it was: the heads of an attention, after its own projection, are as wide
  as before.

Which of the two holds shows in the tensor that the operation is applied to: does it still have the width it had?
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from passes.common.interpreter import arguments_of, call_target
from passes.ir import Captured, Shapes, TensorSpec

Path = tuple[int | str, ...]
"""The place of an argument: its index or keyword, then indices in nested lists."""
Sizes = int | Sequence[int]
"""Sizes of the parts of a split: one for all, or one for each."""

SPLITS = {"split", "split_with_sizes", torch.split, torch.functional.split, torch.split_with_sizes}


def leaves(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Iterator[tuple[Path, object]]:
    """Yield every argument with its path, those in lists and tuples one by one.

    >>> list(leaves((1, [2, 3]), {"dim": 1}))
    [((0,), 1), ((1, 0), 2), ((1, 1), 3), (('dim',), 1)]
    """

    def walk(path: Path, value: object) -> Iterator[tuple[Path, object]]:
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
    args: tuple[Any, ...], kwargs: Mapping[str, Any], new: Mapping[Path, object]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with other values at some paths.

    >>> replaced((1, [2, 3]), {}, {(1, 0): 5})
    ((1, [5, 3]), {})
    """

    def walk(path: Path, value: object) -> object:
        if path in new:
            return new[path]
        if isinstance(value, (list, tuple)):
            return type(value)(walk((*path, k), item) for k, item in enumerate(value))
        return value

    if not new:
        return args, dict(kwargs)
    return tuple(walk((k,), v) for k, v in enumerate(args)), {k: walk((k,), v) for k, v in kwargs.items()}


class Numbers:
    """The values of numbers in the primary network's graph, and the channels that they were read off."""

    def __init__(self, captured: Captured, shapes: Shapes) -> None:
        self.captured, self.shapes = captured, shapes
        self._values: dict[str, Any] = {}

    def value(self, node: fx.Node) -> Any:
        """Return the value of a number in the primary network; None if it cannot be told.

        A tensor is represented by one without memory, so that its sizes can be read.
        """
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
        """Return the numbers, read off a tensor's channel dimension, that a number is computed from."""
        channels: list[fx.Node] = []
        pending, visited = [node], set()
        while pending:
            number = pending.pop()
            if number.name in visited or number.name not in self.shapes.numbers:
                continue
            visited.add(number.name)
            spec, dim = self._reading(number)
            if spec is None:
                pending += number.all_input_nodes
            elif dim is not None and spec.layout != "other":
                rank = len(spec.shape)
                if dim % rank == spec.channel_dim % rank:
                    channels.append(number)
        return channels

    def _reading(self, node: fx.Node) -> tuple[TensorSpec | None, int | None]:
        """Return the tensor and the dimension whose size a number is; (None, None) where it is something else."""
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
    """Return whether a value still is as wide as it was, seen from a number that was computed from ``channels``."""
    if len(now) != len(was.shape):
        return False
    dims = [d for d, size in enumerate(was.shape) if size == channels and d > 0]
    channel_dim = was.channel_dim % len(was.shape)
    # Keys and values together are twice as wide as what they were computed from.
    dims = dims or [d for d in (channel_dim,) if was.layout != "other" and was.shape[d] % channels == 0]
    dim = channel_dim if channel_dim in dims and was.layout != "other" else dims[-1] if dims else None
    return dim is not None and now[dim] == was.shape[dim]


def split_again(sizes: Sizes, was: int, now: int) -> list[int] | int | None:
    """Return the sizes of a split of ``now`` in the proportions of one of ``was``; None where a part would be empty.

    >>> split_again([2, 6], 8, 16)
    [4, 12]
    """
    if isinstance(sizes, int):
        count = math.ceil(was / sizes)
        size = math.ceil(now / count)
        return size if math.ceil(now / size) == count else None
    ends = [round(sum(sizes[: k + 1]) * now / was) for k in range(len(sizes))]
    proportional = [after - before for before, after in itertools.pairwise([0, *ends])]
    return proportional if all(part > 0 for part in proportional) else None


def follow(literals: Mapping[Path, int], changed: Mapping[int, int]) -> dict[Path, int]:
    """Return the numbers of a reshape that must follow the sizes of what is reshaped; empty if none can be told.

    A number that is the old size becomes the new one; of two neighbours whose product is the old size, the one that the
    new size allows (as many heads of another width, or else other heads).

    Args:
        literals: Path -> number that stands there.
        changed: Old size -> new size.

    >>> follow({(1,): 4, (2,): 8}, {32: 64})
    {(2,): 16}
    """
    followed: dict[Path, int] = {}
    for old, new in changed.items():
        alone = [path for path, value in literals.items() if value == old]
        if alone:
            followed.update(dict.fromkeys(alone, new))
            continue
        items = list(literals.items())
        for (first, a), (second, b) in itertools.pairwise(items):
            if a > 0 and b > 0 and a * b == old:
                if new % a == 0:
                    followed[second] = new // a
                elif new % b == 0:
                    followed[first] = new // b
                break
    return followed
