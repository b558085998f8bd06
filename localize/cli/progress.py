"""The progress of a run: a line per epoch, and a bar at a terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from localize.training.events import EpochDone, Event, Started, StepDone
from localize.training.metrics import EpochMetrics
from localize.training.recipe import Recipe

REFRESH = 0.2
"""Seconds between two readings of the loss: each reading waits for the device."""


class Display:
    """Shows the events of a run. In a pipe there are lines only: no bar and no colour."""

    def __init__(self, recipe: Recipe, console: Console | None = None, label: str = "") -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._epochs = recipe.epochs
        self._label = f"{label} " if label else ""
        self._last_reading = 0.0
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_event(self, event: Event) -> None:
        """Show an event of :func:`~localize.training.trainer.train`."""
        if isinstance(event, Started):
            done = event.position.epoch * event.steps_per_epoch + event.position.step
            self._task = self._progress.add_task("starting", total=self._epochs * event.steps_per_epoch, completed=done)
            if event.position.epoch >= self._epochs:
                self._console.print(f"{self._label}the run was complete already")
            elif event.resumed:
                self._console.print(
                    f"{self._label}resumed in epoch {event.position.epoch + 1}, step {event.position.step + 1}"
                )
        elif isinstance(event, StepDone):
            self._on_step(event)
        elif isinstance(event, EpochDone):
            self._console.print(self._label + epoch_line(event.metrics, self._epochs))

    def _on_step(self, event: StepDone) -> None:
        if self._task is None or self._progress.disable:
            return
        self._progress.advance(self._task)
        now = time.monotonic()
        if now - self._last_reading >= REFRESH:
            self._last_reading = now
            text = f"{self._label}epoch {event.epoch + 1}/{self._epochs}  loss {float(event.loss):.3f}"
            self._progress.update(self._task, description=text)


def epoch_line(metrics: EpochMetrics, epochs: int) -> str:
    """Describe an epoch in one line."""
    width = len(str(epochs))
    return (
        f"epoch {metrics.epoch:>{width}}/{epochs}  loss {metrics.train_loss:.4f}  "
        f"train {100 * metrics.train_accuracy:6.2f} %  test {100 * metrics.test_accuracy:6.2f} %  "
        f"lr {metrics.lr:.4g}  {metrics.seconds:.1f} s  {metrics.images_per_second:,.0f} images/s"
    )
