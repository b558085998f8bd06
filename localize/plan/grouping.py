"""How the user's ``modules`` and ``balance`` group local layers."""

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
    """Groups of layers; None where the method decides.

    Raises:
        PartitionError: ``modules`` is not possible.
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
    """Refuses a balance that is unknown, or has no effect.

    Raises:
        MethodError: It is.
    """
    if balance not in get_args(Balance):
        raise MethodError(f"balance={balance!r} is unknown", remedy="Give 'layers', 'macs' or 'activations'")
    if balance != "layers" and (modules is None or isinstance(modules, Sequence)):
        raise MethodError(
            f"balance={balance!r} has no effect where modules is no number",
            remedy="Give modules=K, or leave balance out",
        )


def group_evenly(layers: int, modules: int) -> tuple[tuple[int, ...], ...]:
    """Splits layers 0..L-1 into K consecutive groups whose sizes differ by at most one.

    The first groups are the smaller ones: low layers work at full resolution and bind the peak of memory.

    Raises:
        PartitionError: K < 1 or K > L.
    """
    require_modules(layers, modules)
    ends = [layers * (i + 1) // modules for i in range(modules)]
    return tuple(tuple(range(start, end)) for start, end in zip([0, *ends], ends, strict=False))


def require_modules(layers: int, modules: int) -> None:
    """Refuses numbers of local modules that cannot be.

    Raises:
        PartitionError: K is no whole number from 1 to L.
    """
    if not isinstance(modules, int) or isinstance(modules, bool) or not 1 <= modules <= layers:
        raise PartitionError(
            f"modules={modules!r} is not possible: the model has {layers} local layers",
            remedy=f"Give a whole number from 1 to {layers}, or leave modules out",
        )


def group_sizes(layers: int, sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Consecutive groups of the given numbers of layers.

    Raises:
        PartitionError: A size is no whole number above 0, or they do not sum to L.
    """
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not whole or sum(sizes) != layers:
        raise PartitionError(
            f"modules={list(sizes)!r} is not possible: the model has {layers} local layers",
            why=f"the sizes sum to {sum(sizes)}" if whole else "sizes are whole numbers above 0",
            remedy="Give the number of layers of each local module, or only how many modules",
        )
    ends = list(itertools.accumulate(sizes))
    return tuple(tuple(range(start, end)) for start, end in zip([0, *ends], ends, strict=False))


def group_by_cost(costs: Sequence[int], modules: int) -> tuple[tuple[int, ...], ...]:
    """Splits layers into K consecutive groups so that the dearest group is as cheap as can be.

    Of such groupings the one whose groups differ least, by the sum of squared costs.

    Args:
        costs: Of each layer.
        modules: K.

    Raises:
        PartitionError: K < 1 or K > L.
    """
    count = len(costs)
    require_modules(count, modules)
    sums = [0, *itertools.accumulate(costs)]
    most = _least_dearest(sums, modules)
    # found[j]: the least sum of squares of layers 0..j-1 in the groups so far, and where the last of them starts.
    found: list[dict[int, tuple[int, int]]] = [{0: (0, 0)}]
    for left in range(modules - 1, -1, -1):
        row: dict[int, tuple[int, int]] = {}
        for end in range(1, count - left + 1):
            costs_so_far = [
                (squares + (sums[end] - sums[start]) ** 2, start)
                for start, (squares, _) in found[-1].items()
                if start < end and sums[end] - sums[start] <= most
            ]
            if costs_so_far:
                row[end] = min(costs_so_far)
        found.append(row)
    ends = [count]
    for row in reversed(found[1:]):
        ends.insert(0, row[ends[0]][1])
    return tuple(tuple(range(start, end)) for start, end in itertools.pairwise(ends))


def _least_dearest(sums: Sequence[int], modules: int) -> int:
    """The cost of the dearest of K consecutive groups, where that is as low as can be; ``sums`` are running ones."""
    count = len(sums) - 1
    best = [0] + [sums[-1]] * count
    for used in range(1, modules + 1):
        best = [0] * used + [
            min(max(best[start], sums[end] - sums[start]) for start in range(used - 1, end))
            for end in range(used, count + 1)
        ]
    return best[count]


def join_last(layers: int, joined: int) -> tuple[tuple[int, ...], ...]:
    """One group a layer, but for the last ``joined`` layers, which form one; all of them if there are no more."""
    alone = max(layers - max(joined, 1), 0)
    return (*((i,) for i in range(alone)), tuple(range(alone, layers)))


def join_untrained(groups: Sequence[tuple[int, ...]], trained: Sequence[bool]) -> tuple[tuple[int, ...], ...]:
    """Joins every group in which no layer is trained to the one after it: a loss of its own would train nothing.

    Args:
        groups: Consecutive groups of layers; the last one stays as it is, but for what is joined to it.
        trained: For each layer whether it has trainable parameters.
    """
    found: list[tuple[int, ...]] = []
    waiting: tuple[int, ...] = ()
    for group in groups[:-1]:
        waiting += group
        if any(trained[layer] for layer in group):
            found.append(waiting)
            waiting = ()
    return (*found, waiting + groups[-1])
