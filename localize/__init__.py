"""localize: a compiler for supervised local learning. Any vision model in, gradient-isolated local modules out.

Names are found on first use, so that the command line answers for help and completion without loading torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import passes as _passes

if getattr(_passes, "OWNER", None) != "localize":
    raise ImportError(
        f"localize needs its own package 'passes', and {getattr(_passes, '__file__', None) or list(_passes.__path__)} "
        "shadows it. Rename or remove that one, or run Python from another folder."
    )

if TYPE_CHECKING:
    from localize.api import localize
    from localize.methods import METHODS
    from localize.obstacles import Obstacle, check
    from localize.plan.memory_budget import BudgetError, MemoryBudget
    from localize.plan.memory_forecast import MemoryForecast
    from localize.plan.plan import Auxiliary, AuxiliaryBlock, Cascade, LocalModulePlan, LossTerm, Plan
    from localize.plan.prediction import Prediction
    from localize.runtime.exporting import ExportError
    from localize.runtime.local_graph import LocalGraphModule
    from localize.runtime.local_module import LocalModule, LocalOutput
    from localize.runtime.options import Runtime
    from passes.capture.leaf_policy import LeafPolicy
    from passes.errors import (
        AdaptError,
        CaptureError,
        InputError,
        LocalizeError,
        MethodError,
        OutOfMemoryError,
        PartitionError,
        PlanError,
        SplitError,
    )
    from passes.ir import Layer, TensorSpec

__version__: str

__all__ = [
    "METHODS",
    "AdaptError",
    "Auxiliary",
    "AuxiliaryBlock",
    "BudgetError",
    "CaptureError",
    "Cascade",
    "ExportError",
    "InputError",
    "Layer",
    "LeafPolicy",
    "LocalGraphModule",
    "LocalModule",
    "LocalModulePlan",
    "LocalOutput",
    "LocalizeError",
    "LossTerm",
    "MemoryBudget",
    "MemoryForecast",
    "MethodError",
    "Obstacle",
    "OutOfMemoryError",
    "PartitionError",
    "Plan",
    "PlanError",
    "Prediction",
    "Runtime",
    "SplitError",
    "TensorSpec",
    "check",
    "localize",
]

_HOMES = {
    "localize.api": ("localize",),
    "localize.plan.memory_budget": (
        "BudgetError",
        "MemoryBudget",
    ),
    "localize.runtime.exporting": ("ExportError",),
    "localize.plan.memory_forecast": ("MemoryForecast",),
    "localize.runtime.local_graph": ("LocalGraphModule",),
    "localize.runtime.local_module": (
        "LocalModule",
        "LocalOutput",
    ),
    "localize.methods": ("METHODS",),
    "localize.obstacles": (
        "Obstacle",
        "check",
    ),
    "localize.plan.plan": (
        "Auxiliary",
        "AuxiliaryBlock",
        "Cascade",
        "LocalModulePlan",
        "LossTerm",
        "Plan",
    ),
    "localize.plan.prediction": ("Prediction",),
    "localize.runtime.options": ("Runtime",),
    "passes.errors": (
        "AdaptError",
        "CaptureError",
        "InputError",
        "LocalizeError",
        "MethodError",
        "OutOfMemoryError",
        "PartitionError",
        "PlanError",
        "SplitError",
    ),
    "passes.ir": (
        "Layer",
        "TensorSpec",
    ),
    "passes.capture.leaf_policy": ("LeafPolicy",),
}
"""Where each public name is defined."""


def _find(name: str) -> Any:
    """Find a name on its first use (PEP 562): a public one, the version, or a room of this package."""
    if name == "__version__":
        value: Any = importlib.import_module("localize.version").own_version()
    elif home := next((home for home, names in _HOMES.items() if name in names), None):
        value = getattr(importlib.import_module(home), name)
    elif name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    else:
        return importlib.import_module(f"{__name__}.{name}")  # which sets the attribute by itself
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


if not TYPE_CHECKING:  # a checker that saw it would take any name for one of the package's
    __getattr__ = _find
