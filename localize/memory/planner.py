"""The memory planner: recomputes, merges or makes shallower until a step keeps to a memory budget.

Every decision rests on a forecast of a whole step (:mod:`localize.memory.forecast`), none on a rule of thumb: the plan
that is returned was forecast to keep to the budget.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple, get_args

from localize.compiler.planning import with_recompute
from localize.methods.base import ChosenMethod, Compiled
from localize.plan.memory_budget import BudgetError, Means, MemoryBudget
from localize.plan.memory_forecast import MemoryForecast, Schedule
from localize.plan.plan import Plan
from localize.plan.records import Budgeted, LocalModulePlan, Recompute
from localize.text import format_bytes, format_numbered

WAYS: tuple[tuple[Recompute, ...], ...] = (
    ("norms",),
    ("layers",),
    ("layers", "norms"),
    ("blocks",),
    ("layers", "blocks"),
)
"""What a local module may recompute, roughly from the cheapest in time to the leanest in memory."""

FILLS = (2.0, 1.5, 1.2, 1.0, 0.9, 0.8)
"""Shares of the budget that merged modules may fill by estimate, tried in order until the forecast keeps to the budget.
The estimate is too high, since it counts auxiliary networks that merging removes."""


class Candidate(NamedTuple):
    """A plan, and what it was made of."""

    compiled: Compiled
    plan: Plan

    @property
    def method(self) -> ChosenMethod:
        """The method and its options."""
        return self.compiled.method


class Fitted(NamedTuple):
    """A plan, and the forecast of a step of it."""

    candidate: Candidate
    forecast: MemoryForecast


Forecasts = Callable[[Candidate, Schedule], MemoryForecast]
Replans = Callable[[ChosenMethod, Sequence[int] | None], Candidate]
"""From a method with its options, and the number of layers of each local module or None for the method's choice."""


def fit(first: Candidate, budget: MemoryBudget, forecasts: Forecasts, replans: Replans | None) -> Candidate:
    """Change a plan, as far as needed and allowed, so that a step keeps to the budget.

    Args:
        first: The plan that the user asked for.
        budget: The limit, and the means that are allowed.
        forecasts: Function that forecasts a step.
        replans: Function that plans with other options or local modules; None where the primary network depends on
            them.

    Returns:
        A plan whose ``budget`` field says what was done.

    Raises:
        BudgetError: The means that are allowed do not suffice.
    """
    return _Planner(first, budget, forecasts, replans).fit()


