"""How ``local.export()`` reaches the room that writes exports, which stands further down the spine."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

import networkx as nx

from passes.errors import LocalizeError

ViewKind = Literal["primary", "local", "auxiliary", "full"]
"""What an export shows: the primary network alone; local modules, each with its loss; the auxiliary networks, with
local modules as single boxes; or all of it."""
VIEWS: tuple[ViewKind, ...] = get_args(ViewKind)

HOME = "localize.export"
"""The room is imported by name on the first export: the spine forbids to import it from here, and most runs export
nothing. It is the only module that is reached in this way (``tests/house/test_layering.py``)."""


class ExportError(LocalizeError):
    """A localized model cannot be exported as asked."""


class Exports(Protocol):
    """The functions of ``localize.export`` behind the methods of :class:`localize.LocalGraphModule`.

    Each takes the localized model before the arguments of the method of the same name.
    """

    export: Callable[..., Path]
    to_networkx: Callable[..., nx.MultiDiGraph[str]]
    add_graph: Callable[..., None]


def load_exports() -> Exports:
    """Import the room that writes exports."""
    return cast(Exports, importlib.import_module(HOME))
