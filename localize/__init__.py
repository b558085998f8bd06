"""localize: a compiler for supervised local learning. Any vision model in, gradient-isolated local modules out."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

import passes as _passes

if getattr(_passes, "OWNER", None) != "localize":
    raise ImportError(
        f"localize needs its own package 'passes', and {getattr(_passes, '__file__', None) or list(_passes.__path__)} "
        "shadows it. Rename or remove that one, or run Python from another folder."
    )

from localize.api import localize
from localize.budget import BudgetError, MemoryBudget
from localize.forecast import MemoryForecast
from localize.local_graph import LocalGraphModule
from localize.local_module import LocalModule, LocalOutput
from localize.methods import METHODS
from localize.obstacles import Obstacle, check
from localize.plan import Auxiliary, AuxiliaryBlock, Cascade, LocalModulePlan, LossTerm, Plan
from localize.prediction import Prediction
from localize.runtime.options import Runtime
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
from passes.leaves import LeafPolicy

try:
    __version__ = _version("localize")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

__all__ = [
    "METHODS",
    "AdaptError",
    "Auxiliary",
    "AuxiliaryBlock",
    "BudgetError",
    "CaptureError",
    "Cascade",
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
