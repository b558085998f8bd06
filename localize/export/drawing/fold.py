"""Fold consecutive local modules or layers that are alike into repeats. Works on a plan; draws nothing.

Alike modules of AugLocal copy different layers of the same shape, so folding does not compare which layer is copied:
ResNet-110 at d=6 then folds from 50 modules to 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localize.plan.plan import Auxiliary, LocalModulePlan, Plan
from passes.ir import Layer

LONGEST_PERIOD = 12
"""Most modules in one period of a repeat: as many as the local layers of a block that is cut inside."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """Consecutive local modules or layers: a sequence of ``period`` items that comes ``count`` times in a row."""

    first: int
    """Index of the first item."""
    period: int = 1
    """Number of items in the sequence that is repeated."""
    count: int = 1
    """Number of times that the sequence comes."""

    @property
    def shown(self) -> range:
        """Indices of the items that are drawn, and stand for the others."""
        return range(self.first, self.first + self.period)

    @property
    def last(self) -> int:
        """Index of the last item."""
        return self.first + self.period * self.count - 1

    def like(self, index: int) -> list[int]:
        """Return the indices of the items that a drawn one stands for, itself the first.

        >>> Repeat(first=1, period=2, count=3).like(2)
        [2, 4, 6]
        """
        return [index + self.period * i for i in range(self.count)]


def runs(plan: Plan, *, fold: bool = True) -> tuple[Repeat, ...]:
    """Group the local modules of a plan into repeats, in order; without ``fold`` each module is a repeat of its own.

    Modules are alike if their shapes, costs and kinds of blocks are the same. Names, weights of losses, and the layers
    that auxiliary networks copy may differ. The last module holds the classifier, and is alike to no other.
    """
    return repeats([form(plan, module) for module in plan.modules], fold=fold)


def layer_runs(layers: Sequence[Layer], *, fold: bool = True) -> tuple[Repeat, ...]:
    """Group the layers of one local module into repeats, by their positions in the module."""
    return repeats([_layer_form(layer) for layer in layers], fold=fold)


def repeats(forms: Sequence[object], *, fold: bool = True) -> tuple[Repeat, ...]:
    """Group equal consecutive items, and sequences that come several times in a row, into repeats.

    >>> [(each.first, each.period, each.count) for each in repeats("abab" + "c")]
    [(0, 2, 2), (4, 1, 1)]
    """
    grouped: list[Repeat] = []
    start = 0
    while start < len(forms):
        run = _longest(forms, start) if fold else Repeat(start)
        grouped.append(run)
        start = run.last + 1
    return tuple(grouped)


def _longest(forms: Sequence[object], start: int) -> Repeat:
    """Return the repeat that starts at an item and leaves the fewest items to draw."""
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


def form(plan: Plan, module: LocalModulePlan) -> tuple[object, ...]:
    """Return what two local modules must have in common to be drawn as one."""
    layers = tuple(_layer_form(plan.layers[i]) for i in module.layers)
    cascade = module.cascade
    beyond = cascade and (tuple(module.index - j for j in cascade.reaches), _form(cascade.auxiliary))
    last = module.index == len(plan.modules) - 1
    return (layers, _form(module.auxiliary), beyond, module.recompute, last)


def _layer_form(layer: Layer) -> tuple[object, ...]:
    return (layer.params, layer.macs, layer.activation_bytes, layer.input, layer.output, layer.width)


def _form(auxiliary: Auxiliary | None) -> tuple[object, ...] | None:
    if auxiliary is None:
        return None
    blocks = tuple(
        (b.source is None, b.in_channels, b.out_channels, b.stride, b.projection, b.adapter, b.kind)
        for b in auxiliary.blocks
    )
    terms = tuple((term.name, term.network) for term in auxiliary.terms)
    return (auxiliary.params, auxiliary.macs, blocks, auxiliary.head, auxiliary.merged, terms, auxiliary.groups)
