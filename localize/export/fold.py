"""Folding: consecutive local modules that are alike, as runs. Arithmetic on a plan; knows no picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from localize.plan import Auxiliary, LocalModulePlan, Plan

LONGEST_PERIOD = 12
"""Most modules in what is repeated: the local layers of a block that is cut inside."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive local modules: ``period`` of them, ``count`` times over."""

    first: int
    """Index of the first module."""
    period: int = 1
    count: int = 1

    @property
    def shown(self) -> range:
        """The modules that stand for all."""
        return range(self.first, self.first + self.period)

    @property
    def last(self) -> int:
        """Index of the last module."""
        return self.first + self.period * self.count - 1

    def like(self, index: int) -> list[int]:
        """The modules that a shown one stands for, itself the first."""
        return [index + self.period * i for i in range(self.count)]


def runs(plan: Plan, *, fold: bool = True) -> tuple[Run, ...]:
    """The local modules of a plan as runs, in order; without folding each by itself.

    Modules are alike where nothing but names differs, and weights of losses, and which layers it is that auxiliary
    networks copy: shapes, costs and kinds of blocks are the same. The last module, which holds the classifier, is like
    no other.
    """
    forms = [form(plan, module) for module in plan.modules]
    found: list[Run] = []
    start = 0
    while start < len(forms):
        run = _longest(forms, start) if fold else Run(start)
        found.append(run)
        start = run.last + 1
    return tuple(found)


def _longest(forms: Sequence[Any], start: int) -> Run:
    """The run from a module on that leaves the fewest modules to be drawn."""
    best = Run(start)
    for period in range(1, LONGEST_PERIOD + 1):
        pattern, count = forms[start : start + period], 1
        while forms[start + count * period : start + (count + 1) * period] == pattern and len(pattern) == period:
            count += 1
        run = Run(start, period, count)
        if count > 1 and _spared(run) > _spared(best):
            best = run
    return best


def _spared(run: Run) -> int:
    return run.period * (run.count - 1)


def form(plan: Plan, module: LocalModulePlan) -> tuple[Any, ...]:
    """What two local modules must have in common to be drawn as one."""
    layers = tuple(
        (layer.params, layer.macs, layer.activation_bytes, layer.input, layer.output, layer.width)
        for layer in (plan.layers[i] for i in module.layers)
    )
    cascade = module.cascade
    beyond = cascade and (tuple(module.index - j for j in cascade.reaches), _form(cascade.auxiliary))
    last = module.index == len(plan.modules) - 1
    return (layers, _form(module.auxiliary), beyond, module.recompute, last)


def _form(auxiliary: Auxiliary | None) -> tuple[Any, ...] | None:
    if auxiliary is None:
        return None
    blocks = tuple(
        (b.source is None, b.in_channels, b.out_channels, b.stride, b.projection, b.adapter, b.kind)
        for b in auxiliary.blocks
    )
    terms = tuple((term.name, term.network) for term in auxiliary.terms)
    return (auxiliary.params, auxiliary.macs, blocks, auxiliary.head, auxiliary.merged, terms, auxiliary.groups)
