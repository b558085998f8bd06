"""How many files one opens to follow a call: those that make what stages hand on, and those that define it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torchvision

from localize import Auxiliary, LocalGraphModule, Plan, localize
from localize.methods.base import Context, Method
from localize.runtime.local_module import LocalModule
from passes.adapt.copy_recipe import CopyRecipe
from passes.ir import Captured, Network, Partition, Shapes
from tests.tools.paths import ROOT

HANDED_ON = (
    Captured, Shapes, Partition, Network, Context, Method, CopyRecipe, Auxiliary, Plan, LocalModule, LocalGraphModule,
)  # fmt: skip
"""What the stages of localize() hand on, from the model's graph to the module that trains."""
MOST = 20


def file_of(path: str) -> str | None:
    """Return the path inside this repository; None for a file of the environment or of a test."""
    for package in ("passes", "localize"):
        folder = f"{ROOT / package}/"
        if path.startswith(folder):
            return f"{package}/{path.removeprefix(folder)}"
    return None


def main_line(run: Callable[[], object]) -> list[str]:
    """Files whose functions return what stages hand on, in the order of first returns; then files of its classes."""
    made: dict[str, None] = {}

    def profile(frame: FrameType, event: str, value: Any) -> None:
        if event == "return" and isinstance(value, HANDED_ON):
            name = file_of(frame.f_code.co_filename)
            if name is not None:
                made.setdefault(name)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(before)
    defined = [file_of(inspect.getfile(kind)) for kind in HANDED_ON]
    return list(dict.fromkeys([*made, *(name for name in defined if name is not None)]))


def test_localizing_a_model_is_followed_through_few_files() -> None:
    model, x = torchvision.models.resnet18(num_classes=10), torch.zeros(2, 3, 32, 32)
    files = main_line(lambda: localize(model, d=2, seed=0, example_inputs=x))
    assert {"localize/api.py", "passes/capture/capture.py", "localize/compiler/emit.py"} <= {*files}
    assert len(files) <= MOST, "\n".join(files)
