"""Forecast the memory of a training step, and the largest batch for a budget, without running on real tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from localize.compiler.emit import emit
from localize.compiler.planning import make_plan
from localize.memory.dry_run import DryRun, Recording
from localize.memory.settings import StepSettings
from localize.memory.timeline import Event
from localize.methods import bp
from localize.methods.base import ChosenMethod, Compiled
from localize.methods.networks.losses import Criteria
from localize.plan.memory_budget import MemoryBudget
from localize.plan.memory_forecast import MemoryForecast, ModuleMemory, Moment, Schedule
from localize.plan.plan import Plan
from passes.common.fake_tensors import device_of, on_meta
from passes.errors import PlanError

RIVALS = {rule.name: ChosenMethod(rule, bp.Options()) for rule in (bp.METHOD, bp.CHECKPOINT)}
"""Methods that a forecast shows next to a plan's own, by name."""


def _forget() -> None:
    """Stand for a forecaster in pickles."""


class Forecaster:
    """Forecasts steps of plans of one compiled model, and keeps the forecasts.

    A forecaster holds the user's model and not what :func:`localize.localize` returned, which may be deleted.

    Args:
        compiled: What the localized model was compiled from.
    """

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self._known: dict[Hashable, MemoryForecast] = {}
        self._runs: dict[Hashable, DryRun] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> None:
        """Leave the model out of copies: a copied plan has no forecaster."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """Leave the model out of pickles: an unpickled plan has no forecaster."""
        return _forget, ()

    def forecast(self, plan: Plan, batch_size: int, rivals: bool, settings: Mapping[str, Any]) -> MemoryForecast:
        """Forecast a training step; see :meth:`localize.Plan.memory`.

        Raises:
            PlanError: The step cannot be run on fake tensors, or a setting is out of range.
            OptionError: The optimizer is unknown.
        """
        chosen = StepSettings(**settings)
        key = (plan.modules, batch_size, rivals, chosen, self._form())
        if key not in self._known:
            runs = [self.dry_run(plan, chosen), *(self.rival(name, chosen) for name in (RIVALS if rivals else ()))]
            own, *others = (partial(forecast, run, batch_size) for run in runs)
            self._known[key] = own(tuple(other() for other in others))
        return self._known[key]

    def dry_run(self, plan: Plan, settings: StepSettings) -> DryRun:
        """Return the dry run of a plan, which serves every batch size."""
        key = (plan.modules, settings, self._form())
        if key not in self._runs:
            self._runs[key] = self._emitted(plan, self.compiled, settings)
        return self._runs[key]

    def rival(self, name: str, settings: StepSettings) -> DryRun:
        """Return the dry run of the user's model by another method, a key of :data:`RIVALS`."""
        key = (name, settings, self._form())
        if key not in self._runs:
            compiled = self.compiled
            if compiled.original is not None:
                compiled = compiled.on(compiled.original)
            context = dataclasses.replace(compiled.context, groups=None)
            compiled = dataclasses.replace(compiled, method=RIVALS[name], context=context)
            plan = make_plan(context, compiled.method, None)
            self._runs[key] = self._emitted(plan, compiled, settings)
        return self._runs[key]

    def _form(self) -> Hashable:
        """Return the properties of the model that may change after it was localized and that matter to memory."""
        model = self.compiled.network.captured.model
        return tuple((p.dtype, p.requires_grad) for p in model.parameters())

    def _emitted(self, plan: Plan, compiled: Compiled, settings: StepSettings) -> DryRun:
        model, criteria = compiled.network.captured.model, compiled.criteria
        # over() replaces the rest of the context; nothing of the user's model is to stay with forecasts.
        context = dataclasses.replace(compiled.context, merging=lambda groups: [])
        memo = on_meta(model, criteria.output, criteria.local)
        with torch.random.fork_rng(devices=[]):
            primary, output = copy.deepcopy(model, memo), copy.deepcopy(criteria.output, memo)
            lean = dataclasses.replace(
                compiled, context=context, criteria=Criteria(copy.deepcopy(criteria.local, memo)), original=None
            )
            # A plan that named its forecaster would hold the model, and this dry run.
            twin = emit(dataclasses.replace(plan, forecaster=None), lean.over(primary, output))
        return DryRun(twin, settings, device_of(model))


