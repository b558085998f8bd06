"""What is asked of an export: a localized model, and what of it is to be shown."""

from __future__ import annotations

from dataclasses import dataclass

from localize.runtime.exporting import ViewKind
from localize.runtime.local_graph import LocalGraphModule
from passes.errors import LocalizeError


class ExportError(LocalizeError):
    """A localized model cannot be exported as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is shown."""

    kind: ViewKind = "full"
    module: int | None = None
    """Index of the only local module to show; None for all."""
    fold: bool = False
    """Whether consecutive local modules that are alike are drawn once."""


@dataclass(frozen=True, slots=True)
class Request:
    """An export, checked."""

    local: LocalGraphModule
    view: View
