"""Write the losses of a localized model: those of torch by name; others are arguments of the generated class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from localize.export.python.classes import plain
from localize.export.python.functions import function_name
from localize.export.python.layers import layer_text
from localize.export.python.support_code import SupportCode
from localize.methods.networks.losses import cross_entropy, cross_entropy_of_last
from localize.runtime.local_graph import LocalGraphModule


@dataclass(frozen=True, slots=True)
class WrittenCriteria:
    """Code by which a generated class gets its losses."""

    arguments: str
    """Arguments of ``__init__`` after ``self``."""
    lines: tuple[str, ...]
    """Lines of ``__init__`` that store the losses."""
    call: str
    """Arguments that a user must pass, for the header of the file."""


def criteria_of(local: LocalGraphModule, support: SupportCode) -> WrittenCriteria:
    """Write the losses of a localized model."""
    arguments, lines, call = ["*"], [], []
    for name in ("criterion", "output_criterion"):
        criterion: Any = getattr(local, name)
        if criterion is None:
            continue
        made = layer_text(criterion) if isinstance(criterion, nn.Module) else None
        known = _function(criterion, support)
        if made is not None:
            arguments.append(f"{name}=None")
            lines.append(f"self.{name} = {plain(made)} if {name} is None else {name}")
        else:
            arguments.append(name if known is None else f"{name}={known}")
            lines.append(f"self.{name} = {name}")
            call += [] if known is not None else [f"{name}=..."]
    return WrittenCriteria(arguments=", " + ", ".join(arguments), lines=tuple(lines), call=", ".join(call))


def _function(criterion: Any, support: SupportCode) -> str | None:
    if criterion is cross_entropy:
        return "F.cross_entropy"
    if criterion is cross_entropy_of_last:
        return support.need(criterion)
    return None if isinstance(criterion, nn.Module) else function_name(criterion)
