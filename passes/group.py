"""Grouping: L local layers -> K local modules. Arithmetic on a list."""

from __future__ import annotations

from collections.abc import Sequence

from passes.errors import PartitionError


def group_evenly(layers: int, modules: int) -> tuple[tuple[int, ...], ...]:
    """Splits layers 0..L-1 into K consecutive groups whose sizes differ by at most one.

    The first groups are the smaller ones: low layers work at full resolution and bind the peak of memory.

    Raises:
        PartitionError: K < 1 or K > L.
    """
    if not isinstance(modules, int) or isinstance(modules, bool) or not 1 <= modules <= layers:
        raise PartitionError(
            f"modules={modules!r} is not possible: the model has {layers} local layers",
            remedy=f"Give a whole number from 1 to {layers}, or leave modules out",
        )
    ends = [layers * (i + 1) // modules for i in range(modules)]
    return tuple(tuple(range(start, end)) for start, end in zip([0, *ends], ends, strict=False))


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
