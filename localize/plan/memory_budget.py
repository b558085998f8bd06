"""A memory budget: the most that a training step may take, and the changes allowed to achieve it. No tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from localize.plan.memory_forecast import Schedule
from localize.text import parse_bytes
from passes.errors import LocalizeError, MethodError

Means = Literal["recompute", "step", "depth", "merge"]
"""A change that may keep a step within a budget; see :class:`MemoryBudget`."""


class BudgetError(LocalizeError):
    """A memory budget that cannot be met."""


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The most memory that a training step may take, and the changes that are allowed to achieve it.

    Raises:
        LocalizeError: ``size`` is not a size of memory.
        MethodError: Another field is out of its range.
    """

    size: int | str
    """Bytes, or a size such as ``"8GB"`` (8e9 bytes) or ``"8GiB"``. Counts tensors: workspaces of kernels and waste of
    the allocator come on top."""
    batch_size: int
    """Samples in a training step."""
    may: Sequence[Means] = ("recompute",)
    """Allowed changes; they are tried in the order of this list, whatever order is given. ``"recompute"``: the backward
    pass computes activations again, in local modules that are over the budget; the step takes longer, results are the
    same bit for bit. ``"step"``: each local module is updated, and its gradients are freed, right after its backward;
    same results, but the training loop must do it (``plan.budget.step`` is then ``"module"``). ``"depth"``: auxiliary
    networks get fewer layers, in methods that have a depth d; other results. ``"merge"``: where there is room, several
    modules become one; other results, closer to backpropagation, with fewer auxiliary networks."""
    optimizer: str = "sgd"
    """Optimizer whose state is counted: ``"sgd"`` (with momentum), ``"adam"`` or ``"adamw"``."""
    amp: str | None = None
    """Type of autocast in forward passes: ``"bfloat16"``, ``"float16"`` or None."""
    step: Schedule = "batch"
    """``"module"`` for training loops that update each local module right after its backward."""

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
        """The budget in bytes."""
        return parse_bytes(self.size)


def read_budget(budget: int | str | MemoryBudget | None, batch_size: int | None) -> MemoryBudget | None:
    """Read the user's ``memory_budget`` and ``batch_size``; return None without a budget.

    Raises:
        LocalizeError: ``size`` is not a size of memory.
        MethodError: ``batch_size`` or ``memory_budget`` is given without the other, the two disagree, or one is out of
            its range.
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
