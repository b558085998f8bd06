"""Cascades: a few consecutive local modules run a second time in one graph, for a loss that reaches all of them.

Zhang et al.: "MLAAN", AAAI 2025, section "Multilaminar Local Modules". The second run starts from the values that the
first run started from, and leaves no trace: a value that the modules change in place is handed in as a copy, and
running statistics are restored.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from localize.runtime.local_module import LocalModule
from passes.codegen.generate import returned
from passes.codegen.recompute import buffers_kept


def window_of(modules: Sequence[LocalModule], index: int) -> list[LocalModule]:
    """Return the modules that the cascaded loss of module ``index`` reaches, itself last; none without such a loss."""
    cascade = modules[index].plan.cascade
    return [modules[j] for j in (*cascade.reaches, index)] if cascade is not None else []


def last_reads(modules: Sequence[LocalModule]) -> dict[str, int]:
    """Return, for each value that local modules read, the index of the last module that reads it, cascades included."""
    last = {name: k for k, module in enumerate(modules) for name in module.inputs}
    for k in range(len(modules)):
        window = window_of(modules, k)
        for name in _outside(window):
            last[name] = max(last[name], k)
        # The last module of the window has not run before its cascade does: it has overwritten nothing yet.
        last.update((before(name, member), k) for member in window[:-1] for name in member.overwrites)
    return last


def keep_overwritten(module: LocalModule, values: MutableMapping[str, object], last_read: Mapping[str, int]) -> None:
    """Add to ``values`` copies of what a module is about to change in place, where a cascade will read it later.

    Args:
        module: The module, which has not run yet.
        values: Values by name.
        last_read: See :func:`last_reads`.
    """
    for name in module.overwrites:
        if before(name, module) in last_read:
            value = values[name]
            assert isinstance(value, torch.Tensor), f"{name} is changed in place and is not a tensor"
            values[before(name, module)] = value.detach().clone()


def run_attached(window: Sequence[LocalModule], values: Mapping[str, object]) -> tuple[Any, ...]:
    """Run the modules of a window in one autograd graph, which starts where the window does.

    Args:
        window: Consecutive modules. The last has not run yet in this step, and the others have.
        values: Values by name, without graph.

    Returns:
        The values that the cascaded loss is computed from, with their graph.
    """
    flowing = _entering(window, values)
    with buffers_kept(buffer for member in window for buffer in member.running_statistics()):
        for member in window:
            results = member.attached(*[flowing[name] for name in member.inputs])
            flowing.update(zip(member.outputs, returned(member.outputs, results), strict=True))
    last = window[-1]
    return tuple(flowing[name] for name in last.outputs[: last.reads])


def _outside(window: Sequence[LocalModule]) -> dict[str, int]:
    """Return what a window reads from earlier modules, with the position of the member that reads it first."""
    first_readers: dict[str, int] = {}
    produced: set[str] = set()
    for position, member in enumerate(window):
        for name in member.inputs:
            if name not in produced:
                first_readers.setdefault(name, position)
        produced.update(member.outputs)
    return first_readers


def entering(window: Sequence[LocalModule], held: Container[str]) -> dict[str, tuple[str, bool]]:
    """Return, for each value that a window starts from, the name that it is held under, and whether to copy it.

    A copy is needed where a member changes the value in place.

    Args:
        window: Consecutive modules.
        held: Names of the values that are held.
    """
    overwritten = {name for member in window for name in member.overwrites}
    sources = {}
    for name, position in _outside(window).items():
        # The oldest copy is the value that the first reader saw.
        kept = (before(name, member) for member in window[position:])
        sources[name] = (next((key for key in kept if key in held), name), name in overwritten)
    return sources


def _entering(window: Sequence[LocalModule], values: Mapping[str, object]) -> dict[str, object]:
    """Return the values that a window starts from, detached, and copied where a member changes them in place."""
    start = {}
    for name, (key, copied) in entering(window, values).items():
        value = values[key]
        if isinstance(value, torch.Tensor):
            value = value.detach().clone() if copied else value.detach()
        start[name] = value
    return start


def before(name: str, module: LocalModule) -> str:
    """Return the name for a value from before a module changed it. No name of a node contains ``@``."""
    return f"{name}@{module.plan.index}"
