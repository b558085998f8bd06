"""Memory over the course of a training step, for charts: local modules next to backpropagation."""

from __future__ import annotations

from dataclasses import dataclass

from localize.memory.composed import ComposedRun, is_composable
from localize.memory.dry_run import DryRun, Recording
from localize.memory.forecast import Forecaster, forecast
from localize.memory.replicas import meta_copy
from localize.memory.settings import StepSettings
from localize.plan.memory_forecast import MemoryForecast, Phase
from localize.runtime.local_graph import LocalGraphModule
from passes.common.fake_tensors import device_of
from passes.errors import LocalizeError

POINTS = 1200
"""Most points of a course."""


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    """A phase of a local module within a step."""

    module: int
    """Index of the local module; the number of modules stands for the optimizer's update at the end."""
    phase: Phase
    start: int
    """Operations of the step before the phase."""
    stop: int
    """Operations of the step up to the end of the phase."""


@dataclass(frozen=True, slots=True)
class Course:
    """Bytes alive over the course of a step."""

    operations: int
    live: tuple[int, ...]
    """Most bytes alive in each of at most :data:`POINTS` equal parts of the step, by number of operations."""
    spans: tuple[PhaseSpan, ...]
    peak: int
    peak_at: int
    """Index of the first operation after which ``peak`` bytes are alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """Memory of a step by local learning, and by backpropagation."""

    forecast: MemoryForecast
    own: Course
    rival: Course | None
    """Course of a step of the user's model by backpropagation; None where it is not known."""
    why_not: str = ""
    """Reason why ``rival`` is None."""


def step_memory(local: LocalGraphModule, batch: int) -> StepMemory:
    """Return the memory of a step of a localized model as it is now, with SGD. The model is not changed.

    Args:
        local: The localized model, on any device, the meta device included.
        batch: Number of samples.

    Raises:
        PlanError: The step cannot be run on fake tensors.
    """
    settings = StepSettings()
    run = dry_run_of(local, settings)
    own_forecast, own = forecast(run, batch), course(run.record(batch))
    if local.plan.method == "bp":
        return StepMemory(forecast=own_forecast, own=own, rival=own)
    forecaster = local.plan.forecaster
    if not isinstance(forecaster, Forecaster):
        return StepMemory(forecast=own_forecast, own=own, rival=None, why_not="the plan knows no model")
    try:
        rival = forecaster.rival("bp", settings).record(batch)
    except LocalizeError as error:
        return StepMemory(forecast=own_forecast, own=own, rival=None, why_not=str(error))
    return StepMemory(forecast=own_forecast, own=own, rival=course(rival))


def dry_run_of(local: LocalGraphModule, settings: StepSettings) -> DryRun:
    """Return a dry run of a localized model as it is now: composed if possible, else of every module.

    Args:
        local: The localized model, on any device, the meta device included. It is not changed.
        settings: How the step is run.
    """
    if is_composable(local, settings):
        return ComposedRun(local, settings, device_of(local))
    twin = meta_copy(local)
    assert isinstance(twin, LocalGraphModule)
    return DryRun(twin, settings, device_of(local))


def course(recording: Recording) -> Course:
    """Reduce a recording to at most :data:`POINTS` points, each the maximum of what it stands for."""
    live = [event.live + recording.optimizer_state for event in recording.events]
    count = len(live)
    ends = [count * (i + 1) // min(POINTS, count) for i in range(min(POINTS, count))]
    parts = zip([0, *ends], ends, strict=False)
    peak = max(live)
    return Course(count, tuple(max(live[a:b]) for a, b in parts), tuple(_spans(recording)), peak, live.index(peak))


def _spans(recording: Recording) -> list[PhaseSpan]:
    events = recording.events
    starts = [i for i, event in enumerate(events) if event.operator is None]
    return [
        PhaseSpan(events[start].module, events[start].phase, start, stop)
        for start, stop in zip(starts, [*starts[1:], len(events)], strict=True)
    ]
