"""How a training step is run: types of numbers, optimizer, schedule of updates, target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from localize.plan.memory_forecast import Schedule
from localize.runtime.optimizers import OPTIMIZERS, build_named
from localize.runtime.options import OptionError
from passes.errors import PlanError

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """How a training step is run.

    Raises:
        PlanError: A dtype or a schedule that is none.
        OptionError: The optimizer is unknown.
    """

    dtype: torch.dtype | str | None = None
    """Of parameters, buffers and images; None leaves them as they are."""
    amp: torch.dtype | str | None = None
    """Of autocast around forward passes, a region a local module; None without."""
    optimizer: str | MakeOptimizer = "sgd"
    """A name of :data:`localize.runtime.optimizers.OPTIMIZERS`, or a function from parameters to an optimizer."""
    step: Schedule = "batch"
    target: Callable[[int], Any] | None = None
    """From the batch size to what the criterion takes; by default class indices, or zeros of the logits' shape where
    the criterion is a binary cross-entropy."""

    def __post_init__(self) -> None:
        for name in ("dtype", "amp"):
            object.__setattr__(self, name, _floating(getattr(self, name), name))
        if self.step not in ("batch", "module"):
            raise PlanError(f"unknown step {self.step!r}", remedy="Give step='batch' or step='module'")
        if isinstance(self.optimizer, str) and self.optimizer not in OPTIMIZERS:
            raise OptionError(f"unknown optimizer {self.optimizer!r}", remedy=f"Known: {', '.join(OPTIMIZERS)}")

    @property
    def optimizer_name(self) -> str:
        """The optimizer in a word."""
        made = self.optimizer
        return made if isinstance(made, str) else str(getattr(made, "__qualname__", type(made).__name__))

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimizer of these parameters."""
        if isinstance(self.optimizer, str):
            return build_named(self.optimizer, parameters)
        return self.optimizer(parameters)


def _floating(given: Any, name: str) -> torch.dtype | None:
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if found is None and given is None:
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise PlanError(
            f"{name}={given!r} is no type of floating-point numbers", remedy="Give float32, bfloat16 or float16"
        )
    return found
