"""A plan in words: the cells of its table, and what was done for a memory budget."""

from __future__ import annotations

from localize.plan.records import Auxiliary, AuxiliaryBlock, Budgeted, LocalModulePlan
from localize.text import format_bytes
from passes.ir import Layer

HEADER = (
    "module",
    "layers",
    "output",
    "params",
    "MACs",
    "act. bytes",
    "auxiliary network",
    "aux. params",
    "aux. MACs",
)
LEFT = (0, 1, 2, 6)
"""Columns of words."""


def budget_lines(budget: Budgeted | None) -> list[str]:
    """Return lines on the changes made for a memory budget; an empty list without budget."""
    if budget is None:
        return []
    now, before, size = (format_bytes(value) for value in (budget.peak, budget.before, budget.size))
    changed = f" ({before} without what follows)" if budget.choices else ""
    return [f"memory: {now} at batch {budget.batch_size}, within {size}{changed}", *(f"  {c}" for c in budget.choices)]


def crossing(layer: Layer) -> str:
    """Return the shape that leaves a layer, and how many further tensors do: ``64x32x32 (+2)``."""
    return f"{layer.output} (+{layer.width - 1})" if layer.width > 1 else str(layer.output)


def losses_of(module: LocalModulePlan) -> str:
    """Describe the losses of a module in a few words."""
    own = describe(module.auxiliary) if module.auxiliary else "(output loss)"
    if module.auxiliary and module.auxiliary.groups:
        own = f"{len(module.auxiliary.groups)} groups, each {own}"
    if module.recompute:
        own += f", recomputes {' and '.join(module.recompute)}"
    if module.cascade is None:
        return own
    cascade = module.cascade
    first = (*cascade.reaches, module.index)[0]
    beyond = describe(cascade.auxiliary) if cascade.auxiliary else "(output loss)"
    return f"{cascade.independent:g} * [{own}] + {cascade.cascaded:g} * [{beyond}] from module {first} on"


def describe(auxiliary: Auxiliary) -> str:
    """Describe an auxiliary network in a few words: ``d=3: 8/2 15 head``, with ``/2`` where a block downsamples.

    A number is the index of a copied layer; a plain block shows its output channels, as in ``conv3x3(32)/2``. ``~8`` is
    a copy that is pulled to its layer, ``8+~8`` a copy added to a pulled twin. ``+2`` in front: two more tensors of the
    cut are merged into the input. ``0.7 * `` in front is the weight of the criterion; further terms of the local loss
    follow with theirs.

    >>> describe(Auxiliary((8,), 2, 100, 100, (AuxiliaryBlock(8, 16, 32, 2, True, None),), "pool > linear(32, 10)"))
    'd=2: 8/2 head'
    """
    blocks = " ".join(_block(block) for block in auxiliary.blocks)
    merged = f"+{len(auxiliary.merged)} " if auxiliary.merged else ""
    weight = "" if auxiliary.weight == 1 else f"{auxiliary.weight:.3g} * "
    terms = "".join(f" + {term.weight:.3g} * {term.name}" for term in auxiliary.terms)
    return f"{weight}d={auxiliary.depth}: {merged}{blocks} head{terms}".replace("  ", " ")


def _block(block: AuxiliaryBlock) -> str:
    """Describe a hidden layer in a few words."""
    source, halving = block.source, f"/{block.stride}" if block.stride > 1 else ""
    names = {"leap": f"~{source}", "twin": f"{source}+~{source}"}
    name = f"{block.kind}({block.out_channels})" if source is None else names.get(block.kind, f"{source}")
    return f"{name}{halving}{'+adapter' if block.adapter else ''}"
