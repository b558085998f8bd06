"""Short runs of the training loop: a small network, interruptions, and comparisons of results."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable

import torch
from torch import nn

from localize import LocalGraphModule, localize
from localize.training.events import Event, StepDone
from localize.training.recipe import Recipe
from localize.training.trainer import TrainingResult

RECIPE = Recipe(epochs=3, batch_size=16, lr=0.05)

STEPS = 4  # 60 images in batches of 15


def with_dropout() -> nn.Sequential:
    """Return a chain of convolutions that draws random numbers in training."""
    widths = (3, 4, 6, 8)
    layers = [
        nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.Dropout(0.3))
        for i, o in itertools.pairwise(widths)
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 10))


def localized(method: str = "auglocal", model: Callable[[], nn.Module] = with_dropout) -> LocalGraphModule:
    torch.manual_seed(1)
    return localize(model(), method, d=2, example_inputs=torch.zeros(2, 3, 8, 8), seed=1)


def interrupt_after(steps: int, number: int = signal.SIGINT) -> Callable[[Event], None]:
    """Return a listener that sends this process a signal after some steps, as Ctrl-C would."""
    left = [steps]

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)

    return listen


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def without_times(result: TrainingResult) -> list[dict[str, object]]:
    entries = [metrics.to_dict() for metrics in result.history]
    return [{k: v for k, v in entry.items() if k not in ("seconds", "images_per_second")} for entry in entries]
