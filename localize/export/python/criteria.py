"""The user's losses in a generated file: torch's own by name, all others handed in by whoever uses the file."""

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
    """How a generated class comes by its losses."""

    arguments: str
    """Arguments of ``__init__`` behind ``self``."""
    lines: tuple[str, ...]
    """Lines of ``__init__``."""
    call: str
    """What has to be handed in, for the header."""


def criteria_of(local: LocalGraphModule, support: SupportCode) -> WrittenCriteria:
    """Reads the losses off a localized model."""
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
    return WrittenCriteria(", " + ", ".join(arguments), tuple(lines), ", ".join(call))


def _function(criterion: Any, support: SupportCode) -> str | None:
    if criterion is cross_entropy:
        return "F.cross_entropy"
    if criterion is cross_entropy_of_last:
        return support.need(criterion)
    return None if isinstance(criterion, nn.Module) else function_name(criterion)