class _Planner:
    def __init__(self, first: Candidate, budget: MemoryBudget, forecasts: Forecasts, replans: Replans | None) -> None:
        self.first, self.budget, self.replans = first, budget, replans
        self.limit = budget.bytes
        self._make = forecasts
        self._known: dict[Hashable, MemoryForecast] = {}

    def forecasts(self, candidate: Candidate, schedule: Schedule) -> MemoryForecast:
        """Forecast a step, once for each plan and schedule."""
        key = candidate.plan.modules, schedule
        if key not in self._known:
            self._known[key] = self._make(candidate, schedule)
        return self._known[key]

    def fit(self) -> Candidate:
        before = self.forecasts(self.first, self.budget.step)
        leanest = self._tried(self.budget.may, Fitted(self.first, before))
        if leanest.forecast.peak > self.limit:
            raise self._impossible(leanest)
        if "merge" in self.budget.may and self.replans is not None:
            leanest = self._merged(leanest, self.replans) or leanest
        return self._recorded(leanest, before)

    def _tried(self, may: Sequence[Means], asked: Fitted) -> Fitted:
        """Return the first attempt that keeps to the budget with these means, else the leanest."""
        leanest = asked
        for attempt in self._attempts(may, asked):
            if attempt.forecast.peak < leanest.forecast.peak:
                leanest = attempt
            if leanest.forecast.peak <= self.limit:
                break
        return leanest

    def _attempts(self, may: Sequence[Means], asked: Fitted) -> Iterator[Fitted]:
        """Yield ever leaner plans, beginning with those that leave results as they are."""
        yield asked
        schedules: list[Schedule] = [self.budget.step]
        if "step" in may and self.budget.step == "batch":
            schedules.append("module")
        method = asked.candidate.method
        depths = range(method.depth - 1, 0, -1) if "depth" in may and self.replans is not None else ()
        for depth in (None, *depths):
            candidate = asked.candidate
            if depth is not None:
                assert self.replans is not None
                candidate = self.replans(method.at_depth(depth), None)
            for schedule in schedules:
                plain = Fitted(candidate, self.forecasts(candidate, schedule))
                yield plain
                if "recompute" in may:
                    yield self._recomputing(plain)

    def _recomputing(self, plain: Fitted) -> Fitted:
        """Recompute activations in the modules that are over the budget, each in the cheapest way that suffices."""
        candidate, forecast = plain
        plan = candidate.plan
        over = [m.index for m in forecast.modules if m.peak > self.limit]
        peaks: dict[int, dict[tuple[Recompute, ...], int]] = {k: {} for k in over}
        for way in WAYS:
            pending = [k for k in over if min(peaks[k].values(), default=self.limit + 1) > self.limit]
            if not pending:
                break
            tried = self._with(candidate, _throughout(plan, {k: way for k in over}))
            peaks_now = self.forecasts(tried, forecast.step).modules
            for k in over:
                peaks[k][tried.plan.modules[k].recompute] = peaks_now[k].peak
        chosen = {k: self._cheapest(plan, plan.modules[k], peaks[k]) for k in over}
        lean = self._with(candidate, _throughout(plan, chosen))
        return Fitted(lean, self.forecasts(lean, forecast.step)) if over else plain

    def _cheapest(
        self, plan: Plan, module: LocalModulePlan, peaks: dict[tuple[Recompute, ...], int]
    ) -> tuple[Recompute, ...]:
        fitting = [way for way, peak in peaks.items() if peak <= self.limit]
        if not fitting:
            return min(peaks, key=peaks.__getitem__)
        return min(fitting, key=lambda way: (_repeated(plan, module, way), peaks[way]))

    def _with(self, candidate: Candidate, ways: dict[int, tuple[Recompute, ...]]) -> Candidate:
        modules = candidate.plan.modules
        parts = [_joined(module.recompute, ways.get(module.index, ())) for module in modules]
        return candidate._replace(plan=with_recompute(candidate.plan, parts))

    def _merged(self, fitted: Fitted, replans: Replans) -> Fitted | None:
        """Merge local modules into fewer, as large as the budget allows."""
        candidate, forecast = fitted
        sizes = [len(module.layers) for module in candidate.plan.modules]
        if not all(sizes):
            return None
        tried: list[list[int]] = []
        for part in FILLS:
            groups = _together(candidate.plan, forecast, int(self.limit * part))
            if len(groups) == len(sizes):
                return None
            if groups == tried:
                continue
            tried = groups
            merged = replans(candidate.method, [sum(sizes[k] for k in group) for group in groups])
            kept = [candidate.plan.modules[group[0]].recompute if len(group) == 1 else () for group in groups]
            merged = merged._replace(plan=with_recompute(merged.plan, kept))
            attempt = Fitted(merged, self.forecasts(merged, forecast.step))
            if attempt.forecast.peak <= self.limit:
                return attempt
        return None

    def _recorded(self, fitted: Fitted, before: MemoryForecast) -> Candidate:
        candidate, forecast = fitted
        record = Budgeted(
            size=self.limit,
            batch_size=self.budget.batch_size,
            optimizer=self.budget.optimizer,
            amp=self.budget.amp,
            step=forecast.step,
            before=before.peak,
            peak=forecast.peak,
            choices=tuple(self._choices(candidate, forecast)),
        )
        return candidate._replace(plan=dataclasses.replace(candidate.plan, budget=record))

    def _choices(self, candidate: Candidate, forecast: MemoryForecast) -> Iterator[str]:
        """Describe what was done, and its cost in multiply-accumulates of a whole step."""
        plan, asked = candidate.plan, self.first.plan
        whole = _step_macs(plan)
        for way, modules in _by_way(plan):
            if way and any(asked.modules[m.index].recompute != way for m in modules if m.index < len(asked.modules)):
                more = sum(_repeated(plan, module, way) for module in modules) / whole
                indices = format_numbered("module", [module.index for module in modules])
                cost = f"{100 * more:+.1f} % MACs" if more else "no MACs"
                yield f"recompute {' and '.join(way)} in {indices}: {cost}, same results"
        if forecast.step != self.budget.step:
            yield "step='module', by the training loop: no MACs, same results"
        if candidate.method != self.first.method:
            before = self.first.method.depth
            yield f"d={candidate.method.depth} instead of {before}: {_against(plan, asked)}, other results"
        if len(plan.modules) != len(asked.modules):
            yield (
                f"{len(plan.modules)} local modules instead of {len(asked.modules)}: {_against(plan, asked)}, "
                "other results"
            )

    def _impossible(self, leanest: Fitted) -> BudgetError:
        forecast, budget = leanest.forecast, self.budget
        over = format_bytes(forecast.peak - self.limit)
        where = f"module {forecast.binding.index} ({forecast.binding.name})" if forecast.binding else "the update"
        remedies = []
        batch = forecast.largest_batch(self.limit)
        if batch:
            remedies.append(f"a batch of at most {batch}")
        more: tuple[Means, ...] = ("recompute", "step")
        for means in (more[:1], more):
            if set(means) <= set(budget.may):
                continue
            other = self._tried(means, Fitted(self.first, forecast))
            if other.forecast.peak <= self.limit:
                allowed = ", ".join(map(repr, means))
                remedies.append(f"MemoryBudget(..., may=({allowed})), which takes {format_bytes(other.forecast.peak)}")
                break
        remedies.append(f"memory_budget={_size(forecast.peak)!r}")
        if "depth" not in budget.may and self.first.method.depth > 1:
            remedies.append(f"another depth than d={self.first.method.depth}")
        return BudgetError(
            f"a step of {budget.batch_size} samples takes {format_bytes(forecast.peak)} at the least, {over} more than "
            f"the memory budget of {format_bytes(self.limit)}",
            why=f"{where} binds: {forecast.at}",
            remedy=f"Give {'; or '.join(remedies)}",
        )


