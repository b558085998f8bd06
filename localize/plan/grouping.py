"""Grouping: L local layers -> K local modules, as the user's ``modules`` and ``balance`` say. Arithmetic on lists."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, get_args

from passes.errors import MethodError, PartitionError
from passes.ir import Layer

Balance = Literal["layers", "macs", "activations"]
"""What local modules share evenly."""


def groups_of(
    layers: Sequence[Layer], modules: int | Sequence[int] | None, balance: Balance
) -> tuple[tuple[int, ...], ...] | None:
    """Group local layers as the user's ``modules`` and ``balance`` say; return None where the method decides.

    Args:
        layers: All local layers, in order.
        modules: Number of modules; or the number of layers of each module; or None.
        balance: What modules share evenly, where ``modules`` is a number.

    Raises:
        PartitionError: ``modules`` is out of range, or its numbers do not sum to the number of layers.

    >>> import torch
    >>> from passes.ir import TensorSpec
    >>> image = TensorSpec((1, 3, 8, 8), torch.float32, "NCHW")
    >>> layers = [Layer(i, f"layer{i}", 0, macs, 0, image, image) for i, macs in enumerate([4, 1, 1, 2])]
    >>> groups_of(layers, 2, "layers")
    ((0, 1), (2, 3))
    >>> groups_of(layers, 2, "macs")
    ((0,), (1, 2, 3))
    >>> groups_of(layers, [1, 1, 2], "layers")
    ((0,), (1,), (2, 3))
    """
    if modules is None:
        return None
    if isinstance(modules, Sequence):
        return group_sizes(len(layers), modules)
    require_modules(len(layers), modules)
    if balance == "layers":
        return group_evenly(len(layers), modules)
    return group_by_cost([layer.macs if balance == "macs" else layer.activation_bytes for layer in layers], modules)


def check_balance(balance: str, modules: int | Sequence[int] | None) -> None:
    """Check the user's ``balance``.

    Raises:
        MethodError: ``balance`` is unknown, or has no effect because ``modules`` is not a number.
    """
    if balance not in get_args(Balance):
        raise MethodError(f"balance must be 'layers', 'macs' or 'activations', got {balance!r}")
    if balance != "layers" and (modules is None or isinstance(modules, Sequence)):
        raise MethodError(
            f"balance={balance!r} has no effect unless modules is a number",
            remedy="Give modules=K, or leave balance out",
        )


def require_modules(layers: int, modules: int) -> None:
    """Check the number of local modules, K.

    Raises:
        PartitionError: K is not an integer from 1 to L, the number of layers.
    """
    if not isinstance(modules, int) or isinstance(modules, bool) or not 1 <= modules <= layers:
        raise PartitionError(
            f"modules must be an integer from 1 to {layers}, the model's local layers, got {modules!r}",
            remedy="Or leave modules out: then the method decides",
        )


def group_evenly(layers: int, modules: int) -> tuple[tuple[int, ...], ...]:
    """Split layers 0..L-1 into K consecutive groups whose sizes differ by at most one.

    The first groups are the smaller ones: low layers work at full resolution, so the peak of memory is there.

    Raises:
        PartitionError: K is not an integer from 1 to L.

    >>> group_evenly(5, 2)
    ((0, 1), (2, 3, 4))
    """
    require_modules(layers, modules)
    ends = [layers * (i + 1) // modules for i in range(modules)]
    return tuple(tuple(range(start, end)) for start, end in zip([0, *ends], ends, strict=False))


def group_sizes(layers: int, sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Split layers 0..L-1 into consecutive groups of the given sizes.

    Raises:
        PartitionError: A size is not an integer > 0, or the sizes do not sum to L.
    """
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not whole or sum(sizes) != layers:
        raise PartitionError(
            f"modules must hold integers > 0 that sum to {layers}, the model's local layers, got {list(sizes)!r}",
            why=f"the sizes sum to {sum(sizes)}" if whole else "sizes are integers > 0",
            remedy="Give the number of layers of each local module, or only how many modules",
        )
    ends = list(itertools.accumulate(sizes))
    return tuple(tuple(range(start, end)) for start, end in zip([0, *ends], ends, strict=False))


def group_by_cost(costs: Sequence[int], modules: int) -> tuple[tuple[int, ...], ...]:
    """Split layers into K consecutive groups so that the most expensive group is as cheap as possible.

    Among such groupings it returns one with the least sum of squared costs of groups.

    Args:
        costs: Cost of each layer.
        modules: K.

    Raises:
        PartitionError: K is not an integer from 1 to L.
    """
    count = len(costs)
    require_modules(count, modules)
    sums = [0, *itertools.accumulate(costs)]
    most = _least_maximum(sums, modules)
    # Dynamic programming. rows[k][j]: layers 0..j-1 in k groups: the least sum of squared costs, and the first layer
    # of the last group. Groups above `most` are left out, so that the second aim cannot harm the first.
    rows: list[dict[int, tuple[int, int]]] = [{0: (0, 0)}]
    for left in range(modules - 1, -1, -1):
        row: dict[int, tuple[int, int]] = {}
        for end in range(1, count - left + 1):
            costs_so_far = [
                (squares + (sums[end] - sums[start]) ** 2, start)
                for start, (squares, _) in rows[-1].items()
                if start < end and sums[end] - sums[start] <= most
            ]
            if costs_so_far:
                row[end] = min(costs_so_far)
        rows.append(row)
    ends = [count]
    for row in reversed(rows[1:]):
        ends.insert(0, row[ends[0]][1])
    return tuple(tuple(range(start, end)) for start, end in itertools.pairwise(ends))


def _least_maximum(sums: Sequence[int], modules: int) -> int:
    """Return the cost of the most expensive of K consecutive groups, minimized over all groupings.

    Args:
        sums: Running sums of the layers' costs, from 0.
        modules: K.
    """
    count = len(sums) - 1
    best = [0] + [sums[-1]] * count
    for used in range(1, modules + 1):
        best = [0] * used + [
            min(max(best[start], sums[end] - sums[start]) for start in range(used - 1, end))
            for end in range(used, count + 1)
        ]
    return best[count]


def join_last(layers: int, joined: int) -> tuple[tuple[int, ...], ...]:
    """Return one group a layer, but one group for the last ``joined`` layers, at least one and at most all."""
    alone = max(layers - max(joined, 1), 0)
    return (*((i,) for i in range(alone)), tuple(range(alone, layers)))


def join_untrained(groups: Sequence[tuple[int, ...]], trained: Sequence[bool]) -> tuple[tuple[int, ...], ...]:
    """Join every group without trainable parameters to the next group: a loss of its own would train nothing.

    Args:
        groups: Consecutive groups of layers. Nothing follows the last one, so it stays as it is.
        trained: For each layer whether it has trainable parameters.
    """
    joined: list[tuple[int, ...]] = []
    waiting: tuple[int, ...] = ()
    for group in groups[:-1]:
        waiting += group
        if any(trained[layer] for layer in group):
            joined.append(waiting)
            waiting = ()
    return (*joined, waiting + groups[-1])
