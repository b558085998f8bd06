"""The course of memory over a training step, fit for a chart: local modules beside backpropagation."""

from __future__ import annotations

from dataclasses import dataclass

from localize.memory.composed import dry_run_of
from localize.memory.dry_run import Recording
from localize.memory.forecast import Forecaster, forecast
from localize.memory.settings import StepSettings
from localize.plan.memory_forecast import MemoryForecast, Phase
from localize.runtime.local_graph import LocalGraphModule
from passes.errors import LocalizeError

POINTS = 1200
"""Most points of a course."""


@dataclass(frozen=True, slots=True)
class Span:
    """A phase of a local module within a step; one more than the last module is the update at the end."""

    module: int
    phase: Phase
    start: int
    """Number of operations before it."""
    stop: int
    """Number of operations to its end."""


@dataclass(frozen=True, slots=True)
class Course:
    """Bytes alive over a step."""

    operations: int
    live: tuple[int, ...]
    """The most within each of equal parts of the step, by number of operations; no more than :data:`POINTS`."""
    spans: tuple[Span, ...]
    peak: int
    peak_at: int
    """Number of operations before the first one behind which that many bytes are alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """What a step does to memory, by local learning and by backpropagation."""

    forecast: MemoryForecast
    own: Course
    rival: Course | None
    """The same of backpropagation of the user's model; None where that is not known."""
    why_not: str = ""
    """Why it is not."""


def step_memory(local: LocalGraphModule, batch: int) -> StepMemory:
    """The course of a step of a localized model as it is now, with SGD; the model is left alone.

    Args:
        local: Any device will do, the meta device too.
        batch: Samples.

    Raises:
        PlanError: The step cannot be run on fake tensors.
    """
    settings = StepSettings()
    run = dry_run_of(local, settings)
    found, own = forecast(run, batch), course(run.record(batch))
    if local.plan.method == "bp":
        return StepMemory(forecast=found, own=own, rival=own)
    forecaster = local.plan.forecaster
    if not isinstance(forecaster, Forecaster):
        return StepMemory(forecast=found, own=own, rival=None, why_not="the plan knows no model")
    try:
        rival = forecaster.rival("bp", settings).record(batch)
    except LocalizeError as error:
        return StepMemory(forecast=found, own=own, rival=None, why_not=str(error))
    return StepMemory(forecast=found, own=own, rival=course(rival))


def course(recording: Recording) -> Course:
    """A recording in fewer points, none of which is lower than what it stands for."""
    live = [event.live + recording.optimizer_state for event in recording.events]
    count = len(live)
    ends = [count * (i + 1) // min(POINTS, count) for i in range(min(POINTS, count))]
    parts = zip([0, *ends], ends, strict=False)
    peak = max(live)
    return Course(count, tuple(max(live[a:b]) for a, b in parts), tuple(_spans(recording)), peak, live.index(peak))


def _spans(recording: Recording) -> list[Span]:
    events = recording.events
    starts = [i for i, event in enumerate(events) if event.operator is None]
    return [
        Span(events[start].module, events[start].phase, start, stop)
        for start, stop in zip(starts, [*starts[1:], len(events)], strict=True)
    ]