def _throughout(plan: Plan, ways: dict[int, tuple[Recompute, ...]]) -> dict[int, tuple[Recompute, ...]]:
    """Extend ways of recomputing to the earlier modules that cascaded losses run once more."""
    extended = dict(ways)
    for k, way in ways.items():
        cascade = plan.modules[k].cascade
        for j in cascade.reaches if cascade else ():
            extended[j] = _joined(extended.get(j, ()), way)
    return extended


def _together(plan: Plan, forecast: MemoryForecast, limit: int) -> list[list[int]]:
    """Group consecutive local modules whose kept bytes together stay below a limit.

    Modules that recompute stay alone: merging would spend what recomputing saved.
    """
    groups: list[list[int]] = []
    room = 0
    for module in reversed(forecast.modules):
        alone = plan.modules[module.index].recompute
        if groups and not alone and module.kept <= room:
            groups[0].insert(0, module.index)
            room -= module.kept
        else:
            groups.insert(0, [module.index])
            room = 0 if alone else limit - module.peak
    return groups


def _size(size: int) -> str:
    """Return a budget in words that a number of bytes keeps to."""
    return f"{math.ceil(size / 1e6)}MB"


def _joined(first: Sequence[Recompute], second: Sequence[Recompute]) -> tuple[Recompute, ...]:
    both = {*first, *second}
    if "blocks" in both:
        both.discard("norms")  # which are inside of blocks
    return tuple(part for part in get_args(Recompute) if part in both)


def _repeated(plan: Plan, module: LocalModulePlan, way: Sequence[Recompute]) -> int:
    """Count the multiply-accumulates that a way of recomputing repeats."""
    layers = sum(plan.layers[i].macs for i in module.layers) if "layers" in way else 0
    return layers + (sum(network.macs for network in module.networks) if "blocks" in way else 0)


def _step_macs(plan: Plan) -> int:
    """Count the multiply-accumulates of forward and backward passes."""
    return 3 * (plan.macs + plan.auxiliary_macs + plan.repeated_macs)


def _against(plan: Plan, other: Plan) -> str:
    return f"{100 * (_step_macs(plan) / _step_macs(other) - 1):+.1f} % MACs"


def _by_way(plan: Plan) -> list[tuple[tuple[Recompute, ...], list[LocalModulePlan]]]:
    ways = dict.fromkeys(module.recompute for module in plan.modules)
    return [(way, [module for module in plan.modules if module.recompute == way]) for way in ways]
