"""Cascades: a few consecutive local modules run once more in one graph, for a loss that reaches all of them.

Zhang et al.: "MLAAN", AAAI 2025, section "Multilaminar Local Modules". What the modules read from before the first of
them is as it was when they ran first, and nothing is as it should not be afterwards: a value that they change in place
is handed in as a copy, and running statistics are put back.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch

from localize.runtime.local_module import LocalModule
from passes.codegen.buffers import buffers_kept
from passes.codegen.generate import returned


def window_of(modules: Sequence[LocalModule], index: int) -> list[LocalModule]:
    """The modules that the cascaded loss of module ``index`` reaches, itself the last; none if it has no such loss."""
    cascade = modules[index].plan.cascade
    return [modules[j] for j in (*cascade.reaches, index)] if cascade is not None else []


def last_reads(modules: Sequence[LocalModule]) -> dict[str, int]:
    """For each value that local modules read, the index of the last one that does; cascades read again."""
    found = {name: k for k, module in enumerate(modules) for name in module.inputs}
    for k in range(len(modules)):
        window = window_of(modules, k)
        for name in _outside(window):
            found[name] = max(found[name], k)
        # The last of the window runs first in the cascade, so that it finds its inputs as they are.
        found.update((before(name, member), k) for member in window[:-1] for name in member.overwrites)
    return found


def keep_overwritten(module: LocalModule, values: dict[str, Any], last_read: Mapping[str, int]) -> None:
    """Before a module runs: copies of what it is about to change in place, where a cascade will read that."""
    for name in module.overwrites:
        if before(name, module) in last_read:
            values[before(name, module)] = values[name].detach().clone()


def run_attached(window: Sequence[LocalModule], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Runs the modules of a window in one graph, which starts where the window does.

    Args:
        window: Consecutive modules, of which the last has not run yet, and the others have.
        values: What is known by name, without graph.

    Returns:
        What the cascaded loss is computed from.
    """
    flowing = _entering(window, values)
    with buffers_kept(buffer for member in window for buffer in member.running_statistics()):
        for member in window:
            results = member.attached(*[flowing[name] for name in member.inputs])
            flowing.update(zip(member.outputs, returned(member.outputs, results), strict=True))
    last = window[-1]
    return tuple(flowing[name] for name in last.outputs[: last.reads])


def _outside(window: Sequence[LocalModule]) -> dict[str, int]:
    """What a window reads from before it, and the position in it of the module that reads it first."""
    found: dict[str, int] = {}
    produced: set[str] = set()
    for position, member in enumerate(window):
        for name in member.inputs:
            if name not in produced:
                found.setdefault(name, position)
        produced.update(member.outputs)
    return found


def entering(window: Sequence[LocalModule], held: Container[str]) -> dict[str, tuple[str, bool]]:
    """For each value that a window starts from: the name under which it is found, and whether it needs a copy of it.

    Args:
        window: Consecutive modules.
        held: Names of the values there are.
    """
    overwritten = {name for member in window for name in member.overwrites}
    found = {}
    for name, position in _outside(window).items():
        kept = (before(name, member) for member in window[position:])
        found[name] = (next((key for key in kept if key in held), name), name in overwritten)
    return found


def _entering(window: Sequence[LocalModule], values: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, (key, copied) in entering(window, values).items():
        value = values[key]
        if isinstance(value, torch.Tensor):
            value = value.detach().clone() if copied else value.detach()
        found[name] = value
    return found


def before(name: str, module: LocalModule) -> str:
    """Name of a value as it was before a module changed it. No node's name has such a character."""
    return f"{name}@{module.plan.index}"
