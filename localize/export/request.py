"""The request for an export: a localized model, and the part of it that is to be shown."""

from __future__ import annotations

from dataclasses import dataclass

from localize.runtime.exporting import ViewKind
from localize.runtime.local_graph import LocalGraphModule


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The part of a localized model that an export shows."""

    kind: ViewKind = "full"
    """Name of the view; see :data:`localize.runtime.exporting.VIEWS`."""
    module: int | None = None
    """Index of the only local module to show; None for all."""
    fold: bool = False
    """Whether consecutive local modules that are alike are drawn once."""


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request for an export."""

    local: LocalGraphModule
    view: View
