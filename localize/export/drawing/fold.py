"""Folding: consecutive local modules, or layers, that are alike, as runs. Arithmetic on a plan; knows no picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from localize.plan.plan import Auxiliary, LocalModulePlan, Plan
from passes.ir import Layer

LONGEST_PERIOD = 12
"""Most modules in what is repeated: the local layers of a block that is cut inside."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """Consecutive items, local modules or layers: ``period`` of them, ``count`` times over."""

    first: int
    """Index of the first one."""
    period: int = 1
    count: int = 1

    @property
    def shown(self) -> range:
        """The items that stand for all."""
        return range(self.first, self.first + self.period)

    @property
    def last(self) -> int:
        """Index of the last one."""
        return self.first + self.period * self.count - 1

    def like(self, index: int) -> list[int]:
        """The items that a shown one stands for, itself the first."""
        return [index + self.period * i for i in range(self.count)]


def runs(plan: Plan, *, fold: bool = True) -> tuple[Repeat, ...]:
    """The local modules of a plan as runs, in order; without folding each by itself.

    Modules are alike where nothing but names differs, and weights of losses, and which layers it is that auxiliary
    networks copy: shapes, costs and kinds of blocks are the same. The last module, which holds the classifier, is like
    no other.
    """
    return repeats([form(plan, module) for module in plan.modules], fold=fold)


def layer_runs(layers: Sequence[Layer], *, fold: bool = True) -> tuple[Repeat, ...]:
    """The layers of one local module as runs, by their position in it."""
    return repeats([_layer_form(layer) for layer in layers], fold=fold)


def repeats(forms: Sequence[Any], *, fold: bool = True) -> tuple[Repeat, ...]:
    """Consecutive equal items, and sequences of them that come several times over, as runs."""
    found: list[Repeat] = []
    start = 0
    while start < len(forms):
        run = _longest(forms, start) if fold else Repeat(start)
        found.append(run)
        start = run.last + 1
    return tuple(found)


def _longest(forms: Sequence[Any], start: int) -> Repeat:
    """The run from an item on that leaves the fewest to be drawn."""
    best = Repeat(start)
    for period in range(1, LONGEST_PERIOD + 1):
        pattern, count = forms[start : start + period], 1
        while len(pattern) == period and forms[start + count * period : start + (count + 1) * period] == pattern:
            count += 1
        run = Repeat(start, period, count)
        if _spared(run) > _spared(best):
            best = run
    return best


def _spared(run: Repeat) -> int:
    return run.period * (run.count - 1)


def form(plan: Plan, module: LocalModulePlan) -> tuple[Any, ...]:
    """What two local modules must have in common to be drawn as one."""
    layers = tuple(_layer_form(plan.layers[i]) for i in module.layers)
    cascade = module.cascade
    beyond = cascade and (tuple(module.index - j for j in cascade.reaches), _form(cascade.auxiliary))
    last = module.index == len(plan.modules) - 1
    return (layers, _form(module.auxiliary), beyond, module.recompute, last)


def _layer_form(layer: Layer) -> tuple[Any, ...]:
    return (layer.params, layer.macs, layer.activation_bytes, layer.input, layer.output, layer.width)


def _form(auxiliary: Auxiliary | None) -> tuple[Any, ...] | None:
    if auxiliary is None:
        return None
    blocks = tuple(
        (b.source is None, b.in_channels, b.out_channels, b.stride, b.projection, b.adapter, b.kind)
        for b in auxiliary.blocks
    )
    terms = tuple((term.name, term.network) for term in auxiliary.terms)
    return (auxiliary.params, auxiliary.macs, blocks, auxiliary.head, auxiliary.merged, terms, auxiliary.groups)
