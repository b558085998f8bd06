"""Settings of a forecast step: types of numbers, optimizer, schedule of updates, target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from localize.plan.memory_forecast import Schedule
from localize.runtime.named_optimizers import OPTIMIZERS, build_named
from localize.runtime.options import OptionError
from passes.errors import PlanError

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """How a training step is run.

    Raises:
        PlanError: ``dtype`` or ``amp`` is not a floating-point type, or ``step`` is neither "batch" nor "module".
        OptionError: ``optimizer`` is a string and not a known name.
    """

    dtype: torch.dtype | str | None = None
    """Type of parameters, buffers and images; None leaves them as they are."""
    amp: torch.dtype | str | None = None
    """Autocast type of the forward passes, one region for each local module; None for no autocast."""
    optimizer: str | MakeOptimizer = "sgd"
    """A key of :data:`localize.runtime.named_optimizers.OPTIMIZERS`, or a function from parameters to an optimizer."""
    step: Schedule = "batch"
    """When parameters are updated: at the end of the step, or each local module's right after its own backward."""
    target: Callable[[int], object] | None = None
    """Function from the batch size to a target for the criterion. By default class indices, or zeros of the logits'
    shape where the criterion is a binary cross-entropy."""

    def __post_init__(self) -> None:
        for name in ("dtype", "amp"):
            object.__setattr__(self, name, _floating(getattr(self, name), name))
        if self.step not in ("batch", "module"):
            raise PlanError(f"step must be 'batch' or 'module', got {self.step!r}")
        if isinstance(self.optimizer, str) and self.optimizer not in OPTIMIZERS:
            raise OptionError(f"unknown optimizer {self.optimizer!r}", remedy=f"Known: {', '.join(OPTIMIZERS)}")

    @property
    def optimizer_name(self) -> str:
        """Name of the optimizer."""
        made = self.optimizer
        return made if isinstance(made, str) else str(getattr(made, "__qualname__", type(made).__name__))

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """Build the optimizer of these parameters."""
        if isinstance(self.optimizer, str):
            return build_named(self.optimizer, parameters)
        return self.optimizer(parameters)


def _floating(given: torch.dtype | str | None, name: str) -> torch.dtype | None:
    if given is None:
        return None
    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise PlanError(
            f"{name} must be a floating-point type, got {given!r}", remedy="Give float32, bfloat16 or float16"
        )
    return dtype
