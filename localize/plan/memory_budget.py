"""A memory budget: how much a training step may take, and what may be done to keep to it. No tensors in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from localize.plan.memory_forecast import Schedule
from localize.text import parse_bytes
from passes.errors import LocalizeError, MethodError

Means = Literal["recompute", "step", "depth", "merge"]
"""What may be done to keep to a budget; see :class:`MemoryBudget`."""


class BudgetError(LocalizeError):
    """A memory budget that cannot be met."""


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """How much memory a training step may take, and what may be done to keep to it.

    Raises:
        LocalizeError: ``size`` is not a size of memory.
        MethodError: Another field is out of its range.
    """

    size: int | str
    """Bytes, or a size such as ``"8GB"`` (8e9 bytes) or ``"8GiB"``. Of tensors: what kernels take for themselves, and
    what an allocator wastes, comes on top."""
    batch_size: int
    """Samples in a step."""
    may: Sequence[Means] = ("recompute",)
    """Means, tried in this order, whatever the order here. ``"recompute"``: activations are computed anew in the
    backward pass, in the local modules that are over the budget; the step takes longer, results are the same bit for
    bit. ``"step"``: each local module is updated, and its gradients are freed, right after its backward; same results,
    but the training loop must do it (``plan.budget.step`` is then ``"module"``). ``"depth"``: auxiliary networks with
    fewer layers, for methods that have a depth d; other results. ``"merge"``: where there is room, several modules
    become one; other results, nearer to backpropagation's, with fewer auxiliary networks."""
    optimizer: str = "sgd"
    """Whose state is counted: ``"sgd"`` (with momentum), ``"adam"`` or ``"adamw"``."""
    amp: str | None = None
    """Type of autocast in forward passes: ``"bfloat16"``, ``"float16"`` or none."""
    step: Schedule = "batch"
    """``"module"`` where the training loop updates local module by local module in any case."""

    def __post_init__(self) -> None:
        parse_bytes(self.size)
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise MethodError(f"batch_size must be an integer >= 1, got {self.batch_size!r}")
        object.__setattr__(self, "may", (self.may,) if isinstance(self.may, str) else tuple(self.may))
        for means in self.may:
            if means not in get_args(Means):
                known = ", ".join(map(repr, get_args(Means)))
                raise MethodError(f"may must hold means among {known}, got {means!r}")

    @property
    def bytes(self) -> int:
        """Of the size."""
        return parse_bytes(self.size)


def read_budget(budget: int | str | MemoryBudget | None, batch_size: int | None) -> MemoryBudget | None:
    """What the user gave as ``memory_budget`` and ``batch_size``.

    Raises:
        LocalizeError: ``size`` is not a size of memory.
        MethodError: One is given without the other, or out of its range.
    """
    if isinstance(budget, MemoryBudget):
        if batch_size is not None and batch_size != budget.batch_size:
            raise MethodError(f"batch_size={batch_size}, and the memory budget has {budget.batch_size}")
        return budget
    if budget is None:
        if batch_size is not None:
            raise MethodError("batch_size has no effect without memory_budget", remedy="Leave it out")
        return None
    if batch_size is None:
        raise MethodError(
            "memory_budget needs a batch size", remedy='Give it: localize(model, memory_budget="8GB", batch_size=256)'
        )
    return MemoryBudget(budget, batch_size)
