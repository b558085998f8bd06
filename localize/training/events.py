"""Events that a run reports to its caller, and how Ctrl-C stops a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from torch import Tensor

from localize.training.checkpoint import Position
from localize.training.metrics import EpochMetrics


@dataclass(frozen=True, slots=True)
class Started:
    """A run begins, or continues at ``position``."""

    position: Position
    resumed: bool
    steps_per_epoch: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """One optimizer step was made."""

    epoch: int
    step: int
    steps_per_epoch: int
    images: int
    loss: Tensor
    """Loss of the last local module, a scalar tensor on the device: only a caller that reads its value waits for it."""


@dataclass(frozen=True, slots=True)
class EpochDone:
    """An epoch was trained and evaluated, and its files are written."""

    metrics: EpochMetrics


Event = Started | StepDone | EpochDone


class Interrupted(KeyboardInterrupt):
    """A run was stopped by SIGINT or SIGTERM between two steps, and saved.

    A ``KeyboardInterrupt``, so that a script that does not catch it ends, as it would without a handler.

    Attributes:
        position: Epoch and step that the run would have done next.
        checkpoint: File that the run is saved in.
    """

    def __init__(self, position: Position, checkpoint: Path) -> None:
        steps = f"{position.step} step{'' if position.step == 1 else 's'} of it"
        super().__init__(
            f"interrupted in epoch {position.epoch + 1}, after {steps}; resuming goes on from {checkpoint}"
        )
        self.position = position
        self.checkpoint = checkpoint


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into a flag that is read between steps; a second one interrupts at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield flag
        return
    previous: dict[signal.Signals, signal.Handlers | int | Callable[[int, FrameType | None], object] | None] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # a background job ignores Ctrl-C, and keeps ignoring it
            previous[number] = signal.signal(number, handle)
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