def forecast(dry_run: DryRun, batch_size: int, rivals: tuple[MemoryForecast, ...] = ()) -> MemoryForecast:
    """Forecast a step of a dry run at one batch size.

    Raises:
        PlanError: ``batch_size`` is not an integer >= 1, or the step cannot be run on fake tensors.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise PlanError(f"batch_size must be an integer >= 1, got {batch_size!r}")
    recording = dry_run.record(batch_size)
    plan, settings = dry_run.replica.plan, dry_run.settings
    modules, update = _modules(plan, recording)
    return MemoryForecast(
        model=plan.model,
        method=plan.method,
        batch_size=batch_size,
        input=str(plan.input),
        dtype=_name(dry_run.dtype),
        amp=None if settings.amp is None else _name(settings.amp),
        optimizer=settings.optimizer_name,
        step=settings.step,
        parameters=recording.parameters,
        buffers=recording.buffers,
        optimizer_state=recording.optimizer_state,
        batch=recording.inputs,
        gradients=recording.gradients,
        modules=modules,
        update=update,
        rivals=rivals,
        search=partial(largest_batch, dry_run, batch_size),
    )


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _modules(plan: Plan, recording: Recording) -> tuple[tuple[ModuleMemory, ...], Moment | None]:
    """Return the peak of each local module, and that of the update at the end."""
    peaks: dict[int, Event] = {}
    starts: dict[tuple[int, str], int] = {}
    for event in recording.events:
        if event.operator is None:
            starts[event.module, event.phase] = event.live
        if event.module not in peaks or event.live > peaks[event.module].live:
            peaks[event.module] = event
    moments = {k: recording.timeline.moment(event, recording.optimizer_state) for k, event in peaks.items()}
    modules = tuple(
        ModuleMemory(
            module.index,
            module.name,
            starts[module.index, "backward"] - starts[module.index, "forward"],
            moments[module.index],
        )
        for module in plan.modules
    )
    return modules, moments.get(len(plan.modules))


class Curve:
    """Live bytes after every operation as a polynomial of the batch size, fitted to recordings of the same operations.

    A step runs the same operations at every batch size, and nearly every tensor has one batch dimension or none, so two
    recordings determine a line. Similarities between all pairs of samples need three, for a parabola.

    Args:
        recordings: Two or three recordings, at batch sizes b, 2b, 3b.

    Raises:
        PlanError: The recordings ran different operations, since the model branches on the batch size.
    """

    def __init__(self, *recordings: Recording) -> None:
        self._batch = recordings[0].batch
        operators = recordings[0].operators()
        if any(recording.operators() != operators for recording in recordings):
            raise PlanError("what a training step runs depends on the batch size")
        totals = [[event.live + r.optimizer_state for event in r.events] for r in recordings]
        self._differences = {_differences(values) for values in zip(*totals, strict=True)}

    def peak(self, batch: int) -> int:
        """Return the most bytes alive in a step of this batch size."""
        t = (batch - self._batch) / self._batch
        factors = (1.0, t, t * (t - 1) / 2)
        return max(round(sum(f * d for f, d in zip(factors, own, strict=False))) for own in self._differences)

    def largest(self, budget: int) -> int:
        """Return the largest batch size whose peak is within the budget; 0 if there is none."""
        return _last_that(lambda batch: self.peak(batch) <= budget)


def _differences(values: tuple[int, ...]) -> tuple[int, ...]:
    """Return Newton's forward differences of equidistant values."""
    differences = []
    while values:
        differences.append(values[0])
        values = tuple(b - a for a, b in pairwise(values))
    return tuple(differences)


def largest_batch(dry_run: DryRun, start: int, budget: int) -> int:
    """Return the largest batch size whose step takes no more than ``budget`` bytes; 0 if there is none.

    Recordings at ``start`` and at twice that make a curve, and the batch size that the curve gives is recorded too. If
    that recording is not as predicted, a third one makes the curve a parabola; if that fails too, the batch size is
    found by bisection.
    """

    def fits(batch: int) -> bool:
        try:
            return dry_run.record(batch).peak() <= budget
        except PlanError:
            if batch > 1:
                raise
            return False  # batch norm in train mode refuses one value a channel

    for count in (2, 3):
        try:
            curve = Curve(*(dry_run.record(start * (i + 1)) for i in range(count)))
        except PlanError:
            break
        guess = curve.largest(budget)
        if guess <= 1:
            return guess if guess and fits(guess) else 0
        if dry_run.record(guess).peak() == curve.peak(guess):
            return guess
    return _last_that(fits)


def _last_that(fits: Callable[[int], bool]) -> int:
    """Return the largest integer that fits, given that all smaller ones fit (but perhaps 1); 0 if 2 does not."""
    high = 2
    while fits(high):
        high *= 2
    low = high // 2
    if low == 1:
        return int(fits(1))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def forecast_of(compiled: Compiled, plan: Plan, step: Schedule, *, budget: MemoryBudget) -> MemoryForecast:
    """Forecast a step of a plan with the settings of a memory budget."""
    settings = {"dtype": None, "amp": budget.amp, "optimizer": budget.optimizer, "step": step, "target": None}
    return Forecaster(compiled).forecast(plan, budget.batch_size, False, settings)
